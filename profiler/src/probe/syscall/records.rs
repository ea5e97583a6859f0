//! The system-call probe: what its records say in words.

use std::net::{IpAddr, SocketAddr};

use profiler_common::{
    sched::SyscallClass,
    syscall::{Endpoint, Name, NameKind, ObjectKind, SlowCall, WaitsKey, traits},
};

use crate::{model::abi, process::redact::Redact, text};

/// Name of an error; `errno N` for an unknown one.
pub fn errno(number: u32) -> String {
    match i32::try_from(number).ok().and_then(|n| abi::errno_name(n)) {
        Some(name) => name.to_owned(),
        None => format!("errno {number}"),
    }
}

/// What a call returned: an error's name, or the number.
pub fn result(value: i64) -> String {
    match value {
        -4095..0 => errno(value.unsigned_abs() as u32),
        // Addresses (mmap, brk) read better so.
        0x1_0000_0000.. => format!("{value:#x}"),
        _ => value.to_string(),
    }
}

/// What a descriptor is, if that is an internet socket: in the words of [`crate::process::objects::descriptor`].
pub fn socket(on: &Endpoint) -> Option<String> {
    if on.kind != ObjectKind::Net as u32 {
        return None;
    }
    let name = match i32::from(on.socket_type) {
        libc::SOCK_STREAM => "tcp",
        libc::SOCK_DGRAM => "udp",
        _ => "socket",
    };
    let local = address(on.family, on.local, on.local_port);
    Some(match on.peer_port {
        0 => format!("{name} {local}"),
        port => format!("{name} {local} -> {}", address(on.family, on.peer, port)),
    })
}

