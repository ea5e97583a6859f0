//! A method of Java: its name, its file, its lines. It lies in memory that the collector does not move.

use crate::{
    model::function::Function,
    runtimes::{
        hotspot::{layout::Layout, packing::Packing},
        memory::ForeignMemory,
    },
};

/// Characters of a name.
const LONGEST: u16 = 1024;
/// Bytes that are read of a table of lines: some two thousand lines. What comes after is told by the last of them.
const PAGE: usize = 4096;
/// Bit of a method's flags: it has a table of lines.
const HAS_LINES: u16 = 1;
/// Byte of the table of lines before two numbers that do not fit in a byte.
const ESCAPE: u8 = 0xff;

/// What is known of a method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Method {
    name: String,
    file: Option<String>,
    /// Address of its bytecode.
    code: u64,
    /// Position in the bytecode, and the line from there on.
    lines: Vec<(i32, i32)>,
}

impl Method {
    /// Reads the method that this is constant of.
    pub fn read<M: ForeignMemory>(memory: &M, layout: &Layout, constant: u64) -> Option<Method> {
        let constants = memory.u64(constant.wrapping_add(layout.constants))?;
        let class = memory.u64(constants.wrapping_add(layout.holder))?;
        let class = symbol(memory, layout, memory.u64(class.wrapping_add(layout.class_name))?)?;
        let of = |index: u16| {
            let slot = constants.wrapping_add(layout.constants_size).wrapping_add(8 * u64::from(index));
            symbol(memory, layout, memory.u64(slot)?)
        };
        let name = of(memory.u16(constant.wrapping_add(layout.name_index))?)?;
        let file = memory.u16(constants.wrapping_add(layout.source_file)).filter(|index| *index != 0);
        // The file's name is told without its folder, which is the package's.
        let file = file.and_then(of).map(|file| match class.rsplit_once('/') {
            Some((package, _)) => format!("{package}/{file}"),
            None => file,
        });
        let code = constant.wrapping_add(layout.constant_size);
        let has_lines =
            memory.u16(constant.wrapping_add(layout.flags)).is_some_and(|flags| flags & HAS_LINES != 0);
        let size = memory.u16(constant.wrapping_add(layout.code_size)).unwrap_or(0);
        let lines = if has_lines {
            lines(&read_on(memory, code.wrapping_add(size.into())), layout.packing)
        } else {
            Vec::new()
        };
        Some(Method { name: format!("{}.{name}", class.replace('/', ".")), file, code, lines })
    }

    /// The function when it is at a position in its bytecode; negative if that is not known.
    pub fn at(&self, position: i32) -> Function {
        let after = self.lines.partition_point(|(from, _)| *from <= position);
        let line = after.checked_sub(1).and_then(|index| u32::try_from(self.lines[index].1).ok());
        Function { name: self.name.clone(), file: self.file.clone(), line, ..Function::default() }
    }

    /// The position in the bytecode of an address; negative if it is none of it.
    pub fn position(&self, address: u64) -> i32 {
        let position = address.checked_sub(self.code).and_then(|position| i32::try_from(position).ok());
        position.unwrap_or(-1)
    }
}

/// Bytes from an address on: a page, or what is left of the one it is in.
fn read_on<M: ForeignMemory>(memory: &M, from: u64) -> Vec<u8> {
    let left = PAGE - (from % PAGE as u64) as usize;
    [PAGE, left].iter().find_map(|&len| memory.bytes(from, len)).unwrap_or_default()
}

/// A table of lines: bytes with 5 bits of position and 3 of lines to go on, or two numbers behind an escape; zero ends it.
fn lines(bytes: &[u8], packing: Packing) -> Vec<(i32, i32)> {
    let (mut rest, mut lines) = (bytes, Vec::new());
    let (mut position, mut line) = (0i32, 0i32);
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let (positions, more) = match first {
            0 => break,
            ESCAPE => match (packing.signed(&mut rest), packing.signed(&mut rest)) {
                (Some(positions), Some(more)) => (positions, more),
                _ => break,
            },
            packed => (i32::from(packed >> 3), i32::from(packed & 7)),
        };
        position = position.wrapping_add(positions);
        line = line.wrapping_add(more);
        lines.push((position, line));
    }
    lines.sort_by_key(|(position, _)| *position);
    lines
}

fn symbol<M: ForeignMemory>(memory: &M, layout: &Layout, symbol: u64) -> Option<String> {
    let length = memory.u16(symbol.wrapping_add(layout.symbol_length))?;
    let known = (1..=LONGEST).contains(&length) && symbol != 0;
    let text = symbol.wrapping_add(layout.symbol_text);
    let bytes = memory.bytes(text, length.into()).filter(|_| known)?;
    Some(crate::text::clean(&bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn method(lines: Vec<(i32, i32)>) -> Method {
        Method { name: "shop.Orders.total".to_owned(), file: None, code: 0x1000, lines }
    }

    #[test]
    fn a_position_has_its_line() {
        let packing = Packing::ALL[0];
        // Line 40 from 0 on (by the escape), 41 from 5 on, 39 from 9 on (back, by the escape).
        let table = lines(&[ESCAPE, 0, 80, 5 << 3 | 1, ESCAPE, 8, 3, 0, 1 << 3 | 7], packing);
        assert_eq!(table, [(0, 40), (5, 41), (9, 39)]);
        let method = method(table);
        let line = |address: u64| method.at(method.position(address)).line;
        assert_eq!([0x1000, 0x1004, 0x1005, 0x1fff].map(line), [40, 40, 41, 39].map(Some));
        assert_eq!(line(0xfff), None);
    }

    proptest! {
        #[test]
        fn any_table_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64), which in 0usize..2, at: i32) {
            method(lines(&bytes, Packing::ALL[which])).at(at);
        }
    }
}
