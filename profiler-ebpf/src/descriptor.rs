//! Descriptors of the current task: what each is, who is at its other end, and what it is called. Read at the time of a
//! call: a file may be closed and removed a moment later.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use profiler_common::{
    sched::WaitCause,
    syscall::{Endpoint, NAME_LEN, NAME_PARTS, Name, NameKind, ObjectKind, PART_LEN},
};

use crate::{
    hash::mix,
    offsets::{
        OFF_ADDRESS_LEN, OFF_ADDRESS_NAME, OFF_DENTRY_HASHED, OFF_DENTRY_NAME, OFF_DENTRY_PARENT, OFF_FDT_FD,
        OFF_FDT_MAX_FDS, OFF_FILE_DENTRY, OFF_FILE_INODE, OFF_FILE_MOUNT, OFF_FILE_PRIVATE_DATA,
        OFF_FILES_FDT, OFF_INODE_INO, OFF_INODE_MODE, OFF_INODE_SB, OFF_MOUNT_PARENT, OFF_MOUNT_POINT,
        OFF_MOUNT_VFSMOUNT, OFF_SB_MAGIC, OFF_SOCK_FAMILY, OFF_SOCK_PEER_PORT, OFF_SOCK_PEER_V4,
        OFF_SOCK_PEER_V6, OFF_SOCK_PORT, OFF_SOCK_TYPE, OFF_SOCK_V4, OFF_SOCK_V6, OFF_SOCKET_SK,
        OFF_TASK_FILES, OFF_UNIX_ADDRESS, OFF_UNIX_PEER, OFF_VFSMOUNT_ROOT,
    },
    task::{current_task, load, read},
};

/// What a descriptor of the current task is, a [`WaitCause`]. Called from two places, so not inlined.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn descriptor_cause(descriptor: u32) -> u32 {
    match object_of(descriptor) {
        Some(object) => object.cause,
        None => WaitCause::Other as u32,
    }
}

const AF_UNIX: u16 = 1;

const AF_INET: u16 = 2;

const AF_INET6: u16 = 10;

/// What a descriptor leads to.
struct Object {
    /// A [`WaitCause`].
    cause: u32,
    /// Its `struct sock`, if it is a socket; else zero.
    sock: u64,
    /// Its address family, likewise.
    family: u16,
}

const S_IFMT: u16 = 0o170_000;

const S_IFSOCK: u16 = 0o140_000;

/// task -> files -> table -> file.
#[inline(always)]
fn file_of(descriptor: u32) -> Option<u64> {
    let files: *const u8 = load(current_task(), OFF_TASK_FILES.load());
    let table: *const u8 = load(files, OFF_FILES_FDT.load());
    let count: u32 = load(table, OFF_FDT_MAX_FDS.load());
    if descriptor >= count {
        return None;
    }
    let array: u64 = load(table, OFF_FDT_FD.load());
    read(array + u64::from(descriptor) * 8, 0)
}

/// file -> inode, or socket.
#[inline(always)]
fn object_of(descriptor: u32) -> Option<Object> {
    const S_IFREG: u16 = 0o100_000;
    const S_IFBLK: u16 = 0o060_000;
    const S_IFDIR: u16 = 0o040_000;
    const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
    let file = file_of(descriptor)?;
    let inode: u64 = read(file, OFF_FILE_INODE.load())?;
    let mode: u16 = read(inode, OFF_INODE_MODE.load())?;
    let kind = mode & S_IFMT;
    if kind == S_IFSOCK {
        let socket: u64 = read(file, OFF_FILE_PRIVATE_DATA.load())?;
        let sock: u64 = read(socket, OFF_SOCKET_SK.load())?;
        let family: u16 = read(sock, OFF_SOCK_FAMILY.load())?;
        let cause = if family == AF_INET || family == AF_INET6 {
            WaitCause::Network
        } else if family == AF_UNIX {
            WaitCause::Pipe
        } else {
            WaitCause::Other
        };
        return Some(Object { cause: cause as u32, sock, family });
    }
    let cause = if kind == S_IFREG {
        let sb: u64 = read(inode, OFF_INODE_SB.load())?;
        let magic: u64 = read(sb, OFF_SB_MAGIC.load())?;
        if magic == ANON_INODE_FS_MAGIC { WaitCause::Pipe } else { WaitCause::Disk }
    } else if kind == S_IFBLK || kind == S_IFDIR {
        WaitCause::Disk
    } else {
        WaitCause::Pipe
    };
    Some(Object { cause: cause as u32, sock: 0, family: 0 })
}

