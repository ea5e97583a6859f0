//! The maps of the system-call probe.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData};
use profiler_common::syscall::{
    CallKey, CallStats, CallTimeKey, ErrorKey, IoKey, IoStats, WaitsKey, WaitsStats,
};

use crate::probe::syscalls;

/// Maps that need memory only where the probe runs.
pub const LARGE_MAPS: [&str; 1] = ["IN_CALL"];

/// Maps of `profiler-ebpf/src/syscall.rs`.
pub struct CallMaps {
    calls: HashMap<MapData, CallKey, CallStats>,
    errors: HashMap<MapData, ErrorKey, u64>,
    waits: HashMap<MapData, WaitsKey, WaitsStats>,
    io: HashMap<MapData, IoKey, IoStats>,
    time: HashMap<MapData, CallTimeKey, u64>,
    slow_ns: Array<MapData, u64>,
}

impl CallMaps {
    /// Takes the maps out of the loaded object, and tells the kernel programs what calls' arguments are.
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<CallMaps> {
        let traits = ebpf.map_mut("CALL_TRAITS").context("kernel object has no map CALL_TRAITS")?;
        let mut traits: Array<&mut MapData, u8> = traits.try_into()?;
        for (number, of) in syscalls::all_traits() {
            traits.set(number, of, 0)?;
        }
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("kernel object has no map {name}"));
        Ok(CallMaps {
            calls: take("CALLS")?.try_into()?,
            errors: take("CALL_ERRORS")?.try_into()?,
            waits: take("CALL_WAITS")?.try_into()?,
            io: take("CALL_IO")?.try_into()?,
            time: take("CALL_TIME")?.try_into()?,
            slow_ns: take("CALL_SLOW_NS")?.try_into()?,
        })
    }

    /// Has calls told one by one from this length on, ns.
    pub fn set_slow(&mut self, ns: u64) -> Result<()> {
        Ok(self.slow_ns.set(0, ns, 0)?)
    }

    /// Calls counted so far.
    pub fn calls(&self) -> impl Iterator<Item = (CallKey, CallStats)> + '_ {
        self.calls.iter().filter_map(Result::ok)
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
        self.io.iter().filter_map(Result::ok)
    }

    /// Time in calls by stack so far, ns.
    pub fn time(&self) -> impl Iterator<Item = (CallTimeKey, u64)> + '_ {
        self.time.iter().filter_map(Result::ok)
    }

    /// Makes room: these calls' process has ended.
    pub fn forget_call(&mut self, key: &CallKey) {
        let _was_there = self.calls.remove(key);
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
        let _was_there = self.io.remove(key);
    }

    /// As [`Self::forget_call`].
    pub fn forget_time(&mut self, key: &CallTimeKey) {
        let _was_there = self.time.remove(key);
    }
}
