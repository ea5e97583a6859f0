//! Notices that the kernel sends by itself whenever a process maps code, forks, execs, or exits: perf's "dummy"
//! event on every CPU. They keep the mappings of processes that are gone long before anyone reads /proc.
//!
//! Record layouts: `enum perf_event_type` in the kernel's include/uapi/linux/perf_event.h. Ids are those of the
//! PID namespace the event was opened in, which is the profiler's.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};
use perf_event_open_sys::bindings as sys;

use crate::{
    kernel::{perf_event, port::Notices},
    process::notice::{Event, Notice},
};

/// The rings of all CPUs.
pub struct Sideband {
    rings: Vec<Ring>,
}

impl Notices for Sideband {
    fn drain(&mut self, notices: &mut Vec<Notice>) -> u64 {
        let mut dropped = 0;
        for ring in &mut self.rings {
            ring.drain(|kind, misc, body| match parse(kind, misc, body) {
                Parsed::Notice(notice) => notices.push(notice),
                Parsed::Dropped(n) => dropped += n,
                Parsed::Other => {}
            });
        }
        notices.sort_by_key(|notice| notice.time_ns);
        dropped
    }
}

impl Sideband {
    /// Opens one ring of `ring_bytes` (a power of two) per CPU in `cpus`.
    pub fn open(cpus: &[u32], ring_bytes: usize) -> Result<Sideband> {
        let rings = cpus.iter().map(|&cpu| Ring::open(cpu, ring_bytes)).collect::<io::Result<_>>();
        let refused = "opening perf events for mapping notices (where it is not permitted, this kernel wants CAP_SYS_ADMIN \
                       for that, or sysctl kernel.perf_event_paranoid=2)";
        Ok(Sideband { rings: rings.context(refused)? })
    }
}

/// One CPU's event and its memory-mapped ring.
struct Ring {
    event: OwnedFd,
    map: *mut u8,
    map_len: usize,
    data_len: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    fn open(cpu: u32, data_len: usize) -> io::Result<Ring> {
        let event = perf_event::notices(cpu)?;
        // SAFETY: no arguments.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let map_len = page + data_len;
        // SAFETY: a new shared mapping of the event, placed by the kernel; the result is checked.
        let map = unsafe {
            libc::mmap(
                ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Ring { event, map: map.cast(), map_len, data_len })
    }

    /// Calls `each(type, misc, body)` for every waiting record.
    fn drain(&mut self, mut each: impl FnMut(u32, u16, &[u8])) {
        let page = self.map.cast::<sys::perf_event_mmap_page>();
        // SAFETY: the first page of the mapping is a perf_event_mmap_page for as long as the mapping lives; the
        // kernel writes data_head, we write data_tail, both as whole words.
        let (head, tail) = unsafe {
            (
                AtomicU64::from_ptr(ptr::addr_of_mut!((*page).data_head)),
                AtomicU64::from_ptr(ptr::addr_of_mut!((*page).data_tail)),
            )
        };
        let end = head.load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        let mut record = Vec::new();
        while at < end {
            let header = self.copy(at, 8, &mut record);
            let (kind, misc) = (u32::from_ne_bytes(chunk(header, 0)), u16::from_ne_bytes(chunk(header, 4)));
            let size = u64::from(u16::from_ne_bytes(chunk::<2>(header, 6)));
            if size < 8 || size > end - at {
                break; // not a record: give up what is waiting rather than read nonsense
            }
            each(kind, misc, self.copy(at + 8, size as usize - 8, &mut record));
            at += size;
        }
        tail.store(end, Ordering::Release);
    }

    /// Copies `len` bytes at ring position `at`, which may wrap around.
    fn copy<'a>(&self, at: u64, len: usize, buffer: &'a mut Vec<u8>) -> &'a [u8] {
        let start = (at as usize) & (self.data_len - 1);
        let first = len.min(self.data_len - start);
        buffer.clear();
        // SAFETY: the ring's data follow the first page (map_len - data_len bytes); both slices lie inside it and
        // the kernel does not write between tail and head.
        unsafe {
            let data = self.map.add(self.map_len - self.data_len);
            buffer.extend_from_slice(std::slice::from_raw_parts(data.add(start), first));
            buffer.extend_from_slice(std::slice::from_raw_parts(data, len - first));
        }
        buffer
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: maps exactly what `open` mapped; nothing refers to it any more.
        unsafe { libc::munmap(self.map.cast(), self.map_len) };
        let _closed_by_drop = &self.event;
    }
}

