//! The functions that optimised code runs: the one it was compiled for, and those that were inlined into it.

use crate::runtimes::{
    memory::ForeignMemory,
    v8::{
        code::CodeRange,
        heap::Heap,
        positions::{self, Position},
    },
};

/// Functions inlined into each other.
const DEEPEST: usize = 64;

/// What optimised code says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Optimised {
    positions: Vec<u8>,
    /// SharedFunctionInfo of the function that was compiled.
    shared: u64,
    /// Where functions were inlined.
    inlined: Vec<Inlined>,
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
        let data = heap.array(code.field(layout.deopt)?, 8)?;
        let data = data.as_chunks::<8>().0;
        let word = |index: usize| data.get(index).map(|word| u64::from_ne_bytes(*word));
        let mut shared = word(deopt.shared)?;
        if deopt.shared_is_wrapped {
            shared = heap.field(shared, 8)?;
        }
        // An array of no elements is what code without inlined functions has.
        let literals = heap.array(word(deopt.literals)?, 8).unwrap_or_default();
        let literals = literals.as_chunks::<8>().0;
        let places = word(deopt.inlining).and_then(|array| heap.array(array, 1)).unwrap_or_default();
        // struct InliningPosition, code/deoptimization-data.h: a position, the index of the function, nothing.
        let inlined = places.as_chunks::<16>().0.iter().map(|place| {
            let [call, function] = place.as_chunks::<8>().0 else { return Inlined::unknown(shared) };
            let index = u64::from_ne_bytes(*function) as u32 as i32;
            let literal = usize::try_from(index).ok().and_then(|index| literals.get(index));
            Inlined {
                call: Position::decode(u64::from_ne_bytes(*call)),
                shared: literal.map_or(shared, |literal| u64::from_ne_bytes(*literal)),
            }
        });
        let inlined = inlined.collect();
        let positions = code.field(layout.positions).and_then(|table| heap.array(table, 1));
        Some(Optimised { positions: positions.unwrap_or_default(), shared, inlined })
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

impl Inlined {
    fn unknown(shared: u64) -> Inlined {
        Inlined { call: Position { character: None, inlining: None }, shared }
    }
}
