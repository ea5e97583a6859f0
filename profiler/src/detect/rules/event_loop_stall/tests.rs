//! Stalls made by hand, and what is said of them.

use super::*;
use crate::detect::{
    findings,
    fixtures::{name_stacks, run_with_findings},
    rule::Overrides,
};
use crate::model::{
    module::{Language, ModuleKind},
    report::fixtures,
    stack::Module,
    wait::{RanInstead, ThreadTime},
};

#[test]
fn a_loop_without_sockets_is_one_and_a_wait_for_a_latch_is_none() {
    use crate::model::vitals::{ProcessVitals, Vitals};
    let mut run = run_with_findings();
    // Neither listens nor has connections: timers wait, too.
    let of = ProcessVitals { pid: 7, ..ProcessVitals::default() };
    run.vitals = Some(Vitals { processes: vec![of], unlisted: 0 });
    let stalls = |run: &Run| check(run, &Overrides::default().of(&RULE)).len();
    assert_eq!(stalls(&run), 2);
    name_stacks(&mut run, &["main;PostgresMain;WaitLatch;WaitEventSetWait;epoll_wait"]);
    let frames = run.names().stack(StackId(0)).to_vec();
    let off_cpu = run.off_cpu.as_mut().unwrap();
    let mut like = off_cpu.stacks[0].clone();
    like.thread = crate::probe::sched::stall::fixtures::LOOP;
    (like.frames, like.cause) = (frames.into(), Some(WaitCause::Poll));
    off_cpu.stacks.push(like);
    assert_eq!(stalls(&run), 0);
}

#[test]
fn own_work_that_alone_is_too_long_is_not_blamed_on_the_machine() {
    let run = run_with_findings();
    let mut stall = run.blocking.as_ref().unwrap().stalls[0].clone();
    stall.blocked.clear();
    let main = |on_cpu_ns: u64, run_queue_ns: u64| {
        let of = Stall { duration_ns: on_cpu_ns + run_queue_ns, on_cpu_ns, run_queue_ns, ..stall.clone() };
        main_reason(&of, 10_000_000, run.names()).0 == Main::OnCpu
    };
    assert_eq!(
        [main(60_000_000, 90_000_000), main(5_000_000, 9_000_000), main(20_000_000, 90_000_000)],
        [true, false, false]
    );
}

#[test]
fn who_ran_while_a_loop_had_no_cpu_is_told() {
    let mut run = run_with_findings();
    let blocking = run.blocking.as_mut().unwrap();
    blocking.stalls.truncate(1);
    let stall = &mut blocking.stalls[0];
    stall.blocked.clear();
    (stall.duration_ns, stall.on_cpu_ns, stall.run_queue_ns) = (100_000_000, 0, 100_000_000);
    let ran = |name: &str, ms: u64| RanInstead { tid: 9, name: name.into(), ns: ms * 1_000_000 };
    stall.instead = vec![ran("burn", 50), ran("cc1", 20), ran("burn", 12)];
    let found = check(&run, &Overrides::default().of(&RULE)).remove(0);
    assert!(found.title.contains("no CPU; meanwhile ran: burn (62 %), cc1 (20 %)"), "{}", found.title);
    run.blocking.as_mut().unwrap().stalls[0].instead.clear();
    let found = check(&run, &Overrides::default().of(&RULE)).remove(0);
    assert!(!found.title.contains("meanwhile"), "{}", found.title);
}

#[test]
fn a_wait_for_descriptors_inside_a_callback_is_for_another_process() {
    let reason = |syscall: &str| Reason::Blocked { cause: WaitCause::Other, syscall: syscall.into() };
    assert_eq!(lacks(WaitCause::Other, "epoll_pwait"), Bottleneck::Process);
    assert_eq!(lacks(WaitCause::Disk, "read"), Bottleneck::Io);
    let mut group = group(&[], reason("epoll_pwait"));
    (group.count, group.total_ns, group.reason_ns, group.longest_ns) = (2, 200, 190, 110);
    let title = title(&group, &Namer::new(None), &fixtures::run(&[]));
    assert!(title.contains("inside a callback") && title.contains("spawnSync"), "{title}");
}

#[test]
fn a_worker_is_not_told_to_use_one() {
    let told = |worker: bool| {
        let group =
            Group { worker, count: 1, total_ns: 200, reason_ns: 200, ..group(&[], Reason::OnCpu(None)) };
        (title(&group, &Namer::new(None), &fixtures::run(&[])), advice(&group))
    };
    let (loops, worker) = (told(false), told(true));
    assert!(worker.0.starts_with("event loop of worker tid 0") && loops.0.starts_with("event loop tid 0"));
    assert!(worker.1.starts_with("let several workers") && loops.1.contains("to a worker thread"));
}

