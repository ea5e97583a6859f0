//! Methods of HotSpot (Java 17 and newer), named from outside while the program runs on.
//!
//! ```text
//! file    -> its tables for debuggers (exported) -> where things are (layout.rs)
//! address -> heap for code -> map of segments -> piece of code -> method -> class, name, lines (methods.rs)
//!                                                      |
//!                                                      +-> what was inlined there (scopes.rs)
//! ```
//!
//! The kernel programs walk through its frames by what is found here of a process (`profiler_common::runtime::hotspot`), and
//! copy the method and the position of those that are interpreted.

use std::{fs::File, rc::Rc};

use profiler_common::{
    runtime::{
        Entry, EntryKind, HOTSPOT, RuntimeOffsets,
        hotspot::{CodeHeap, HotSpotOffsets, MAX_HEAPS},
    },
    unwind::Memory,
};
use rustc_hash::FxHashMap;

use crate::{
    model::{function::Function, stack::Language},
    runtimes::{
        exported::Exported,
        hotspot::{
            layout::{Code, Layout, WANTED},
            methods::Method,
            scopes::{Scope, Scopes},
        },
        memory::{ForeignMemory, Round},
        runtime::{Attached, Build, Naming, NotAttached, Place, Replacement, Runtime, UserStack},
    },
};

pub mod layout;
pub mod methods;
pub mod packing;
pub mod scopes;

/// Names of pieces of code, of methods, and of addresses that are remembered.
const MOST_NAMES: usize = 65_536;
/// Bytes of all tables of compiled code that are remembered.
const MOST_BYTES: usize = 64 * 1024 * 1024;

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
        // How the interpreter's frames and the code of stubs look is known of this processor only.
        if cfg!(target_arch = "x86_64") { HOTSPOT } else { 0 }
    }

    fn attach(&self, place: Place, offsets: &mut RuntimeOffsets) -> Result<Box<dyn Attached>, NotAttached> {
        let layout = Layout::read(&place.memory, self, place.bias).map_err(NotAttached::Refused)?;
        let java = Java::new(place.memory, layout)?;
        offsets.hotspot = java.places;
        Ok(Box::new(java))
    }
}

/// One process's HotSpot.
#[derive(Debug)]
pub struct Java<M> {
    memory: M,
    layout: Layout,
    places: HotSpotOffsets,
    /// By where a piece of code begins.
    pieces: FxHashMap<u64, Known<3, Rc<Piece>>>,
    /// Bytes of their tables.
    bytes: usize,
    /// By address of a method: what is constant of it.
    methods: FxHashMap<u64, Known<1, Rc<Method>>>,
    /// By address and what tells more of it: places come again in every stack, and some after the program has ended.
    seen: FxHashMap<(u64, u64), (Round, Vec<Function>)>,
    now: Round,
}

/// What is known of something.
#[derive(Debug)]
struct Known<const N: usize, T> {
    /// What it was made of, to be compared.
    words: [u64; N],
    checked: Round,
    value: T,
}

/// A piece of code.
#[derive(Debug)]
enum Piece {
    /// A compiled method.
    Method { method: u64, scopes: Option<Scopes> },
    /// Something else, and what it is called.
    Other(String),
}

impl<M: ForeignMemory> Attached for Java<M> {
    fn new_round(&mut self) {
        self.now.next(&self.memory);
    }

    fn name(&mut self, stack: &UserStack<'_>, naming: &mut Naming) {
        let interpreted = |entry: &&Entry| entry.kind == EntryKind::HotSpot as u8;
        let interpreted: FxHashMap<usize, &Entry> =
            stack.entries.iter().filter(interpreted).map(|entry| (entry.frame.into(), entry)).collect();
        for (index, user) in stack.frames.iter().enumerate().filter(|(_, user)| user.made_at_run_time) {
            if !self.places.is_code(user.address) {
                continue;
            }
            let functions = match interpreted.get(&index) {
                Some(entry) => self.interpreted(entry.value, entry.payload),
                // Of callers the address is that of the last byte of the call.
                None => self.compiled(user.address, user.address.wrapping_add(u64::from(index > 0))),
            };
            match functions {
                Some(functions) => {
                    naming.replace(index, Replacement { frames: vec![functions], ..Replacement::default() });
                }
                None => naming.unnamed += 1,
            }
        }
    }
}

