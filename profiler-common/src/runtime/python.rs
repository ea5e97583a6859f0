//! Frames of CPython. The interpreter keeps them in a list of its own: the thread's state, found by the thread pointer,
//! leads to the innermost, and each to its caller. Native frames of the interpreter's loop and Python's frames are put
//! together in userspace, by which of Python's ends each call of the loop.

use super::entry::{Entry, EntryKind, RUNTIME_WORDS};
use crate::unwind::Memory;

/// No such thing in this version.
pub const NONE: u32 = u32::MAX;

/// Words of a frame that are read at once, at most.
pub const FRAME_WORDS: usize = 16;
/// Words of a frame up to 3.10, an object as others. What is read ends with the position.
pub const OBJECT_WORDS: usize = 14;
/// Words of a frame from 3.11 on, without local variables. The last frame may lie at the end of its memory.
pub const SHORT_WORDS: usize = 10;

/// Where things are in a build of CPython. All offsets are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PythonOffsets {
    /// From the thread pointer to the address of the thread's state.
    pub state: u32,
    /// Of the innermost frame in the thread's state, or of what it is in.
    pub frame: u32,
    /// Of the innermost frame in that (3.11 and 3.12); [`NONE`] if it is in the state itself.
    pub in_cframe: u32,
    /// Of the code object in a frame.
    pub code: u32,
    /// Of the caller's frame in a frame.
    pub caller: u32,
    /// Of the position in a frame: a number of 32 bits up to 3.10, then the address of an instruction.
    pub position: u32,
    /// Of the byte in a frame that tells where a call of the interpreter's loop begins; [`NONE`] if each frame is one.
    pub boundary: u32,
    /// From this value of the byte on the frame is no function's, but the mark of such a call (3.12 on). Zero: one or
    /// more marks a function's frame that was called first (3.11).
    pub mark: u32,
    /// Of the first instruction in a code object; [`NONE`] where the position is a number.
    pub instructions: u32,
    /// Nothing.
    pub _reserved: u32,
}

/// A frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PythonFrame {
    /// Its code object; zero for a mark.
    pub code: u64,
    /// Position in its code, in the version's units.
    pub position: u32,
    /// Calls of the interpreter's loop that begin with it, or with the mark.
    pub begins: u32,
    /// The caller's frame; zero at the end.
    pub caller: u64,
}

/// Bits of an entry's payload below its count of calls.
const BEGINS_SHIFT: u32 = 32;
/// The frame is the last that was copied, but not the outermost.
const CUT_OFF: u64 = 1 << 63;

/// What the payload of an entry says, whose value is the address of a code object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// See [`PythonFrame::position`].
    pub position: u32,
    /// See [`PythonFrame::begins`].
    pub begins: u32,
    /// It is the last frame that was copied, but not the outermost.
    pub cut_off: bool,
}

impl Payload {
    /// Takes a payload apart.
    pub fn decode(payload: u64) -> Payload {
        Payload {
            position: payload as u32,
            begins: (payload >> BEGINS_SHIFT) as u32 & 0x7fff_ffff,
            cut_off: payload & CUT_OFF != 0,
        }
    }
}

impl PythonFrame {
    /// Adds the frame to the `words` words of entries there are, of which those of Python begin at `first`.
    #[inline(always)]
    pub fn keep(&self, entries: &mut [u64; RUNTIME_WORDS], first: u64, words: &mut u64) {
        let calls = u64::from(self.begins) << BEGINS_SHIFT;
        if self.code == 0 {
            // The mark of a call: the frame before has begun it. Without one, the call runs nothing yet.
            if *words > first {
                entries[last_payload(*words)] += calls;
            }
            return;
        }
        if *words >= ENTRY_WORDS {
            return;
        }
        let entry = Entry {
            frame: 0,
            kind: EntryKind::Python as u8,
            value: self.code,
            payload: calls | u64::from(self.position),
        };
        let at = *words as usize & (RUNTIME_WORDS - 2);
        [entries[at], entries[at + 1]] = entry.encode();
        *words = (at + 2) as u64;
    }
}

/// Says that there are more frames than the `words` words tell of.
#[inline(always)]
pub fn cut_off(entries: &mut [u64; RUNTIME_WORDS], first: u64, words: u64) {
    if words > first {
        entries[last_payload(words)] |= CUT_OFF;
    }
}

/// Where the last entry's payload is.
#[inline(always)]
fn last_payload(words: u64) -> usize {
    (words as usize).wrapping_sub(1) & (RUNTIME_WORDS - 1)
}

/// Words of all entries of a record.
const ENTRY_WORDS: u64 = RUNTIME_WORDS as u64 - 2;

impl PythonOffsets {
    /// Whether a frame is an object with all its words.
    #[inline(always)]
    pub fn has_objects(&self) -> bool {
        self.instructions == NONE
    }

    /// The innermost frame of the thread with this thread pointer; zero if it runs no Python.
    #[inline(always)]
    pub fn innermost(&self, thread_pointer: u64, memory: &impl Memory) -> Option<u64> {
        let state = memory.read_u64(thread_pointer.wrapping_add(u64::from(self.state)))?;
        if state == 0 {
            return Some(0);
        }
        self.innermost_of(state, memory)
    }

