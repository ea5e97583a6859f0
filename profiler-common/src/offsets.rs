//! Where members are in the running kernel's structures, declared once for both sides: each row is a global of the kernel
//! programs and what userspace looks up in the kernel's BTF for it. Offsets are in bytes.

/// Where one member is: a global of the kernel programs and how to find its value.
#[derive(Clone, Copy, Debug)]
pub struct Offset {
    /// Name of the global.
    pub global: &'static str,
    /// Paths of structures and members, each member of the type of the one before it, whose offsets add up. Where the kernel
    /// does not have the first path, it has the next. A structure without a member stands for its size.
    pub paths: &'static [&'static [(&'static str, &'static str)]],
}

/// Offsets that are needed together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Them.
    pub offsets: &'static [Offset],
    /// Whether the kernel may be without: then all of them are zero.
    pub optional: bool,
}

/// Passes the table to a macro: one side makes globals of it, the other a description.
#[macro_export]
macro_rules! offsets {
    ($with:ident) => {
        $with! {
            /// Ids of tasks in any PID namespace.
            required IDS {
                OFF_TASK_PID: task_struct.pid;
                OFF_TASK_TGID: task_struct.tgid;
                OFF_TASK_GROUP_LEADER: task_struct.group_leader;
                OFF_TASK_THREAD_PID: task_struct.thread_pid;
                OFF_PID_LEVEL: pid.level;
                OFF_PID_NUMBERS: pid.numbers;
                OFF_UPID_NS: upid.ns;
                SIZE_UPID: upid."";
                OFF_PIDNS_INUM: pid_namespace.ns, ns_common.inum;
            }
            /// What tasks do and wait for.
            required TASKS {
                /// Called `state` before Linux 5.14.
                OFF_TASK_STATE: task_struct.__state / task_struct.state;
                OFF_TASK_STACK: task_struct.stack;
                OFF_TASK_COMM: task_struct.comm;
                OFF_TASK_PCOUNT: task_struct.sched_info, sched_info.pcount;
                OFF_TASK_RUN_DELAY: task_struct.sched_info, sched_info.run_delay;
                OFF_TASK_LAST_ARRIVAL: task_struct.sched_info, sched_info.last_arrival;
                OFF_TASK_EXEC: task_struct.se, sched_entity.sum_exec_runtime;
                OFF_TASK_CFS_RQ: task_struct.se, sched_entity.cfs_rq;
                OFF_CFS_RQ_RQ: cfs_rq.rq;
                OFF_RQ_CLOCK: rq.clock;
            }
            /// Whether a thread that sleeps is still in its run queue: from Linux 6.12 on.
            optional DELAYED_DEQUEUE {
                OFF_TASK_DELAYED: task_struct.se, sched_entity.sched_delayed;
            }
            /// Whether a system call is one of the 32-bit table: x86_64 only.
            required COMPAT {
                OFF_TASK_STATUS: task_struct.thread_info, thread_info.status;
            }
            /// What descriptors are, and what they are called.
            required DESCRIPTORS {
                OFF_TASK_FILES: task_struct.files;
                OFF_FILES_FDT: files_struct.fdt;
                OFF_FDT_MAX_FDS: fdtable.max_fds;
                OFF_FDT_FD: fdtable.fd;
                OFF_FILE_INODE: file.f_inode;
                OFF_FILE_PRIVATE_DATA: file.private_data;
                OFF_INODE_MODE: inode.i_mode;
                OFF_INODE_SB: inode.i_sb;
                OFF_SB_MAGIC: super_block.s_magic;
                OFF_SOCKET_SK: socket.sk;
                OFF_SOCK_FAMILY: sock.__sk_common, sock_common.skc_family;
                OFF_SOCK_TYPE: sock.sk_type;
                OFF_SOCK_PORT: sock.__sk_common, sock_common.skc_num;
                OFF_SOCK_PEER_PORT: sock.__sk_common, sock_common.skc_dport;
                OFF_SOCK_V4: sock.__sk_common, sock_common.skc_rcv_saddr;
                OFF_SOCK_PEER_V4: sock.__sk_common, sock_common.skc_daddr;
                OFF_INODE_INO: inode.i_ino;
                OFF_FILE_DENTRY: file.f_path, path.dentry;
                OFF_FILE_MOUNT: file.f_path, path.mnt;
                OFF_DENTRY_NAME: dentry.d_name, qstr.name;
                OFF_DENTRY_PARENT: dentry.d_parent;
                /// Where a dentry keeps its place in the hash table: none if it has been removed.
                OFF_DENTRY_HASHED: dentry.d_hash, hlist_bl_node.pprev;
                OFF_VFSMOUNT_ROOT: vfsmount.mnt_root;
                /// Of the `struct vfsmount` inside of a `struct mount`.
                OFF_MOUNT_VFSMOUNT: mount.mnt;
                OFF_MOUNT_PARENT: mount.mnt_parent;
                OFF_MOUNT_POINT: mount.mnt_mountpoint;
            }
            /// Whose requests sockets carry, and when their packets came and went.
            required SOCKETS {
                OFF_SOCK_PROTOCOL: sock.sk_protocol;
                OFF_SOCK_ERROR: sock.sk_err;
                OFF_SOCK_NET: sock.__sk_common, sock_common.skc_net;
                OFF_NET_INUM: net.ns, ns_common.inum;
                OFF_SOCK_SOCKET: sock.sk_socket;
                OFF_SOCKET_INODE: socket_alloc.vfs_inode, inode.i_ino;
                OFF_TCP_MSTAMP: tcp_sock.tcp_mstamp;
                OFF_TCP_WSTAMP: tcp_sock.tcp_wstamp_ns;
            }
            /// Addresses of IPv6 sockets. Without CONFIG_IPV6 there are none, and no socket that has one.
            optional IPV6 {
                OFF_SOCK_V6: sock.__sk_common, sock_common.skc_v6_rcv_saddr;
                OFF_SOCK_PEER_V6: sock.__sk_common, sock_common.skc_v6_daddr;
            }
            /// Addresses of Unix sockets. Where these are in a module userspace finds the addresses out.
            optional UNIX {
                OFF_UNIX_ADDRESS: unix_sock.addr;
                OFF_UNIX_PEER: unix_sock.peer;
                OFF_ADDRESS_LEN: unix_address.len;
                OFF_ADDRESS_NAME: unix_address.name;
            }
            /// Where a thread's own memory is, in which runtimes keep their state.
            optional THREAD_POINTER {
                /// On x86_64; on aarch64.
                OFF_TASK_THREAD_POINTER: task_struct.thread, thread_struct.fsbase / task_struct.thread, thread_struct.uw;
            }
            /// Where functions with a probe on their return go back to.
            optional PROBED_RETURNS {
                OFF_TASK_UTASK: task_struct.utask;
                OFF_UTASK_RETURNS: uprobe_task.return_instances;
                OFF_RETURN_STACK: return_instance.stack;
                OFF_RETURN_ADDRESS: return_instance.orig_ret_vaddr;
                OFF_RETURN_NEXT: return_instance.next;
            }
        }
    };
}

macro_rules! describe {
    ($($(#[$doc:meta])* $need:ident $group:ident {
        $($(#[$row_doc:meta])* $global:ident: $($($of:ident . $member:tt),+)/+;)+
    })+) => {
        $(
            $(#[$doc])*
            pub static $group: Group = Group {
                offsets: &[$(Offset {
                    global: stringify!($global),
                    paths: &[$(&[$((stringify!($of), member!($member))),+]),+],
                }),+],
                optional: is_optional!($need),
            };
        )+
    };
}

macro_rules! member {
    ("") => {
        ""
    };
    ($member:ident) => {
        stringify!($member)
    };
}

macro_rules! is_optional {
    (optional) => {
        true
    };
    (required) => {
        false
    };
}

offsets!(describe);