/// The heaps that code is in.
fn heaps<M: ForeignMemory>(memory: &M, layout: &Layout) -> Result<[CodeHeap; MAX_HEAPS], NotAttached> {
    let heap = |data: u64, index: u64| {
        let heap = memory.u64(data.wrapping_add(8 * index))?;
        let word = |at: u64| memory.u64(heap.wrapping_add(at));
        let low = word(layout.memory.wrapping_add(layout.low))?;
        let high = word(layout.memory.wrapping_add(layout.high))?;
        let segments = word(layout.segments.wrapping_add(layout.low))?;
        let segment_shift = memory.u32(heap.wrapping_add(layout.log2_segment))?;
        let sound = low < high && segments != 0 && (4..=16).contains(&segment_shift);
        sound.then_some(CodeHeap { low, high, segments, segment_shift, _reserved: 0 })
    };
    let list = || {
        let list = memory.u64(layout.heaps).filter(|list| *list != 0)?;
        let length = memory.u32(list.wrapping_add(layout.list_length)).filter(|length| *length != 0)?;
        Some((length as usize, memory.u64(list.wrapping_add(layout.list_data))?))
    };
    let (length, data) = list().ok_or(NotAttached::NotYet)?;
    if length > MAX_HEAPS {
        return Err(NotAttached::Refused(format!(
            "it has {length} heaps for code, {MAX_HEAPS} at most are known"
        )));
    }
    let mut heaps = [CodeHeap::default(); MAX_HEAPS];
    for (index, place) in heaps.iter_mut().enumerate().take(length) {
        *place = heap(data, index as u64).ok_or(NotAttached::NotYet)?;
    }
    Ok(heaps)
}

/// What the kernel programs must know of the HotSpot with this memory, whose heaps these are; `None` if it is not there yet.
fn places<M: ForeignMemory>(
    memory: &M,
    layout: &Layout,
    heaps: [CodeHeap; MAX_HEAPS],
) -> Option<HotSpotOffsets> {
    // What is made after the heaps.
    let interpreter = memory.u64(layout.interpreter).filter(|code| *code != 0)?;
    let begin = memory.u64(interpreter.wrapping_add(layout.interpreter_begin)).filter(|begin| *begin != 0)?;
    let length =
        memory.u32(interpreter.wrapping_add(layout.interpreter_length)).filter(|length| *length > 0)?;
    let call_stub_return = memory.u64(layout.call_stub_return).filter(|address| *address != 0)?;
    let (code, code_is_offset) = match layout.code {
        Code::Address(at) => (at, 0),
        Code::Offset(at) => (at, 1),
    };
    Some(HotSpotOffsets {
        heaps,
        interpreter: begin,
        interpreter_end: begin.wrapping_add(length.into()),
        call_stub_return,
        block: layout.block as u32,
        frame_size: layout.frame_size as u32,
        complete: layout.complete as u32,
        complete_bits: layout.complete_bits as u32,
        code: code as u32,
        code_is_offset,
        constant: layout.constant as u32,
        _reserved: 0,
    })
}

impl<M: ForeignMemory> Java<M> {
    /// The HotSpot of the process with this memory. That what it tells of itself is so is tried on two pieces of code that
    /// every one has.
    pub fn new(memory: M, layout: Layout) -> Result<Java<M>, NotAttached> {
        let heaps = heaps(&memory, &layout)?;
        let places = places(&memory, &layout, heaps).ok_or(NotAttached::NotYet)?;
        let java = Java {
            memory,
            layout,
            places,
            pieces: FxHashMap::default(),
            bytes: 0,
            methods: FxHashMap::default(),
            seen: FxHashMap::default(),
            now: Round::default(),
        };
        let called = |address: u64| {
            let name = java.memory.u64(java.piece(address)?.wrapping_add(java.layout.name))?;
            layout::text(&java.memory, name)
        };
        let found = [called(places.interpreter), called(places.call_stub_return)];
        match found.each_ref().map(Option::as_deref) {
            [Some("Interpreter"), Some(stubs)] if stubs.contains("StubRoutines") => Ok(java),
            _ => Err(NotAttached::Refused("its code is not where it tells".to_owned())),
        }
    }

    /// The functions of compiled code at an address, innermost first; `next` is that of the next instruction.
    pub fn compiled(&mut self, address: u64, next: u64) -> Option<Vec<Function>> {
        self.at((address, next), |java| java.compiled_now(address, next))
    }

    /// The function of an interpreted method, at an address of its bytecode.
    pub fn interpreted(&mut self, method: u64, position: u64) -> Option<Vec<Function>> {
        self.at((method, position), |java| {
            let method = java.method(method)?;
            Some(vec![method.at(method.position(position))])
        })
    }

