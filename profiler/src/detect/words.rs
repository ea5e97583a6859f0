//! What rules have in common: which stacks are one place to a reader, and how threads and functions are called.

use std::collections::BTreeMap;

use crate::{
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Evidence, ProcessName},
        report::{Names, Run},
        stack::{StackId, ThreadKey},
        wait::{Blocking, ThreadTime},
    },
    symbolize::Function,
};

/// Functions that a report shows of a finding's stack.
pub const SHOWN: usize = 5;

/// A stack as evidence; nothing if it was not taken.
pub fn evidence(names: &Names, label: &'static str, stack: Option<StackId>) -> Vec<Evidence> {
    let frames = stack.map_or(&[][..], |stack| names.stack(stack));
    if frames.is_empty() {
        return Vec::new();
    }
    vec![Evidence { label, frames: frames.to_vec(), shown: SHOWN }]
}

/// Names of a stack's functions, as [`path`].
pub fn functions(names: &Names, stack: Option<StackId>) -> Vec<&str> {
    let path = stack.map_or_else(Vec::new, |stack| path(names, names.stack(stack)));
    path.into_iter().map(|function| function.name.as_str()).collect()
}

/// Functions of a stack, outermost first: the user's, or the kernel's if there are no others.
pub fn path<'a>(names: &'a Names, frames: &'a [usize]) -> Vec<&'a Function> {
    let functions = |kernel: bool| {
        let all = names.functions(frames).rev();
        all.filter(move |(_, frame, _)| names.is_kernel(frame) == kernel).map(|(function, ..)| function)
    };
    let user: Vec<_> = functions(false).collect();
    if user.is_empty() { functions(true).collect() } else { user }
}

/// The path, outermost first, that at least two thirds of the samples go along.
pub fn common_path<'a>(names: &'a Names, samples: &[(StackId, u64)]) -> Vec<&'a str> {
    let mut inside: Vec<_> = samples.iter().map(|&(stack, n)| (path(names, names.stack(stack)), n)).collect();
    let total: u64 = samples.iter().map(|(_, n)| n).sum();
    let mut common = Vec::new();
    loop {
        let depth = common.len();
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for (path, n) in &inside {
            if let Some(function) = path.get(depth) {
                *next.entry(&function.name).or_default() += n;
            }
        }
        match next.into_iter().max_by_key(|&(_, n)| n) {
            Some((name, n)) if n * 3 >= total * 2 => {
                inside.retain(|(path, _)| path.get(depth).is_some_and(|function| function.name == name));
                common.push(name);
            }
            _ => return common,
        }
    }
}

/// A function and where it is.
pub fn at(function: &Function) -> String {
    match (&function.file, function.line) {
        (Some(file), Some(line)) => format!("{} ({file}:{line})", function.name),
        _ => function.name.clone(),
    }
}

/// The parts that say something.
pub fn join(parts: [&str; 3]) -> String {
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// What a thread lacks that waits for this.
pub fn bottleneck(cause: WaitCause) -> Bottleneck {
    match cause {
        WaitCause::Disk | WaitCause::PageFault => Bottleneck::Io,
        WaitCause::Network | WaitCause::Poll => Bottleneck::Network,
        WaitCause::Lock | WaitCause::Park => Bottleneck::Lock,
        WaitCause::Sleep => Bottleneck::Sleep,
        WaitCause::Pipe | WaitCause::Child => Bottleneck::Process,
        WaitCause::Unknown | WaitCause::Other => Bottleneck::Unknown,
    }
}

/// Time over the wall time of so many threads.
pub fn share_of_wall(run: &Run, ns: u64, threads: usize) -> f64 {
    let wall = run.cpu.accounts.duration_ns as f64 * threads.max(1) as f64;
    if wall > 0.0 { (ns as f64 / wall).min(1.0) } else { 0.0 }
}

/// Names of threads and processes.
pub struct Namer<'a>(BTreeMap<ThreadKey, &'a ThreadTime>);

impl<'a> Namer<'a> {
    /// Of the threads whose time is known.
    pub fn new(blocking: Option<&'a Blocking>) -> Namer<'a> {
        let threads = blocking.iter().flat_map(|blocking| &blocking.threads);
        Namer(threads.map(|thread| (thread.thread, thread)).collect())
    }

    /// A thread by name and number.
    pub fn thread(&self, thread: ThreadKey) -> String {
        match self.0.get(&thread) {
            Some(known) => format!("{} (tid {})", known.name, thread.tid),
            None => format!("tid {}", thread.tid),
        }
    }

    /// The name of a thread's process.
    pub fn process(&self, thread: ThreadKey) -> &'a str {
        let of_process = ThreadKey { pid: thread.pid, tid: 0 }..=ThreadKey { pid: thread.pid, tid: u32::MAX };
        self.0.range(of_process).next().map_or("?", |(_, known)| &known.process)
    }

    /// A thread's process.
    pub fn of(&self, thread: ThreadKey) -> ProcessName {
        ProcessName { pid: thread.pid, name: self.process(thread).to_owned() }
    }
}
