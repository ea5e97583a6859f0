//! The maps of the system-call probe.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, Queue};
use profiler_common::{
    histogram::Histogram,
    syscall::{
        CallKey, CallStats, CallTimeKey, ErrorKey, IoKey, IoStats, ListenKey, MAX_CALLS_OF_ONE, WaitsKey,
        WaitsStats,
    },
};

use crate::model::abi;

/// Programs that others go on into, by their positions in the map `CALL_STEPS`.
pub const STEPS: [&str; 2] = ["call_stack", "call_follow"];

/// How large the maps are to be that have all their memory from the start. `by_thread` says whether threads are kept
/// apart; `None` if the probe does not run.
pub fn map_sizes(by_thread: Option<bool>, one_process: bool) -> Vec<(&'static str, u32)> {
    match by_thread {
        None => ["OTHERS", "CALLERS", "IN_CALL", "CALL_STATS", "CALL_IO"].map(|map| (map, 1)).into(),
        Some(false) if one_process => vec![("CALL_STATS", MAX_CALLS_OF_ONE)],
        Some(_) => Vec::new(),
    }
}

/// Maps of `profiler-ebpf/src/syscall.rs`.
pub struct CallMaps {
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
}

impl CallMaps {
    /// Takes the maps out of the loaded object, and tells the kernel programs what calls' arguments are.
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<CallMaps> {
        for (map, of) in [("CALL_KINDS", abi::kinds()), ("COMPAT_KINDS", abi::compat_kinds())] {
            let map = ebpf.map_mut(map).with_context(|| format!("kernel object has no map {map}"))?;
            let mut map: Array<&mut MapData, u32> = map.try_into()?;
            for (number, kind) in (0..).zip(of) {
                if kind != 0 {
                    map.set(number, kind, 0)?;
                }
            }
        }
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        let calls = Array::try_from(take("CALL_STATS")?)?;
        let io = Array::try_from(take("CALL_IO")?)?;
        Ok(CallMaps {
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
        })
    }

    /// Has calls told one by one from this length on, ns.
    pub fn set_slow(&mut self, ns: u64) -> Result<()> {
        Ok(self.slow_ns.set(0, ns, 0)?)
    }

    /// Who talks to this port of a process is a client.
    pub fn listens(&mut self, pid: u32, port: u16) {
        let _no_room = self.listening.insert(ListenKey { pid, port: port.into() }, 0, 0);
    }

    /// Calls counted so far.
    pub fn calls(&self) -> impl Iterator<Item = (CallKey, CallStats)> + '_ {
        let entries = self.index.iter().filter_map(Result::ok);
        entries.filter_map(|(key, at)| Some((key, self.calls.get(&at, 0).ok()?)))
    }

    /// Errors counted so far.
    pub fn errors(&self) -> impl Iterator<Item = (ErrorKey, u64)> + '_ {
        self.errors.iter().filter_map(Result::ok)
    }

    /// Waits so far.
    pub fn waits(&self) -> impl Iterator<Item = (WaitsKey, WaitsStats)> + '_ {
        self.waits.iter().filter_map(Result::ok)
    }

    /// Reads and writes of descriptors that have not been closed.
    pub fn io(&self) -> impl Iterator<Item = (IoKey, IoStats)> + '_ {
        let entries = self.io_index.iter().filter_map(Result::ok);
        entries.filter_map(|(key, at)| Some((key, self.io.get(&at, 0).ok()?)))
    }

    /// Time in calls by stack so far, ns.
    pub fn time(&self) -> impl Iterator<Item = (CallTimeKey, u64)> + '_ {
        self.time.iter().filter_map(Result::ok)
    }

    /// Makes room: these calls' process has ended.
    pub fn forget_call(&mut self, key: &CallKey) {
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

    /// As [`Self::forget_call`].
    pub fn forget_error(&mut self, key: &ErrorKey) {
        let _was_there = self.errors.remove(key);
    }

    /// As [`Self::forget_call`].
    pub fn forget_waits(&mut self, key: &WaitsKey) {
        let _was_there = self.waits.remove(key);
    }

    /// As [`Self::forget_call`].
    pub fn forget_io(&mut self, key: &IoKey) {
        let Ok(at) = self.io_index.get(key, 0) else { return };
        let _was_there = self.io_index.remove(key);
        if self.io.set(at, IoStats::default(), 0).is_ok() {
            let _has_room = self.io_free.push(at, 0);
        }
    }

    /// As [`Self::forget_call`].
    pub fn forget_time(&mut self, key: &CallTimeKey) {
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
