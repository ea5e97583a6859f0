//! The functions that optimised code runs: the one it was compiled for, and those that were inlined into it.

use crate::runtimes::{
    memory::ForeignMemory,
    v8::{
        code::CodeRange,
        heap::Heap,
        metadata::HEAP_TAG,
        positions::{self, Position},
    },
};

/// Functions inlined into each other.
const DEEPEST: usize = 64;

/// Bytes of the deoptimisation data that hold what is read of it: entries for each exit follow.
const DATA_BYTES: usize = 128;

/// What optimised code says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Optimised {
    positions: Vec<u8>,
    /// SharedFunctionInfo of the function that was compiled.
    shared: u64,
    /// Where functions were inlined.
    inlined: Vec<Inlined>,
    /// What it was read from: addresses, and what was there. The collector moves functions, and changes what refers to them.
    sources: Vec<(u64, Vec<u8>)>,
}

/// A function that was inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inlined {
    /// Where.
    call: Position,
    /// Its SharedFunctionInfo; the compiled function's own if there is none.
    shared: u64,
}

/// A function in optimised code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its SharedFunctionInfo.
    pub shared: u64,
    /// Where it is, a character of its script.
    pub character: Option<u32>,
}

impl Optimised {
    /// Reads it; `None` for code that is not optimised, or not whole.
    pub fn read<V>(heap: &Heap<'_, impl ForeignMemory>, code: &CodeRange<V>) -> Option<Optimised> {
        let (layout, deopt) = (&heap.layout.code, &heap.layout.deopt);
        if code.flags(layout.flags)? & layout.kind_mask <= layout.baseline {
            return None;
        }
        let deoptimisation = code.field(layout.deopt)?;
        let mut data = heap.array(deoptimisation, 8)?;
        data.truncate(DATA_BYTES);
        let word = |index: usize| data.as_chunks::<8>().0.get(index).map(|word| u64::from_ne_bytes(*word));
        let mut sources = vec![(first_element(deoptimisation), data.clone())];
        let mut shared = word(deopt.shared)?;
        if deopt.shared_is_wrapped {
            let wrapper = shared;
            shared = heap.field(wrapper, 8)?;
            sources.push((wrapper.wrapping_sub(HEAP_TAG) + 8, shared.to_ne_bytes().to_vec()));
        }
        // An array of no elements is what code without inlined functions has.
        let array = word(deopt.literals)?;
        let mut literals = heap.array(array, 8).unwrap_or_default();
        let places = word(deopt.inlining).and_then(|array| heap.array(array, 1)).unwrap_or_default();
        // struct InliningPosition, code/deoptimization-data.h: a position, the index of the function, nothing.
        let mut used = 0;
        let inlined = places.as_chunks::<16>().0.iter().map(|place| {
            let [call, function] = place.as_chunks::<8>().0 else { return Inlined::unknown(shared) };
            let index = usize::try_from(u64::from_ne_bytes(*function) as u32 as i32).ok();
            let literal = index.and_then(|index| literals.as_chunks::<8>().0.get(index));
            used = used.max(literal.and(index).map_or(0, |index| 8 * (index + 1)));
            Inlined {
                call: Position::decode(u64::from_ne_bytes(*call)),
                shared: literal.map_or(shared, |literal| u64::from_ne_bytes(*literal)),
            }
        });
        let inlined = inlined.collect();
        literals.truncate(used);
        sources.push((first_element(array), literals));
        let positions = code.field(layout.positions).and_then(|table| heap.array(table, 1));
        Some(Optimised { positions: positions.unwrap_or_default(), shared, inlined, sources })
    }

    /// Whether what it was read from is still the same.
    pub fn is_current(&self, memory: &impl ForeignMemory) -> bool {
        let same = |(address, bytes): &(u64, Vec<u8>)| {
            memory.bytes(*address, bytes.len()).is_some_and(|now| now == *bytes)
        };
        self.sources.iter().all(|source| source.1.is_empty() || same(source))
    }

    /// The functions at an instruction, innermost first; the last is the one that was compiled.
    pub fn at(&self, offset: u64) -> Vec<Running> {
        let mut running = Vec::new();
        let mut position = positions::at(&self.positions, i64::try_from(offset).unwrap_or(i64::MAX));
        while let Some(Position { character, inlining: Some(id) }) = position
            && let Some(inlined) = self.inlined.get(id as usize)
            && running.len() < DEEPEST
        {
            running.push(Running { shared: inlined.shared, character });
            position = Some(inlined.call);
        }
        running.push(Running { shared: self.shared, character: position.and_then(|at| at.character) });
        running
    }

    /// The function that was compiled.
    pub fn outermost(&self) -> u64 {
        self.shared
    }
}

/// Where the elements of an array lie.
fn first_element(array: u64) -> u64 {
    array.wrapping_sub(HEAP_TAG).wrapping_add(16)
}

impl Inlined {
    fn unknown(shared: u64) -> Inlined {
        Inlined { call: Position { character: None, inlining: None }, shared }
    }
}
