//! What rules have in common: which stacks are one place to a reader, and how threads and functions are called.

use std::collections::BTreeMap;

use crate::{
    model::{
        cause::WaitCause,
        finding::{Bottleneck, Evidence, ProcessName},
        module::Language,
        names::{is_of_package, short},
        report::{NamedFrame, Names, ProfileStack, Run},
        stack::{ModuleKind, StackId, ThreadKey},
        units::percent,
        wait::{Blocking, RanInstead, ThreadTime},
    },
    naming::REGULAR_EXPRESSION,
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

/// Names of the functions, outermost first, by which a stack is the same as another one: as [`path`], but where functions
/// of a language runtime are in it, those only. The same function runs in an interpreter first and as compiled code later, with
/// other functions of the runtime around it.
pub fn functions(names: &Names, stack: Option<StackId>) -> Vec<&str> {
    let frames = stack.map_or(&[][..], |stack| names.stack(stack));
    let managed = names.functions(frames).rev().filter(|(function, frame, _)| {
        matches!(names.module_of(frame).kind, ModuleKind::Managed(_)) && !function.name.ends_with(BUILTIN)
    });
    let managed: Vec<&str> = managed.map(|(function, ..)| function.name.as_str()).collect();
    if managed.is_empty() {
        return path(names, frames).into_iter().map(|function| function.name.as_str()).collect();
    }
    managed
}

/// Functions of a stack, outermost first: the user's, or the kernel's if there are no others.
pub fn path<'a>(names: &'a Names, frames: &'a [usize]) -> Vec<&'a Function> {
    let functions = |kernel: bool| {
        let all = names.functions(frames).rev();
        let taken = all.filter(|(_, frame, _)| names.module_of(frame).kind != ModuleKind::NotTaken);
        taken.filter(move |(_, frame, _)| names.is_kernel(frame) == kernel).map(|(function, ..)| function)
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

/// A function and where it is, without template arguments and parameters, its file by the end of its path. Where the C library's functions are is of no use to anybody.
pub fn at(function: &Function) -> String {
    match (&function.file, function.line) {
        (Some(file), Some(line)) if !is_of_libc(file) => {
            format!("{} ({}:{line})", short(&function.name), tail(file))
        }
        _ => short(&function.name).into_owned(),
    }
}

/// Whether a source file is one of the C library's, by how distributions build it.
pub fn is_of_libc(file: &str) -> bool {
    file.contains("sysdeps/")
        || (file.starts_with("./") && file.contains("/../"))
        || file.starts_with("./nptl")
}

/// Where most of what was just told is spent, as the end of a sentence.
pub fn most_in(function: Option<&Function>) -> String {
    function.map_or_else(String::new, |function| format!(", most of that in {}", at(function)))
}

/// The last two parts of a path: enough to find the file by.
pub fn tail(path: &str) -> &str {
    path.rmatch_indices('/').nth(1).map_or(path, |(at, _)| &path[at + 1..])
}

/// Modules that belong to the system, by how their names begin.
const SYSTEM_MODULES: [&str; 9] =
    ["libc.", "libc-", "libpthread", "ld-", "libstdc++", "libgcc", "libm.", "libm-", "linux-vdso"];
/// Functions of languages and their runtimes, by how their names begin.
const SYSTEM_FUNCTIONS: [&str; 21] = [
    "std::",
    "core::",
    "alloc::",
    "<std::",
    "<core::",
    "<alloc::",
    "tokio::",
    "<tokio::",
    "futures",
    "<futures",
    "mio::",
    "<mio::",
    "parking_lot",
    "<parking_lot",
    "pthread_",
    "__",
    "runtime.",
    "runtime/",
    "syscall.",
    "internal/",
    "Builtins_",
];
/// What compilers make, in libraries and in programs: only its file tells whose it is.
const MADE_FUNCTIONS: [&str; 5] = ["{closure", "{async", "{virtual", "call_once", "block_on"];
/// Files of the libraries that languages come with, by parts of their paths.
const SYSTEM_FILES: [&str; 6] =
    ["/include/c++/", "node:", "/lib/python", "<frozen", "/usr/lib/go", "/usr/share/go"];
/// Those of Rust, which are shown as of a package.
const RUST_FILES: [&str; 2] = ["/rustc/", "/rustlib/src/rust/"];

/// How names of functions that JavaScript comes with end.
const BUILTIN: &str = "(builtin)";

/// Functions of Java's own library, by how their names begin, and in parentheses pieces of code of its virtual machine.
const SYSTEM_JAVA: [&str; 6] = ["(", "java.", "javax.", "jdk.", "sun.", "com.sun."];

/// Where programs begin.
const BEGINS: [&str; 4] = ["main", "Main", "main.main", "<module>"];

/// A function with its frame, and whether the compiler inlined it.
type InFrame<'a> = (&'a Function, &'a NamedFrame, bool);

/// The innermost function of the program's own: of a stack with functions of an interpreter or a just-in-time compiler one of
/// those, else of the program and its libraries; the system's are left out.
pub fn own<'a>(names: &'a Names, frames: &'a [usize]) -> Option<&'a Function> {
    let blocked = names.waker_at(frames).map_or(0, |at| at + 1);
    let user = names.functions(&frames[blocked..]).filter(|(_, frame, _)| !names.is_kernel(frame));
    own_of(names, &user.collect::<Vec<_>>())
}

/// The function to look at where memory is allocated: the program's own, but neither an allocator's wrapper nor one without a name if
/// another one called it.
pub fn allocates<'a>(names: &'a Names, frames: &'a [usize]) -> Option<&'a Function> {
    let is_wrapper = |of: &Function| {
        let name = of.name.to_ascii_lowercase();
        name.starts_with('[') || ["alloc", "operator new", "strdup"].iter().any(|word| name.contains(word))
    };
    let own = own(names, frames);
    match own {
        Some(own) if is_wrapper(own) => {
            let callers = path(names, frames).into_iter().rev().skip_while(|of| *of != own);
            callers.into_iter().find(|of| !is_wrapper(of)).or(Some(own))
        }
        own => own.or_else(|| path(names, frames).pop()),
    }
}

/// As [`own`], among the outermost `depth` functions of [`path`].
pub fn own_within<'a>(names: &'a Names, frames: &'a [usize], depth: usize) -> Option<&'a Function> {
    let user = names.functions(frames).rev().filter(|(_, frame, _)| !names.is_kernel(frame));
    let mut outer: Vec<_> = user.take(depth).collect();
    outer.reverse();
    own_of(names, &outer)
}

/// The [`own`] function of the most of these samples, if that is at least a third of them.
pub fn own_of_most<'a>(names: &'a Names, samples: &[(StackId, u64)]) -> Option<&'a Function> {
    let mut weights: BTreeMap<(&str, Option<&str>), (u64, &'a Function)> = BTreeMap::new();
    for &(stack, n) in samples {
        if let Some(of) = own(names, names.stack(stack)) {
            weights.entry((&of.name, of.file.as_deref())).or_insert((0, of)).0 += n;
        }
    }
    let total: u64 = samples.iter().map(|(_, n)| n).sum();
    let (most, of) = weights.into_values().max_by_key(|(n, _)| *n)?;
    (3 * most >= total).then_some(of)
}

fn own_of<'a>(names: &Names, functions: &[InFrame<'a>]) -> Option<&'a Function> {
    let is_system = |of: &Function, frame: &NamedFrame| {
        // Of C++ the type that a template returns stands before the name.
        let name = short(&of.name);
        let begins = |words: &[&str]| words.iter().any(|word| name.starts_with(word));
        let of_runtime = match names.module_of(frame).kind {
            ModuleKind::Managed(Language::Java) => begins(&SYSTEM_JAVA),
            ModuleKind::Managed(Language::JavaScript) => of.name.ends_with(BUILTIN),
            ModuleKind::Jit(_) => of.name == REGULAR_EXPRESSION,
            _ => false,
        };
        let of_system = |file: &str| {
            let of_language = SYSTEM_FILES.iter().any(|part| file.contains(part)) && !is_of_package(file);
            is_of_libc(file) || of_language || RUST_FILES.iter().any(|part| file.contains(part))
        };
        let file = of.file.as_deref();
        begins(&SYSTEM_FUNCTIONS)
            || of_runtime
            || is_of_go(of)
            || file.is_some_and(of_system)
            || (begins(&MADE_FUNCTIONS) && file.is_none_or(is_of_package))
    };
    // What a package does is done for the function of the program that called it. But where a framework runs the program, as
    // most do, its outermost functions called everything: those say nothing.
    let is_package = |of: &Function| of.file.as_deref().is_some_and(is_of_package);
    let outermost =
        functions.iter().rposition(|(of, frame, _)| is_system(of, frame) || is_package(of)).unwrap_or(0);
    let begins = |name: &str| BEGINS.contains(&name) || name.ends_with("::main");
    let inner = |at: usize, of: &Function| at < outermost && !begins(&short(&of.name));
    let is_named =
        |(of, frame, _): &&InFrame<'a>| !is_system(of, frame) && !of.is_unnamed(names.module_of(frame));
    let is_managed = |(_, frame, _): &&InFrame<'a>| {
        matches!(names.module_of(frame).kind, ModuleKind::Jit(_) | ModuleKind::Managed(_))
    };
    let is_file = |(_, frame, _): &&InFrame<'a>| {
        let module = names.module_of(frame);
        module.kind == ModuleKind::File && !SYSTEM_MODULES.iter().any(|of| module.name().starts_with(of))
    };
    let named = || functions.iter().filter(is_named);
    let is_class: &dyn Fn(&&InFrame<'a>) -> bool =
        if named().any(|of| is_managed(&of)) { &is_managed } else { &is_file };
    let is_own = |at: usize, function: &InFrame<'a>| {
        is_named(&function) && is_class(&function) && !is_package(function.0) && inner(at, function.0)
    };
    let of_program = functions.iter().enumerate().find(|(at, function)| is_own(*at, function));
    // A closure is part of the function that it is written in, where only the language's library is between them.
    let is_made = |of: &Function| MADE_FUNCTIONS.iter().any(|word| of.name.starts_with(word));
    let written_in = of_program.filter(|(_, (made, ..))| is_made(made)).and_then(|(at, (made, ..))| {
        let mut outer = functions.iter().enumerate().skip(at + 1);
        let (at, next) = outer.find(|(_, (of, frame, _))| !is_system(of, frame))?;
        (is_own(at, next) && !is_made(next.0) && next.0.file == made.file).then_some(next)
    });
    written_in
        .or(of_program.map(|(_, function)| function))
        .or_else(|| named().find(|of| is_class(of) && !of.0.name.ends_with(BUILTIN)))
        .map(|(function, ..)| *function)
}

