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
        wait::{Blocking, ThreadTime},
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

/// The last two parts of a path: enough to find the file by.
pub fn tail(path: &str) -> &str {
    path.rmatch_indices('/').nth(1).map_or(path, |(at, _)| &path[at + 1..])
}

/// Modules that belong to the system, by how their names begin.
const SYSTEM_MODULES: [&str; 9] =
    ["libc.", "libc-", "libpthread", "ld-", "libstdc++", "libgcc", "libm.", "libm-", "linux-vdso"];
/// Functions of languages and their runtimes, by how their names begin.
const SYSTEM_FUNCTIONS: [&str; 26] = [
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
    "{closure",
    "{async",
    "{virtual",
    "call_once",
    "block_on",
];
/// Files of the libraries that languages come with, by parts of their paths.
const SYSTEM_FILES: [&str; 7] =
    ["/include/c++/", "node:", "/rustc/", "/lib/python", "<frozen", "/usr/lib/go", "/usr/share/go"];

/// How names of functions that JavaScript comes with end.
const BUILTIN: &str = " (builtin)";

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
        begins(&SYSTEM_FUNCTIONS)
            || of_runtime
            || is_of_go(of)
            || of.file.as_deref().is_some_and(|file| {
                is_of_libc(file)
                    || (SYSTEM_FILES.iter().any(|part| file.contains(part)) && !is_of_package(file))
            })
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
    let of_program = functions.iter().enumerate().find(|(at, function)| {
        is_named(function) && is_class(function) && !is_package(function.0) && inner(*at, function.0)
    });
    of_program
        .map(|(_, function)| function)
        .or_else(|| named().find(is_class))
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

/// The program's own function with most samples of the threads that `is` tells, its share, and the heaviest stack there. Nothing where
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
mod tests {
    use super::*;
    use crate::{
        detect::fixtures::name_stacks,
        model::{report::fixtures, stack::Module},
    };

    #[test]
    fn a_typical_stack_is_where_most_of_the_work_is_done() {
        let run =
            fixtures::run(&[("main;f;write", 5), ("main;f;sort;a", 3), ("main;f;sort;b", 4), ("main;g", 2)]);
        let of = by_function(run.names(), run.cpu.stacks.iter(), |of| {
            path(run.names(), &of.frames).into_iter().find(|function| function.name == "f")
        });
        let (function, weight, stack) = of.most.unwrap();
        assert_eq!((function.name.as_str(), weight, of.known, of.all), ("f", 12, 12, 14));
        let names: Vec<&str> = path(run.names(), &stack.frames).iter().map(|of| of.name.as_str()).collect();
        assert_eq!(names, ["main", "f", "sort", "b"], "and not the single heaviest");
    }

    #[test]
    fn the_programs_own_function_is_found_below_its_libraries() {
        let of = |stack: &str| {
            let run = fixtures::run(&[(stack, 1)]);
            own(run.names(), &run.cpu.stacks[0].frames).map(|function| function.name.clone())
        };
        assert_eq!(
            of("main;app::handle;std::thread::sleep;__nanosleep;k:schedule").as_deref(),
            Some("app::handle")
        );
        assert_eq!(of("main;commit;__fdatasync").as_deref(), Some("commit"));
        assert_eq!(of("__clone;std::run"), None);
    }

    #[test]
    fn an_interpreted_function_comes_before_its_interpreter() {
        let mut run = fixtures::run(&[("main;uv_run;load;node::fs::Read;read", 1)]);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        names.modules.push(Module::special(ModuleKind::Jit(7)));
        let load = names.frames.iter_mut().find(|frame| frame.functions[0].name == "load");
        if let Some(load) = load {
            load.module = 2;
        }
        let frames = &run.cpu.stacks[0].frames;
        assert_eq!(own(run.names(), frames).map(|function| function.name.as_str()), Some("load"));
    }

    #[test]
    fn a_function_of_the_program_comes_before_those_of_javas_library() {
        let stack = "Pool.main;Pool.reserve;java.util.Map.get;(_complete_monitor_locking_Java);__futex_wait";
        let mut run = fixtures::run(&[(stack, 1)]);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        names.modules.push(Module::special(ModuleKind::Managed(Language::Java)));
        for frame in names.frames.iter_mut().filter(|frame| !frame.functions[0].name.starts_with("__")) {
            frame.module = 2;
        }
        let frames = &run.cpu.stacks[0].frames;
        assert_eq!(own(run.names(), frames).map(|function| function.name.as_str()), Some("Pool.reserve"));
    }

    #[test]
    fn who_matches_a_regular_expression_comes_before_the_builtin_and_its_code() {
        let stack =
            "node::Start;check;test (builtin);v8::internal::RegExpImpl::IrregexpExec;[regular expression]";
        let mut run = fixtures::run(&[(stack, 1)]);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        names.modules.push(Module::special(ModuleKind::Managed(Language::JavaScript)));
        names.modules.push(Module::special(ModuleKind::Jit(7)));
        for frame in &mut names.frames {
            match &*frame.functions[0].name {
                "check" | "test (builtin)" => frame.module = 2,
                REGULAR_EXPRESSION => frame.module = 3,
                _ => {}
            }
        }
        let frames = &run.cpu.stacks[0].frames;
        assert_eq!(own(run.names(), frames).map(|function| function.name.as_str()), Some("check"));
    }

