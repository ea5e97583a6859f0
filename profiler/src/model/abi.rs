//! System calls of the running architecture: names, and what each of them waits for.

use std::{collections::HashMap, sync::LazyLock};

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

/// What each call waits for and what its arguments are, by number: its class in the high half, its traits in the low one.
pub fn kinds() -> [u32; MAX_SYSCALLS] {
    let mut kinds = CLASS_TABLE.map(|class| u32::from(class) << 16);
    for (number, of) in all_traits() {
        if let Some(kind) = kinds.get_mut(number as usize) {
            *kind |= u32::from(of);
        }
    }
    kinds
}

/// The same of 32-bit calls.
pub fn compat_kinds() -> [u32; MAX_SYSCALLS] {
    let kinds = kinds();
    std::array::from_fn(|n| {
        let native = usize::try_from(native(n as i32 | COMPAT as i32)).ok();
        native.and_then(|native| kinds.get(native).copied()).unwrap_or(0)
    })
}

/// The number of the 64-bit call that does what this call does, with the same arguments as far as they are told; -1 if
/// there is none.
pub fn native(number: i32) -> i32 {
    static NATIVE: LazyLock<[i32; MAX_SYSCALLS]> = LazyLock::new(|| {
        let by_name: HashMap<&str, usize> =
            (0..MAX_SYSCALLS).filter_map(|n| Some((syscalls::Sysno::new(n)?.name(), n))).collect();
        std::array::from_fn(|n| {
            let Some(name) = compat::Sysno::new(n).map(|known| known.name()) else { return -1 };
            // Calls with 64-bit times and sizes are twins of older ones.
            let plain = name.trim_end_matches("_time64").trim_end_matches("64");
            let same = [name, plain]
                .into_iter()
                .chain(RENAMED.iter().filter(|(of, _)| *of == name).map(|(_, as_)| *as_));
            same.filter_map(|name| by_name.get(name)).next().map_or(-1, |&native| native as i32)
        })
    });
    match usize::try_from(number) {
        Ok(n) if n & COMPAT as usize != 0 => NATIVE.get(n & !(COMPAT as usize)).copied().unwrap_or(-1),
        _ => number,
    }
}

/// 32-bit calls that are called otherwise among the others.
const RENAMED: [(&str, &str); 3] =
    [("fstatat64", "newfstatat"), ("waitpid", "wait4"), ("_newselect", "select")];

/// What the arguments of the calls are that have arguments of interest.
fn all_traits() -> impl Iterator<Item = (u32, u16)> {
    TRAITS.iter().chain(LEGACY_TRAITS).flat_map(|&(of, numbers)| {
        numbers.iter().filter_map(move |&number| Some((u32::try_from(number).ok()?, of)))
    })
}

/// What the arguments of one are.
pub fn traits(number: i32) -> u16 {
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
const TRAITS: &[(u16, &[c_long])] = &[
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
    (traits::DUP, &[libc::SYS_dup3]),
    (traits::CLOSE_RANGE, &[libc::SYS_close_range]),
    (traits::CONNECT, &[libc::SYS_connect]),
    (traits::OPTION, &[libc::SYS_getsockopt]),
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
const LEGACY_TRAITS: &[(u16, &[c_long])] = &[
    (traits::POLL, &[libc::SYS_poll]),
    (traits::DUP, &[libc::SYS_dup2]),
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
const LEGACY_TRAITS: &[(u16, &[c_long])] = &[];

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

/// Whether a call is of a class whose first argument is a descriptor, of most of them.
pub fn takes_descriptor(number: i32) -> bool {
    const CLASSES: [SyscallClass; 4] =
        [SyscallClass::Descriptor, SyscallClass::Disk, SyscallClass::Accept, SyscallClass::Lock];
    CLASSES.into_iter().any(|of| of as u8 == class(number))
}

/// Whether it is poll or ppoll: an array of descriptors, and how many.
pub fn is_poll(number: i32) -> bool {
    #[cfg(target_arch = "x86_64")]
    let calls = [libc::SYS_poll, libc::SYS_ppoll];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [libc::SYS_ppoll];
    calls.contains(&number.into())
}

/// Whether it is select or pselect6: the first argument is above each descriptor.
pub fn is_select(number: i32) -> bool {
    #[cfg(target_arch = "x86_64")]
    let calls = [libc::SYS_select, libc::SYS_pselect6];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [libc::SYS_pselect6];
    calls.contains(&number.into())
}

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
    (SyscallClass::Sleep, &[libc::SYS_nanosleep, libc::SYS_clock_nanosleep]),
    (SyscallClass::Epoll, &[libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2]),
    (SyscallClass::Poll, &[libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_io_uring_enter]),
    (SyscallClass::Accept, &[libc::SYS_accept, libc::SYS_accept4]),
    (SyscallClass::Signal, &[libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigsuspend, libc::SYS_restart_syscall]),
    // They wait for nothing but locks of files.
    (SyscallClass::Lock, &[libc::SYS_flock, libc::SYS_fcntl]),
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
    (SyscallClass::Signal, &[libc::SYS_pause]),
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
        assert_eq!(native(libc::SYS_read as i32), libc::SYS_read as i32);
        let same = |n: i32| i64::from(native(n | COMPAT as i32));
        #[cfg(target_arch = "x86_64")] // arch/x86/entry/syscalls/syscall_32.tbl
        for (n, of) in [
            (3, libc::SYS_read),
            (7, libc::SYS_wait4),
            (180, libc::SYS_pread64),
            (195, libc::SYS_stat),
            (300, libc::SYS_newfstatat),
            (422, libc::SYS_futex),
        ] {
            assert_eq!(same(n), of, "{n}");
            assert_eq!(compat_kinds()[n as usize], kinds()[of as usize]);
        }
        assert_eq!(same(511), -1);
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
