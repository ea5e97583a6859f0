//! Objects of V8's heap, read from outside while the program runs on: maps, strings, scripts, scopes.

use crate::runtimes::{
    memory::ForeignMemory,
    v8::{
        metadata::{HEAP_TAG, Layout},
        positions::Lines,
        source_map,
    },
};

/// UTF-16 units of a script that are read to count its lines: larger ones have no lines.
const LARGEST_SCRIPT: usize = 16 * 1024 * 1024;

/// UTF-16 units of a name.
const LONGEST_NAME: usize = 512;

/// Parts of a string that are put together, and how deep they are nested.
const STRING_PARTS: u32 = 65_536;

/// Where fields of strings are: string.tq, the same in all versions.
mod string {
    pub const LENGTH: u64 = 12;
    pub const CHARACTERS: u64 = 16;
    /// The first of two parts, the second behind it; the parent, its offset behind it; the string that replaces it.
    pub const FIRST: u64 = 16;
    pub const EXTERNAL_DATA: u64 = 24;
    /// Bits of the instance type.
    pub const NOT_STRING: u16 = 0xff80;
    pub const REPRESENTATION: u16 = 7;
    pub const ONE_BYTE: u16 = 8;
    pub const UNCACHED: u16 = 16;
    pub const SEQUENTIAL: u16 = 0;
    pub const CONS: u16 = 1;
    pub const EXTERNAL: u16 = 2;
    pub const SLICED: u16 = 3;
    pub const THIN: u16 = 5;
}

/// The value of a small integer.
pub fn small_integer(word: u64) -> Option<i32> {
    (word & 0xffff_ffff == 0).then_some((word >> 32) as i32)
}

/// Whether a word can be a pointer to an object.
pub fn is_pointer(word: u64) -> bool {
    word & 3 == HEAP_TAG && word < 1 << 47 && word > 4096
}

/// Whether objects of an instance type are strings.
pub fn is_string(kind: u16) -> bool {
    kind & string::NOT_STRING == 0
}

/// A script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Path or name of the script.
    pub name: String,
    /// Where its lines end; none where its text cannot be read.
    pub lines: Option<Lines>,
    /// What its text says about its source map.
    pub map_url: Option<String>,
}

/// What a SharedFunctionInfo says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// Name of the function, as far as it has one.
    pub name: Option<String>,
    /// The Script it is from; none for V8's own.
    pub script: Option<u64>,
    /// Where its text begins.
    pub start: Option<u32>,
}

/// The heap of one process.
#[derive(Clone, Copy)]
pub struct Heap<'a, M> {
    /// Where it is read from.
    pub memory: &'a M,
    /// What is where.
    pub layout: &'a Layout,
}

