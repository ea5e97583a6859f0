//! The maps of the system-call probe.

use anyhow::Result;
use aya::maps::{Array, HashMap, MapData, Queue};
use profiler_common::{
    histogram::Histogram,
    syscall::{
        CallKey, CallStats, CallTimeKey, ErrorKey, InCall, IoKey, IoStats, ListenKey, WaitsKey, WaitsStats,
    },
};

use crate::{kernel::Kernel, model::abi};

/// Programs that others go on into, by their positions in the map `CALL_STEPS`.
pub const STEPS: [&str; 2] = ["call_stack", "call_follow"];

/// Programs that every system call of every process passes, and their tracepoints. What has begun is seen to its end: the exit is
/// watched first.
pub const CALLS: [(&str, &str); 2] = [("call_exit", "sys_exit"), ("call_enter", "sys_enter")];

/// The maps of the system-call probe, so that a fake can stand in for the kernel's.
pub trait CallMaps {
    /// Has calls sent one by one from this length on, ns.
    fn set_slow(&mut self, ns: u64) -> Result<()>;

    /// Who talks to this port of a process is a client.
    fn listens(&mut self, pid: u32, port: u16);

    /// Forgets which calls threads are in: those that return were not seen to. Only while calls are not watched.
    fn forget_in_progress(&mut self);

    /// Calls counted so far.
    fn calls(&self) -> Entries<'_, CallKey, CallStats>;

    /// Errors counted so far.
    fn errors(&self) -> Entries<'_, ErrorKey, u64>;

    /// Waits so far.
    fn waits(&self) -> Entries<'_, WaitsKey, WaitsStats>;

    /// Reads and writes of descriptors that have not been closed.
    fn io(&self) -> Entries<'_, IoKey, IoStats>;

    /// Time in calls by stack so far, ns.
    fn time(&self) -> Entries<'_, CallTimeKey, u64>;

    /// Makes room: these calls' process has ended.
    fn forget_call(&mut self, key: &CallKey);

    /// Makes room: these errors' process has ended.
    fn forget_error(&mut self, key: &ErrorKey);

    /// Makes room: these waits' process has ended.
    fn forget_waits(&mut self, key: &WaitsKey);

    /// Makes room: this descriptor's process has ended.
    fn forget_io(&mut self, key: &IoKey);

    /// Makes room: this thread has ended.
    fn forget_time(&mut self, key: &CallTimeKey);
}

/// Entries of a map.
pub type Entries<'a, K, V> = Box<dyn Iterator<Item = (K, V)> + 'a>;

/// Maps of `profiler-ebpf/src/syscall.rs`.
pub struct KernelMaps {
    calls: Array<MapData, CallStats>,
    index: HashMap<MapData, CallKey, u32>,
    free: Queue<MapData, u32>,
    errors: HashMap<MapData, ErrorKey, u64>,
    waits: HashMap<MapData, WaitsKey, WaitsStats>,
    io: Array<MapData, IoStats>,
    io_index: HashMap<MapData, IoKey, u32>,
    io_free: Queue<MapData, u32>,
    time: HashMap<MapData, CallTimeKey, u64>,
    slow_ns: Array<MapData, u64>,
    listening: HashMap<MapData, ListenKey, u32>,
    /// Places of threads, and the threads.
    places: HashMap<MapData, u32, u64>,
    in_call: Array<MapData, InCall>,
}

