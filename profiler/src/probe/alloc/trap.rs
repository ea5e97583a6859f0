//! What a breakpoint costs the process that runs into it, besides the kernel program it runs: measured at start-up in the
//! profiler's own process, on code like that of allocators.

use std::{
    ffi::c_void,
    io::{self, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _},
    path::PathBuf,
    time::Instant,
};

use crate::{
    kernel::uprobe::{Breakpoint, Programs},
    probe::alloc::programs::{ENTER, RETURN},
};

/// Time lost to one hit, ns, by whether the kernel emulates the instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrapCosts {
    /// Emulated: at the beginning of a call alone, and there and on its return.
    pub emulated_ns: (f64, f64),
    /// Single-stepped: the same.
    pub stepped_ns: (f64, f64),
}

/// Functions of 16 bytes each: what is probed, then `pop` where it was a push, then `ret`.
#[cfg(target_arch = "x86_64")]
const CODE: [[u8; 4]; 4] = [
    [0x55, 0x5d, 0xc3, 0x90], // push %rbp
    [0x55, 0x5d, 0xc3, 0x90],
    [0x48, 0x85, 0xff, 0xc3], // test %rdi,%rdi
    [0x48, 0x85, 0xff, 0xc3],
];
/// `ret`, and a no-operation before it.
#[cfg(target_arch = "aarch64")]
const CODE: [[u8; 8]; 4] = [[0x1f, 0x20, 0x03, 0xd5, 0xc0, 0x03, 0x5f, 0xd6]; 4];

/// Calls timed at once, and how often: the quickest counts, the others were interrupted.
const CALLS: (u32, u32) = (500, 5);

/// Measures them. This process must not be a target: then the programs do nothing.
pub fn measure(programs: &Programs) -> io::Result<TrapCosts> {
    let stub = Stub::new()?;
    let own = std::process::id();
    let breakpoint = |index: usize, program| Breakpoint {
        path: stub.path.clone(),
        file_offset: index as u64 * STRIDE as u64,
        program,
        cookie: 0,
        emulated: index < 2,
        frequent: false,
    };
    let alone: Vec<f64> = (0..CODE.len()).map(|index| stub.time_ns(index)).collect();
    let _attached = programs.attach(
        own,
        &[
            breakpoint(0, &ENTER),
            breakpoint(1, &ENTER),
            breakpoint(1, &RETURN),
            breakpoint(2, &ENTER),
            breakpoint(3, &ENTER),
            breakpoint(3, &RETURN),
        ],
    )?;
    let more = |index: usize| (stub.time_ns(index) - alone[index]).max(0.0);
    Ok(TrapCosts { emulated_ns: (more(0), more(1)), stepped_ns: (more(2), more(3)) })
}

const STRIDE: usize = 16;
const LENGTH: usize = 4096;

/// Code in a file without a name, as breakpoints need one.
struct Stub {
    _file: std::fs::File,
    path: PathBuf,
    code: *mut c_void,
}

impl Stub {
    fn new() -> io::Result<Stub> {
        // SAFETY: a constant name; the result is checked.
        let fd = unsafe { libc::memfd_create(c"profiler-trap".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
        let mut bytes = vec![0u8; LENGTH];
        for (index, code) in CODE.iter().enumerate() {
            bytes[index * STRIDE..][..code.len()].copy_from_slice(code);
        }
        file.write_all(&bytes)?;
        // SAFETY: a new private mapping, placed by the kernel; the result is checked.
        let code = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if code == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Stub { _file: file, path, code })
    }

    /// Time of one call, ns.
    fn time_ns(&self, index: usize) -> f64 {
        // SAFETY: the mapping begins with CODE, each part of which is a function that changes nothing.
        let function: extern "C" fn(u64) = unsafe { std::mem::transmute(self.code.byte_add(index * STRIDE)) };
        let (calls, rounds) = CALLS;
        let round = |_| {
            let start = Instant::now();
            for i in 0..calls {
                function(i.into());
            }
            start.elapsed().as_nanos() as f64 / f64::from(calls)
        };
        (0..rounds).map(round).fold(f64::INFINITY, f64::min)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; nobody runs it any more.
        unsafe { libc::munmap(self.code, LENGTH) };
    }
}
