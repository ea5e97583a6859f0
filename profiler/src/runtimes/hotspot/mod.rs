//! Methods of HotSpot (Java 17 and newer), named from outside while the program runs on.
//!
//! ```text
//! file    -> its tables for debuggers (exported) -> where things are (layout.rs)
//! address -> heap for code -> map of segments -> piece of code -> method -> class and name
//! ```
//!
//! Code is named by the method that was compiled; what was inlined into it counts as that method. Stacks end at the first
//! compiled frame, since compiled code keeps no frame pointer.

use std::{fs::File, rc::Rc};

use profiler_common::runtime::RuntimeOffsets;
use rustc_hash::FxHashMap;

use crate::{
    model::{function::Function, stack::Language},
    runtimes::{
        exported::Exported,
        hotspot::layout::{Layout, WANTED},
        memory::{ForeignMemory, Round},
        runtime::{Attached, Build, Naming, NotAttached, Place, Replacement, Runtime, UserStack},
    },
};

pub mod layout;

/// Heaps for code, and steps through a map of segments.
const MOST_HEAPS: u32 = 16;
const MOST_STEPS: usize = 4096;
/// The map says so of a segment that is free.
const FREE: u8 = 0xff;
/// Pieces of code whose names are remembered.
const MOST_PIECES: usize = 65_536;
/// Characters of a name.
const LONGEST: u16 = 1024;

/// Java programs.
pub struct HotSpot;

impl Runtime for HotSpot {
    fn language(&self) -> Language {
        Language::Java
    }

    fn recognises(&self, file_name: &str) -> bool {
        file_name == "libjvm.so"
    }

    fn open(&self, file: &File, _name: &str) -> Option<Result<Box<dyn Build>, String>> {
        let exported = Exported::read(file, |name| name.starts_with(WANTED))?;
        (!exported.is_empty()).then(|| Ok(Box::new(Rc::new(exported)) as Box<dyn Build>))
    }
}

impl Build for Rc<Exported> {
    fn bit(&self) -> u32 {
        0 // The kernel programs copy nothing of it.
    }

    fn attach(&self, place: Place, _offsets: &mut RuntimeOffsets) -> Result<Box<dyn Attached>, NotAttached> {
        let layout = Layout::read(&place.memory, self, place.bias).map_err(NotAttached::Refused)?;
        let heaps = heaps(&place.memory, &layout).ok_or(NotAttached::NotYet)?;
        Ok(Box::new(Java {
            memory: place.memory,
            layout,
            heaps,
            pieces: FxHashMap::default(),
            seen: FxHashMap::default(),
            now: Round::default(),
        }))
    }
}

/// Memory for code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    low: u64,
    high: u64,
    segments: u64,
    log2_segment: u32,
}

/// One process's HotSpot.
#[derive(Debug)]
pub struct Java<M> {
    memory: M,
    layout: Layout,
    heaps: Vec<Heap>,
    /// By where a piece of code begins.
    pieces: FxHashMap<u64, Piece>,
    /// By address, for what is seen of it after the program has ended.
    seen: FxHashMap<u64, Rc<str>>,
    now: Round,
}

/// A piece of code.
#[derive(Debug)]
struct Piece {
    /// What its name was made of, to be compared: its own name, its method, and what is constant of that.
    words: [u64; 3],
    checked: Round,
    name: Option<Rc<str>>,
}

impl<M: ForeignMemory> Attached for Java<M> {
    fn new_round(&mut self) {
        self.now.next(&self.memory);
        // They grow.
        if let Some(heaps) = heaps(&self.memory, &self.layout) {
            self.heaps = heaps;
        }
    }

    fn name(&mut self, stack: &UserStack<'_>, naming: &mut Naming) {
        for (index, user) in stack.frames.iter().enumerate().filter(|(_, user)| user.made_at_run_time) {
            if !self.heaps.iter().any(|heap| (heap.low..heap.high).contains(&user.address)) {
                continue;
            }
            match self.function(user.address) {
                Some(name) => {
                    let function = Function { name: (*name).to_owned(), ..Function::default() };
                    naming.replace(
                        index,
                        Replacement { frames: vec![vec![function]], ..Replacement::default() },
                    );
                }
                None => naming.unnamed += 1,
            }
        }
    }
}

