//! System calls of the running architecture: names, and what each of them waits for.

use std::sync::LazyLock;

use libc::c_long;
use profiler_common::{
    sched::{MAX_SYSCALLS, SyscallClass},
    syscall::{COMPAT, traits},
};

/// Names of 32-bit calls.
#[cfg(target_arch = "aarch64")]
use syscalls::arm as compat;
#[cfg(target_arch = "x86_64")]
use syscalls::x86 as compat;

/// Name of a system call; `sys_N` for an unknown one, empty for none (-1). A 32-bit call says so.
pub fn name(number: i32) -> String {
    let of = |n: usize, name: Option<&str>| name.map_or_else(|| format!("sys_{n}"), str::to_owned);
    match usize::try_from(number) {
        Err(_none) => String::new(),
        Ok(n) if n & COMPAT as usize != 0 => {
            let n = n & !(COMPAT as usize);
            format!("{} (32-bit)", of(n, compat::Sysno::new(n).map(|known| known.name())))
        }
        Ok(n) => of(n, syscalls::Sysno::new(n).map(|known| known.name())),
    }
}

/// Name of an error number.
pub fn errno_name(number: i32) -> Option<&'static str> {
    syscalls::Errno::new(number).name()
}

/// What each call waits for and what its arguments are, by number: its class in the high byte, its traits in the low one.
pub fn kinds() -> [u16; MAX_SYSCALLS] {
    let mut kinds = CLASS_TABLE.map(|class| u16::from(class) << 8);
    for (number, of) in all_traits() {
        if let Some(kind) = kinds.get_mut(number as usize) {
            *kind |= u16::from(of);
        }
    }
    kinds
}

/// What the arguments of the calls are that have arguments of interest.
fn all_traits() -> impl Iterator<Item = (u32, u8)> {
    TRAITS.iter().chain(LEGACY_TRAITS).flat_map(|&(of, numbers)| {
        numbers.iter().filter_map(move |&number| Some((u32::try_from(number).ok()?, of)))
    })
}

/// What the arguments of one are.
pub fn traits(number: i32) -> u8 {
    all_traits().find(|&(known, _)| i64::from(known) == i64::from(number)).map_or(0, |(_, of)| of)
}

/// Whether the third argument is a size in bytes.
pub fn has_size(number: i32) -> bool {
    [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
    ]
    .contains(&c_long::from(number))
}

/// Calls that every architecture has.
const TRAITS: &[(u8, &[c_long])] = &[
    (
        traits::READ,
        &[
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_pread64,
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
        ],
    ),
    (
        traits::WRITE,
        &[
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_pwrite64,
            libc::SYS_pwritev,
            libc::SYS_pwritev2,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendfile,
        ],
    ),
    (
        traits::SYNC,
        &[
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_sync_file_range,
            libc::SYS_msync,
        ],
    ),
    (traits::CLOSE, &[libc::SYS_close]),
    (traits::CONNECT, &[libc::SYS_connect]),
    (traits::POLL, &[libc::SYS_ppoll]),
    (traits::PATH0, &[libc::SYS_execve, libc::SYS_truncate, libc::SYS_statfs, libc::SYS_chdir]),
    (
        traits::PATH1,
        &[
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_readlinkat,
            libc::SYS_unlinkat,
            libc::SYS_mkdirat,
            libc::SYS_renameat2,
        ],
    ),
];

/// Calls that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const LEGACY_TRAITS: &[(u8, &[c_long])] = &[
    (traits::POLL, &[libc::SYS_poll]),
    (
        traits::PATH0,
        &[
            libc::SYS_open,
            libc::SYS_creat,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_access,
            libc::SYS_unlink,
            libc::SYS_rename,
            libc::SYS_mkdir,
            libc::SYS_rmdir,
            libc::SYS_readlink,
        ],
    ),
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY_TRAITS: &[(u8, &[c_long])] = &[];

/// Class of every system call, by number.
pub static CLASS_TABLE: LazyLock<[u8; MAX_SYSCALLS]> = LazyLock::new(|| {
    let mut classes = [SyscallClass::Other as u8; MAX_SYSCALLS];
    for (class, numbers) in CLASSES.iter().chain(LEGACY) {
        for &number in *numbers {
            if let Some(slot) = usize::try_from(number).ok().and_then(|n| classes.get_mut(n)) {
                *slot = *class as u8;
            }
        }
    }
    classes
});

