//! The memory of a running process.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use profiler_common::unwind::Memory;

/// Reads a process's memory through `/proc/PID/mem`, without stopping it.
pub struct ProcessMemory(File);

impl ProcessMemory {
    /// Opens it; `None` if it is gone or not ours to read.
    pub fn open(proc_root: &Path, pid: u32) -> Option<ProcessMemory> {
        File::open(super::shown::shown(proc_root, pid).join("mem")).ok().map(ProcessMemory)
    }

    /// Fills `into` from `address` on.
    pub fn read_exact(&self, address: u64, into: &mut [u8]) -> Option<()> {
        self.0.read_exact_at(into, address).ok()
    }

    /// Four bytes, in the machine's order.
    pub fn read_u32(&self, address: u64) -> Option<u32> {
        let mut word = [0; 4];
        self.0.read_exact_at(&mut word, address).ok()?;
        Some(u32::from_ne_bytes(word))
    }
}

impl Memory for ProcessMemory {
    fn read_u64(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, address).ok()?;
        Some(u64::from_ne_bytes(word))
    }
}
