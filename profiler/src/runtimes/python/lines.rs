//! Lines of bytecode. Three formats: pairs of bytes up to 3.9 (`co_lnotab`), other pairs in 3.10 (`co_linetable`, PEP 626),
//! entries of varying length from 3.11 on (the location table, of which only lines are read).

/// Format of a table of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineTable {
    /// Up to 3.9: where a line begins, as differences of offset and line.
    Pairs,
    /// 3.10: how long a range is, and the difference of its line to that of the one before.
    Ranges,
    /// From 3.11 on.
    Locations,
}

/// Line difference that says "no line" in 3.10.
const NO_LINE: i8 = -128;

impl LineTable {
    /// The line of the instruction at `offset` (bytes) in code that begins in line `first`; `None` for instructions of no
    /// line.
    pub fn line(self, table: &[u8], first: i32, offset: u32) -> Option<u32> {
        let line = match self {
            LineTable::Pairs => Some(pairs(table, first, offset)),
            LineTable::Ranges => ranges(table, first, offset),
            LineTable::Locations => locations(table, first, offset),
        };
        line.and_then(|line| u32::try_from(line).ok()).filter(|line| *line > 0)
    }
}

fn pairs(table: &[u8], first: i32, offset: u32) -> i32 {
    let (mut line, mut at) = (first, 0u32);
    for &[length, delta] in table.as_chunks().0 {
        at = at.saturating_add(length.into());
        if at > offset {
            break;
        }
        line = line.saturating_add((delta as i8).into());
    }
    line
}

fn ranges(table: &[u8], first: i32, offset: u32) -> Option<i32> {
    let (mut line, mut at) = (first, 0u32);
    for &[length, delta] in table.as_chunks().0 {
        let delta = delta as i8;
        if delta != NO_LINE {
            line = line.saturating_add(delta.into());
        }
        at = at.saturating_add(length.into());
        if at > offset {
            return (delta != NO_LINE).then_some(line);
        }
    }
    None
}

fn locations(table: &[u8], first: i32, offset: u32) -> Option<i32> {
    let mut bytes = table.iter().copied();
    let (mut line, mut at) = (first, 0u32);
    while let Some(head) = bytes.next() {
        let (kind, units) = (head >> 3 & 15, u32::from(head & 7) + 1);
        // Of columns there is nothing to be kept.
        let (delta, column_bytes) = match kind {
            0..=9 => (0, 1),
            10..=12 => (i32::from(kind) - 10, 2),
            13 => (signed(&mut bytes)?, 0),
            14 => {
                let delta = signed(&mut bytes)?;
                for _ in ["last line", "column", "last column"] {
                    unsigned(&mut bytes)?;
                }
                (delta, 0)
            }
            _ => (0, 0),
        };
        for _ in 0..column_bytes {
            bytes.next()?;
        }
        line = line.saturating_add(delta);
        at = at.saturating_add(2 * units);
        if at > offset {
            return (kind != 15).then_some(line);
        }
    }
    None
}

/// Six bits in a byte, the least significant first.
fn unsigned(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..32).step_by(6) {
        let byte = bytes.next()?;
        value |= u32::from(byte & 63) << shift;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
    None
}

/// The same with the sign in the lowest bit.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i32> {
    let value = unsigned(bytes)?;
    let magnitude = (value >> 1) as i32;
    Some(if value & 1 == 0 { magnitude } else { -magnitude })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_say_where_lines_begin() {
        // Lines 10, 11 from 8 on, 5 from 12 on.
        let line = |offset| LineTable::Pairs.line(&[8, 1, 4, 0xfa], 10, offset);
        assert_eq!([0, 7, 8, 11, 12, 90].map(line), [10, 10, 11, 11, 5, 5].map(Some));
    }

    #[test]
    fn ranges_may_have_no_line() {
        let table = [8, 1, 4, 0x80, 6, 0xff];
        let line = |offset| LineTable::Ranges.line(&table, 10, offset);
        assert_eq!([0, 6, 8, 12, 17, 18].map(line), [Some(11), Some(11), None, Some(10), Some(10), None]);
    }

    #[test]
    fn locations_of_each_kind() {
        let entry = |kind: u8, units: u8| 0x80 | kind << 3 | (units - 1);
        let table = [
            &[entry(3, 2), 0x45][..],
            &[entry(12, 1), 4, 9],
            &[entry(13, 1), 0b0000_0111],          // -3
            &[entry(14, 8), 0x40 | 2, 2, 5, 1, 1], // +65
            &[entry(15, 1)],
            &[entry(10, 1), 0, 1],
        ];
        let table = table.concat();
        let line = |offset| LineTable::Locations.line(&table, 10, offset);
        assert_eq!(
            [0, 3, 4, 6, 8, 23, 24, 26, 28].map(line),
            [Some(10), Some(10), Some(12), Some(9), Some(74), Some(74), None, Some(74), None]
        );
    }

    proptest! {
        #[test]
        fn any_table_is_survived(table: Vec<u8>, first: i32, offset: u32) {
            for kind in [LineTable::Pairs, LineTable::Ranges, LineTable::Locations] {
                kind.line(&table, first, offset);
            }
        }
    }
}
