//! Frames of V8's compiled and interpreted code. They keep a frame pointer, and below it, in every version from 10 to 14, the
//! context, the function, the number of arguments, and if it is interpreted its bytecode and the position in it
//! (`v8dbg_off_fp_*`).

use super::{
    entry::{Entry, EntryKind},
    fingerprint::{Fingerprint, InterpretedIn},
};

/// What the kernel programs must know of a V8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V8Offsets {
    /// Offset of the SharedFunctionInfo in a JSFunction.
    pub shared: u32,
    /// Nothing.
    pub _reserved: u32,
}

/// How far below the frame pointer [`FrameWords`] begin, bytes.
pub const BELOW: u64 = 40;

/// A frame's words: position in the bytecode, bytecode, arguments, function, context; the caller's frame pointer; the return
/// address.
pub type FrameWords = [u64; 7];

/// Index of the two words that every frame has.
pub const SAVED: usize = 5;

const POSITION: usize = 0;
const BYTECODE: usize = 1;
const FUNCTION: usize = 3;
const CONTEXT: usize = 4;

/// Low bit of a pointer to an object of the heap. Frames that belong to no function have the number of their kind, shifted
/// by one, in the place of the context.
const HEAP_TAG: u64 = 1;

/// The (untagged) address of the frame's function; `None` if it has none.
#[inline(always)]
pub fn function(words: &FrameWords) -> Option<u64> {
    let function = words[FUNCTION];
    (words[CONTEXT] & HEAP_TAG != 0 && function & HEAP_TAG != 0).then_some(function & !HEAP_TAG)
}

/// The entry of a frame whose function has this SharedFunctionInfo.
#[inline(always)]
pub fn entry(frame: u8, shared: u64, words: &FrameWords) -> Entry {
    Entry { frame, kind: EntryKind::V8 as u8, value: shared, payload: payload(words) }
}

/// Position in the bytecode in the high half, where it is a small integer; the low half of the bytecode's address.
#[inline(always)]
pub fn payload(words: &FrameWords) -> u64 {
    position(words) | words[BYTECODE] & 0xffff_ffff
}

/// Small integers are in the high half, with zeros below.
#[inline(always)]
fn position(words: &FrameWords) -> u64 {
    if words[POSITION] & 0xffff_ffff == 0 { words[POSITION] } else { 0 }
}

/// Adds the frame at `fp` to a fingerprint. `mix` is a step of a hash.
#[inline(always)]
pub fn add_to_fingerprint(print: &mut Fingerprint, fp: u64, words: &FrameWords, mix: impl Fn(u64) -> u64) {
    print.add(InterpretedIn::V8, fp, words[SAVED], |hash| fingerprint_step(hash, words, mix));
}

/// One frame's step of a fingerprint's hash.
#[inline(always)]
pub fn fingerprint_step(hash: u64, words: &FrameWords, mix: impl Fn(u64) -> u64) -> u64 {
    match function(words) {
        // Where the frame is not interpreted, something else may be in the place of the position: then the stack counts as
        // another one more often than it is.
        Some(function) => mix(hash ^ function ^ position(words)),
        None => mix(hash),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{CHAIN_FRAMES, CHAINS, Chain},
        *,
    };

    const INTERPRETED: FrameWords = [71 << 32, 0x1_2345_6789, 2 << 32, 0x2001, 0x3001, 0x7000, 0x40_0000];

    #[test]
    fn a_frame_of_a_function_is_told_by_it_and_its_position() {
        assert_eq!(function(&INTERPRETED), Some(0x2000));
        let entry = entry(3, 0x4001, &INTERPRETED);
        assert_eq!((entry.value, entry.payload), (0x4001, 71 << 32 | 0x2345_6789));
        let mut stub = INTERPRETED;
        stub[CONTEXT] = 17 << 1;
        assert_eq!(function(&stub), None);
    }

    #[test]
    fn fingerprints_follow_frame_pointers() {
        let mix = |value: u64| value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7);
        let print = |function: u64, position: u64| {
            let (mut inner, mut print) = (INTERPRETED, Fingerprint::default());
            (inner[FUNCTION], inner[POSITION]) = (function, position << 32);
            add_to_fingerprint(&mut print, 0x6000, &inner, mix);
            add_to_fingerprint(&mut print, 0x7000, &INTERPRETED, mix);
            add_to_fingerprint(&mut print, 0x9000, &INTERPRETED, mix); // not the next: another chain
            print
        };
        let chains = print(0x2001, 71).chains;
        assert_eq!(
            (chains[0], chains[1]),
            (Chain { first: 0x6000, frames: 2, kind: 0 }, Chain { first: 0x9000, frames: 1, kind: 0 })
        );
        assert_eq!(print(0x2001, 71).count, 2);
        assert_eq!(print(0x2001, 71), print(0x2001, 71));
        let deep = |chains: u64, frames: u32| {
            let mut print = Fingerprint::default();
            for fp in (1..=chains)
                .flat_map(|chain| (0..u64::from(frames)).map(move |frame| chain << 20 | frame << 4))
            {
                let mut words = INTERPRETED;
                words[SAVED] = fp + 16;
                add_to_fingerprint(&mut print, fp, &words, mix);
            }
            print.is_partial()
        };
        assert!(!deep(CHAINS, CHAIN_FRAMES));
        assert!(deep(CHAINS + 1, 1) && deep(1, CHAIN_FRAMES + 1));
        assert_ne!(print(0x2001, 71).hash, print(0x2009, 71).hash, "another function");
        assert_ne!(print(0x2001, 71).hash, print(0x2001, 72).hash, "another place");
    }
}
