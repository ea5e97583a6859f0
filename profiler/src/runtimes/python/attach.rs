//! Getting hold of a running interpreter: its threads, and where each keeps the address of its state.
//!
//! The interpreter keeps it under a key of the thread library, whose place lies behind the thread pointer. Where is not
//! computed but searched for: the thread list says whose state is whose. What the list leads to must be what the layout says:
//! threads, frames, code, names. Otherwise this build is another than it seems, and its functions stay without names.

use std::cmp::Reverse;

use profiler_common::{
    MAX_FRAMES,
    runtime::{
        Entry, RUNTIME_WORDS,
        python::{FRAME_WORDS, OBJECT_WORDS, PythonFrame, PythonOffsets, SHORT_WORDS, cut_off},
    },
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::runtimes::{
    memory::ForeignMemory,
    python::{
        build::CpythonBuild,
        layout::{DEBUG_WORDS, Layout},
        objects::{Objects, Types},
    },
    runtime::NotAttached,
};

/// Interpreters, and threads, that are looked at.
const MOST_INTERPRETERS: usize = 64;
const MOST_THREADS: usize = 256;

/// Bytes behind the thread pointer that may hold the state's address: glibc's `struct pthread`.
const SEARCHED: usize = 0x900;

/// Frames looked at to see whether the layout is right.
const MOST_FRAMES: usize = 64;

/// A running interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// Its layout, complete.
    pub layout: Layout,
    /// Where its types are.
    pub types: Types,
    /// Where its own state is.
    pub runtime: u64,
}

/// Gets hold of the interpreter of this build whose file is mapped `bias` above its own addresses.
pub fn attach<M: ForeignMemory>(
    memory: &M,
    build: &CpythonBuild,
    bias: u64,
) -> Result<Interpreter, NotAttached> {
    let runtime = build.runtime.wrapping_add(bias);
    let mut layout = match Layout::known(build.version) {
        Some(layout) => layout,
        None => {
            let words: [u64; DEBUG_WORDS] = memory.words(runtime).ok_or(NotAttached::NotYet)?;
            Layout::told(build.version, &words).map_err(NotAttached::Refused)?
        }
    };
    let types = Types { code: build.code_type.wrapping_add(bias), text: build.text_type.wrapping_add(bias) };
    let states = thread_states(memory, &layout, runtime);
    if states.is_empty() {
        return Err(NotAttached::NotYet);
    }
    layout.frames.state = slot(memory, &states, layout.thread_pointer)?;
    let objects = Objects { memory, layout: &layout, types };
    let mut any = false;
    for state in states {
        for code in codes(memory, &layout.frames, state) {
            any = true;
            let words = objects.code_words(code);
            if words.and_then(|words| objects.code(&words)).is_some_and(|code| is_text(&code.name)) {
                return Ok(Interpreter { layout, types, runtime });
            }
        }
    }
    if any { Err(refused("its frames lead to no code")) } else { Err(NotAttached::NotYet) }
}

fn refused(why: &str) -> NotAttached {
    NotAttached::Refused(why.to_owned())
}

fn is_text(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(char::is_control)
}

/// States of all threads.
pub(super) fn thread_states<M: ForeignMemory>(memory: &M, layout: &Layout, runtime: u64) -> Vec<u64> {
    let list = |first: Option<u64>, next: u64, most: usize| {
        let next = move |object: &u64| memory.u64(object.checked_add(next)?).filter(|next| *next != 0);
        std::iter::successors(first.filter(|first| *first != 0), next).take(most)
    };
    let interpreters = list(
        memory.u64(runtime.wrapping_add(layout.interpreters)),
        layout.next_interpreter,
        MOST_INTERPRETERS,
    );
    interpreters
        .flat_map(|interpreter| {
            let first = memory.u64(interpreter.wrapping_add(layout.first_thread));
            list(first, layout.next_thread, MOST_THREADS)
        })
        .take(MOST_THREADS)
        .collect()
}

