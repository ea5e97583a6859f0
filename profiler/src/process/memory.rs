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

    /// Whether the program has ended, or is another now: then nothing can be read, not even that there is nothing at an
    /// address.
    pub fn has_ended(&self) -> bool {
        matches!(self.0.read_at(&mut [0; 8], 0), Ok(0))
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn it_is_known_that_a_program_has_ended() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let memory = ProcessMemory::open(Path::new("/proc"), child.id()).unwrap();
        assert!(!memory.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(memory.has_ended());
    }
}
