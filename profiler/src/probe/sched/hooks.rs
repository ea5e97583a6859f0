//! The functions of the kernel that the scheduler probe hooks.

use crate::kernel::function_hooks::Hook;

/// The system calls that event loops wait in.
#[cfg(target_arch = "x86_64")]
pub const LOOP_WAITS: [Hook; 8] = [
    ("enter_epoll_wait", "__x64_sys_epoll_wait"),
    ("enter_epoll_pwait", "__x64_sys_epoll_pwait"),
    ("enter_epoll_pwait2", "__x64_sys_epoll_pwait2"),
    ("enter_poll", "__x64_sys_poll"),
    ("enter_ppoll", "__x64_sys_ppoll"),
    ("enter_select", "__x64_sys_select"),
    ("enter_pselect6", "__x64_sys_pselect6"),
    ("enter_io_uring_enter", "__x64_sys_io_uring_enter"),
];
/// The system calls that event loops wait in.
#[cfg(target_arch = "aarch64")]
pub const LOOP_WAITS: [Hook; 5] = [
    ("enter_epoll_pwait", "__arm64_sys_epoll_pwait"),
    ("enter_epoll_pwait2", "__arm64_sys_epoll_pwait2"),
    ("enter_ppoll", "__arm64_sys_ppoll"),
    ("enter_pselect6", "__arm64_sys_pselect6"),
    ("enter_io_uring_enter", "__arm64_sys_io_uring_enter"),
];