/// Offset from the thread pointer to the address of the thread's state: the first that most threads have.
fn slot<M: ForeignMemory>(memory: &M, states: &[u64], thread_pointer: u64) -> Result<u32, NotAttached> {
    let mut votes = vec![0u32; SEARCHED / 8];
    let mut seen = false;
    for &state in states {
        let Some(pointer) = memory.u64(state.wrapping_add(thread_pointer)).filter(|pointer| *pointer != 0)
        else {
            continue; // it has not begun, or has ended
        };
        let Some(bytes) = memory.bytes(pointer, SEARCHED) else { continue };
        seen = true;
        for (vote, word) in votes.iter_mut().zip(bytes.as_chunks().0) {
            *vote += u32::from(u64::from_ne_bytes(*word) == state);
        }
    }
    let most = votes.iter().copied().max().unwrap_or(0);
    match votes.iter().position(|vote| *vote == most) {
        Some(index) if most > 0 => Ok(index as u32 * 8),
        _ if seen => Err(refused("its threads do not hold their state where threads keep theirs")),
        _ => Err(refused("its list of threads leads to no threads")),
    }
}

/// The state of each thread, of those with these ids, by which the process itself knows them. The thread library keeps a thread's id
/// behind its thread pointer, where most threads have one of them.
pub(super) fn states_by_thread<M: ForeignMemory>(
    memory: &M,
    interpreter: &Interpreter,
    ids: &FxHashSet<u32>,
) -> FxHashMap<u32, u64> {
    let layout = &interpreter.layout;
    let states = thread_states(memory, layout, interpreter.runtime).into_iter();
    let libraries = states.filter_map(|state| {
        let pointer =
            memory.u64(state.wrapping_add(layout.thread_pointer)).filter(|pointer| *pointer != 0)?;
        Some((state, memory.bytes(pointer, SEARCHED)?))
    });
    let libraries: Vec<(u64, Vec<u8>)> = libraries.collect();
    let with_id_at = |index: usize| -> FxHashMap<u32, u64> {
        let each = libraries.iter().filter_map(|(state, bytes)| {
            let id = u32::from_ne_bytes(*bytes.as_chunks().0.get(index)?);
            ids.contains(&id).then_some((id, *state))
        });
        each.collect()
    };
    (0..SEARCHED / 4).map(with_id_at).min_by_key(|found| Reverse(found.len())).unwrap_or_default()
}

/// What tells the frames of the thread with this state, as the kernel programs copy it.
pub(super) fn entries<M: ForeignMemory>(memory: &M, offsets: &PythonOffsets, state: u64) -> Vec<Entry> {
    let (mut words, mut used) = ([0; RUNTIME_WORDS], 0);
    let mut at = offsets.innermost_of(state, &Plain(memory)).unwrap_or(0);
    for _ in 0..MAX_FRAMES {
        let Some(frame) = read_frame(memory, offsets, at).filter(|_| at != 0) else { break };
        frame.keep(&mut words, 0, &mut used);
        at = frame.caller;
    }
    if at != 0 {
        cut_off(&mut words, 0, used);
    }
    words[..used as usize].as_chunks().0.iter().map(|pair| Entry::decode(*pair)).collect()
}

/// Code objects that a thread's frames name; they change while they are read.
fn codes<M: ForeignMemory>(memory: &M, offsets: &PythonOffsets, state: u64) -> Vec<u64> {
    let mut codes = Vec::new();
    let Some(mut at) = offsets.innermost_of(state, &Plain(memory)) else { return codes };
    for _ in 0..MOST_FRAMES {
        let Some(frame) = read_frame(memory, offsets, at).filter(|_| at != 0) else { break };
        codes.extend(Some(frame.code).filter(|code| *code != 0));
        at = frame.caller;
    }
    codes
}

/// A frame in another process.
pub fn read_frame<M: ForeignMemory>(memory: &M, offsets: &PythonOffsets, at: u64) -> Option<PythonFrame> {
    let mut words = [0; FRAME_WORDS];
    if offsets.has_objects() {
        words[..OBJECT_WORDS].copy_from_slice(&memory.words::<OBJECT_WORDS>(at)?);
    } else {
        words[..SHORT_WORDS].copy_from_slice(&memory.words::<SHORT_WORDS>(at)?);
    }
    Some(offsets.decode(&words))
}

/// Foreign memory, as the code that is shared with the kernel programs reads it.
pub struct Plain<'a, M>(pub &'a M);

impl<M: ForeignMemory> profiler_common::unwind::Memory for Plain<'_, M> {
    fn read_u64(&self, address: u64) -> Option<u64> {
        self.0.u64(address)
    }
}
