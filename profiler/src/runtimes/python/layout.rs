//! Where things are in the objects of each version of CPython: known by heart up to 3.12, told by the interpreter itself from
//! 3.13 on (`_Py_DebugOffsets`, at the beginning of `_PyRuntime`).

use profiler_common::runtime::python::{NONE, PythonOffsets};

use crate::runtimes::python::lines::LineTable;

/// A version, e.g. `(3, 11)`.
pub type Version = (u8, u8);

/// Offsets in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the interpreters' list in `_PyRuntime`.
    pub interpreters: u64,
    /// In an interpreter: the next, and its first thread's state.
    pub next_interpreter: u64,
    /// See `next_interpreter`.
    pub first_thread: u64,
    /// In a thread's state: the next, and the thread pointer of its thread.
    pub next_thread: u64,
    /// See `next_thread`.
    pub thread_pointer: u64,
    /// What the kernel programs need. Where the thread's state is found is not known yet.
    pub frames: PythonOffsets,
    /// In a code object: its file, name, first line, table of lines.
    pub file: u64,
    /// See `file`.
    pub name: u64,
    /// See `file`.
    pub first_line: u64,
    /// See `file`.
    pub lines: u64,
    /// Format of that table.
    pub line_table: LineTable,
    /// Bytes for a unit of the position in a frame.
    pub unit: u32,
    /// Size of a string object before its characters, if they are all ASCII, and if not.
    pub ascii: u64,
    /// See `ascii`.
    pub wide: u64,
}

/// Words of `_Py_DebugOffsets` that are read.
pub const DEBUG_WORDS: usize = 96;

/// What `_Py_DebugOffsets` begins with.
const COOKIE: u64 = u64::from_ne_bytes(*b"xdebugpy");

impl Layout {
    /// The layout of a version whose offsets do not differ between builds; `None` for others.
    pub fn known(version: Version) -> Option<Layout> {
        let objects = PythonOffsets {
            state: 0,
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
        let v3_8 = Layout {
            interpreters: 32,
            next_interpreter: 0,
            first_thread: 8,
            next_thread: 8,
            thread_pointer: 176,
            frames: objects,
            file: 104,
            name: 112,
            first_line: 40,
            lines: 120,
            line_table: LineTable::Pairs,
            unit: 1,
            ascii: 48,
            wide: 72,
        };
        let v3_10 = Layout {
            frames: PythonOffsets { position: 96, ..objects },
            line_table: LineTable::Ranges,
            unit: 2,
            ..v3_8.clone()
        };
        let short = PythonOffsets {
            frame: 56,
            in_cframe: 8,
            caller: 48,
            position: 56,
            boundary: 68,
            instructions: 184,
            ..objects
        };
        let v3_11 = Layout {
            interpreters: 40,
            first_thread: 16,
            thread_pointer: 152,
            frames: short,
            file: 112,
            name: 128,
            first_line: 72,
            lines: 136,
            line_table: LineTable::Locations,
            unit: 1,
            ..v3_8.clone()
        };
        Some(match version {
            (3, 8 | 9) => v3_8,
            (3, 10) => v3_10,
            (3, 11) => v3_11,
            (3, 12) => Layout {
                first_thread: 72,
                thread_pointer: 136,
                frames: PythonOffsets {
                    in_cframe: 0,
                    code: 0,
                    caller: 8,
                    boundary: 70,
                    mark: 3,
                    instructions: 192,
                    ..short
                },
                first_line: 68,
                ascii: 40,
                wide: 56,
                ..v3_11
            },
            _ => return None,
        })
    }

    /// The layout that `_Py_DebugOffsets` tells. Its own layout is that of one version; others are refused.
    pub fn told(version: Version, words: &[u64; DEBUG_WORDS]) -> Result<Layout, String> {
        let [cookie, release, free_threaded, ..] = *words;
        if cookie != COOKIE || (release >> 24, release >> 16 & 0xff) != (version.0.into(), version.1.into()) {
            return Err("its _Py_DebugOffsets are not of its version".to_owned());
        }
        if free_threaded != 0 {
            return Err("it is built without the global interpreter lock".to_owned());
        }
        let places = match version {
            (3, 13) => &PLACES_3_13,
            (3, 14) => &PLACES_3_14,
            _ => return Err("its version is not known".to_owned()),
        };
        let mut offsets = places.iter().map(|place| words[*place]);
        let mut next = |most: u64| match offsets.next() {
            Some(offset) if offset < most => Ok(offset),
            _ => Err("its _Py_DebugOffsets are out of range".to_owned()),
        };
        let (state, frame, object) = (1 << 20, 8 * FRAME_END, CODE_END);
        Ok(Layout {
            interpreters: next(state)?,
            next_interpreter: next(state)?,
            first_thread: next(state)?,
            next_thread: next(state)?,
            thread_pointer: next(state)?,
            frames: PythonOffsets {
                state: 0,
                frame: next(state)? as u32,
                in_cframe: NONE,
                caller: next(frame)? as u32,
                code: next(frame)? as u32,
                position: next(frame)? as u32,
                boundary: next(frame)? as u32,
                // FRAME_OWNED_BY_CSTACK, from 3.14 on FRAME_OWNED_BY_INTERPRETER and others that are no function's.
                mark: 3,
                instructions: next(object)? as u32,
                _reserved: 0,
            },
            file: next(object)?,
            name: next(object)?,
            first_line: next(object)?,
            lines: next(object)?,
            line_table: LineTable::Locations,
            unit: 1,
            ascii: next(object)?,
            // Behind the ASCII part are the length and the address of an encoded copy.
            wide: words[places[PLACES - 1]] + 16,
        })
    }
}

/// Words of a frame that are read from 3.11 on.
const FRAME_END: u64 = profiler_common::runtime::python::SHORT_WORDS as u64;
/// Bytes of a code object within which everything must be.
const CODE_END: u64 = 512;

const PLACES: usize = 16;
/// Words of `_Py_DebugOffsets`: runtime's interpreters; interpreter's next and first thread; thread's next, thread id and
/// current frame; frame's previous, executable, instruction and owner; code's instructions, file, qualified name, first
/// line and line table; size of an ASCII string (CPython's pycore_debug_offsets.h).
const PLACES_3_13: [usize; PLACES] = [5, 8, 9, 21, 24, 23, 29, 30, 31, 33, 43, 35, 37, 39, 38, 70];
/// The same in 3.14, which tells of more things in between.
const PLACES_3_14: [usize; PLACES] = [5, 8, 9, 24, 27, 26, 32, 33, 34, 36, 48, 40, 42, 44, 43, 80];
