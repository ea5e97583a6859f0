//! Which threads are event loops, and which of them hold others up while they are away from their wait.

use std::collections::hash_map::Entry;

use profiler_common::sched::{Iteration, MANY, Span, SyscallClass};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{abi, stack::ThreadKey},
    process::{network::Networks, objects},
};

/// The event loops of a run.
#[derive(Default)]
pub struct Loops {
    loops: FxHashMap<ThreadKey, Loop>,
    /// Threads by process and epoll descriptor they wait in.
    sharers: FxHashMap<(u32, u32), FxHashSet<u32>>,
    /// Processes that serve one client each, as a database's do: while one works nobody waits but who asked for it.
    one_client: FxHashSet<u32>,
    /// Threads that wait for one source each: the connection of a client, as those of a server with a thread for each of them, or
    /// of a server whose answer they need; or to be woken by another thread. They do one thing at a time, and nobody else waits.
    one_source: FxHashSet<ThreadKey>,
}

struct Loop {
    syscall: i32,
    descriptor: u32,
    longest_turn_ns: u64,
}

impl Loops {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.loops.is_empty()
    }

    /// A thread waits as event loops do, for a descriptor as [`ThreadState::loop_descriptor`]. May look into /proc if it is
    /// `allowed`.
    ///
    /// [`ThreadState::loop_descriptor`]: profiler_common::sched::ThreadState::loop_descriptor
    pub fn add(
        &mut self,
        thread: ThreadKey,
        syscall: i32,
        descriptor: u32,
        allowed: bool,
        networks: &Networks,
    ) {
        let longest_turn_ns = self.longest_turn_ns(thread);
        self.loops.insert(thread, Loop { syscall, descriptor, longest_turn_ns });
        if abi::class(syscall) == SyscallClass::Epoll as u8 {
            self.sharers.entry((thread.pid, descriptor)).or_default().insert(thread.tid);
        } else if descriptor == MANY {
            self.one_source.remove(&thread);
        } else if !allowed || !objects::takes_from_any(networks, thread.pid, descriptor) {
            // Of so many that not each is looked at, most will be.
            self.one_source.insert(thread);
            return;
        }
        if allowed && objects::serves_one_client(networks, thread.pid) {
            self.one_client.insert(thread.pid);
        }
    }

    /// A thread has worked for long, from one wait for work, of any kind, to the next.
    pub fn turn(&mut self, iteration: &Iteration) {
        let thread = ThreadKey { pid: iteration.pid, tid: iteration.tid };
        if let Some(of) = self.loops.get_mut(&thread).filter(|_| iteration.span != Span::Loop as u32) {
            let ns = iteration.end_ns.saturating_sub(iteration.start_ns);
            of.longest_turn_ns = of.longest_turn_ns.max(ns);
        }
    }

    /// The longest one, 0 if none was told.
    pub fn longest_turn_ns(&self, thread: ThreadKey) -> u64 {
        self.loops.get(&thread).map_or(0, |of| of.longest_turn_ns)
    }

    /// How many threads are known.
    pub fn len(&self) -> usize {
        self.loops.len()
    }

    /// A thread has ended.
    pub fn forget(&mut self, thread: ThreadKey) {
        let descriptor = self.loops.remove(&thread).map(|of| of.descriptor);
        if let Some(Entry::Occupied(mut sharers)) =
            descriptor.map(|descriptor| self.sharers.entry((thread.pid, descriptor)))
        {
            sharers.get_mut().remove(&thread.tid);
            if sharers.get().is_empty() {
                sharers.remove();
            }
        }
        self.one_source.remove(&thread);
        if thread.tid == thread.pid {
            self.one_client.remove(&thread.pid);
        }
    }

    /// Processes that served one client and do not any more are event loops from now on. Looks at no more than `most`;
    /// returns how many it looked at.
    pub fn look_at_clients(&mut self, most: u32, networks: &Networks) -> u32 {
        let served: Vec<u32> = self.one_client.iter().copied().take(most as usize).collect();
        for &pid in &served {
            if !objects::serves_one_client(networks, pid) {
                self.one_client.remove(&pid);
            }
        }
        served.len() as u32
    }

    /// Whether it is known that a process serves one client.
    pub fn serves_one_client(&self, pid: u32) -> bool {
        self.one_client.contains(&pid)
    }

    /// The event loop with this thread id that holds others up, and the system call it waits in.
    pub fn wait_of(&self, tid: u32) -> Option<(ThreadKey, i32)> {
        let is_it = |thread: &ThreadKey| thread.tid == tid && !self.is_for_one(*thread);
        self.loops.iter().find(|(thread, _)| is_it(thread)).map(|(thread, of)| (*thread, of.syscall))
    }

    /// Whether a thread that is away from its loop holds others up.
    pub fn holds_others_up(&self, thread: ThreadKey) -> bool {
        !self.is_shared(thread) && !self.is_for_one(thread)
    }

    fn is_for_one(&self, thread: ThreadKey) -> bool {
        self.one_client.contains(&thread.pid) || self.one_source.contains(&thread)
    }

    /// Whether other threads wait in the same epoll descriptor: the runtime (Go's, multi-threaded tokio's) lets any
    /// thread poll and any other work, so a thread that is long away from it holds nobody up.
    fn is_shared(&self, thread: ThreadKey) -> bool {
        let sharers = self.loops.get(&thread).and_then(|of| self.sharers.get(&(thread.pid, of.descriptor)));
        sharers.is_some_and(|threads| threads.len() > 1)
    }
}