    /// The innermost frame of a thread's state.
    #[inline(always)]
    pub fn innermost_of(&self, state: u64, memory: &impl Memory) -> Option<u64> {
        let frame = memory.read_u64(state.wrapping_add(u64::from(self.frame)))?;
        if self.in_cframe == NONE || frame == 0 {
            return Some(frame);
        }
        memory.read_u64(frame.wrapping_add(u64::from(self.in_cframe)))
    }

    /// What a frame's words say.
    #[inline(always)]
    pub fn decode(&self, words: &[u64; FRAME_WORDS]) -> PythonFrame {
        // From 3.14 on the lowest bits tell how the reference is held.
        let code = word(words, self.code) & !7;
        let position = word(words, self.position);
        let mut frame =
            PythonFrame { code, position: position as u32, begins: 1, caller: word(words, self.caller) };
        if self.instructions != NONE {
            let first = code.wrapping_add(u64::from(self.instructions));
            frame.position = position.wrapping_sub(first) as u32;
        }
        if self.boundary != NONE {
            let byte = (word(words, self.boundary) >> ((self.boundary & 7) * 8)) as u8;
            if self.mark == 0 {
                frame.begins = u32::from(byte != 0);
            } else if u32::from(byte) >= self.mark {
                frame.code = 0;
            } else {
                frame.begins = 0;
            }
        }
        frame
    }
}

/// The word at an offset.
#[inline(always)]
fn word(words: &[u64; FRAME_WORDS], offset: u32) -> u64 {
    words[(offset >> 3) as usize & (FRAME_WORDS - 1)]
}

const _: () = {
    assert!(size_of::<PythonOffsets>() == 40);
    assert!(OBJECT_WORDS <= FRAME_WORDS && SHORT_WORDS <= FRAME_WORDS);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V3_8: PythonOffsets = PythonOffsets {
        state: 0x318,
        frame: 24,
        in_cframe: NONE,
        code: 32,
        caller: 24,
        position: 104,
        boundary: NONE,
        mark: 0,
        instructions: NONE,
        _reserved: 0,
    };
    const V3_11: PythonOffsets = PythonOffsets {
        frame: 56,
        in_cframe: 8,
        caller: 48,
        position: 56,
        boundary: 68,
        instructions: 184,
        ..V3_8
    };
    const V3_12: PythonOffsets =
        PythonOffsets { in_cframe: 0, code: 0, caller: 8, boundary: 70, mark: 3, instructions: 192, ..V3_11 };

    #[test]
    fn frames_of_each_kind() {
        let mut words = [0; FRAME_WORDS];
        (words[3], words[4], words[13]) = (0x1000, 0x2000, 0xffff_0000_0012);
        let frame = PythonFrame { code: 0x2000, position: 0x12, begins: 1, caller: 0x1000 };
        assert_eq!(V3_8.decode(&words), frame);

        let mut words = [0; FRAME_WORDS];
        (words[4], words[6], words[7]) = (0x2000, 0x1000, 0x2000 + 184 + 6);
        let inner = PythonFrame { code: 0x2000, position: 6, begins: 0, caller: 0x1000 };
        assert_eq!(V3_11.decode(&words), inner);
        words[8] = 1 << 32;
        assert_eq!(V3_11.decode(&words), PythonFrame { begins: 1, ..inner });

        let mut words = [0; FRAME_WORDS];
        (words[0], words[1], words[7], words[8]) = (0x2001, 0x1000, 0x2000 + 192 + 6, 1 << 48);
        assert_eq!(V3_12.decode(&words), inner, "a generator's");
        words[8] = 3 << 48;
        let mark = V3_12.decode(&words);
        assert_eq!((mark.code, mark.begins, mark.caller), (0, 1, 0x1000));
    }

    #[test]
    fn marks_count_calls_of_the_frame_before() {
        let mut entries = [0; RUNTIME_WORDS];
        let frame = PythonFrame { code: 0x2000, position: 6, begins: 0, caller: 0 };
        let mark = PythonFrame { code: 0, begins: 1, ..frame };
        let mut words = 4; // of another runtime
        for frame in [mark, frame, mark, mark, frame, mark] {
            frame.keep(&mut entries, 4, &mut words);
        }
        cut_off(&mut entries, 4, words);
        assert_eq!((words, entries[3]), (8, 0));
        let payload = |begins, cut_off| Payload { position: 6, begins, cut_off };
        assert_eq!(Payload::decode(entries[5]), payload(2, false));
        assert_eq!(Payload::decode(entries[7]), payload(1, true));
        let entry = Entry::decode([entries[4], entries[5]]);
        assert_eq!((entry.value, entry.kind), (0x2000, EntryKind::Python as u8));
        words = ENTRY_WORDS;
        frame.keep(&mut entries, 4, &mut words);
        assert_eq!(words, ENTRY_WORDS, "full");
    }

    proptest! {
        #[test]
        fn any_offsets_are_survived(offsets: [u32; 9], words: [u64; FRAME_WORDS]) {
            let [state, frame, in_cframe, code, caller, position, boundary, mark, instructions] = offsets;
            let offsets = PythonOffsets {
                state, frame, in_cframe, code, caller, position, boundary, mark, instructions, _reserved: 0,
            };
            offsets.decode(&words);
        }
    }
}
