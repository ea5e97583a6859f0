//! V8's source position tables, and lines.
//!
//! A table is pairs of numbers, each the difference to the one before: the offset of an instruction, and a position in the
//! source. They are written with seven bits in a byte, least significant first, the sign in the lowest bit (V8's
//! source-position-table.cc).

/// A position in a program's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Character in the script, if it is known.
    pub character: Option<u32>,
    /// Which of the places of inlining it belongs to; none for the function that was compiled.
    pub inlining: Option<u32>,
}

impl Position {
    /// Takes apart how V8 keeps a position in one word (source-position.h): a bit that says whether it is one in the
    /// source, 30 bits of position plus one, 16 bits of inlining id plus one.
    pub fn decode(word: u64) -> Position {
        let external = word & 1 != 0;
        let character = (word >> 1) as u32 & ((1 << 30) - 1);
        let inlining = (word >> 31) as u32 & 0xffff;
        Position {
            character: if external { None } else { character.checked_sub(1) },
            inlining: if inlining == 0xffff { None } else { inlining.checked_sub(1) },
        }
    }
}

/// Entries of a table: offset of an instruction and the position of what it does. Ends where it makes no sense.
pub fn entries(table: &[u8]) -> impl Iterator<Item = (i64, Position)> {
    let mut bytes = table.iter().copied();
    let (mut offset, mut word) = (-1i64, 0i64);
    std::iter::from_fn(move || {
        let delta = number(&mut bytes)?;
        // Negative ones, minus one, are those of entries that are no statement.
        offset = offset.checked_add(if delta >= 0 { delta } else { !delta })?;
        word = word.checked_add(number(&mut bytes)?)?;
        Some((offset, Position::decode(word as u64)))
    })
}

/// The position in force at an instruction: that of the last entry at or before it.
pub fn at(table: &[u8], offset: i64) -> Option<Position> {
    entries(table).take_while(|(start, _)| *start <= offset).last().map(|(_, position)| position)
}

fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Where the lines of a text end, as V8 counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    ends: Vec<u32>,
}

impl Lines {
    /// Finds the ends of lines in a text of UTF-16 units.
    pub fn of(text: &[u16]) -> Lines {
        let is_end = |(i, unit): (usize, &u16)| match *unit {
            0x0a | 0x2028 | 0x2029 => true,
            0x0d => text.get(i + 1) != Some(&0x0a),
            _ => false,
        };
        let ends = text.iter().enumerate().filter(|&(i, unit)| is_end((i, unit)));
        Lines { ends: ends.map(|(i, _)| i as u32).collect() }
    }

    /// Line and column of a character, both counted from one.
    pub fn at(&self, character: u32) -> (u32, u32) {
        let before = self.ends.partition_point(|end| *end < character);
        let begin = before.checked_sub(1).map_or(0, |last| self.ends[last] + 1);
        (before as u32 + 1, character - begin + 1)
    }

    /// How many lines there are.
    pub fn count(&self) -> usize {
        self.ends.len() + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(values: &[i64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in values {
            let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
            while zigzag >= 0x80 {
                bytes.push(zigzag as u8 | 0x80);
                zigzag >>= 7;
            }
            bytes.push(zigzag as u8);
        }
        bytes
    }

    fn word(character: u32, inlining: Option<u32>) -> i64 {
        i64::from(character + 1) << 1 | i64::from(inlining.map_or(0, |id| id + 1)) << 31
    }

    #[test]
    fn the_entry_before_an_instruction_counts() {
        let (first, second) = (word(100, None), word(40, Some(2)));
        // At 0, and 9 further (no statement: the complement).
        let table = encode(&[1, first, !9, second - first]);
        let position = |offset| at(&table, offset);
        assert_eq!(position(-1), None);
        assert_eq!(position(0), Some(Position { character: Some(100), inlining: None }));
        assert_eq!(position(8), position(0));
        assert_eq!(position(9), Some(Position { character: Some(40), inlining: Some(2) }));
    }

    #[test]
    fn lines_are_counted_as_v8_counts_them() {
        let text: Vec<u16> = "a\nb\r\nc\rd\u{2028}e".encode_utf16().collect();
        let lines = Lines::of(&text);
        let at = |needle: char| lines.at(text.iter().position(|unit| *unit == needle as u16).unwrap() as u32);
        assert_eq!(['a', 'b', 'c', 'd', 'e'].map(at), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
        assert_eq!((lines.count(), lines.at(2), lines.at(1)), (5, (2, 1), (1, 2)));
    }

    proptest! {
        #[test]
        fn any_table_is_survived(table: Vec<u8>, offset: i64) {
            at(&table, offset);
            prop_assert!(entries(&table).count() <= table.len());
        }

        #[test]
        fn numbers_come_back(values in prop::collection::vec(-(1i64 << 60)..1 << 60, 0..20)) {
            let bytes = encode(&values);
            let mut rest = bytes.iter().copied();
            for value in values {
                prop_assert_eq!(number(&mut rest), Some(value));
            }
        }
    }
}
