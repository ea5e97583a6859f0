//! From what was added up by address to a run with names.

use std::rc::Rc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::model::{
    function::{Detail, Function, Symbolizer},
    kind::{ALLOC, CPU, FAULTS, OFF_CPU, ProfileKind, SYSCALLS},
    loss::Loss,
    memory::{Memory, Site},
    report::{Accounts, Meta, NamedFrame, Names, Profile, ProfileStack, Run, Totals},
    request::Requests,
    stack::{Frame, ModuleId, ModuleKind, StackId, Tables, ThreadKey},
    syscall::Calls,
    totals::{Key, Snapshot},
    wait::Blocking,
};

/// Code that V8 has made for a regular expression.
pub const REGULAR_EXPRESSION: &str = "[regular expression]";

/// What in V8 calls such code: its C++, or the builtin of a method of `RegExp` itself.
const MATCHES: [&str; 2] = ["RegExpMacroAssembler::Execute", "Builtins_RegExp"];

/// A run out of its totals, whose addresses `symbolizer` names.
pub fn run(
    meta: Meta,
    mut accounts: Accounts,
    totals: Totals,
    tables: &Tables,
    symbolizer: &mut dyn Symbolizer,
    detail: Detail,
) -> Run {
    let Totals { cpu, off_cpu, blocking, in_calls, calls, memory, requests, vitals } = totals;
    let listed = blocking.iter().flat_map(Blocking::stacks);
    let listed = listed.chain(calls.iter().flat_map(Calls::stacks));
    let listed: Vec<StackId> = listed.chain(requests.iter().flat_map(Requests::stacks)).collect();
    let sites = memory.iter().flat_map(Memory::stacks);
    let sampled = [Some(&cpu), off_cpu.as_ref(), in_calls.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|snapshot| &snapshot.entries);
    let stacks = sampled.map(|(key, _)| key.stack).chain(listed.iter().copied()).chain(sites.clone());
    let stacks: FxHashSet<StackId> = stacks.collect();
    let (mut names, mut index) = name(&stacks, tables, symbolizer, detail);
    name_regular_expressions(&mut names, &stacks, tables, &mut index);
    let mut shared =
        Shared { names: &names, tables, index: &index, frames: [(); 2].map(|()| FxHashMap::default()) };
    let listed = listed.into_iter().map(|stack| (stack, true));
    let by_id = sites.map(|stack| (stack, false)).chain(listed);
    let by_id = by_id.map(|(stack, waits)| (stack, shared.frames(stack, waits))).collect();
    let sampled = shared.stacks(CPU, &cpu);
    let others = [
        (OFF_CPU, off_cpu),
        (SYSCALLS, in_calls),
        (ALLOC, memory.as_ref().map(live)),
        (FAULTS, memory.as_ref().map(faults)),
    ];
    let others = others.map(|(kind, of)| of.map(|of| (kind, shared.stacks(kind, &of), of.total, of.span_ns)));
    let unnamed = cpu
        .entries
        .iter()
        .filter(|(key, _)| tables.stack(key.stack).frames.iter().any(|frame| !index[frame].1));
    accounts.losses.set(Loss::SymbolMissing, unnamed.map(|(_, weight)| weight).sum());

    names.stacks = by_id;
    let names = Rc::new(names);
    let profile = |kind, stacks, total, span_ns| Profile {
        kind,
        meta: meta.clone(),
        accounts: accounts.clone(),
        names: Rc::clone(&names),
        stacks,
        total,
        span_ns,
    };
    let [off_cpu, in_calls, heap, faults] =
        others.map(|of| of.map(|(kind, stacks, total, span_ns)| profile(kind, stacks, total, span_ns)));
    Run {
        cpu: profile(CPU, sampled, cpu.total, cpu.span_ns),
        off_cpu,
        blocking,
        in_calls,
        calls,
        memory,
        heap,
        faults,
        requests,
        findings: Vec::new(),
        verdict: None,
        baseline: None,
        vitals,
    }
}

/// Stacks with names, each kept once: most are those of many threads.
struct Shared<'a> {
    names: &'a Names,
    tables: &'a Tables,
    index: &'a FxHashMap<Frame, (usize, bool)>,
    /// Of running threads, and of waiting ones.
    frames: [FxHashMap<StackId, Rc<[usize]>>; 2],
}

