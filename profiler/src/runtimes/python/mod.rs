//! Functions of CPython 3.8 to 3.14, named from outside while the program runs on.
//!
//! ```text
//! file    -> which CPython (build.rs) -> where things are in it (layout.rs) -> its threads (attach.rs)
//! frame   -> code object -> name, file -> position -> line                     objects.rs, lines.rs
//! frames of both kinds -> one stack                                             loops.rs, merge.rs
//! ```

use std::{fs::File, path::Path, rc::Rc};

use profiler_common::runtime::{self, Entry, EntryKind, RuntimeOffsets, python::Payload};
use rustc_hash::FxHashMap;

use crate::{
    model::{
        function::{Function, Start},
        stack::{Language, ModuleId, ThreadKey},
    },
    process::life::{self, namespace_ids},
    runtimes::{
        memory::{ForeignMemory, Round},
        python::{
            attach::Interpreter,
            build::CpythonBuild,
            merge::{Merged, Placed, Whole, merge},
            objects::{CODE_WORDS, Code, Objects},
        },
        runtime::{
            Attached, Build, Naming, Native, NotAttached, Place, Replacement, Runtime, UserFrame, UserStack,
        },
    },
};

pub mod attach;
pub mod build;
pub mod layout;
pub mod lines;
pub mod loops;
pub mod merge;
pub mod objects;

/// Code objects that are remembered, and bytes of their tables of lines.
const MOST_CODES: usize = 65_536;
const MOST_TABLE_BYTES: usize = 64 * 1024 * 1024;

/// Python programs.
pub struct CPython;

impl Runtime for CPython {
    fn language(&self) -> Language {
        Language::Python
    }

    fn recognises(&self, file_name: &str) -> bool {
        build::may_hold_python(file_name)
    }

    fn open(&self, file: &File, name: &str) -> Option<Result<Box<dyn Build>, String>> {
        let build = build::build_of(file, name)?;
        Some(build.map(|build| Box::new(Rc::new(build)) as Box<dyn Build>))
    }
}

impl Build for Rc<CpythonBuild> {
    fn bit(&self) -> u32 {
        runtime::PYTHON
    }

    fn attach(&self, place: Place, offsets: &mut RuntimeOffsets) -> Result<Box<dyn Attached>, NotAttached> {
        let interpreter = attach::attach(&place.memory, self, place.bias)?;
        offsets.python = interpreter.layout.frames;
        let loops = Loops { module: place.module, build: Rc::clone(self) };
        Ok(Box::new(Python::new(place.memory, interpreter, loops)))
    }
}

/// Where a process has its interpreter's loop.
#[derive(Clone, Debug)]
pub struct Loops {
    /// The file.
    pub module: ModuleId,
    /// What is where in it.
    pub build: Rc<CpythonBuild>,
}

/// One process's interpreter.
#[derive(Debug)]
pub struct Python<M> {
    memory: M,
    interpreter: Interpreter,
    loops: Loops,
    codes: FxHashMap<u64, Known>,
    table_bytes: usize,
    /// States of its threads by their ids here, if they were asked for in this round.
    states: Option<FxHashMap<u32, u64>>,
    now: Round,
}

#[derive(Debug)]
struct Known {
    words: [u64; CODE_WORDS],
    checked: Round,
    code: Rc<Code>,
}

impl<M: ForeignMemory> Attached for Python<M> {
    fn new_round(&mut self) {
        self.now.next(&self.memory);
        self.states = None;
    }

    fn frames_at_rest(&mut self, proc_root: &Path, thread: ThreadKey) -> Vec<Entry> {
        let states = self.states.take().unwrap_or_else(|| self.find_states(proc_root, thread.pid));
        let state = states.get(&thread.tid).copied();
        self.states = Some(states);
        let Some(state) = state else { return Vec::new() };
        attach::entries(&self.memory, &self.interpreter.layout.frames, state)
    }

    fn name(&mut self, stack: &UserStack<'_>, naming: &mut Naming) {
        let entries: Vec<(&Entry, Payload)> = stack
            .entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::Python as u8)
            .map(|entry| (entry, Payload::decode(entry.payload)))
            .collect();
        let Some((_, last)) = entries.last() else { return };
        let loops = &self.loops;
        let is_loop = |frame: &UserFrame| {
            frame.frame.module == loops.module && loops.build.is_loop(frame.frame.address)
        };
        let is_loop: Vec<bool> = stack.frames.iter().map(is_loop).collect();
        let placed: Vec<Placed> =
            entries.iter().map(|(_, payload)| Placed { begins: payload.begins }).collect();
        let merged = merge(&is_loop, &placed, Whole { native: stack.complete, python: !last.cut_off });
        if merged.unplaced {
            naming.unnamed += 1;
        }
        let mut name = |index: usize| {
            let (entry, payload) = entries[index];
            self.function(entry.value, payload.position).unwrap_or_else(|| {
                naming.unnamed += 1;
                Function { name: "[Python function that has gone]".to_owned(), ..Function::default() }
            })
        };
        for (frame, replacement) in replacements(&merged.frames, stack.frames.len(), &mut name) {
            naming.replace(frame, replacement);
        }
    }
}