/// What a record says.
pub(crate) enum Parsed {
    Notice(Notice),
    Dropped(u64),
    Other,
}

/// Decodes one record. Anything too short for its type is ignored.
pub(crate) fn parse(kind: u32, misc: u16, body: &[u8]) -> Parsed {
    let notice = |event| match body.len().checked_sub(8) {
        // With sample_id_all every record ends in its time.
        Some(at) => Parsed::Notice(Notice {
            time_ns: u64::from_ne_bytes(chunk(body, at)),
            pid: u32::from_ne_bytes(chunk(body, 0)),
            event,
        }),
        None => Parsed::Other,
    };
    match kind {
        sys::PERF_RECORD_MMAP2 if body.len() >= 64 + 8 => notice(Event::Mapped {
            start: u64::from_ne_bytes(chunk(body, 8)),
            len: u64::from_ne_bytes(chunk(body, 16)),
            file_offset: u64::from_ne_bytes(chunk(body, 24)),
            device: (u32::from_ne_bytes(chunk(body, 32)), u32::from_ne_bytes(chunk(body, 36))),
            inode: u64::from_ne_bytes(chunk(body, 40)),
            path: text(&body[64..body.len() - 8]),
        }),
        sys::PERF_RECORD_COMM
            if u32::from(misc) & sys::PERF_RECORD_MISC_COMM_EXEC != 0 && body.len() >= 8 + 8 =>
        {
            notice(Event::Exec { name: text(&body[8..body.len() - 8]) })
        }
        // pid, ppid, tid, ptid, time
        sys::PERF_RECORD_FORK if body.len() >= 24 => {
            let (pid, parent) = (chunk::<4>(body, 0), chunk::<4>(body, 4));
            if pid == parent {
                return Parsed::Other; // a new thread
            }
            notice(Event::Forked { parent: u32::from_ne_bytes(parent) })
        }
        sys::PERF_RECORD_EXIT if body.len() >= 24 && chunk::<4>(body, 0) == chunk::<4>(body, 8) => {
            notice(Event::Exited)
        }
        sys::PERF_RECORD_LOST if body.len() >= 16 => Parsed::Dropped(u64::from_ne_bytes(chunk(body, 8))),
        _ => Parsed::Other,
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    crate::text::clean(&bytes[..end])
}

/// `N` bytes at `at`; zeros where there are none.
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mapping_notice_is_decoded() {
        let mut body = vec![];
        body.extend(7u32.to_ne_bytes());
        body.extend(8u32.to_ne_bytes());
        for value in [0x1000u64, 0x2000, 0x3000] {
            body.extend(value.to_ne_bytes());
        }
        body.extend(8u32.to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        body.extend(99u64.to_ne_bytes());
        body.extend([0; 16]);
        body.extend(b"/bin/x\0\0");
        body.extend(5u64.to_ne_bytes());
        let Parsed::Notice(notice) = parse(sys::PERF_RECORD_MMAP2, 0, &body) else { panic!("not decoded") };
        assert_eq!((notice.time_ns, notice.pid), (5, 7));
        assert_eq!(
            notice.event,
            Event::Mapped {
                start: 0x1000,
                len: 0x2000,
                file_offset: 0x3000,
                device: (8, 1),
                inode: 99,
                path: "/bin/x".into()
            }
        );
    }

    #[test]
    fn threads_are_not_processes() {
        let body: Vec<u8> = [7u32, 7, 9, 7, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert!(matches!(parse(sys::PERF_RECORD_FORK, 0, &body), Parsed::Other));
        assert!(matches!(parse(sys::PERF_RECORD_EXIT, 0, &body), Parsed::Other));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(kind in 0u32..20, misc: u16, body: Vec<u8>) {
            parse(kind, misc, &body);
        }
    }
}