#[test]
fn waits_for_threads_are_told_in_words() {
    let mut run = run_with_findings();
    name_stacks(
        &mut run,
        &["main;onRequest;runtime.gcAssistAlloc;__futex_wait", "main;onRequest;pthread_mutex_lock"],
    );
    let blocking = run.blocking.as_mut().unwrap();
    let mut stall = blocking.stalls[60].clone();
    (stall.duration_ns, stall.on_cpu_ns) = (90_000_000, 100);
    stall.blocked = vec![(WaitCause::Park, 89_000_000)];
    stall.blocks.truncate(1);
    let block = &mut stall.blocks[0];
    (block.cause, block.syscall) = (WaitCause::Park, "futex".into());
    (block.stack, block.object) = (Some(StackId(0)), Some("futex 0x7f".into()));
    let mut waits = |stack: u32, cause: WaitCause| {
        stall.blocked[0].0 = cause;
        (stall.blocks[0].cause, stall.blocks[0].stack) = (cause, Some(StackId(stack)));
        run.blocking.as_mut().unwrap().stalls = vec![stall.clone()];
        let found = check(&run, &Overrides::default().of(&RULE)).pop().unwrap();
        (found.bottleneck, found.title.split_once(", by ").unwrap().1.to_owned())
    };
    let (lacks, reason) = waits(0, WaitCause::Park);
    assert_eq!(lacks, Bottleneck::Memory);
    assert_eq!(reason, "waiting for the threads of its garbage collector, for onRequest (app.c:7)");
    assert_eq!(waits(1, WaitCause::Park).1, "waiting for another thread (futex), in onRequest (app.c:7)");
    assert_eq!(
        waits(1, WaitCause::Lock),
        (Bottleneck::Lock, "waiting for a lock that another thread held, in onRequest (app.c:7)".into())
    );
    // Who polls otherwise, and mostly parks, is a worker.
    let mut found = |wait: &str, cause: WaitCause, parked: u64| {
        let blocking = run.blocking.as_mut().unwrap();
        blocking.loops.iter_mut().for_each(|of| of.wait = wait.into());
        let thread = blocking.stalls[0].thread;
        let blocked = vec![(WaitCause::Park, parked), (WaitCause::Poll, 10)];
        blocking.threads = vec![ThreadTime { thread, blocked, ..ThreadTime::default() }];
        blocking.stalls[0].blocked[0].0 = cause;
        blocking.stalls[0].blocks[0].cause = cause;
        check(&run, &Overrides::default().of(&RULE)).len()
    };
    assert_eq!([found("epoll_wait", WaitCause::Park, 20), found("poll", WaitCause::Park, 20)], [1, 0]);
    assert_eq!([found("poll", WaitCause::Park, 5), found("poll", WaitCause::Lock, 20)], [1, 1]);
}

#[test]
fn little_time_is_a_note() {
    let mut run = run_with_findings();
    let severities = |run: &Run| {
        check(run, &Overrides::default().of(&RULE)).iter().map(|finding| finding.severity).collect::<Vec<_>>()
    };
    run.cpu.accounts.duration_ns = 100_000_000_000;
    assert_eq!(severities(&run), [Severity::Critical, Severity::Info], "12 s and 0.1 s of 100 s");
    run.cpu.accounts.duration_ns = 600_000_000_000;
    assert_eq!(severities(&run), [Severity::Warning, Severity::Info]);
}

#[test]
fn what_has_one_reason_is_one_finding() {
    let found = findings(&run_with_findings(), &Overrides::default());
    let rules: Vec<_> = found.iter().map(|of| (of.rule, of.severity.id(), of.bottleneck)).collect();
    assert_eq!(
        rules,
        [
            ("event-loop-stall", "critical", Bottleneck::Cpu),
            ("long-wait", "warning", Bottleneck::Network),
            ("long-wait", "warning", Bottleneck::CpuStarvation),
            ("event-loop-stall", "warning", Bottleneck::Io),
            ("lock-convoy", "warning", Bottleneck::Lock),
        ]
    );
    assert_eq!((found[0].subject.as_str(), &found[0].details["count"]), ("busyLoop", &json!(60)));
    assert_eq!(found[0].id(), "event-loop-stall:app:busyLoop");
    assert_eq!(
        (&found[1].details["count"], found[1].details["tids"].as_array().unwrap().len()),
        (&json!(3), 2)
    );
    assert_eq!(found[2].details["instead"], json!([["hog", 300_000_000]]));
    assert_eq!((&found[3].details["count"], &found[3].details["object"]), (&json!(3), &json!("/data/big")));
}

#[test]
fn the_advice_is_about_the_kind_of_work() {
    let advised = |stack: &str| {
        let mut run = crate::model::report::fixtures::run(&[]);
        name_stacks(&mut run, &[stack]);
        let mut stall = run_with_findings().blocking.unwrap().stalls[0].clone();
        stall.samples = vec![(StackId(0), 9)];
        let (work, ..) = by_function(&[(&stall, 20)], run.names()).remove(0);
        advice(&group(&[], Reason::OnCpu(work)))
    };
    assert!(advised("main;handle;v8::internal::RegExpImpl::IrregexpExec").contains("expression"));
    assert!(advised("main;handle;v8::internal::Heap::Scavenge").contains("allocate less"));
    assert!(advised("main;handle;sort").contains("worker thread"));
}