/// Whether a function belongs to the library that Go comes with, wherever that is installed: its file is in `src` by the name of
/// its package, which has no domain; or the compiler has made it.
fn is_of_go(of: &Function) -> bool {
    let Some(file) = of.file.as_deref() else { return false };
    let before = of.name.rfind('/').map_or(0, |slash| slash + 1);
    let Some(dot) = of.name[before..].find('.') else { return false };
    let package = &of.name[..before + dot];
    let has_domain = package.split('/').next().is_some_and(|first| first.contains('.'));
    if package == "main" || has_domain {
        return false;
    }
    file.ends_with("<autogenerated>") || (file.ends_with(".go") && file.contains(&format!("/src/{package}/")))
}

/// The place of a stack in the program: [`own`], or else its innermost function.
pub fn place<'a>(names: &'a Names, frames: &'a [usize]) -> Option<&'a Function> {
    own(names, frames).or_else(|| path(names, frames).last().copied())
}

/// Whether a function is a JavaScript runtime's own: where it waits or computes says nothing of the program.
pub fn is_runtimes(function: &Function) -> bool {
    let words = ["Builtins_", "v8::", "node::", "uv__", "uv_run", "llhttp"];
    words.iter().any(|word| function.name.starts_with(word))
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

/// Fewer samples name no function.
const MIN_SAMPLES: u64 = 20;

/// Weights of stacks by the function that each counts for.
pub struct ByFunction<'a> {
    /// Of all stacks.
    pub all: u64,
    /// Of those that count for a function.
    pub known: u64,
    /// The function with most, how much that is, and a typical stack there.
    pub most: Option<(&'a Function, u64, &'a ProfileStack)>,
}

