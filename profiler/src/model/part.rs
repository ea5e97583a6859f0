//! The part of a run that belongs to some of its processes: what they would have looked like if they had been profiled alone.

use crate::model::{
    memory::Memory,
    report::{Profile, Run},
    request::Requests,
    syscall::Calls,
    vitals::Vitals,
    wait::Blocking,
};

/// The part of a run of the processes that `is_in` names. Findings and the verdict are not taken over: they are to be judged
/// anew. What is not kept apart by process stays that of the whole run: costs, losses, what it is called.
pub fn part(run: &Run, is_in: impl Fn(u32) -> bool) -> Run {
    let profile = |of: &Profile| -> Profile {
        let stacks: Vec<_> = of.stacks.iter().filter(|stack| is_in(stack.thread.pid)).cloned().collect();
        Profile { total: stacks.iter().map(|stack| stack.weight).sum(), stacks, ..of.clone() }
    };
    let maybe = |of: &Option<Profile>| of.as_ref().map(profile);
    Run {
        cpu: profile(&run.cpu),
        off_cpu: maybe(&run.off_cpu),
        in_calls: maybe(&run.in_calls),
        heap: maybe(&run.heap),
        faults: maybe(&run.faults),
        blocking: run.blocking.as_ref().map(|of| blocking(of, &is_in)),
        calls: run.calls.as_ref().map(|of| calls(of, &is_in)),
        memory: run.memory.as_ref().map(|of| memory(of, &is_in)),
        vitals: run.vitals.as_ref().map(|of| Vitals {
            processes: only(&of.processes, |process| is_in(process.pid)),
            unlisted: of.unlisted,
        }),
        requests: run.requests.as_ref().map(|of| Requests {
            peers: only(&of.peers, |peer| is_in(peer.pid)),
            slow: only(&of.slow, |slow| is_in(slow.thread.pid)),
            route_stacks: only(&of.route_stacks, |of| is_in(of.pid)),
            slow_stacks: {
                let each = of.slow.iter().zip(&of.slow_stacks);
                each.filter(|(slow, _)| is_in(slow.thread.pid)).map(|(_, stacks)| stacks.clone()).collect()
            },
            watched_ns: of.watched_ns,
            windows: of.windows,
            tls: of.tls.clone(),
        }),
        findings: Vec::new(),
        verdict: None,
        baseline: None,
    }
}

fn only<T: Clone>(all: &[T], is_in: impl Fn(&T) -> bool) -> Vec<T> {
    all.iter().filter(|of| is_in(of)).cloned().collect()
}

fn blocking(of: &Blocking, is_in: &impl Fn(u32) -> bool) -> Blocking {
    Blocking {
        thresholds: of.thresholds.clone(),
        threads: only(&of.threads, |thread| is_in(thread.thread.pid)),
        run_queue: only(&of.run_queue, |queue| is_in(queue.pid)),
        loops: only(&of.loops, |of| is_in(of.thread.pid)),
        stalls: only(&of.stalls, |stall| is_in(stall.thread.pid)),
        stalls_unlisted: of.stalls_unlisted,
        long_waits: only(&of.long_waits, |wait| is_in(wait.thread.pid)),
        long_waits_unlisted: of.long_waits_unlisted,
        convoys: only(&of.convoys, |convoy| is_in(convoy.pid)),
        deadlocks: only(&of.deadlocks, |deadlock| is_in(deadlock.pid)),
    }
}

fn calls(of: &Calls, is_in: &impl Fn(u32) -> bool) -> Calls {
    let mut slow_by_part = of.slow_by_part.clone();
    slow_by_part.parts.iter_mut().for_each(|part| part.retain(|slow| is_in(slow.thread.pid)));
    Calls {
        calls: only(&of.calls, |call| is_in(call.thread.pid)),
        waits: only(&of.waits, |waits| is_in(waits.pid)),
        objects: only(&of.objects, |object| is_in(object.pid)),
        objects_unlisted: of.objects_unlisted,
        slow: only(&of.slow, |slow| is_in(slow.thread.pid)),
        slow_by_part,
        chatty: only(&of.chatty, |chatty| is_in(chatty.thread.pid)),
        storms: only(&of.storms, |storm| is_in(storm.pid)),
        watched_ns: of.watched_ns,
        windows: of.windows,
    }
}

fn memory(of: &Memory, is_in: &impl Fn(u32) -> bool) -> Memory {
    Memory {
        processes: only(&of.processes, |process| is_in(process.pid)),
        sites: only(&of.sites, |site| is_in(site.pid)),
        faults: only(&of.faults, |(pid, ..)| is_in(*pid)),
        watching: of.watching.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{report::fixtures, stack::ThreadKey, wait::ThreadTime};

    #[test]
    fn two_parts_are_the_whole() {
        let mut run = fixtures::run(&[("a", 90), ("b", 10)]);
        run.cpu.stacks[0].thread = ThreadKey { pid: 1, tid: 1 };
        run.cpu.stacks[1].thread = ThreadKey { pid: 2, tid: 3 };
        let thread = |pid| ThreadTime { thread: ThreadKey { pid, tid: pid }, ..ThreadTime::default() };
        run.blocking = Some(Blocking { threads: vec![thread(1), thread(2)], ..Blocking::default() });
        let (one, other) = (part(&run, |pid| pid == 1), part(&run, |pid| pid != 1));
        assert_eq!((one.cpu.total, other.cpu.total), (90, 10));
        assert_eq!((one.cpu.stacks.len(), one.blocking.unwrap().threads.len()), (1, 1));
        let all = part(&run, |_| true);
        assert_eq!((all.cpu.stacks, all.cpu.total), (run.cpu.stacks, run.cpu.total));
        assert_eq!(all.blocking, run.blocking);
    }
}
