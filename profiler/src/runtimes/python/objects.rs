//! Objects in the interpreter's memory: strings, bytes and code. None is believed to be what a pointer says it is.

use crate::runtimes::{memory::ForeignMemory, python::layout::Layout};

/// Characters of a name or path that are read at most.
const LONGEST_TEXT: u64 = 4096;

/// Bytes of a table of lines that are read at most.
const LONGEST_TABLE: u64 = 1 << 20;

/// Words of a code object that are read, without its reference count: from its type on, up to all that is of interest.
pub const CODE_WORDS: usize = 17;

/// Where an object's type is.
const TYPE: u64 = 8;
/// Where the length is in strings and bytes.
const LENGTH: u64 = 16;
/// Where a string says what its characters are like.
const STATE: u64 = 32;
/// Where the content of a bytes object begins.
const BYTES: u64 = 32;

/// Types, as addresses in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// Of code objects.
    pub code: u64,
    /// Of strings.
    pub text: u64,
}

/// What is read of a code object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Qualified name, up to 3.10 the name only.
    pub name: String,
    /// Path of its source file.
    pub file: String,
    /// Line it begins in.
    pub first_line: i32,
    /// Its table of lines.
    pub lines: Vec<u8>,
}

/// An interpreter's objects.
pub struct Objects<'a, M> {
    /// The process's memory.
    pub memory: &'a M,
    /// Where things are in them.
    pub layout: &'a Layout,
    /// Their types.
    pub types: Types,
}

impl<M: ForeignMemory> Objects<'_, M> {
    /// What tells a code object from another at its place, if it is one at all.
    pub fn code_words(&self, code: u64) -> Option<[u64; CODE_WORDS]> {
        let mut words: [u64; CODE_WORDS] = self.memory.words(code.checked_add(TYPE)?)?;
        // What comes after the table of lines changes while the code lives on.
        let end = (self.layout.lines - TYPE) as usize / 8 + 1;
        words.iter_mut().skip(end).for_each(|word| *word = 0);
        (words[0] == self.types.code).then_some(words)
    }

    /// What a code object with these words is called, and where its lines are.
    pub fn code(&self, words: &[u64; CODE_WORDS]) -> Option<Code> {
        let word = |offset: u64| words.get(usize::try_from(offset.checked_sub(TYPE)? / 8).ok()?).copied();
        let layout = self.layout;
        let first_line = (word(layout.first_line)? >> (8 * (layout.first_line % 8))) as i32;
        Some(Code {
            name: self.text(word(layout.name)?)?,
            file: self.text(word(layout.file)?)?,
            first_line,
            lines: self.bytes(word(layout.lines)?).unwrap_or_default(),
        })
    }

    /// A string's text.
    pub fn text(&self, string: u64) -> Option<String> {
        let memory = self.memory;
        let head: [u64; 4] = memory.words(string.checked_add(TYPE)?)?;
        let (length, state) = (head[(LENGTH - TYPE) as usize / 8], head[(STATE - TYPE) as usize / 8] as u32);
        if head[0] != self.types.text || length > LONGEST_TEXT {
            return None;
        }
        // After two bits that say how it is interned, or sixteen (later 3.14): the width, which is never zero.
        let state = if state & 0xfffc == 0 { state >> 16 } else { state >> 2 };
        let (width, compact, ascii) = (u64::from(state & 7), state >> 3 & 1 != 0, state >> 4 & 1 != 0);
        if !compact {
            return None;
        }
        let start = string.checked_add(if ascii { self.layout.ascii } else { self.layout.wide })?;
        let bytes = memory.bytes(start, (length * width) as usize)?;
        Some(match width {
            1 => bytes.iter().map(|byte| char::from(*byte)).collect(),
            2 => {
                let units = bytes.as_chunks().0.iter().map(|unit| u16::from_ne_bytes(*unit));
                char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
            4 => {
                let points = bytes.as_chunks().0.iter().map(|point| u32::from_ne_bytes(*point));
                points.map(|point| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
            _ => return None,
        })
    }

    /// The content of a bytes object.
    fn bytes(&self, object: u64) -> Option<Vec<u8>> {
        let length =
            self.memory.u64(object.checked_add(LENGTH)?).filter(|length| *length <= LONGEST_TABLE)?;
        self.memory.bytes(object.checked_add(BYTES)?, length as usize)
    }
}
