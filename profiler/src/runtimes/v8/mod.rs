//! JavaScript frames of V8 (Node.js 18 and newer), named from outside while the program runs on.
//!
//! ```text
//! frame -> SharedFunctionInfo ------------------------> name, script, line        heap.rs
//!       -> address in compiled code -> Code (code.rs) -> inlined functions        inlining.rs
//!       -> offset in bytecode --------------------------> position -> line        positions.rs
//! file, line, column -> source map ------------------> where that was written   source_map.rs
//! ```
//!
//! What is known of an object is checked once in each round of naming (a drain): its words are read again, and where they
//! have changed it is another object.

use std::{
    fs::File,
    path::{Path, PathBuf},
    rc::Rc,
};

use profiler_common::runtime::{self, Entry, EntryKind, RuntimeOffsets, v8::V8Offsets};

use rustc_hash::FxHashMap;

use crate::{
    model::{
        function::{Function, Start},
        memory::HeapSample,
        names::is_of_package,
        stack::Language,
    },
    process::anonymous::AnonymousMemory,
    runtimes::{
        memory::{ForeignMemory, Round},
        runtime::{Attached, Build, Naming, Native, NotAttached, Place, Replacement, Runtime, UserStack},
        v8::{
            code::CodeRanges,
            heap::{Heap, Script, is_pointer},
            inlining::{Optimised, Running},
            metadata::{HEAP_TAG, Layout},
            source_map::{Original, SourceMap},
        },
    },
};

pub mod build;
mod census;
pub mod code;
pub mod heap;
pub mod inlining;
pub mod limit;
pub mod metadata;
pub mod positions;
pub mod source_map;

/// Functions, and scripts, that are remembered.
const MOST_FUNCTIONS: usize = 65_536;
const MOST_SCRIPTS: usize = 8192;

/// Lines of all remembered scripts: 64 MB.
const MOST_LINES: usize = 16 * 1024 * 1024;

/// What all remembered source maps of a process may take, about, bytes.
const MOST_MAPS: usize = 64 << 20;

/// Words of a SharedFunctionInfo that tell it from another at its place.
const SHARED_WORDS: usize = 6;

/// Node.js, and what else is built around V8 in the same way.
pub struct Node;

impl Runtime for Node {
    fn language(&self) -> Language {
        Language::JavaScript
    }

    fn recognises(&self, file_name: &str) -> bool {
        build::may_hold_v8(file_name)
    }

    fn open(&self, file: &File, _name: &str) -> Option<Result<Box<dyn Build>, String>> {
        let layout = build::layout_of(file)?;
        Some(layout.map(|layout| Box::new(layout) as Box<dyn Build>))
    }
}

impl Build for Rc<Layout> {
    fn bit(&self) -> u32 {
        runtime::V8
    }

    fn attach(&self, place: Place, offsets: &mut RuntimeOffsets) -> Result<Box<dyn Attached>, NotAttached> {
        offsets.v8 = V8Offsets { shared: self.function_shared as u32, _reserved: 0 };
        Ok(Box::new(V8::new(place.memory, place.root, Rc::clone(self))))
    }
}

impl<M: ForeignMemory> Attached for V8<M> {
    fn new_round(&mut self) {
        self.now.next(&self.memory);
    }

    fn look_at_heap(
        &mut self,
        proc_root: &Path,
        pid: u32,
        time_ns: u64,
    ) -> Option<(HeapSample, Option<u64>)> {
        self.new_round();
        let sample = self.sample(&AnonymousMemory::of(proc_root, pid)?, time_ns)?;
        Some((sample, limit::of(proc_root, pid)))
    }

    fn name(&mut self, stack: &UserStack<'_>, naming: &mut Naming) {
        for entry in stack.entries.iter().filter(|entry| entry.kind == EntryKind::V8 as u8) {
            let index = usize::from(entry.frame);
            let Some(user) = stack.frames.get(index) else { continue };
            match self.name_frame(&JsFrame::new(user.address, user.made_at_run_time, entry)) {
                Ok(Named { functions, in_builtin }) => {
                    let native = if in_builtin { Native::Inner } else { Native::Gone };
                    naming.replace(index, Replacement { frames: vec![functions], native });
                }
                Err(Unnamed::FunctionGone) => naming.unnamed += 1,
            }
        }
    }
}

