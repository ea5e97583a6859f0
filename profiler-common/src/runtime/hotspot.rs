//! Frames of HotSpot (x86_64). Compiled code keeps no frame pointer and has no unwind information, but every piece of code in
//! the VM's heaps for code tells how large its frame is:
//!
//! ```text
//! address -> heap for code -> its map of segments -> where the piece begins -> size of its frame
//! ```
//!
//! The interpreter keeps a frame pointer, and beside it the method, which no address tells, and the caller's stack pointer.
//! Stubs, which tell no size, keep a frame pointer or have no frame.

use super::{
    entry::{Entry, EntryKind},
    fingerprint::{Fingerprint, InterpretedIn},
};
use crate::unwind::{Memory, Registers, Step, StopReason};

/// Most heaps for code of a process.
pub const MAX_HEAPS: usize = 4;

/// Steps through the map of segments: one tells of up to 254 segments, and where code has come and gone for long, of fewer.
const MOST_STEPS: u32 = 32;

/// Words up the stack among which the return address of a stub is looked for: some of cryptography and arithmetic have large
/// frames, and use the frame pointer for something else.
pub const MOST_WORDS: u64 = 160;

/// Those of them that [`HotSpotOffsets::search`] looks at in one go: the verifier checks a loop anew for each round.
pub const WORDS_AT_ONCE: u64 = 16;

/// Largest frame of a stub that keeps a frame pointer, bytes.
const LARGEST_STUB: u64 = 1 << 16;

/// The map says so of a segment that is free.
const FREE: u8 = 0xff;

/// Largest frame of compiled code, words: more is no frame's size.
const LARGEST_FRAME: u32 = 1 << 17;

/// Largest code of an interpreted method, and what is beside it, bytes.
const LARGEST_METHOD: u64 = 1 << 17;

/// Memory for code.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CodeHeap {
    /// First address.
    pub low: u64,
    /// One past the last.
    pub high: u64,
    /// Its map of segments, a byte for each: how many segments to go back, zero where a piece of code begins.
    pub segments: u64,
    /// Logarithm of a segment's size.
    pub segment_shift: u32,
    /// Nothing.
    pub _reserved: u32,
}

/// Where things are in a process with a HotSpot. All offsets are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HotSpotOffsets {
    /// Heaps for code; those that there are not are empty.
    pub heaps: [CodeHeap; MAX_HEAPS],
    /// The interpreter's code: first address.
    pub interpreter: u64,
    /// One past the last.
    pub interpreter_end: u64,
    /// Where Java returns to when it was called from C++: the only stub that calls it.
    pub call_stub_return: u64,
    /// Size of what is before a piece of code in its first segment.
    pub block: u32,
    /// In a piece of code: words of its frame, 32 bits; zero if it tells none.
    pub frame_size: u32,
    /// In a piece of code: how far behind its first instruction the frame is complete.
    pub complete: u32,
    /// Bits of that, of which all are set if nobody knows; none if it is not told at all.
    pub complete_bits: u32,
    /// In a piece of code: its first instruction.
    pub code: u32,
    /// 1 if that is told by an offset of 32 bits in the piece, 0 if by an address.
    pub code_is_offset: u32,
    /// In a method: what is constant of it, and holds its bytecode.
    pub constant: u32,
    /// Nothing.
    pub _reserved: u32,
}

/// How far below the frame pointer [`FrameWords`] begin, bytes.
pub const BELOW: u64 = 64;

/// Words of an interpreted frame: position in the bytecode, local variables, cache, profile, mirror, method, last stack pointer,
/// the caller's stack pointer; the caller's frame pointer; the return address.
pub type FrameWords = [u64; 10];

const POSITION: usize = 0;
const METHOD: usize = 5;
const SENDER_SP: usize = 7;
/// Index of the caller's frame pointer.
pub const SAVED: usize = 8;
const RETURN: usize = 9;

/// What the instruction pointer of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The next instruction.
    Instruction,
    /// The return address of code in the heaps.
    CallOfCode,
    /// The return address of other code.
    CallOfOther,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// It was done, or cannot be.
    Done(Step),
    /// Where the caller is is not told: it can be searched for.
    Nowhere,
}

/// How the stack pointer stands to a frame whose code was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// The frame is whole.
    Whole,
    /// It has its size, but the caller's frame pointer is still in its register.
    Unsaved,
    /// Only the caller's frame pointer lies above the return address.
    Pushed,
    /// There is nothing but the return address.
    Bare,
    /// The bytes do not tell.
    Unknown,
}

