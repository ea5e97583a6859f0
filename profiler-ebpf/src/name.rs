//! What descriptors are called, read at the time of a call: a file may be closed and removed a moment later.

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str},
};
use profiler_common::syscall::{NAME_LEN, NAME_PARTS, Name, NameKind, PART_LEN};

use crate::{
    sched::{
        AF_UNIX, OFF_FILE_INODE, OFF_FILE_PRIVATE_DATA, OFF_INODE_MODE, OFF_INODE_SB, OFF_SB_MAGIC,
        OFF_SOCK_FAMILY, OFF_SOCKET_SK, S_IFMT, S_IFSOCK, file_of,
    },
    stack::mix,
    target::read,
};

// Offsets in the running kernel's structures, in bytes, from its BTF.
#[unsafe(no_mangle)]
static OFF_INODE_INO: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_FILE_DENTRY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_FILE_MOUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_DENTRY_NAME: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_DENTRY_PARENT: Global<u32> = Global::new(0);
/// Where a dentry keeps its place in the hash table: none if it has been removed.
#[unsafe(no_mangle)]
static OFF_DENTRY_HASHED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_VFSMOUNT_ROOT: Global<u32> = Global::new(0);
/// Of the `struct vfsmount` inside of a `struct mount`.
#[unsafe(no_mangle)]
static OFF_MOUNT_VFSMOUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_MOUNT_PARENT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_MOUNT_POINT: Global<u32> = Global::new(0);
/// Zero if Unix sockets are in a module: then userspace finds their addresses out.
#[unsafe(no_mangle)]
static OFF_UNIX_ADDRESS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_UNIX_PEER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_ADDRESS_LEN: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_ADDRESS_NAME: Global<u32> = Global::new(0);

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