/// The class of one.
pub fn class(number: i32) -> u8 {
    usize::try_from(number)
        .ok()
        .and_then(|n| CLASS_TABLE.get(n).copied())
        .unwrap_or(SyscallClass::Other as u8)
}

/// Calls that every architecture has.
const CLASSES: &[(SyscallClass, &[c_long])] = &[
    (
        SyscallClass::Descriptor,
        &[
            libc::SYS_read,
            libc::SYS_write,
            libc::SYS_readv,
            libc::SYS_writev,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_preadv,
            libc::SYS_pwritev,
            libc::SYS_preadv2,
            libc::SYS_pwritev2,
            libc::SYS_sendfile,
            libc::SYS_splice,
            libc::SYS_tee,
            libc::SYS_vmsplice,
            libc::SYS_copy_file_range,
            libc::SYS_ioctl,
            libc::SYS_fcntl,
            libc::SYS_flock,
            libc::SYS_connect,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_recvmmsg,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_shutdown,
            libc::SYS_close,
        ],
    ),
    (
        SyscallClass::Disk,
        &[
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_sync_file_range,
            libc::SYS_msync,
            libc::SYS_fallocate,
            libc::SYS_ftruncate,
            libc::SYS_truncate,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_unlinkat,
            libc::SYS_mkdirat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_newfstatat,
            libc::SYS_fstat,
            libc::SYS_statx,
            libc::SYS_statfs,
            libc::SYS_fstatfs,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_readlinkat,
            libc::SYS_getdents64,
            libc::SYS_readahead,
            libc::SYS_fadvise64,
            libc::SYS_io_getevents,
            libc::SYS_io_submit,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_mount,
            libc::SYS_umount2,
        ],
    ),
    (SyscallClass::Futex, &[libc::SYS_futex]),
    (SyscallClass::Sleep, &[libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_rt_sigtimedwait]),
    (SyscallClass::Epoll, &[libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2]),
    (SyscallClass::Poll, &[libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_io_uring_enter]),
    (SyscallClass::Accept, &[libc::SYS_accept, libc::SYS_accept4]),
    (
        SyscallClass::Ipc,
        &[
            libc::SYS_msgrcv,
            libc::SYS_msgsnd,
            libc::SYS_semop,
            libc::SYS_semtimedop,
            libc::SYS_mq_timedreceive,
            libc::SYS_mq_timedsend,
        ],
    ),
    (SyscallClass::Child, &[libc::SYS_wait4, libc::SYS_waitid]),
];

/// Calls that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[(SyscallClass, &[c_long])] = &[
    (SyscallClass::Epoll, &[libc::SYS_epoll_wait]),
    (SyscallClass::Poll, &[libc::SYS_poll, libc::SYS_select]),
    (SyscallClass::Sleep, &[libc::SYS_pause]),
    (SyscallClass::Child, &[libc::SYS_vfork]),
    (
        SyscallClass::Disk,
        &[
            libc::SYS_open,
            libc::SYS_creat,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_access,
            libc::SYS_unlink,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_mkdir,
            libc::SYS_rmdir,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_readlink,
            libc::SYS_getdents,
        ],
    ),
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[(SyscallClass, &[c_long])] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_names_and_classes() {
        assert_eq!(name(libc::SYS_futex as i32), "futex");
        assert_eq!(name(4 | COMPAT as i32), "write (32-bit)");
        assert_eq!(name(100_000 | COMPAT as i32), "sys_100000 (32-bit)");
        assert_eq!((traits(libc::SYS_read as i32), traits(-1)), (traits::READ, 0));
        assert_eq!((name(-1), name(100_000)), (String::new(), "sys_100000".to_owned()));
        assert_eq!(class(libc::SYS_read as i32), SyscallClass::Descriptor as u8);
        assert_eq!(class(libc::SYS_epoll_pwait as i32), SyscallClass::Epoll as u8);
        assert_eq!((class(-1), class(i32::MAX)), (SyscallClass::Other as u8, SyscallClass::Other as u8));
    }

    #[test]
    fn no_call_has_two_classes() {
        let mut all: Vec<c_long> =
            CLASSES.iter().chain(LEGACY).flat_map(|(_, numbers)| *numbers).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