/// A frame of JavaScript as the kernel programs saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JsFrame {
    /// The instruction; of callers the last byte of the call.
    pub address: u64,
    /// Whether that is in compiled code, and not in V8's own.
    pub compiled: bool,
    /// Whether it is the innermost frame.
    pub innermost: bool,
    /// SharedFunctionInfo of the frame's function.
    pub shared: u64,
    /// What interpreted frames have as their position, a small integer.
    pub bytecode_offset: u32,
    /// Low half of what interpreted frames have as their bytecode.
    pub bytecode: u32,
}

impl JsFrame {
    /// The frame at an address that an entry belongs to.
    pub fn new(address: u64, compiled: bool, entry: &Entry) -> JsFrame {
        JsFrame {
            address,
            compiled,
            innermost: entry.frame == 0,
            shared: entry.value,
            bytecode_offset: (entry.payload >> 32) as u32,
            bytecode: entry.payload as u32,
        }
    }
}

/// The functions of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Innermost first.
    pub functions: Vec<Function>,
    /// The address is that of a builtin that has no frame of its own: it runs on top of these.
    pub in_builtin: bool,
}

/// Why a frame has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// Its function could not be read, or has gone.
    FunctionGone,
}

/// One process's V8.
#[derive(Debug)]
pub struct V8<M> {
    memory: M,
    layout: Rc<Layout>,
    functions: FxHashMap<u64, Known>,
    scripts: FxHashMap<u64, KnownScript>,
    /// Lines of the scripts, and bytes of their maps.
    lines: usize,
    maps: usize,
    /// The process's root.
    root: PathBuf,
    code: CodeRanges<Optimised>,
    now: Round,
}

#[derive(Debug)]
struct Known {
    words: [u64; SHARED_WORDS],
    checked: Round,
    function: Rc<JsFunction>,
    /// It was there in the round before, and is not any more: the collector has moved it. What was sampled before still refers to
    /// its place.
    moved: bool,
}

#[derive(Debug)]
struct JsFunction {
    name: Option<String>,
    script: Option<Rc<Source>>,
    start: Option<u32>,
    /// Where it was written, and its name there, if its script has a map that knows it.
    written: Option<(Original, String)>,
    /// Bytecode and its source positions, if there is any.
    bytecode: Option<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct KnownScript {
    /// Its text and its name.
    words: [u64; 2],
    source: Rc<Source>,
}

/// A script, and where it was written.
#[derive(Debug)]
struct Source {
    script: Script,
    map: Option<Rc<SourceMap>>,
}

impl Source {
    /// Line and column of a character, where the script's lines are known.
    fn place(&self, character: u32) -> Option<Start> {
        let (line, column) = self.script.lines.as_ref()?.at(character);
        Some(Start { line, column })
    }

    /// Lines of the script, and bytes of its map.
    fn size(&self) -> (usize, usize) {
        let lines = self.script.lines.as_ref().map_or(0, positions::Lines::count);
        (lines, self.map.as_ref().map_or(0, |map| map.bytes))
    }
}

impl<M: ForeignMemory> V8<M> {
    /// The V8 of the process with this memory.
    /// `root` leads to its root (`/proc/PID/root`).
    pub fn new(memory: M, root: PathBuf, layout: Rc<Layout>) -> V8<M> {
        V8 {
            memory,
            layout,
            functions: FxHashMap::default(),
            scripts: FxHashMap::default(),
            lines: 0,
            maps: 0,
            root,
            code: CodeRanges::default(),
            now: Round::default(),
        }
    }