/// Adds up stacks by what `function` says of each.
pub fn by_function<'a>(
    names: &'a Names,
    stacks: impl Iterator<Item = &'a ProfileStack>,
    function: impl Fn(&'a ProfileStack) -> Option<&'a Function>,
) -> ByFunction<'a> {
    let mut functions: BTreeMap<&str, (u64, Vec<&ProfileStack>)> = BTreeMap::new();
    let (mut all, mut known) = (0, 0);
    for stack in stacks {
        all += stack.weight;
        let Some(of) = function(stack) else { continue };
        known += stack.weight;
        let of = functions.entry(&of.name).or_default();
        of.0 += stack.weight;
        of.1.push(stack);
    }
    let most = functions.into_values().max_by_key(|(weight, _)| *weight);
    let most = most.and_then(|(weight, stacks)| {
        let stack = typical(names, stacks.iter().map(|stack| (*stack, &stack.frames[..], stack.weight)))?;
        Some((function(stack)?, weight, stack))
    });
    ByFunction { all, known, most }
}

/// Of stacks, each with its frames and its weight, one on the way that most go: from each function on to where most of the weight
/// goes. The heaviest of all can be a small part of what its functions do, where the same is done at many addresses.
pub fn typical<'a, T: Copy>(
    names: &'a Names,
    stacks: impl Iterator<Item = (T, &'a [usize], u64)>,
) -> Option<T> {
    let mut there: Vec<(T, Vec<&Function>, u64)> =
        stacks.map(|(stack, frames, weight)| (stack, path(names, frames), weight)).collect();
    for depth in 0.. {
        let mut next: BTreeMap<Option<&str>, u64> = BTreeMap::new();
        for (_, path, weight) in &there {
            *next.entry(path.get(depth).map(|function| function.name.as_str())).or_default() += weight;
        }
        let (most, _) = next.into_iter().max_by_key(|(_, weight)| *weight)?;
        there.retain(|(_, path, _)| path.get(depth).map(|function| function.name.as_str()) == most);
        if most.is_none() {
            break;
        }
    }
    there.into_iter().max_by_key(|(.., weight)| *weight).map(|(stack, ..)| stack)
}

