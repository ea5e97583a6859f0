//! Stacks of live interpreters against what they say of themselves. All that are installed are tried; none of their threads
//! runs meanwhile, so that there is one truth.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::{
    process::{elf::ElfInfo, maps, memory::ProcessMemory},
    runtimes::python::{
        attach::{Plain, attach, read_frame, thread_states},
        build::{build_of, may_hold_python},
    },
};

const PROGRAM: &str = include_str!("sleepers.py");

/// `python3.N` of every version, from the path and from pyenv.
fn interpreters() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect();
    let pyenv = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv")));
    let versions = pyenv.and_then(|root| std::fs::read_dir(root.join("versions")).ok());
    folders.extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    let mut found: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| (8..=14).map(move |minor| folder.join(format!("python3.{minor}"))))
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    found.sort();
    found.dedup();
    // Other programs of that name start the interpreter, and are none.
    found.retain(|path| std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF")));
    found
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Names, files and lines of each thread's stack, innermost first, as text.
type Stacks = Vec<Vec<String>>;

/// Starts the program; returns it when all its threads sleep, and what it says of their stacks.
fn start(python: &Path, folder: &Path) -> (Killed, Stacks) {
    let script = folder.join("schläfer_嵦.py");
    File::create(&script).unwrap().write_all(PROGRAM.as_bytes()).unwrap();
    let mut command = Command::new(python);
    command.env("PYTHONIOENCODING", "utf-8").env("PYTHONUTF8", "1").arg(script).stdout(Stdio::piped());
    let mut child = Killed(command.spawn().unwrap());
    let mut stacks = Vec::new();
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "ready" {
            break;
        }
        stacks.push(line.split('\t').map(str::to_owned).collect());
    }
    (child, stacks)
}

/// The same as seen from outside, and whether it is the same by the threads' ids.
fn seen(pid: u32) -> (Stacks, bool) {
    let entries = maps::read("/proc".as_ref(), pid).unwrap();
    let (entry, build) = entries
        .iter()
        .filter(|entry| may_hold_python(entry.path.rsplit('/').next().unwrap()))
        .find_map(|entry| {
            let file = File::open(&entry.path).unwrap();
            Some((entry, build_of(&file, entry.path.rsplit('/').next().unwrap())?.unwrap()))
        })
        .unwrap();
    let elf = ElfInfo::read(&File::open(&entry.path).unwrap()).unwrap();
    let bias = entry.start - entry.file_offset.wrapping_add(elf.bias(entry, elf.base(entry)).unwrap());
    let memory = || ProcessMemory::open("/proc".as_ref(), pid).unwrap();
    let attached = attach(&memory(), &build, bias).unwrap();
    let (layout, memory) = (attached.layout.clone(), memory());
    println!("{:?} in {}: state at {:#x}", build.version, entry.path, layout.frames.state);
    let mut python =
        Python::new(ProcessMemory::open("/proc".as_ref(), pid).unwrap(), attached, loops(build.version));
    let mut stacks = Vec::new();
    for state in thread_states(&memory, &layout, build.runtime.wrapping_add(bias)) {
        let pointer = memory.u64(state + layout.thread_pointer).unwrap();
        let mut at = layout.frames.innermost(pointer, &Plain(&memory)).unwrap();
        let mut stack = Vec::new();
        while at != 0 {
            let frame = read_frame(&memory, &layout.frames, at).unwrap();
            if frame.code != 0 {
                let named = python.function(frame.code, frame.position).unwrap();
                let file = named.file.as_deref().unwrap_or_default().rsplit('/').next().unwrap().to_owned();
                // Up to 3.10 there are no qualified names.
                stack.push(format!("{} {file}:{}", named.name, named.line.unwrap()));
            }
            at = frame.caller;
        }
        stacks.push(stack);
    }
    // The same by what is known of a thread in the kernel: its id.
    let threads = life::threads_of("/proc".as_ref(), pid).into_iter();
    let by_id = threads.map(|tid| {
        let entries = python.frames_at_rest("/proc".as_ref(), ThreadKey { pid, tid });
        let codes = entries.iter().filter_map(|entry| {
            python.function(entry.value, Payload::decode(entry.payload).position).map(|of| of.name)
        });
        codes.collect()
    });
    let mut by_id: Vec<Vec<String>> = by_id.collect();
    by_id.sort();
    let name = |frame: &String| frame.rsplit_once(' ').unwrap().0.to_owned();
    let mut by_list: Vec<Vec<String>> = stacks.iter().map(|of| of.iter().map(name).collect()).collect();
    by_list.sort();
    (stacks, by_id == by_list)
}

#[test]
fn sleeping_threads_are_where_the_program_says() {
    let interpreters = interpreters();
    if interpreters.is_empty() {
        println!("SKIPPED: no CPython 3.8 to 3.14 is installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut tried = BTreeMap::new();
    for interpreter in interpreters {
        let (child, truth) = start(&interpreter, folder.path());
        assert!(truth.len() >= 7, "{interpreter:?} says {truth:?}");
        // What a thread said it would do next, it does soon.
        let until = Instant::now() + Duration::from_secs(10);
        let (mut all, mut same) = seen(child.0.id());
        while !(same && truth.iter().all(|stack| all.contains(stack))) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            (all, same) = seen(child.0.id());
        }
        assert!(same, "{interpreter:?}: by the threads' ids the stacks are others");
        for stack in &truth {
            assert!(all.contains(stack), "{interpreter:?}: {stack:#?} is not in {all:#?}");
        }
        tried.insert(interpreter, truth.len());
    }
    println!("stacks that were right: {tried:#?}");
}