impl HotSpotOffsets {
    /// Whether an address is in one of the heaps.
    #[inline(always)]
    pub fn is_code(&self, address: u64) -> bool {
        let mut inside = 0;
        for heap in &self.heaps {
            inside |= u32::from(address.wrapping_sub(heap.low) < heap.high.wrapping_sub(heap.low));
        }
        inside != 0
    }

    /// The heap that an address is in; an empty one if there is none.
    #[inline(always)]
    fn heap(&self, address: u64) -> CodeHeap {
        let mut found = CodeHeap::default();
        for heap in &self.heaps {
            if address >= heap.low && address < heap.high {
                found = *heap;
            }
        }
        found
    }

    /// Steps from a frame of the VM's code to its caller, as the kernel programs do by [`step`](Self::step) and
    /// [`search`](Self::search); `None` if the instruction is in no heap for code, and nothing was done.
    pub fn step_or_search<M: Memory>(
        &self,
        registers: &mut Registers,
        at: At,
        memory: &M,
        interpreted: impl FnMut(u64, &FrameWords),
    ) -> Option<Step> {
        match self.step(registers, at, memory, &mut [0; 10], interpreted)? {
            Stepped::Done(step) => Some(step),
            Stepped::Nowhere => Some(self.search_all(registers, memory)),
        }
    }

    /// Steps from a frame whose caller's place is told; `None` as above. Of an interpreted frame, `interpreted` is told its
    /// frame pointer and its words, which are read to `words`: the kernel programs have no room for them on their stack.
    #[inline(always)]
    pub fn step<M: Memory>(
        &self,
        registers: &mut Registers,
        at: At,
        memory: &M,
        words: &mut FrameWords,
        interpreted: impl FnMut(u64, &FrameWords),
    ) -> Option<Stepped> {
        let exact = u64::from(at == At::Instruction);
        let address = registers.ip.wrapping_sub(1 ^ exact);
        let heap = self.heap(address);
        if heap.segments == 0 {
            return None;
        }
        let mut size = 0;
        if address >= self.interpreter && address < self.interpreter_end {
            if let Some(step) = self.step_interpreted(registers, exact, memory, words, interpreted) {
                return Some(Stepped::Done(step));
            }
        } else {
            let Some(piece) = self.piece(&heap, address, memory) else {
                return Some(Stepped::Done(Step::Stop(StopReason::NoRow)));
            };
            let told = read_u32(memory, piece.wrapping_add(u64::from(self.frame_size))).unwrap_or(0);
            size = if told > LARGEST_FRAME { 0 } else { u64::from(told) };
            if exact != 0 && size != 0 {
                match self.shape_of_code(piece, address, memory) {
                    Shape::Unknown => size = 0,
                    shape => return Some(Stepped::Done(step_by(registers, shape, size, memory))),
                }
            }
        }
        Some(match size {
            0 => self.step_stub(registers, at, memory),
            _ => Stepped::Done(step_by(registers, Shape::Whole, size, memory)),
        })
    }

    /// The shape of the frame of a piece of code that tells its size, at an instruction.
    #[inline(always)]
    fn shape_of_code<M: Memory>(&self, piece: u64, address: u64, memory: &M) -> Shape {
        match self.complete(piece, memory) {
            Some(from) => shape_at(memory, address, address >= from),
            None => Shape::Unknown,
        }
    }

    /// Where the piece of code begins that an address is in.
    #[inline(always)]
    pub fn piece_at<M: Memory>(&self, address: u64, memory: &M) -> Option<u64> {
        let heap = self.heap(address);
        if heap.segments == 0 { None } else { self.piece(&heap, address, memory) }
    }

    #[inline(always)]
    fn piece<M: Memory>(&self, heap: &CodeHeap, address: u64, memory: &M) -> Option<u64> {
        let shift = heap.segment_shift & 63;
        let mut segment = address.wrapping_sub(heap.low) >> shift;
        for _ in 0..MOST_STEPS {
            match read_u8(memory, heap.segments.wrapping_add(segment))? {
                0 => {
                    let begin = heap.low.wrapping_add(segment << shift);
                    return Some(begin.wrapping_add(u64::from(self.block)));
                }
                FREE => return None,
                back => segment = segment.wrapping_sub(back.into()),
            }
        }
        None
    }

    /// From which address on the frame of a piece of code is complete, if it tells.
    #[inline(always)]
    fn complete<M: Memory>(&self, piece: u64, memory: &M) -> Option<u64> {
        let mask = 1u64.wrapping_shl(self.complete_bits & 63).wrapping_sub(1);
        let complete = u64::from(read_u32(memory, piece.wrapping_add(u64::from(self.complete)))?) & mask;
        if complete == mask {
            return None;
        }
        let at = piece.wrapping_add(u64::from(self.code));
        let code = if self.code_is_offset == 0 {
            memory.read_u64(at)?
        } else {
            piece.wrapping_add(u64::from(read_u32(memory, at)?))
        };
        Some(code.wrapping_add(complete))
    }