/// Finds out what a descriptor of the current task is, and who is at its other end. Returns a [`WaitCause`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn describe_descriptor(descriptor: u32, into: *mut Endpoint) -> u32 {
    // SAFETY: callers pass a valid endpoint; the verifier, which cannot know, wants to see the check for null.
    let Some(into) = (unsafe { into.as_mut() }) else { return WaitCause::Other as u32 };
    into.kind = ObjectKind::Other as u32;
    into.peer_port = 0;
    let Some(object) = object_of(descriptor) else { return WaitCause::Other as u32 };
    let sock = object.sock;
    if object.cause == WaitCause::Disk as u32 {
        into.kind = ObjectKind::File as u32;
    } else if object.cause == WaitCause::Network as u32 {
        into.kind = ObjectKind::Net as u32;
        into.family = object.family;
        into.socket_type = read(sock, OFF_SOCK_TYPE.load()).unwrap_or(0);
        into.local_port = read(sock, OFF_SOCK_PORT.load()).unwrap_or(0);
        into.peer_port = u16::from_be(read(sock, OFF_SOCK_PEER_PORT.load()).unwrap_or(0));
        if object.family == AF_INET {
            into.local = [0; 16];
            into.peer = [0; 16];
            into.local[..4].copy_from_slice(&read(sock, OFF_SOCK_V4.load()).unwrap_or([0; 4]));
            into.peer[..4].copy_from_slice(&read(sock, OFF_SOCK_PEER_V4.load()).unwrap_or([0; 4]));
        } else {
            into.local = read(sock, OFF_SOCK_V6.load()).unwrap_or([0; 16]);
            into.peer = read(sock, OFF_SOCK_PEER_V6.load()).unwrap_or([0; 16]);
        }
    } else if object.family == AF_UNIX {
        into.kind = ObjectKind::Unix as u32;
    } else if object.cause == WaitCause::Pipe as u32 {
        into.kind = ObjectKind::Pipe as u32;
    }
    object.cause
}

#[inline(always)]
pub fn cause_from(number: u32) -> WaitCause {
    if number == WaitCause::Disk as u32 {
        WaitCause::Disk
    } else if number == WaitCause::Network as u32 {
        WaitCause::Network
    } else if number == WaitCause::Pipe as u32 {
        WaitCause::Pipe
    } else {
        WaitCause::Other
    }
}

/// The same by what is known already.
#[inline(always)]
pub fn cause_on(on: &Endpoint) -> WaitCause {
    if on.kind == ObjectKind::File as u32 {
        WaitCause::Disk
    } else if on.kind == ObjectKind::Net as u32 {
        WaitCause::Network
    } else if on.kind == ObjectKind::Other as u32 {
        WaitCause::Other
    } else {
        WaitCause::Pipe
    }
}

/// Tells what a descriptor of the current task is from what else may get its number, even at the same addresses.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn identity_of(descriptor: u32) -> u64 {
    let Some(file) = file_of(descriptor) else { return 0 };
    let inode: u64 = read(file, OFF_FILE_INODE.load()).unwrap_or(0);
    let number: u64 = read(inode, OFF_INODE_INO.load()).unwrap_or(0);
    mix(mix(file) ^ inode) ^ number
}

/// Finds out what a descriptor of the current task is called; returns a [`NameKind`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn name_descriptor(descriptor: u32, into: *mut Name) -> u32 {
    // SAFETY: as in `describe_descriptor`.
    let Some(into) = (unsafe { into.as_mut() }) else { return NameKind::None as u32 };
    into.kind = NameKind::None as u32;
    into.len = 0;
    let Some(kind) = name_file(descriptor, into) else { return NameKind::None as u32 };
    into.kind = kind as u32;
    into.kind
}