    /// Names a frame.
    pub fn name_frame(&mut self, frame: &JsFrame) -> Result<Named, Unnamed> {
        let running = if frame.compiled { self.running(frame) } else { None };
        let own = self.function(frame.shared);
        let Some(mut running) = running else {
            let own = own.ok_or(Unnamed::FunctionGone)?;
            return Ok(self.not_optimised(frame, &own));
        };
        // While a function has no frame yet, or none any more, the frame is its caller's.
        if frame.innermost && own.is_some() && running.last().is_none_or(|last| last.shared != frame.shared) {
            running.push(Running { shared: frame.shared, character: None });
        }
        if !frame.innermost && !self.layout.knows_inlined_callers() {
            running = vec![Running { shared: frame.shared, character: None }];
        }
        // Of some that have gone the others are worth their names.
        let known =
            running.iter().filter_map(|running| Some((self.function(running.shared)?, running.character)));
        let mut functions: Vec<Function> =
            known.map(|(function, character)| function.at(character)).collect();
        if functions.is_empty() {
            functions.push(own.ok_or(Unnamed::FunctionGone)?.at(None));
        }
        Ok(Named { functions, in_builtin: false })
    }

    /// A frame of interpreted or baseline code, or of a builtin.
    fn not_optimised(&self, frame: &JsFrame, own: &JsFunction) -> Named {
        let position = own.bytecode.as_ref().and_then(|(array, positions)| {
            // In other frames something else is at the same place.
            if *array as u32 != frame.bytecode || frame.compiled {
                return None;
            }
            let offset =
                i64::from(frame.bytecode_offset) - (self.layout.bytecode_data as i64 - HEAP_TAG as i64);
            Some(positions::at(positions, offset).and_then(|position| position.character))
        });
        let in_builtin = !frame.compiled && frame.innermost && position.is_none() && own.script.is_some();
        Named { functions: vec![own.at(position.flatten())], in_builtin }
    }

    /// The functions that optimised code runs at the frame's address.
    fn running(&mut self, frame: &JsFrame) -> Option<Vec<Running>> {
        let heap = Heap { memory: &self.memory, layout: &self.layout };
        let code = self.code.find(&heap, frame.address, self.now)?;
        if !self.now.covers(code.value_checked) {
            if code.value.as_ref().is_none_or(|known| !known.is_current(&self.memory)) {
                code.value = Optimised::read(&heap, code).map(Rc::new);
            }
            code.value_checked = self.now;
        }
        Some(code.value.as_ref()?.at(frame.address - code.start))
    }

    /// What is known of a SharedFunctionInfo.
    fn function(&mut self, shared: u64) -> Option<Rc<JsFunction>> {
        let known = self.functions.get(&shared);
        if let Some(known) = known.filter(|known| self.now.covers(known.checked)) {
            return Some(Rc::clone(&known.function));
        }
        let words = if is_pointer(shared) { self.memory.words(shared - HEAP_TAG) } else { None };
        if let (Some(known), Some(words)) = (self.functions.get_mut(&shared), words)
            && known.words == words
        {
            (known.checked, known.moved) = (self.now, false);
            return Some(Rc::clone(&known.function));
        }
        let described = Heap { memory: &self.memory, layout: &self.layout }.describe(shared);
        let (Some(words), Some(described)) = (words, described) else {
            let known = self.functions.get_mut(&shared).filter(|known| !known.moved);
            let Some(known) = known else {
                self.functions.remove(&shared);
                return None;
            };
            (known.moved, known.checked) = (true, self.now);
            return Some(Rc::clone(&known.function));
        };
        let script = described.script.and_then(|script| self.script(script));
        let heap = Heap { memory: &self.memory, layout: &self.layout };
        let bytecode = heap.bytecode(shared).and_then(|array| {
            let table = heap.field(array, self.layout.bytecode_positions)?;
            Some((array, heap.array(table, 1).unwrap_or_default()))
        });
        let function = Rc::new(JsFunction::new(described.name, script, described.start, bytecode));
        if self.functions.len() >= MOST_FUNCTIONS {
            self.functions.clear();
        }
        let known = Known { words, checked: self.now, function: Rc::clone(&function), moved: false };
        self.functions.insert(shared, known);
        Some(function)
    }