impl<M: ForeignMemory> Heap<'_, M> {
    /// A field of an object.
    pub fn field(&self, object: u64, offset: u64) -> Option<u64> {
        if !is_pointer(object) {
            return None;
        }
        self.memory.u64(object.wrapping_sub(HEAP_TAG).wrapping_add(offset))
    }

    /// The instance type of an object.
    pub fn type_of(&self, object: u64) -> Option<u16> {
        self.type_of_map(self.field(object, 0)?)
    }

    /// The instance type of the objects that have this map.
    pub fn type_of_map(&self, map: u64) -> Option<u16> {
        if !is_pointer(map) {
            return None;
        }
        self.memory.u16(map - HEAP_TAG + self.layout.map_type)
    }

    /// Bytes of an array of bytes, or words of an array of words: all elements, `width` bytes each.
    pub fn array(&self, object: u64, width: usize) -> Option<Vec<u8>> {
        const MOST_BYTES: usize = 4 * 1024 * 1024;
        let count = usize::try_from(small_integer(self.field(object, 8)?)?).ok()?;
        let bytes = count.checked_mul(width).filter(|bytes| *bytes <= MOST_BYTES)?;
        self.memory.bytes(object - HEAP_TAG + 16, bytes)
    }

    /// A name: a string that is not too long.
    pub fn name(&self, object: u64) -> Option<String> {
        Some(String::from_utf16_lossy(&self.text(object, LONGEST_NAME)?))
    }

    /// The first `most` units of a string.
    pub fn text(&self, object: u64, most: usize) -> Option<Vec<u16>> {
        let mut text = Vec::new();
        // Parts still to be read, the next one last: object, first unit, how many units.
        let mut parts = vec![(object, 0usize, most)];
        let mut budget = STRING_PARTS;
        while let Some((object, skip, take)) = parts.pop() {
            budget = budget.checked_sub(1)?;
            let kind = self.type_of(object)?;
            if kind & string::NOT_STRING != 0 {
                return None;
            }
            let at = object - HEAP_TAG;
            let len = self.memory.u32(at + string::LENGTH)? as usize;
            let take = take.min(len.saturating_sub(skip)).min(most - text.len());
            if take == 0 {
                continue;
            }
            match kind & string::REPRESENTATION {
                string::SEQUENTIAL => self.units(at + string::CHARACTERS, kind, skip, take, &mut text)?,
                string::EXTERNAL if kind & string::UNCACHED == 0 => {
                    let data = self.memory.u64(at + string::EXTERNAL_DATA)?;
                    self.units(data, kind, skip, take, &mut text)?;
                }
                string::CONS => {
                    let [first, second] = self.memory.words(at + string::FIRST)?;
                    let first_len =
                        self.memory.u32(first.checked_sub(HEAP_TAG)?.checked_add(string::LENGTH)?)?;
                    let first_len = first_len as usize;
                    let in_first = take.min(first_len.saturating_sub(skip));
                    parts.push((second, skip.saturating_sub(first_len), take - in_first));
                    parts.push((first, skip, in_first));
                }
                string::SLICED => {
                    let [parent, offset] = self.memory.words(at + string::FIRST)?;
                    let offset = usize::try_from(small_integer(offset)?).ok()?;
                    parts.push((parent, skip.checked_add(offset)?, take));
                }
                string::THIN => parts.push((self.memory.u64(at + string::FIRST)?, skip, take)),
                _ => return None,
            }
        }
        Some(text)
    }

    fn units(&self, at: u64, kind: u16, skip: usize, take: usize, into: &mut Vec<u16>) -> Option<()> {
        if kind & string::ONE_BYTE != 0 {
            let bytes = self.memory.bytes(at.checked_add(skip as u64)?, take)?;
            into.extend(bytes.into_iter().map(u16::from));
        } else {
            let bytes = self.memory.bytes(at.checked_add(2 * skip as u64)?, take.checked_mul(2)?)?;
            into.extend(bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_ne_bytes(*unit)));
        }
        Some(())
    }

    /// What a SharedFunctionInfo says; `None` if there is none (any more).
    pub fn describe(&self, shared: u64) -> Option<Described> {
        let layout = self.layout;
        if self.type_of(shared)? != layout.types.shared {
            return None;
        }
        let script = self.field(shared, layout.script)?;
        let script = (self.type_of(script) == Some(layout.types.script)).then_some(script);
        let name = self.field(shared, layout.name_or_scope_info)?;
        Some(match self.type_of(name) {
            Some(kind) if kind == layout.types.scope_info => {
                let (name, start) = self.scope_info(name)?;
                Described { name, script, start }
            }
            _ => Described {
                name: self.name(name).filter(|name| !name.is_empty()),
                script,
                start: self.uncompiled_start(shared),
            },
        })
    }

    /// Where the text of a function begins that has not been compiled yet.
    fn uncompiled_start(&self, shared: u64) -> Option<u32> {
        let (types, start) = self.layout.uncompiled;
        let data = self.field(shared, self.layout.function_data)?;
        let kind = self.type_of(data)?;
        types.contains(&kind).then(|| self.memory.u32(data - HEAP_TAG + start))?
    }

    /// The function's name, given or inferred, and where its text begins.
    pub fn scope_info(&self, object: u64) -> Option<(Option<String>, Option<u32>)> {
        /// Words after the variables that are looked at.
        const TAIL: usize = 16;
        /// With so many locals their names are elsewhere: kScopeInfoMaxInlinedLocalNamesSize.
        const INLINED_LOCALS: usize = 75;
        let scope = self.layout.scope;
        let at = object - HEAP_TAG + 8;
        let locals = small_integer(self.memory.u64(at + 8 * scope.locals as u64)?)?;
        let locals = usize::try_from(locals).ok()?;
        let variables = if locals < INLINED_LOCALS { 2 * locals } else { 1 + locals };
        let start = match scope.start {
            Some(index) => small_integer(self.memory.u64(at + 8 * index as u64)?),
            None => None,
        };
        let tail = at + 8 * (scope.first_variable + variables) as u64;
        let (mut name, mut start, mut before) = (None, start, None);
        // Word by word: it may be the last object of its page.
        for index in 0..TAIL as u64 {
            let Some(word) = self.memory.u64(tail + 8 * index) else { break };
            let number = small_integer(word);
            if scope.start.is_none() {
                // Two numbers one after the other, begin and end, come after the names.
                match (before, number) {
                    (Some(begin), Some(end)) if begin < end => start = Some(begin),
                    _ => {}
                }
                before = number;
            }
            if number.is_none() {
                let kind = self.type_of(word);
                if kind == Some(self.layout.types.scope_info) {
                    break; // the scope around it
                }
                if name.is_none() && kind.is_some_and(|kind| kind & string::NOT_STRING == 0) {
                    name = self.name(word).filter(|name| !name.is_empty());
                }
            }
            if start.is_some() && (name.is_some() || scope.start.is_none()) {
                break;
            }
        }
        Some((name, start.and_then(|start| u32::try_from(start).ok())))
    }

    /// A script's name and lines, and where its map is.
    pub fn script(&self, object: u64) -> Option<Script> {
        if self.type_of(object)? != self.layout.types.script {
            return None;
        }
        let name = self.name(self.field(object, self.layout.script_name)?);
        let source = self.field(object, self.layout.script_source)?;
        let text = self.text(source, LARGEST_SCRIPT + 1).filter(|text| text.len() <= LARGEST_SCRIPT);
        Some(Script {
            name: name.unwrap_or_default(),
            map_url: text.as_deref().and_then(source_map::url),
            lines: text.map(|text| Lines::of(&text)),
        })
    }

    /// The instruction array of a SharedFunctionInfo's bytecode, by whatever leads to it.
    pub fn bytecode(&self, shared: u64) -> Option<u64> {
        let layout = self.layout;
        let mut object = self.field(shared, layout.function_data)?;
        for _ in 0..3 {
            let kind = self.type_of(object)?;
            object = if kind == layout.types.bytecode {
                return Some(object);
            } else if kind == layout.types.interpreter_data {
                self.field(object, 8)?
            } else if kind == layout.types.code {
                // Baseline code keeps it in the place of deoptimization data.
                self.field(object, layout.code.deopt)?
            } else {
                return None;
            };
        }
        None
    }
}