impl KernelMaps {
    /// Takes the maps out of the loaded object, and tells the kernel programs what calls' arguments are.
    pub fn take(kernel: &mut Kernel) -> Result<KernelMaps> {
        for (map, of) in [("CALL_KINDS", abi::kinds()), ("COMPAT_KINDS", abi::compat_kinds())] {
            let mut map: Array<&mut MapData, u32> = kernel.map_mut(map)?.try_into()?;
            for (number, kind) in (0..).zip(of) {
                if kind != 0 {
                    map.set(number, kind, 0)?;
                }
            }
        }
        let mut take = |name: &str| kernel.take_map(name);
        let calls = Array::try_from(take("CALL_STATS")?)?;
        let io = Array::try_from(take("CALL_IO")?)?;
        Ok(KernelMaps {
            free: all_free(take("CALLS_FREE")?, calls.len())?,
            io_free: all_free(take("IO_FREE")?, io.len())?,
            io_index: take("IO_INDEX")?.try_into()?,
            calls,
            io,
            index: take("CALL_INDEX")?.try_into()?,
            errors: take("CALL_ERRORS")?.try_into()?,
            waits: take("CALL_WAITS")?.try_into()?,
            time: take("CALL_TIME")?.try_into()?,
            slow_ns: take("CALL_SLOW_NS")?.try_into()?,
            listening: take("LISTENING")?.try_into()?,
            places: take("CLAIMED")?.try_into()?,
            in_call: take("IN_CALL")?.try_into()?,
        })
    }
}

impl CallMaps for KernelMaps {
    fn set_slow(&mut self, ns: u64) -> Result<()> {
        Ok(self.slow_ns.set(0, ns, 0)?)
    }

    fn listens(&mut self, pid: u32, port: u16) {
        let _no_room = self.listening.insert(ListenKey { pid, port: port.into() }, 0, 0);
    }

    fn forget_in_progress(&mut self) {
        let places: Vec<u32> = self.places.keys().filter_map(Result::ok).collect();
        for place in places {
            let Ok(call) = self.in_call.get(&place, 0) else { continue };
            if call.start_ns != 0 || call.interrupted_ns != 0 {
                let _gone = self.in_call.set(place, InCall { start_ns: 0, interrupted_ns: 0, ..call }, 0);
            }
        }
    }

    fn calls(&self) -> Entries<'_, CallKey, CallStats> {
        let entries = self.index.iter().filter_map(Result::ok);
        Box::new(entries.filter_map(|(key, at)| Some((key, self.calls.get(&at, 0).ok()?))))
    }

    fn errors(&self) -> Entries<'_, ErrorKey, u64> {
        Box::new(self.errors.iter().filter_map(Result::ok))
    }

    fn waits(&self) -> Entries<'_, WaitsKey, WaitsStats> {
        Box::new(self.waits.iter().filter_map(Result::ok))
    }

    fn io(&self) -> Entries<'_, IoKey, IoStats> {
        let entries = self.io_index.iter().filter_map(Result::ok);
        Box::new(entries.filter_map(|(key, at)| Some((key, self.io.get(&at, 0).ok()?))))
    }

    fn time(&self) -> Entries<'_, CallTimeKey, u64> {
        Box::new(self.time.iter().filter_map(Result::ok))
    }

    fn forget_call(&mut self, key: &CallKey) {
        let Ok(at) = self.index.get(key, 0) else { return };
        let empty = CallStats {
            key: CallKey::default(),
            _reserved: 0,
            lengths: Histogram::EMPTY,
            blocked_ns: 0,
            run_queue_ns: 0,
            errors: 0,
            unfinished: 0,
        };
        // In this order: what is free is empty, and nobody finds it any more.
        let _was_there = self.index.remove(key);
        if self.calls.set(at, empty, 0).is_ok() {
            let _has_room = self.free.push(at, 0);
        }
    }

    fn forget_error(&mut self, key: &ErrorKey) {
        let _was_there = self.errors.remove(key);
    }

    fn forget_waits(&mut self, key: &WaitsKey) {
        let _was_there = self.waits.remove(key);
    }

    fn forget_io(&mut self, key: &IoKey) {
        let Ok(at) = self.io_index.get(key, 0) else { return };
        let _was_there = self.io_index.remove(key);
        if self.io.set(at, IoStats::default(), 0).is_ok() {
            let _has_room = self.io_free.push(at, 0);
        }
    }

    fn forget_time(&mut self, key: &CallTimeKey) {
        let _was_there = self.time.remove(key);
    }
}

/// A queue of the positions of all `entries` of an array.
fn all_free(queue: aya::maps::Map, entries: u32) -> Result<Queue<MapData, u32>> {
    let mut queue = Queue::try_from(queue)?;
    for at in 0..entries {
        queue.push(at, 0)?;
    }
    Ok(queue)
}