    fn script(&mut self, object: u64) -> Option<Rc<Source>> {
        let heap = Heap { memory: &self.memory, layout: &self.layout };
        let words =
            [heap.field(object, self.layout.script_source)?, heap.field(object, self.layout.script_name)?];
        if let Some(known) = self.scripts.get(&object).filter(|known| known.words == words) {
            return Some(Rc::clone(&known.source));
        }
        let script = heap.script(object)?;
        let lines = script.lines.as_ref().map_or(0, positions::Lines::count);
        if self.scripts.len() >= MOST_SCRIPTS || self.lines + lines > MOST_LINES {
            self.scripts.clear();
            (self.lines, self.maps) = (0, 0);
        }
        let before = self.scripts.remove(&object).map(|known| known.source);
        if let Some((lines, maps)) = before.as_ref().map(|before| before.size()) {
            (self.lines, self.maps) = (self.lines - lines, self.maps - maps);
        }
        // The collector has moved its name or its text: it is the same script.
        let same = before.filter(|of| of.script.name == script.name && of.script.lines == script.lines);
        let map = match same {
            Some(same) => same.map.clone(),
            None => self.map_of(&script).map(Rc::new),
        };
        let source = Rc::new(Source { script: Script { map_url: None, ..script }, map });
        let (lines, maps) = source.size();
        (self.lines, self.maps) = (self.lines + lines, self.maps + maps);
        self.scripts.insert(object, KnownScript { words, source: Rc::clone(&source) });
        Some(source)
    }

    /// Where a script was written. A package is told where it is installed.
    fn map_of(&self, script: &Script) -> Option<SourceMap> {
        let place = path(&script.name);
        let url = script.map_url.as_deref().filter(|_| !is_of_package(place))?;
        SourceMap::of(Path::new(place), url, &self.root, MOST_MAPS.saturating_sub(self.maps))
    }
}

impl JsFunction {
    fn new(
        name: Option<String>,
        script: Option<Rc<Source>>,
        start: Option<u32>,
        bytecode: Option<(u64, Vec<u8>)>,
    ) -> JsFunction {
        let written = script.as_ref().and_then(|source| {
            let (map, start) = source.map.as_ref().zip(source.place(start?))?;
            let own = called(name.as_deref(), Some(start));
            Some((map.original(start)?, map.name(own, start).unwrap_or(own).to_owned()))
        });
        JsFunction { name, script, start, written, bytecode }
    }

    /// The function when it is at a character of its script; where that is unknown, where it begins.
    fn at(&self, character: Option<u32>) -> Function {
        let Some(source) = &self.script else {
            let name =
                self.name.as_ref().map_or_else(|| "(builtin)".to_owned(), |name| format!("{name} (builtin)"));
            return Function { name, ..Function::default() };
        };
        let start = self.start.and_then(|start| source.place(start));
        let now = character.and_then(|character| source.place(character)).or(start);
        if let Some(((original, name), map)) = self.written.as_ref().zip(source.map.as_ref()) {
            // What was inlined by a bundler is in another file: then the line is the function's own.
            let line = now.and_then(|now| map.line(now, original)).unwrap_or(original.at.line);
            let (file, start) = (Some(original.file.clone()), Some(original.at));
            return Function { name: name.clone(), file, line: Some(line), start };
        }
        let file = Some(path(&source.script.name)).filter(|name| !name.is_empty());
        let name = called(self.name.as_deref(), start).to_owned();
        Function { name, file: file.map(str::to_owned), line: now.map(|now| now.line), start }
    }
}

/// What a function of a script is called that begins at a place.
fn called(name: Option<&str>, start: Option<Start>) -> &str {
    match (name, start) {
        (Some(name), _) => name,
        (None, Some(Start { line: 1, column: 1 })) => "(top level)",
        (None, _) => "(anonymous)",
    }
}

/// The path of a script: modules have a URL as their name.
fn path(name: &str) -> &str {
    name.strip_prefix("file://").unwrap_or(name)
}

#[cfg(test)]
mod tests;