/// The program's own function with most samples of the threads that `is` tells, its share, and a typical stack there. Nothing where
/// there are too few samples.
pub fn hottest(run: &Run, is: impl Fn(&ThreadKey) -> bool) -> Option<(&Function, f64, &ProfileStack)> {
    let stacks = run.cpu.stacks.iter().filter(|of| is(&of.thread));
    let found = by_function(run.names(), stacks, |stack| place(run.names(), &stack.frames));
    let (function, samples, stack) = found.most.filter(|_| found.all >= MIN_SAMPLES)?;
    Some((function, samples as f64 / found.all as f64, stack))
}

/// For how long system calls were watched, ns.
pub fn calls_watched_ns(run: &Run) -> u64 {
    let wall_ns = run.cpu.accounts.duration_ns;
    run.calls
        .as_ref()
        .map_or(wall_ns, |calls| if calls.watched_ns == 0 { wall_ns } else { calls.watched_ns })
        .max(1)
}

/// Adds up who ran instead of threads that waited for a CPU, by name, ns; the most first.
pub fn ran_instead<'a>(ran: impl Iterator<Item = &'a RanInstead>) -> Vec<(String, u64)> {
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    ran.for_each(|thread| *names.entry(&thread.name).or_default() += thread.ns);
    let mut names: Vec<_> = names.into_iter().map(|(name, ns)| (name.to_owned(), ns)).collect();
    names.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    names
}

/// The first of them in words, with their shares of a time; empty if nobody was seen.
pub fn who_ran(instead: &[(String, u64)], waited_ns: u64) -> String {
    let named = instead.iter().filter(|(name, _)| !name.is_empty()).take(3);
    let named: Vec<String> =
        named.map(|(name, ns)| format!("{name} ({:.0} %)", percent(*ns, waited_ns))).collect();
    named.join(", ")
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

#[cfg(test)]
mod tests;