    /// What is known of a place, or found.
    fn at(
        &mut self,
        place: (u64, u64),
        find: impl FnOnce(&mut Self) -> Option<Vec<Function>>,
    ) -> Option<Vec<Function>> {
        if let Some((checked, functions)) = self.seen.get(&place)
            && self.now.covers(*checked)
        {
            return Some(functions.clone());
        }
        let functions = find(self)?;
        if self.seen.len() >= MOST_NAMES {
            self.seen.clear();
        }
        self.seen.insert(place, (self.now, functions.clone()));
        Some(functions)
    }

    fn compiled_now(&mut self, address: u64, next: u64) -> Option<Vec<Function>> {
        let piece = self.piece(address)?;
        let piece = self.code(piece)?;
        let (method, scopes) = match &*piece {
            Piece::Other(name) => return Some(vec![Function { name: name.clone(), ..Function::default() }]),
            Piece::Method { method, scopes } => (*method, scopes),
        };
        let running = scopes.as_ref().and_then(|scopes| scopes.at(next, method, self.layout.packing));
        let running = running.unwrap_or_else(|| vec![Scope { method, position: -1 }]);
        running.iter().map(|scope| Some(self.method(scope.method)?.at(scope.position))).collect()
    }

    /// What is known of the piece of code that begins at an address.
    fn code(&mut self, piece: u64) -> Option<Rc<Piece>> {
        let known = self.pieces.get(&piece);
        if let Some(known) = known.filter(|known| self.now.covers(known.checked)) {
            return Some(Rc::clone(&known.value));
        }
        let layout = &self.layout;
        let kind = self.memory.u64(piece.wrapping_add(layout.name))?;
        // Only compiled methods have one; elsewhere it is some other word.
        let method = self.memory.u64(piece.wrapping_add(layout.method)).unwrap_or(0);
        let compilation = self.memory.u32(piece.wrapping_add(layout.compilation)).unwrap_or(0);
        let words = [kind, method, compilation.into()];
        if let Some(known) = self.pieces.get_mut(&piece).filter(|known| known.words == words) {
            known.checked = self.now;
            return Some(Rc::clone(&known.value));
        }
        let value = Rc::new(match layout::text(&self.memory, kind)?.as_str() {
            "nmethod" | "native nmethod" => {
                Piece::Method { method, scopes: Scopes::read(&self.memory, layout, piece) }
            }
            "Interpreter" => Piece::Other("(interpreter)".to_owned()),
            stub => {
                let inside = stub.strip_prefix('(').and_then(|stub| stub.strip_suffix(')'));
                Piece::Other(format!("({})", inside.unwrap_or(stub)))
            }
        });
        self.bytes += value.bytes();
        if self.pieces.len() >= MOST_NAMES || self.bytes > MOST_BYTES {
            self.pieces.clear();
            self.bytes = value.bytes();
        }
        if let Some(before) =
            self.pieces.insert(piece, Known { words, checked: self.now, value: Rc::clone(&value) })
        {
            self.bytes -= before.value.bytes();
        }
        Some(value)
    }

    /// What is known of a method.
    fn method(&mut self, method: u64) -> Option<Rc<Method>> {
        let known = self.methods.get(&method);
        if let Some(known) = known.filter(|known| self.now.covers(known.checked)) {
            return Some(Rc::clone(&known.value));
        }
        let words = [self.memory.u64(method.wrapping_add(self.layout.constant))?];
        if let Some(known) = self.methods.get_mut(&method).filter(|known| known.words == words) {
            known.checked = self.now;
            return Some(Rc::clone(&known.value));
        }
        let value = Rc::new(Method::read(&self.memory, &self.layout, words[0])?);
        if self.methods.len() >= MOST_NAMES {
            self.methods.clear();
        }
        self.methods.insert(method, Known { words, checked: self.now, value: Rc::clone(&value) });
        Some(value)
    }

    /// Where the piece of code begins that an address is in. The map has a byte for each segment, which says how many
    /// segments to go back; zero is where a piece begins.
    fn piece(&self, address: u64) -> Option<u64> {
        self.places.piece_at(address, &Words(&self.memory))
    }
}

impl Piece {
    /// Bytes of its tables.
    fn bytes(&self) -> usize {
        match self {
            Piece::Method { scopes: Some(scopes), .. } => scopes.bytes(),
            _ => 0,
        }
    }
}

/// Foreign memory as the kernel programs' code reads it.
struct Words<'a, M>(&'a M);

impl<M: ForeignMemory> Memory for Words<'_, M> {
    fn read_u64(&self, address: u64) -> Option<u64> {
        self.0.u64(address)
    }
}

#[cfg(test)]
mod tests;
