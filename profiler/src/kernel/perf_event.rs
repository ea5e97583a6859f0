//! Events of perf.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use perf_event_open_sys::bindings as sys;

/// Whether this thread's rights suffice for events of all processes.
pub fn allowed() -> bool {
    !notices(0).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Opens the event that sends notices of one CPU's processes.
pub fn notices(cpu: u32) -> io::Result<OwnedFd> {
    let mut attr = sys::perf_event_attr {
        size: size_of::<sys::perf_event_attr>() as u32,
        type_: sys::PERF_TYPE_SOFTWARE,
        config: u64::from(sys::PERF_COUNT_SW_DUMMY),
        sample_type: u64::from(sys::PERF_SAMPLE_TIME),
        clockid: libc::CLOCK_MONOTONIC,
        ..Default::default()
    };
    attr.set_mmap(1);
    attr.set_mmap2(1);
    attr.set_comm(1);
    attr.set_comm_exec(1);
    attr.set_task(1);
    attr.set_sample_id_all(1);
    attr.set_use_clockid(1);
    attr.set_watermark(1);
    // Nobody sleeps on the ring: it is read on the agent's timer.
    attr.__bindgen_anon_2.wakeup_watermark = u32::MAX;

    open(&mut attr, -1, cpu as i32)
}

/// Opens an event of a process (-1: of all) on a CPU (-1: on any). What `attr` refers to must live until this returns.
pub fn open(attr: &mut sys::perf_event_attr, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
    let flags = u64::from(sys::PERF_FLAG_FD_CLOEXEC);
    // SAFETY: attr is valid for the call; the result is checked.
    let fd = unsafe { perf_event_open_sys::perf_event_open(attr, pid, cpu, -1, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