impl Shared<'_> {
    fn frames(&mut self, stack: StackId, waits: bool) -> Rc<[usize]> {
        let Shared { names, tables, index, .. } = *self;
        let make = || {
            let all = tables.stack(stack).frames;
            told(names, all.iter().map(|frame| index[frame].0).collect(), waits).into()
        };
        Rc::clone(self.frames[usize::from(waits)].entry(stack).or_insert_with(make))
    }

    fn stacks(&mut self, kind: ProfileKind, snapshot: &Snapshot) -> Vec<ProfileStack> {
        let mut texts: FxHashSet<Rc<str>> = FxHashSet::default();
        let mut text = |of: &str| {
            let known = texts.get(of).cloned();
            known.unwrap_or_else(|| {
                let new: Rc<str> = of.into();
                texts.insert(Rc::clone(&new));
                new
            })
        };
        let tables = self.tables;
        let each = snapshot.entries.iter().map(|&(key, weight)| ProfileStack {
            thread: key.thread,
            process: text(tables.process_name(key.thread)),
            thread_name: text(tables.thread_name(key.thread)),
            frames: self.frames(key.stack, kind != CPU),
            end: tables.stacks.end(key.stack),
            weight,
            cause: key.cause,
        });
        each.collect()
    }
}

/// The frames of a run's stacks by their ids, innermost first, as its profile of a kind has them.
pub fn frames_by_stack<'a>(
    names: &'a Names,
    tables: &'a Tables,
    kind: ProfileKind,
) -> impl Fn(StackId) -> Vec<usize> + 'a {
    let frame = |(at, of): (usize, &NamedFrame)| {
        (Frame { module: ModuleId(of.module as u32), address: of.address }, at)
    };
    let index: FxHashMap<Frame, usize> = names.frames.iter().enumerate().map(frame).collect();
    move |stack| {
        let all = tables.stack(stack).frames;
        let all = all.iter().filter_map(|frame| index.get(frame).copied());
        told(names, all.collect(), kind != CPU)
    }
}

/// The frames of a stack that are told; of one that waits, without what the kernel calls to run the probe.
fn told(names: &Names, frames: Vec<usize>, waits: bool) -> Vec<usize> {
    let frames = outside_profiler(names, frames);
    if waits { without_probe(names, frames) } else { frames }
}

/// What each site had allocated and not freed at the end, bytes.
fn live(memory: &Memory) -> Snapshot {
    let bytes = |site: &Site| site.points.last().map_or(0.0, |point| point.live_bytes).round() as u64;
    snapshot(memory.sites.iter().map(|site| (site.pid, site.stack, bytes(site))))
}

/// Page faults by where they were taken.
fn faults(memory: &Memory) -> Snapshot {
    snapshot(memory.faults.iter().copied())
}

/// Totals of (pid, stack, weight). The thread does not matter: what one allocates another frees.
fn snapshot(weights: impl Iterator<Item = (u32, StackId, u64)>) -> Snapshot {
    let mut sums: FxHashMap<Key, u64> = FxHashMap::default();
    for (pid, stack, weight) in weights.filter(|(.., weight)| *weight > 0) {
        *sums.entry(Key { thread: ThreadKey { pid, tid: pid }, stack, cause: None }).or_default() += weight;
    }
    let mut entries: Vec<_> = sums.into_iter().collect();
    entries.sort_unstable_by_key(|&(key, weight)| (std::cmp::Reverse(weight), key));
    Snapshot { total: entries.iter().map(|(_, weight)| weight).sum(), entries, span_ns: None }
}

