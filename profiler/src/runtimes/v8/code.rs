//! From an address in compiled code to its Code object.
//!
//! Instructions lie in an object of their own whose header leads to the Code object (up to V8 10 in the Code object itself).
//! The header is found by looking back from the address, once; then its range is known, and checked again before it is
//! used: code moves, dies, and is replaced by other code.

use std::{collections::BTreeMap, rc::Rc};

use crate::runtimes::{
    memory::{ForeignMemory, Round},
    v8::{
        heap::{Heap, is_pointer},
        metadata::HEAP_TAG,
    },
};

/// How far back a header is looked for, bytes.
const LOOK_BACK: u64 = 512 * 1024;

/// The largest code that is believed, bytes.
const LARGEST_CODE: u32 = 64 * 1024 * 1024;

/// Bytes that are read at once.
const CHUNK: u64 = 4096;

/// Ranges that are remembered.
const MOST_RANGES: usize = 32_768;

/// Words of a Code object that are compared: its pointers, start, size and flags.
const CODE_WORDS: usize = 8;

/// Compiled code of one function.
#[derive(Clone, Debug)]
pub struct CodeRange<V> {
    /// The Code object.
    pub code: u64,
    /// First instruction.
    pub start: u64,
    /// What the range's `value` was made from.
    header: [u64; 2],
    words: [u64; CODE_WORDS],
    object: u64,
    checked: Round,
    /// What was found out about it.
    pub value: Option<Rc<V>>,
    /// When that was last right.
    pub value_checked: Round,
}

/// Known ranges of code, by the address one past their last.
#[derive(Debug, Default)]
pub struct CodeRanges<V> {
    ranges: BTreeMap<u64, CodeRange<V>>,
    /// Map of the objects that instructions lie in, once one has been seen.
    map: Option<u64>,
    /// Ranges in which other code was found than before.
    pub replaced: u64,
}

impl<V> CodeRanges<V> {
    /// The code at an address, as it is in this round.
    pub fn find(
        &mut self,
        heap: &Heap<'_, impl ForeignMemory>,
        ip: u64,
        now: Round,
    ) -> Option<&mut CodeRange<V>> {
        let known = self.ranges.range(ip.checked_add(1)?..).next();
        let known = known.filter(|(_, range)| range.start <= ip).map(|(end, range)| (*end, range.checked));
        match known {
            Some((end, checked)) if now.covers(checked) => return self.ranges.get_mut(&end),
            Some((end, _)) => {
                let range = self.ranges.get(&end)?;
                let fresh = read::<V>(heap, range.object);
                if fresh.as_ref().is_some_and(|fresh| {
                    (fresh.0.header, fresh.0.words, fresh.1) == (range.header, range.words, end)
                }) {
                    let range = self.ranges.get_mut(&end)?;
                    range.checked = now;
                    return Some(range);
                }
                self.ranges.remove(&end);
                self.replaced += 1;
            }
            None => {}
        }
        let (mut found, end) = self.look_back(heap, ip)?;
        found.checked = now;
        // What overlaps it is gone.
        while let Some((&other, range)) = self.ranges.range(found.start + 1..).next()
            && range.start < end
        {
            self.ranges.remove(&other);
        }
        if self.ranges.len() >= MOST_RANGES {
            self.ranges.clear();
        }
        self.map = Some(found.header[0]);
        Some(self.ranges.entry(end).or_insert(found))
    }

    fn look_back(&self, heap: &Heap<'_, impl ForeignMemory>, ip: u64) -> Option<(CodeRange<V>, u64)> {
        let mut at = ip & !7;
        let end = at.saturating_sub(LOOK_BACK);
        while at > end {
            // Page by page: what lies before the first need not be there.
            let begin = ((at - 1) & !(CHUNK - 1)).max(end);
            let bytes = heap.memory.bytes(begin, (at - begin) as usize)?;
            for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate().rev() {
                let word = u64::from_ne_bytes(*word);
                if !is_pointer(word) || self.map.is_some_and(|map| map != word) {
                    continue;
                }
                if let Some((range, end)) = read(heap, begin + 8 * index as u64)
                    && (range.start..end).contains(&ip)
                {
                    return Some((range, end));
                }
            }
            at = begin;
        }
        None
    }
}

/// What an object that holds instructions says, if it is one: the code, and where it ends.
fn read<V>(heap: &Heap<'_, impl ForeignMemory>, object: u64) -> Option<(CodeRange<V>, u64)> {
    let layout = &heap.layout.code;
    let header: [u64; 2] = heap.memory.words(object)?;
    let code = if layout.in_object { object.wrapping_add(HEAP_TAG) } else { header[1] };
    if !is_pointer(code) || !is_pointer(header[0]) {
        return None;
    }
    let words: [u64; CODE_WORDS] = heap.memory.words(code - HEAP_TAG)?;
    if heap.type_of_map(words[0])? != heap.layout.types.code {
        return None;
    }
    let field = |offset: u64| words.get(usize::try_from(offset / 8).ok()?).copied();
    let start = if layout.in_object { object.checked_add(layout.start)? } else { field(layout.start)? };
    let size = (field(layout.size)? >> (8 * (layout.size % 8))) as u32;
    let end = start.checked_add(u64::from(size))?;
    let near = start > object && start - object < 4096;
    (near && size > 0 && size <= LARGEST_CODE).then_some((
        CodeRange {
            code,
            start,
            header,
            words,
            object,
            checked: Round::default(),
            value: None,
            value_checked: Round::default(),
        },
        end,
    ))
}

impl<V> CodeRange<V> {
    /// A word of the Code object.
    pub fn field(&self, offset: u64) -> Option<u64> {
        self.words.get(usize::try_from(offset / 8).ok()?).copied()
    }

    /// Its flags.
    pub fn flags(&self, offset: u64) -> Option<u32> {
        Some((self.field(offset)? >> (8 * (offset % 8))) as u32)
    }
}