#[inline(always)]
fn name_file(descriptor: u32, into: &mut Name) -> Option<NameKind> {
    let file = file_of(descriptor)?;
    let inode: u64 = read(file, OFF_FILE_INODE.load())?;
    let sb: u64 = read(inode, OFF_INODE_SB.load())?;
    into.inode = read(inode, OFF_INODE_INO.load())?;
    into.magic = read::<u64>(sb, OFF_SB_MAGIC.load())? as u32;
    let mode: u16 = read(inode, OFF_INODE_MODE.load())?;
    if mode & S_IFMT != S_IFSOCK {
        name_path(file, into)?;
        return Some(NameKind::Parts);
    }
    let socket: u64 = read(file, OFF_FILE_PRIVATE_DATA.load())?;
    let sock: u64 = read(socket, OFF_SOCKET_SK.load())?;
    let at = OFF_UNIX_ADDRESS.load();
    if at == 0 || read::<u16>(sock, OFF_SOCK_FAMILY.load())? != AF_UNIX {
        return None;
    }
    let own: u64 = read(sock, at)?;
    if own != 0 {
        copy_address(own, into);
        return Some(NameKind::Unix);
    }
    let peer: u64 = read(sock, OFF_UNIX_PEER.load())?;
    if peer != 0 {
        copy_address(read(peer, at)?, into);
    }
    Some(NameKind::UnixPeer)
}

/// From a file's dentry to its parents, and at the root of a mount on from where it is mounted.
#[inline(always)]
fn name_path(file: u64, into: &mut Name) -> Option<()> {
    let mut dentry: u64 = read(file, OFF_FILE_DENTRY.load())?;
    let mut mount = read::<u64>(file, OFF_FILE_MOUNT.load())?.wrapping_sub(OFF_MOUNT_VFSMOUNT.load().into());
    into.removed = u32::from(read::<u64>(dentry, OFF_DENTRY_HASHED.load())? == 0);
    into.complete = 0;
    for _ in 0..NAME_PARTS {
        let parent: u64 = read(dentry, OFF_DENTRY_PARENT.load())?;
        let root: u64 = read(mount + u64::from(OFF_MOUNT_VFSMOUNT.load()), OFF_VFSMOUNT_ROOT.load())?;
        if dentry == root {
            // A file system's root itself is in no hash table.
            if into.len == 0 && dentry == parent {
                into.removed = 0;
            }
            let above: u64 = read(mount, OFF_MOUNT_PARENT.load())?;
            if above == mount {
                into.complete = 1;
                break;
            }
            dentry = read(mount, OFF_MOUNT_POINT.load())?;
            mount = above;
            continue;
        }
        if into.len >= NAME_LEN as u32 {
            break;
        }
        // SAFETY: a reference. As if it could be anything: the verifier of 6.1 loses track of the comparison.
        let at = unsafe { (&raw const into.len).read_volatile() } as usize & (NAME_LEN - 1);
        let name: u64 = read(dentry, OFF_DENTRY_NAME.load())?;
        // SAFETY: the helper checks the address, and there is room for a part where one may begin.
        let n = unsafe {
            bpf_probe_read_kernel_str(
                into.bytes.as_mut_ptr().add(at).cast(),
                PART_LEN as u32,
                name as *const _,
            )
        };
        if n <= 0 {
            break;
        }
        into.len = (at + n as usize) as u32;
        if dentry == parent {
            into.complete = 1; // of a file system that is mounted nowhere
            break;
        }
        dentry = parent;
    }
    Some(())
}

/// Copies a `struct unix_address`, without the family it begins with.
#[inline(always)]
fn copy_address(address: u64, into: &mut Name) {
    const FAMILY: u64 = 2;
    const MAX_LEN: u64 = 108; // UNIX_PATH_MAX, include/uapi/linux/un.h
    // In 64 bits, or the verifier compares one copy and sees another one used.
    let len = u64::from(read::<u32>(address, OFF_ADDRESS_LEN.load()).unwrap_or(0)).wrapping_sub(FAMILY);
    if len == 0 || len > MAX_LEN {
        return;
    }
    let from = address + u64::from(OFF_ADDRESS_NAME.load()) + FAMILY;
    // SAFETY: the helper checks the address, and the name has room for so much.
    if unsafe { bpf_probe_read_kernel(into.bytes.as_mut_ptr().cast(), len as u32, from as *const _) } == 0 {
        into.len = len as u32;
    }
}