/// Names all frames of some stacks. The index says of each frame where it is among the names, and whether it has a
/// name of its own.
fn name(
    stacks: &FxHashSet<StackId>,
    tables: &Tables,
    symbolizer: &mut dyn Symbolizer,
    detail: Detail,
) -> (Names, FxHashMap<Frame, (usize, bool)>) {
    // Addresses by module, so that each file's symbols are read once.
    let mut wanted: FxHashMap<u32, Vec<u64>> = FxHashMap::default();
    let mut distinct = FxHashSet::default();
    for &stack in stacks {
        for &frame in &*tables.stack(stack).frames {
            if distinct.insert(frame) {
                wanted.entry(frame.module.0).or_default().push(frame.address);
            }
        }
    }
    let mut frames = Vec::with_capacity(distinct.len());
    let mut index: FxHashMap<Frame, (usize, bool)> = FxHashMap::default();
    let mut modules: Vec<_> = wanted.into_iter().collect();
    modules.sort_unstable_by_key(|(module, _)| *module);
    for (module, mut addresses) in modules {
        addresses.sort_unstable();
        let id = ModuleId(module);
        let names = match tables.module(id).kind {
            // Interned with their names, unless this is a replay.
            ModuleKind::Managed(_) if tables.has_managed() => {
                let managed =
                    |&address| tables.managed(Frame { module: id, address }).map(<[Function]>::to_vec);
                addresses.iter().map(managed).collect()
            }
            _ => symbolizer.functions(id, tables.module(id), &addresses, detail),
        };
        for (position, address) in addresses.into_iter().enumerate() {
            let found = names.get(position).cloned().flatten().filter(|functions| !functions.is_empty());
            let named =
                found.as_ref().is_some_and(|found| found.iter().any(|it| !it.is_unnamed(tables.module(id))));
            index.insert(Frame { module: id, address }, (frames.len(), named));
            // Names come from files of the target.
            let found = found.map(|functions| functions.into_iter().map(Function::cleaned).collect());
            frames.push(NamedFrame {
                module: module as usize,
                address,
                functions: found.unwrap_or_else(|| vec![Function::unknown(tables.module(id), address)]),
            });
        }
    }
    let modules = tables.modules.iter().cloned().collect();
    (Names { modules, frames, stacks: FxHashMap::default() }, index)
}

/// Names code that nobody names and that nothing calls but what matches regular expressions.
fn name_regular_expressions(
    names: &mut Names,
    stacks: &FxHashSet<StackId>,
    tables: &Tables,
    index: &mut FxHashMap<Frame, (usize, bool)>,
) {
    let mut only_matches: FxHashMap<usize, bool> = FxHashMap::default();
    for &stack in stacks {
        for pair in tables.stack(stack).frames.windows(2) {
            let (frame, named) = index[&pair[0]];
            if !named && matches!(tables.module(pair[0].module).kind, ModuleKind::Jit(_)) {
                let caller = &names.frames[index[&pair[1]].0];
                let is_match = |name: &str| MATCHES.iter().any(|of| name.contains(of));
                let matches = caller.functions.iter().any(|function| is_match(&function.name));
                only_matches.entry(frame).and_modify(|all| *all &= matches).or_insert(matches);
            }
        }
    }
    for (frame, _) in only_matches.into_iter().filter(|(_, all)| *all) {
        let named = &mut names.frames[frame];
        named.functions = vec![Function { name: REGULAR_EXPRESSION.to_owned(), ..Function::default() }];
        let at = Frame { module: ModuleId(named.module as u32), address: named.address };
        index.insert(at, (frame, true));
    }
}

/// A stack without what the scheduler, or the end of a system call, calls to run the probe at a switch, of a wake-up or
/// of a call; how much that is differs from kernel to kernel.
fn without_probe(names: &Names, mut frames: Vec<usize>) -> Vec<usize> {
    const AT_MOST: usize = 8;
    const CALL_ENDS: [&str; 4] =
        ["__bpf_trace_sys_exit", "trace_sys_exit", "syscall_exit_work", "syscall_trace_exit"];
    let is = |frame: usize, name: &str| {
        let frame = &names.frames[frame];
        names.is_kernel(frame) && frame.functions.iter().any(|function| function.name == name)
    };
    let blocked = names.waker_at(&frames).map_or(0, |at| at + 1);
    let head = &frames[blocked..][..(frames.len() - blocked).min(AT_MOST)];
    let probe = head
        .iter()
        .position(|&frame| is(frame, "__schedule"))
        .or_else(|| head.iter().rposition(|&frame| CALL_ENDS.iter().any(|name| is(frame, name))));
    if let Some(at) = probe {
        frames.drain(blocked..=blocked + at);
    }
    if let Some(waker) = names.waker_at(&frames) {
        let mut woke = frames[..waker].iter().rev().take(AT_MOST);
        if let Some(at) = woke.position(|&frame| is(frame, "try_to_wake_up")) {
            frames.drain(waker - at - 1..waker);
        }
    }
    frames
}