/// What takes the place of which of `natives` native frames, to make the merged stack of them.
fn replacements(
    merged: &[Merged],
    natives: usize,
    name: &mut impl FnMut(usize) -> Function,
) -> Vec<(usize, Replacement)> {
    let mut replaced = Vec::new();
    // The first native frame that has not been passed.
    let mut next = 0;
    let mut frames = merged.iter().peekable();
    while let Some(frame) = frames.next() {
        let Merged::Python(first) = *frame else {
            next += 1;
            continue;
        };
        let mut group = vec![vec![name(first)]];
        while let Some(Merged::Python(index)) = frames.next_if(|frame| matches!(frame, Merged::Python(_))) {
            group.push(vec![name(*index)]);
        }
        let end = match frames.peek() {
            Some(Merged::Native(index)) => *index,
            _ => natives,
        };
        // All in place of the first native frame that is left out here; where none is, beside one that is not.
        let (at, native) = if end > next {
            (next, Native::Gone)
        } else if end < natives {
            (end, Native::Outer)
        } else {
            (natives.saturating_sub(1), Native::Inner)
        };
        replaced.push((at, Replacement { frames: group, native }));
        replaced.extend((next + 1..end).map(|index| (index, Replacement::default())));
        next = end;
    }
    replaced
}

impl<M: ForeignMemory> Python<M> {
    /// The interpreter of the process with this memory.
    pub fn new(memory: M, interpreter: Interpreter, loops: Loops) -> Python<M> {
        Python {
            memory,
            interpreter,
            loops,
            codes: FxHashMap::default(),
            table_bytes: 0,
            states: None,
            now: Round::default(),
        }
    }

    /// The states of a process's threads by their ids here.
    fn find_states(&self, proc_root: &Path, pid: u32) -> FxHashMap<u32, u64> {
        let tasks = proc_root.join(format!("{pid}/task"));
        let threads = life::threads_of(proc_root, pid).into_iter();
        let own = threads.filter_map(|tid| Some((*namespace_ids(&tasks.join(tid.to_string())).last()?, tid)));
        let own: FxHashMap<u32, u32> = own.collect();
        let found = attach::states_by_thread(&self.memory, &self.interpreter, &own.keys().copied().collect());
        found.into_iter().map(|(id, state)| (own[&id], state)).collect()
    }

    /// The function of a frame with this code object and position; `None` if there is no code any more.
    pub fn function(&mut self, code: u64, position: u32) -> Option<Function> {
        let code = self.code(code)?;
        let layout = &self.interpreter.layout;
        // Before its first instruction a frame has a negative position.
        let offset = if (position as i32) < 0 { 0 } else { position.saturating_mul(layout.unit) };
        let first = u32::try_from(code.first_line).ok().filter(|line| *line > 0);
        Some(Function {
            name: code.name.clone(),
            file: Some(code.file.clone()).filter(|file| !file.is_empty()),
            line: layout.line_table.line(&code.lines, code.first_line, offset).or(first),
            start: first.map(|line| Start { line, column: 1 }),
        })
    }

    /// What is known of a code object. They do not move, but another may come in the place of one that is gone.
    fn code(&mut self, address: u64) -> Option<Rc<Code>> {
        let known = self.codes.get_mut(&address);
        if let Some(known) = known.as_ref().filter(|known| self.now.covers(known.checked)) {
            return Some(Rc::clone(&known.code));
        }
        let Interpreter { layout, types, .. } = &self.interpreter;
        let objects = Objects { memory: &self.memory, layout, types: *types };
        let words = objects.code_words(address);
        if let (Some(known), Some(words)) = (known, &words)
            && known.words == *words
        {
            known.checked = self.now;
            return Some(Rc::clone(&known.code));
        }
        let described = words.and_then(|words| Some((words, objects.code(&words)?)));
        if let Some(gone) = self.codes.remove(&address) {
            self.table_bytes -= gone.code.lines.len();
        }
        let (words, code) = described?;
        if self.codes.len() >= MOST_CODES || self.table_bytes + code.lines.len() > MOST_TABLE_BYTES {
            self.codes.clear();
            self.table_bytes = 0;
        }
        self.table_bytes += code.lines.len();
        let code = Rc::new(code);
        self.codes.insert(address, Known { words, checked: self.now, code: Rc::clone(&code) });
        Some(code)
    }
}

#[cfg(test)]
mod tests;