#[test]
fn what_it_did_is_told_by_its_kind_and_never_by_a_runtimes_glue() {
    let title = |stacks: [&str; 2]| {
        let mut run = crate::model::report::fixtures::run(&[]);
        name_stacks(&mut run, &stacks);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        names.modules.push(Module::special(ModuleKind::Managed(Language::JavaScript)));
        let module = names.modules.len() - 1;
        for frame in names.frames.iter_mut().filter(|frame| frame.functions[0].name == "handle") {
            frame.module = module;
        }
        let mut stall = run_with_findings().blocking.unwrap().stalls[0].clone();
        stall.samples = vec![(StackId(0), 5), (StackId(1), 5)];
        let (work, ..) = by_function(&[(&stall, 20)], run.names()).remove(0);
        let title = title(&group(&[], Reason::OnCpu(work)), &Namer::new(None), &fixtures::run(&[]));
        title.split_once("CPU work ").unwrap().1.split(';').next().unwrap().to_owned()
    };
    assert_eq!(title(["handle;Builtins_JsonParse;JsonParser<char>::Parse"; 2]), "in handle (app.c:7): JSON");
    assert_eq!(
        title(["handle;Builtins_CEntry;v8::internal::A", "handle;Builtins_CEntry;v8::internal::B"]),
        "in handle (app.c:7)"
    );
    assert_eq!(title(["handle;image::resize<int>(char*)"; 2]), "in handle (app.c:7): image::resize");
}

/// Stalls made of samples: stack and number.
fn grouped(stacks: &[&str], stalls: &[&[(u32, u64)]]) -> Vec<(String, usize)> {
    let mut run = crate::model::report::fixtures::run(&[]);
    name_stacks(&mut run, stacks);
    let stall = |samples: &&[(u32, u64)]| Stall {
        severity: Severity::Warning,
        thread: ThreadKey::default(),
        start_ns: 0,
        duration_ns: 20,
        on_cpu_ns: 20,
        run_queue_ns: 0,
        samples: samples.iter().map(|&(stack, n)| (StackId(stack), n)).collect(),
        blocked: Vec::new(),
        blocks: Vec::new(),
        instead: Vec::new(),
        explained: 1.0,
    };
    let stalls: Vec<_> = stalls.iter().map(stall).collect();
    let stalls: Vec<_> = stalls.iter().map(|stall| (stall, 20)).collect();
    let groups = by_function(&stalls, run.names()).into_iter();
    groups.map(|(work, _, of)| (work.map_or_else(String::new, |work| work.function.name), of.len())).collect()
}

#[test]
fn two_handlers_of_one_loop_are_two_reasons() {
    let stacks = ["main;loop;a;x", "main;loop;a;y", "main;loop;b"];
    let stalls: [&[_]; 5] = [&[(0, 5), (1, 5)], &[(0, 4), (1, 5)], &[(2, 9)], &[(0, 9)], &[(2, 1)]];
    assert_eq!(grouped(&stacks, &stalls), [("a".into(), 3), ("b".into(), 2)], "x alone is a all the same");
}

#[test]
fn many_short_blocks_are_a_reason_too() {
    let run = run_with_findings();
    let mut stall = run.blocking.as_ref().unwrap().stalls[60].clone();
    (stall.duration_ns, stall.on_cpu_ns) = (1000, 100);
    stall.blocked = vec![(WaitCause::Disk, 800), (WaitCause::Lock, 50)];
    stall.blocks[0].blocked_ns = 1; // the others are not listed
    let (main, ns) = main_reason(&stall, 10_000_000, run.names());
    assert!(matches!(main, Main::Blocked(WaitCause::Disk, "read", _)), "{main:?}");
    assert_eq!(ns, 800);
    stall.blocked.clear();
    assert_eq!(main_reason(&stall, 10_000_000, run.names()), (Main::Unexplained, 900));
}

#[test]
fn stalls_with_few_samples_are_looked_at_together() {
    let stacks = ["main;loop;a;x", "main;loop;a;y", "main;loop;a;k:z"];
    assert_eq!(grouped(&stacks, &[&[(0, 1)], &[(1, 1)], &[(2, 2)]]), [("a".into(), 3)]);
    assert_eq!(grouped(&stacks, &[&[], &[(1, 1)]]), [(String::new(), 1), ("y".into(), 1)]);
}

/// Many short callbacks in one turn have nothing in common but the runtime that calls them.
#[test]
fn a_turn_of_many_short_callbacks_is_blamed_on_the_function_that_most_are_in() {
    let of = |first: u64, second: u64, other: u64| {
        let mut run = run_with_findings();
        name_stacks(
            &mut run,
            &["v8::Invoke;first;again", "v8::Invoke;second;again", "v8::Invoke;third;rarely"],
        );
        let mut stall = run.blocking.as_ref().unwrap().stalls[0].clone();
        stall.samples = (0..).map(StackId).zip([first, second, other]).collect();
        let (work, _, _) = by_function(&[(&stall, 1)], run.names()).remove(0);
        let work = work.unwrap();
        (work.function.name.clone(), work.own.map(|own| own.name))
    };
    assert_eq!(of(8, 8, 4), ("v8::Invoke".into(), Some("again".into())));
    assert_eq!(of(20, 1, 1), ("again".into(), None), "where they have a path in common, its end");
}