/// A stack in which the profiler's own code is one frame: what it calls, and the hooks that call it, are part of it. The
/// stack of who woke the thread stands before, the other way round, and is left to [`without_probe`].
fn outside_profiler(names: &Names, mut frames: Vec<usize>) -> Vec<usize> {
    const HOOKS: [&str; 4] = ["bpf_trace_run", "__bpf_trace_", "__traceiter_", "bpf_overflow_handler"];
    let own = |&frame: &usize| names.frames[frame].functions.iter().any(Function::is_profiler_itself);
    let begin = names.waker_at(&frames).map_or(0, |waker| waker + 1);
    let Some(at) = frames[begin..].iter().rposition(own).map(|at| begin + at) else { return frames };
    let is_hook = |frame: &usize| {
        let frame = &names.frames[*frame];
        names.is_kernel(frame) && HOOKS.iter().any(|hook| frame.functions[0].name.starts_with(hook))
    };
    let hooks = frames[at + 1..].iter().take_while(|frame| is_hook(frame)).count();
    frames.drain(at + 1..at + 1 + hooks);
    frames.drain(begin..at);
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        function::PROFILER_ITSELF,
        stack::{Module, Stack, StackEnd},
        totals::intern_stack,
    };

    #[test]
    fn code_that_only_matchers_call_is_a_regular_expression() {
        let mut tables = Tables::default();
        let jit = tables.module_id(Module::special(ModuleKind::Jit(7)));
        let node = tables.module_id(Module { path: "/bin/node".into(), ..Module::special(ModuleKind::File) });
        let mut stack = |frames: [(ModuleId, u64); 2]| {
            let frames = frames.map(|(module, address)| Frame { module, address });
            let stack = Stack { frames: frames.into(), kernel_frames: 0, end: StackEnd::Complete };
            intern_stack(&mut tables, stack).unwrap()
        };
        // One is called by the matcher, one by a builtin, and one also by something else.
        let stacks = [
            stack([(jit, 1), (node, 10)]),
            stack([(jit, 3), (node, 11)]),
            stack([(jit, 2), (node, 10)]),
            stack([(jit, 2), (node, 20)]),
        ];
        struct Node;
        impl Symbolizer for Node {
            fn functions(
                &mut self,
                _: ModuleId,
                of: &Module,
                at: &[u64],
                _: Detail,
            ) -> Vec<Option<Vec<Function>>> {
                let name = |at: &u64| match at {
                    10 => "v8::internal::NativeRegExpMacroAssembler::Execute(...)",
                    11 => "Builtins_RegExpPrototypeTestFast",
                    _ => "other",
                };
                let named = |at| vec![Function { name: name(at).to_owned(), ..Function::default() }];
                at.iter().map(|at| (of.kind == ModuleKind::File).then(|| named(at))).collect()
            }
        }
        let stacks = FxHashSet::from_iter(stacks);
        let (mut names, mut index) = name(&stacks, &tables, &mut Node, Detail::Full);
        name_regular_expressions(&mut names, &stacks, &tables, &mut index);
        let name = |address| &names.frames[index[&Frame { module: jit, address }].0].functions[0].name;
        assert_eq!([name(1), name(3)], [REGULAR_EXPRESSION; 2]);
        assert_ne!(name(2), REGULAR_EXPRESSION);
    }

    #[test]
    fn the_profilers_own_code_is_one_frame() {
        let frame = |(address, (kernel, name)): (usize, &(bool, &str))| NamedFrame {
            module: if *name == "[woken by]" { 2 } else { usize::from(!kernel) },
            address: address as u64,
            functions: vec![Function { name: (*name).to_owned(), ..Function::default() }],
        };
        let functions = [
            (true, "read_tsc"),
            (true, PROFILER_ITSELF),
            (true, "bpf_helper"),
            (true, PROFILER_ITSELF),
            (true, "bpf_trace_run2"),
            (true, "__bpf_trace_sys_exit"),
            (true, "do_syscall_64"),
            (false, "bpf_trace_run2"),
            (false, "[woken by]"),
        ];
        let names = Names {
            modules: vec![
                Module::special(ModuleKind::Kernel),
                Module { path: "/bin/app".into(), ..Module::special(ModuleKind::File) },
                Module::special(ModuleKind::Waker),
            ],
            frames: functions.iter().enumerate().map(frame).collect(),
            ..Names::default()
        };
        assert_eq!(outside_profiler(&names, (0..8).collect()), [3, 6, 7]);
        assert_eq!(outside_profiler(&names, vec![0, 2, 4, 7]), [0, 2, 4, 7], "another's");
        let woken = outside_profiler(&names, vec![7, 4, 1, 8, 0, 3, 4, 6, 7]);
        assert_eq!(woken, [7, 4, 1, 8, 3, 6, 7], "who woke it is left");
    }
}