    /// Steps from an interpreted frame. `None` if there is none: while the interpreter makes one or takes one away, the
    /// frame pointer is the caller's, who may be compiled and have anything in it.
    #[inline(always)]
    fn step_interpreted<M: Memory>(
        &self,
        registers: &mut Registers,
        exact: u64,
        memory: &M,
        words: &mut FrameWords,
        mut interpreted: impl FnMut(u64, &FrameWords),
    ) -> Option<Step> {
        let fp = registers.fp;
        if fp & 7 != 0 || fp < registers.sp {
            return None;
        }
        memory.read_words(fp.wrapping_sub(BELOW), words)?;
        let [method, sender, returns_to] = [words[METHOD], words[SENDER_SP], words[RETURN]];
        if sender <= fp || method == 0 || method & 7 != 0 || returns_to == 0 {
            return None;
        }
        if exact != 0 {
            // Native methods have no position.
            let constant = memory.read_u64(method.wrapping_add(u64::from(self.constant)))?;
            if words[POSITION] != 0 && words[POSITION].wrapping_sub(constant) >= LARGEST_METHOD {
                return None;
            }
        }
        interpreted(fp, words);
        *registers = Registers { ip: returns_to, sp: sender, fp: words[SAVED], lr: returns_to };
        Some(Step::Continue)
    }

    /// Steps from a frame of which no size is known: of a stub, or one that is just being made. The return address is on top of
    /// the stack, or above the frame pointer, or somewhere up the stack: what calls code of the VM's is mostly such code.
    #[inline(always)]
    fn step_stub<M: Memory>(&self, registers: &mut Registers, at: At, memory: &M) -> Stepped {
        let Registers { ip, sp, fp, .. } = *registers;
        if at == At::CallOfCode && ip != self.call_stub_return {
            // What a virtual thread returns to where the rest of its frames lies in the heap.
            return Stepped::Done(Step::Stop(StopReason::NoRow));
        }
        if at == At::Instruction {
            let shape = shape_at(memory, ip, false);
            let Some([first, _]) = memory.read_pair(sp) else {
                return Stepped::Done(Step::Stop(StopReason::Unreadable));
            };
            let on_top = self.is_code(first);
            if shape == Shape::Pushed || on_top {
                let shape = if shape == Shape::Pushed { shape } else { Shape::Bare };
                return Stepped::Done(step_by(registers, shape, 0, memory));
            }
        }
        if fp & 7 == 0
            && fp.wrapping_sub(sp) < LARGEST_STUB
            && let Some([saved, returns_to]) = memory.read_pair(fp)
            && (self.is_code(returns_to) || (at != At::Instruction && returns_to != 0))
        {
            // What is saved there is the caller's, who may be compiled and have anything in it.
            *registers = Registers { ip: returns_to, sp: fp.wrapping_add(16), fp: saved, lr: returns_to };
            return Stepped::Done(Step::Continue);
        }
        Stepped::Nowhere
    }

    /// Steps to what called a frame of the VM's code, by the first address up the stack that can be a return address. Looks at
    /// some words, from the one of index `first` on; `None` if it is none of them.
    #[inline(always)]
    pub fn search<M: Memory>(&self, registers: &mut Registers, first: u64, memory: &M) -> Option<Step> {
        let Registers { sp, fp, .. } = *registers;
        for i in 0..WORDS_AT_ONCE {
            let place = sp.wrapping_add(8 * (first + i));
            let Some(word) = memory.read_u64(place) else { return Some(Step::Stop(StopReason::NoRow)) };
            if self.is_code(word) && follows_call(word, memory) {
                *registers = Registers { ip: word, sp: place.wrapping_add(8), fp, lr: word };
                return Some(Step::Continue);
            }
        }
        None
    }

    /// The same with all words.
    fn search_all<M: Memory>(&self, registers: &mut Registers, memory: &M) -> Step {
        let mut some = (0..MOST_WORDS).step_by(WORDS_AT_ONCE as usize);
        some.find_map(|first| self.search(registers, first, memory)).unwrap_or(Step::Stop(StopReason::NoRow))
    }
}

/// Whether the instruction before an address is a call of what is often called: a place, or what a register holds.
#[inline(always)]
fn follows_call<M: Memory>(address: u64, memory: &M) -> bool {
    let Some(before) = memory.read_u64(address.wrapping_sub(8)) else { return false };
    before >> 24 & 0xff == 0xe8 || (before >> 48 & 0xff == 0xff && before >> 56 & 0xf8 == 0xd0)
}