/// The heaps that code is in; `None` if there are none yet.
fn heaps<M: ForeignMemory>(memory: &M, layout: &Layout) -> Option<Vec<Heap>> {
    let list = memory.u64(layout.heaps).filter(|list| *list != 0)?;
    let length = memory.u32(list.wrapping_add(layout.list_length)).filter(|length| *length <= MOST_HEAPS)?;
    let data = memory.u64(list.wrapping_add(layout.list_data))?;
    let heap = |index: u64| {
        let heap = memory.u64(data.wrapping_add(8 * index))?;
        let word = |at: u64| memory.u64(heap.wrapping_add(at));
        let low = word(layout.memory.wrapping_add(layout.low))?;
        let high = word(layout.memory.wrapping_add(layout.high))?;
        let segments = word(layout.segments.wrapping_add(layout.low))?;
        let log2_segment = memory.u32(heap.wrapping_add(layout.log2_segment))?;
        let sound = low < high && (4..=16).contains(&log2_segment);
        sound.then_some(Heap { low, high, segments, log2_segment })
    };
    let heaps: Vec<Heap> = (0..u64::from(length)).filter_map(heap).collect();
    (!heaps.is_empty()).then_some(heaps)
}

impl<M: ForeignMemory> Java<M> {
    /// What the code at an address is called.
    pub fn function(&mut self, address: u64) -> Option<Rc<str>> {
        let Some(name) = self.now_at(address) else {
            return self.seen.get(&address).filter(|_| self.memory.has_ended()).cloned();
        };
        if self.seen.len() >= MOST_PIECES {
            self.seen.clear();
        }
        self.seen.insert(address, Rc::clone(&name));
        Some(name)
    }

    fn now_at(&mut self, address: u64) -> Option<Rc<str>> {
        let piece = self.piece(address)?;
        let known = self.pieces.get(&piece);
        if let Some(known) = known.filter(|known| self.now.covers(known.checked)) {
            return known.name.clone();
        }
        let words = self.words(piece)?;
        if let Some(known) = self.pieces.get_mut(&piece).filter(|known| known.words == words) {
            known.checked = self.now;
            return known.name.clone();
        }
        let name = self.describe(words).map(Rc::from);
        if self.pieces.len() >= MOST_PIECES {
            self.pieces.clear();
        }
        self.pieces.insert(piece, Piece { words, checked: self.now, name: name.clone() });
        name
    }

    /// Where the piece of code begins that an address is in. The map has a byte for each segment, which says how many
    /// segments to go back; zero is where a piece begins.
    fn piece(&self, address: u64) -> Option<u64> {
        let heap = self.heaps.iter().find(|heap| (heap.low..heap.high).contains(&address))?;
        let mut segment = (address - heap.low) >> heap.log2_segment;
        for _ in 0..MOST_STEPS {
            let mut back = [0];
            self.memory.read(heap.segments.wrapping_add(segment), &mut back)?;
            match back[0] {
                0 => return Some(heap.low + (segment << heap.log2_segment) + self.layout.block),
                FREE => return None,
                back => segment = segment.checked_sub(back.into())?,
            }
        }
        None
    }

    fn words(&self, piece: u64) -> Option<[u64; 3]> {
        let name = self.memory.u64(piece.wrapping_add(self.layout.name))?;
        // Only compiled methods have one; elsewhere it is some other word.
        let method = self.memory.u64(piece.wrapping_add(self.layout.method)).unwrap_or(0);
        let constant = self.memory.u64(method.wrapping_add(self.layout.constant)).unwrap_or(0);
        Some([name, method, constant])
    }

    fn describe(&self, [name, _, constant]: [u64; 3]) -> Option<String> {
        let (memory, layout) = (&self.memory, &self.layout);
        let what = layout::text(memory, name)?;
        match what.as_str() {
            "nmethod" | "native nmethod" => {}
            "Interpreter" => return Some("(interpreter)".to_owned()),
            _ => return Some(format!("({})", what.trim_matches(['(', ')']))),
        }
        let constants = memory.u64(constant.wrapping_add(layout.constants))?;
        let index = memory.u16(constant.wrapping_add(layout.name_index))?;
        let class = memory.u64(constants.wrapping_add(layout.holder))?;
        let class = self.symbol(memory.u64(class.wrapping_add(layout.class_name))?)?;
        let slot = constants.wrapping_add(layout.constants_size).wrapping_add(8 * u64::from(index));
        let method = self.symbol(memory.u64(slot)?)?;
        Some(format!("{}.{method}", class.replace('/', ".")))
    }

    fn symbol(&self, symbol: u64) -> Option<String> {
        let length = self.memory.u16(symbol.wrapping_add(self.layout.symbol_length))?;
        let known = (1..=LONGEST).contains(&length) && symbol != 0;
        let bytes = self
            .memory
            .bytes(symbol.wrapping_add(self.layout.symbol_text), length.into())
            .filter(|_| known)?;
        Some(crate::text::clean(&bytes))
    }
}

#[cfg(test)]
mod tests;