    #[test]
    fn a_function_is_the_same_in_whatever_form_it_runs() {
        // Interpreted first, compiled later: other functions of the runtime are around it.
        let stacks = [
            "node::Start;Builtins_JSEntry;Builtins_InterpreterEntryTrampoline;handle;keys (builtin);Builtins_CEntry;calloc",
            "node::Start;Builtins_JSEntry;handle;calloc",
            "node::Start;Builtins_JSEntry;other;calloc",
            "main;handle;calloc",
        ];
        let mut run = fixtures::run(&[]);
        name_stacks(&mut run, &stacks);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        names.modules.push(Module::special(ModuleKind::Managed(Language::JavaScript)));
        let module = names.modules.len() - 1;
        for stack in 0..3 {
            for frame in names.stacks[&StackId(stack)].clone() {
                if matches!(&*names.frames[frame].functions[0].name, "handle" | "keys (builtin)" | "other") {
                    names.frames[frame].module = module;
                }
            }
        }
        let of = |stack: u32| functions(run.names(), Some(StackId(stack)));
        assert_eq!([of(0), of(1), of(2)], [["handle"], ["handle"], ["other"]]);
        assert_eq!(functions(run.names(), None), [""; 0]);
    }

    #[test]
    fn the_library_of_go_is_not_the_programs_own_wherever_it_is() {
        let of = |name: &str, file: &str| {
            is_of_go(&Function { name: name.into(), file: Some(file.into()), ..Function::default() })
        };
        assert!(of("encoding/json.(*encodeState).string", "/opt/go/src/encoding/json/encode.go"));
        assert!(of("encoding/json.structEncoder.encode-fm", "./<autogenerated>"));
        assert!(!of("main.handle", "/home/me/src/main/main.go") && !of("main.T.f-fm", "<autogenerated>"));
        assert!(!of("shop/cart.Add", "/home/me/shop/cart/add.go"));
        assert!(!of("github.com/me/shop/cart.Add", "/root/go/src/github.com/me/shop/cart/add.go"));
    }

    #[test]
    fn templates_of_the_standard_library_are_not_the_programs_own() {
        let run = fixtures::run(&[(
            "main;total;bool std::__detail::__regex_algo_impl<char*, true>(char*);std::sort<int*>(int*)",
            1,
        )]);
        let frames = run.cpu.stacks[0].frames.clone();
        assert_eq!(own(run.names(), &frames).map(|function| function.name.as_str()), Some("total"));
    }

    /// What a package does is done for the function that called it, but not for the one that only began everything.
    #[test]
    fn a_function_of_the_program_comes_before_those_of_packages() {
        let of = |stack: &str| {
            let mut run = fixtures::run(&[(stack, 1)]);
            let names = std::rc::Rc::make_mut(&mut run.cpu.names);
            names.modules.push(Module::special(ModuleKind::Managed(Language::Python)));
            for frame in names.frames.iter_mut().filter(|frame| frame.functions[0].name != "PyEval") {
                frame.module = 2;
                let name = frame.functions[0].name.clone();
                let folder = match name.split_once('.') {
                    Some(("django", _)) => "/usr/lib/python3/dist-packages/django",
                    Some(("threading", _)) => "/usr/lib/python3.11",
                    _ => "/srv/shop",
                };
                frame.functions[0].file = Some(format!("{folder}/x.py"));
            }
            own(run.names(), &run.cpu.stacks[0].frames)
                .map(|function| function.name.clone())
                .unwrap_or_default()
        };
        assert_eq!(of("PyEval;threading.run;django.get_response;orders;django.fetch;PyEval"), "orders");
        assert_eq!(of("PyEval;<module>;main;django.serve;django.get_response;PyEval"), "django.get_response");
        assert_eq!(of("PyEval;<module>;main;django.serve;orders;total;PyEval"), "total");
        assert_eq!(of("PyEval;<module>;main;compute;PyEval"), "compute");
    }

    #[test]
    fn an_allocators_wrapper_is_not_the_place_that_allocates() {
        let place = |stack: &str| {
            let run = fixtures::run(&[(stack, 1)]);
            let frames = run.cpu.stacks[0].frames.clone();
            allocates(run.names(), &frames).map(|function| function.name.clone()).unwrap_or_default()
        };
        assert_eq!(place("main;serve;keep;malloc"), "keep");
        assert_eq!(place("main;rb_str_plus;[libruby.so+0x1ec470];[libruby.so+0xd8460]"), "rb_str_plus");
        assert_eq!(place("main;keep;operator new(unsigned long)"), "keep");
        assert_eq!(place("xmalloc;my_alloc"), "my_alloc", "nothing better is known");
    }

    #[test]
    fn places_are_short() {
        let of = |file: &str| {
            at(&Function { name: "f".into(), file: Some(file.into()), line: Some(7), start: None })
        };
        assert_eq!(of("/srv/app/src/orders.js"), "f (src/orders.js:7)");
        assert_eq!(of("app.js"), "f (app.js:7)");
        assert_eq!(of("./misc/../sysdeps/unix/sysv/linux/fdatasync.c"), "f");
    }
}