/// The shape that the instruction at an address, and the one before it, tell. `whole` says that the frame has been made there.
#[inline(always)]
fn shape_at<M: Memory>(memory: &M, address: u64, whole: bool) -> Shape {
    let usual = if whole { Shape::Whole } else { Shape::Unknown };
    let Some(at) = memory.read_u64(address) else { return usual };
    let (one, two, three) = (at & 0xff, at & 0xffff, at & 0xff_ffff);
    // pop rbp
    if one == 0x5d {
        return Shape::Pushed;
    }
    // ret; the look for a safepoint before it: cmp rsp, [r15 + ...]; ja ...; ret
    let last_look = three == 0xa7_3b49 || three == 0x67_3b49;
    if one == 0xc3 || last_look || (two == 0x870f && at >> 48 & 0xff == 0xc3) {
        return Shape::Bare;
    }
    if whole {
        return Shape::Whole;
    }
    // mov rbp, rsp
    if three == 0xec_8b48 || three == 0xe5_8948 {
        return Shape::Pushed;
    }
    // sub rsp, ...: behind the push, or in its place
    if three == 0xec_8348 || three == 0xec_8148 {
        let before = memory.read_u64(address.wrapping_sub(8)).unwrap_or(0);
        let follows_move = before >> 40 == 0xec_8b48 || before >> 40 == 0xe5_8948;
        return if before >> 56 == 0x55 || follows_move { Shape::Pushed } else { Shape::Bare };
    }
    // mov [rsp + ...], rbp
    if at & 0xffff_ffff == 0x246c_8948 || at & 0xffff_ffff == 0x24ac_8948 {
        return Shape::Unsaved;
    }
    // Whether the code is still valid is asked with the frame made: cmp dword [r15 + ...], ...; jcc
    if three == 0x7f_8141 || three == 0x7f_8341 || three == 0xbf_8141 || two == 0x850f || two == 0x840f {
        return Shape::Whole;
    }
    Shape::Unknown
}

/// Steps from a frame of that shape, whose size is `size` words once it is whole.
#[inline(always)]
fn step_by<M: Memory>(registers: &mut Registers, shape: Shape, size: u64, memory: &M) -> Step {
    let bytes = match shape {
        Shape::Bare => 8,
        Shape::Pushed => 16,
        _ => size << 3,
    };
    let caller = registers.sp.wrapping_add(bytes);
    // Nothing below the stack pointer is read: it may be the last page of the stack.
    let Some(pair) = memory.read_pair(caller.wrapping_sub(16).max(registers.sp)) else {
        return Step::Stop(StopReason::Unreadable);
    };
    let [saved, returns_to] = if shape == Shape::Bare { [0, pair[0]] } else { pair };
    if returns_to == 0 || caller <= registers.sp {
        return Step::Stop(StopReason::NoProgress);
    }
    let in_register = shape == Shape::Bare || shape == Shape::Unsaved;
    let fp = if in_register { registers.fp } else { saved };
    *registers = Registers { ip: returns_to, sp: caller, fp, lr: returns_to };
    Step::Continue
}

/// A byte of memory, by the word that it is in.
#[inline(always)]
fn read_u8<M: Memory>(memory: &M, address: u64) -> Option<u8> {
    memory.read_u64(address & !7).map(|word| (word >> ((address & 7) * 8)) as u8)
}

/// Four bytes that lie in one word.
#[inline(always)]
fn read_u32<M: Memory>(memory: &M, address: u64) -> Option<u32> {
    memory.read_u64(address & !7).map(|word| (word >> ((address & 7) * 8)) as u32)
}

/// The entry of an interpreted frame: its method, and where in the bytecode it is (zero in native methods).
#[inline(always)]
pub fn entry(words: &FrameWords) -> Entry {
    Entry { frame: 0, kind: EntryKind::HotSpot as u8, value: words[METHOD], payload: words[POSITION] }
}

/// Adds the interpreted frame at `fp` to a fingerprint. `mix` is a step of a hash.
#[inline(always)]
pub fn add_to_fingerprint(print: &mut Fingerprint, fp: u64, words: &FrameWords, mix: impl Fn(u64) -> u64) {
    print.add(InterpretedIn::HotSpot, fp, words[SAVED], |hash| fingerprint_step(hash, words, mix));
}

/// One frame's step of a fingerprint's hash.
#[inline(always)]
pub fn fingerprint_step(hash: u64, words: &FrameWords, mix: impl Fn(u64) -> u64) -> u64 {
    mix(hash ^ words[METHOD] ^ words[POSITION].rotate_left(32))
}

const _: () = {
    assert!(size_of::<CodeHeap>() == 32);
    assert!(size_of::<HotSpotOffsets>() == 184);
};

#[cfg(test)]
mod tests;