/// What a descriptor is, as far as the kernel programs can tell, in the same words.
pub fn object(on: &Endpoint, name: &Name) -> Option<String> {
    // include/uapi/linux/magic.h
    const PIPEFS_MAGIC: u32 = 0x5049_5045;
    const ANON_INODE_FS_MAGIC: u32 = 0x0904_1934;
    if let Some(socket) = socket(on) {
        return Some(socket);
    }
    let len = (name.len as usize).min(name.bytes.len());
    let text = text::clean;
    let bytes = &name.bytes[..len];
    match name.kind {
        kind if kind == NameKind::Unix as u32 || kind == NameKind::UnixPeer as u32 => {
            let address = match bytes {
                [] => return Some("unix".to_owned()),
                [0, address @ ..] => format!("@{}", text(address)),
                path => text(until_nul(path)),
            };
            Some(if kind == NameKind::Unix as u32 {
                format!("unix {address}")
            } else {
                format!("unix -> {address}")
            })
        }
        kind if kind == NameKind::Parts as u32 => {
            if name.magic == PIPEFS_MAGIC {
                return Some(format!("pipe:[{}]", name.inode));
            }
            if name.magic == ANON_INODE_FS_MAGIC {
                return Some(format!("anon_inode:{}", text(until_nul(bytes))));
            }
            let mut parts: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
            parts.pop(); // after the last NUL
            let mut path = if name.complete != 0 { String::new() } else { "…".to_owned() };
            for part in parts.iter().rev() {
                path.push('/');
                path.push_str(&text::clean(part));
            }
            if path.is_empty() {
                path.push('/');
            }
            if name.removed != 0 {
                path.push_str(" (deleted)");
            }
            Some(path)
        }
        _ => None,
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Who is at the other end of the sockets that were waited for; empty where there is none.
pub fn peer(key: &WaitsKey) -> String {
    match (key.port, key.serves) {
        (0, _) => String::new(),
        (port, 0) => address(key.family, key.peer, port),
        (port, _) => format!("clients of :{port}"),
    }
}

fn address(family: u16, bytes: [u8; 16], port: u16) -> String {
    let ip = if i32::from(family) == libc::AF_INET {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    } else {
        IpAddr::from(bytes).to_canonical()
    };
    SocketAddr::new(ip, port).to_string()
}

/// The arguments that matter. What a descriptor is, if the kernel programs have not told, `descriptor` says if it is known,
/// without what is to be redacted.
pub fn arguments(call: &SlowCall, redact: &Redact, descriptor: impl FnOnce(u64) -> Option<String>) -> String {
    /// No descriptor is larger (`fs.nr_open`, default); what is, is an address.
    const MAX_DESCRIPTOR: u64 = 1 << 20;
    let number = abi::native(call.number as i32);
    let (class, of) = (abi::class(number), abi::traits(number));
    if of & (traits::PATH0 | traits::PATH1) != 0 {
        let is_path = call.name.kind == NameKind::Path as u32;
        let path = if is_path { until_nul(&call.name.bytes) } else { &[] };
        return redact.text(&text::clean(path));
    }
    if class == SyscallClass::Futex as u8 {
        return format!("futex {:#x}", call.args[0]);
    }
    if !abi::takes_descriptor(number) || call.args[0] >= MAX_DESCRIPTOR {
        return String::new();
    }
    let mut text = format!("fd {}", call.args[0]);
    let object = object(&call.on, &call.name).map(|object| redact.object(&object));
    if let Some(object) = object.or_else(|| descriptor(call.args[0])) {
        text.push(' ');
        text.push_str(&object);
    }
    if abi::has_size(number) {
        text.push_str(&format!(", {} bytes", call.args[2]));
    }
    text
}

#[cfg(test)]
mod tests {
    use profiler_common::{
        record::RecordKind,
        syscall::{COMPAT, NAME_LEN, WaitKind},
    };

    use super::*;

    fn call(number: i64, args: [u64; 6], path: &[u8]) -> SlowCall {
        SlowCall {
            kind: RecordKind::SlowCall as u32,
            number: number as u32,
            pid: 1,
            tid: 1,
            start_ns: 0,
            end_ns: 0,
            blocked_ns: 0,
            run_queue_ns: 0,
            result: 0,
            stack: 0,
            args,
            on: Endpoint::default(),
            wait_kind: 0,
            _reserved: 0,
            name: name(NameKind::Path, path),
        }
    }

    fn name(kind: NameKind, bytes: &[u8]) -> Name {
        let mut name = Name { kind: kind as u32, len: bytes.len() as u32, complete: 1, ..Name::EMPTY };
        name.bytes[..bytes.len()].copy_from_slice(bytes);
        name
    }

    fn words(call: &SlowCall) -> String {
        arguments(call, &Redact::No, |descriptor| (descriptor == 3).then(|| "/etc/passwd".to_owned()))
    }

    #[test]
    fn arguments_are_told_in_words() {
        assert_eq!(words(&call(libc::SYS_openat, [0; 6], b"/tmp/\xff\0rest")), "/tmp/\u{fffd}");
        assert_eq!(words(&call(libc::SYS_openat, [0; 6], &[b'x'; NAME_LEN])).len(), NAME_LEN);
        assert_eq!(words(&call(libc::SYS_read, [3, 0, 100, 0, 0, 0], b"")), "fd 3 /etc/passwd, 100 bytes");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            words(&call(3 | i64::from(COMPAT), [3, 0, 100, 0, 0, 0], b"")),
            "fd 3 /etc/passwd, 100 bytes"
        );
        assert_eq!(words(&call(libc::SYS_fsync, [4, 0, 0, 0, 0, 0], b"")), "fd 4");
        assert_eq!(words(&call(libc::SYS_futex, [16, 0, 0, 0, 0, 0], b"")), "futex 0x10");
        assert_eq!(words(&call(libc::SYS_getppid, [3; 6], b"")), "");
        assert_eq!(words(&call(libc::SYS_read, [u64::MAX; 6], b"")), "");
    }

    #[test]
    fn sockets_are_told_without_proc() {
        let mut on = Endpoint {
            kind: ObjectKind::Net as u32,
            family: libc::AF_INET as u16,
            socket_type: libc::SOCK_STREAM as u16,
            local_port: 40_000,
            peer_port: 5432,
            ..Endpoint::default()
        };
        on.local[..4].copy_from_slice(&[127, 0, 0, 1]);
        on.peer[..4].copy_from_slice(&[10, 0, 0, 2]);
        assert_eq!(socket(&on).as_deref(), Some("tcp 127.0.0.1:40000 -> 10.0.0.2:5432"));
        assert_eq!(peer(&WaitsKey::new(1, WaitKind::NetRead, &on, false)), "10.0.0.2:5432");
        on.local_port = 80;
        assert_eq!(peer(&WaitsKey::new(1, WaitKind::NetRead, &on, false)), "clients of :80");
        (on.family, on.peer_port) = (libc::AF_INET6 as u16, 0);
        on.local = "::ffff:127.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        assert_eq!(socket(&on).as_deref(), Some("tcp 127.0.0.1:80"));
        assert_eq!(socket(&Endpoint::default()), None);
    }

    #[test]
    fn names_are_those_of_proc() {
        let of = |name: Name| object(&Endpoint::default(), &name);
        let parts = |bytes| name(NameKind::Parts, bytes);
        assert_eq!(of(Name::EMPTY), None);
        assert_eq!(of(parts(b"log\0var\0")).as_deref(), Some("/var/log"));
        assert_eq!(of(parts(b"")).as_deref(), Some("/"));
        assert_eq!(of(Name { removed: 1, ..parts(b"x\0") }).as_deref(), Some("/x (deleted)"));
        assert_eq!(of(Name { complete: 0, ..parts(b"x\0deep\0") }).as_deref(), Some("…/deep/x"));
        assert_eq!(of(Name { magic: 0x5049_5045, inode: 7, ..parts(b"\0") }).as_deref(), Some("pipe:[7]"));
        let eventfd = Name { magic: 0x0904_1934, ..parts(b"[eventfd]\0") };
        assert_eq!(of(eventfd).as_deref(), Some("anon_inode:[eventfd]"));
        assert_eq!(of(name(NameKind::Unix, b"/run/x\0")).as_deref(), Some("unix /run/x"));
        assert_eq!(of(name(NameKind::Unix, b"\0bus")).as_deref(), Some("unix @bus"));
        assert_eq!(of(name(NameKind::UnixPeer, b"/run/x")).as_deref(), Some("unix -> /run/x"));
        assert_eq!(of(name(NameKind::UnixPeer, b"")).as_deref(), Some("unix"));
        assert_eq!(of(Name { len: u32::MAX, ..parts(b"") }).map(|path| path.len()), Some(2 * NAME_LEN - 256));
    }

    #[test]
    fn results_are_errors_or_numbers() {
        assert_eq!(result(-2), "ENOENT");
        assert_eq!(result(-512), "ERESTARTSYS");
        assert_eq!(result(-4000), "errno 4000");
        assert_eq!(result(17), "17");
        assert_eq!(result(0x7f00_0000_0000), "0x7f0000000000");
        assert_eq!(result(i64::MIN), i64::MIN.to_string());
    }
}
