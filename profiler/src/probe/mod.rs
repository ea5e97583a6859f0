//! One room per probe: its options, how it attaches, how its records are decoded.

use std::mem::offset_of;

use profiler_common::{COMM_LEN, record::RecordKind, sched as raw, syscall as raw_calls};

pub mod alloc;
pub mod cpu;
pub mod sched;
pub mod syscall;

/// A thread's name as the kernel has it, up to the first NUL.
pub fn name(comm: &[u8; COMM_LEN]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

/// What of a name is always there, bytes.
const NAME_HEADER: usize = offset_of!(raw_calls::Name, bytes);

/// A record from the kernel programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A CPU sample.
    Cpu(cpu::records::RawSample),
    /// A stack that blocks, by its id.
    Stack(u64, cpu::records::RawSample),
    /// A stack that allocates, by its id.
    AllocStack(u64, cpu::records::RawSample),
    /// A page fault.
    Fault(cpu::records::RawSample),
    /// A stack that wakes threads, by its id, and the name of its thread.
    Waker(u64, String, cpu::records::RawSample),
    /// A long block or wait for a CPU.
    Interval(raw::Interval),
    /// A long turn of an event loop.
    Turn(raw::Turn),
    /// The end of a thread.
    Exit(raw::Exit),
    /// The first wait of an event loop.
    Loop(raw::LoopSeen),
    /// A slow system call.
    SlowCall(Box<raw_calls::SlowCall>),
    /// A descriptor is used for the first time, or has been closed.
    Io(Box<raw_calls::IoRecord>),
}

impl Record {
    /// Decodes one; `None` for what is none, or not complete.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let kind = RecordKind::from_number(u32::from_ne_bytes(*bytes.first_chunk()?))?;
        match kind {
            RecordKind::CpuSample => cpu::records::decode(bytes).map(Record::Cpu),
            RecordKind::FaultSample => cpu::records::decode_stack(bytes, kind).map(Record::Fault),
            RecordKind::Stack => {
                sched::records::decode_stack(bytes, kind).map(|(id, stack)| Record::Stack(id, stack))
            }
            RecordKind::Waker => {
                sched::records::decode_waker(bytes).map(|(id, name, stack)| Record::Waker(id, name, stack))
            }
            RecordKind::AllocStack => {
                sched::records::decode_stack(bytes, kind).map(|(id, stack)| Record::AllocStack(id, stack))
            }
            RecordKind::Interval => sched::records::plain(bytes).map(Record::Interval),
            RecordKind::Turn => sched::records::plain(bytes).map(Record::Turn),
            RecordKind::Exit => sched::records::plain(bytes).map(Record::Exit),
            RecordKind::Loop => sched::records::plain(bytes).map(Record::Loop),
            RecordKind::SlowCall => {
                let least = offset_of!(raw_calls::SlowCall, name) + NAME_HEADER;
                sched::records::cut_off(bytes, least).map(Record::SlowCall)
            }
            RecordKind::Io => {
                let least = offset_of!(raw_calls::IoRecord, name) + NAME_HEADER;
                sched::records::cut_off(bytes, least).map(Record::Io)
            }
        }
    }

    /// When it was complete: CLOCK_MONOTONIC, ns. Everything inside an interval or a turn comes before it.
    pub fn time_ns(&self) -> u64 {
        match self {
            Record::Cpu(sample)
            | Record::Stack(_, sample)
            | Record::Waker(_, _, sample)
            | Record::AllocStack(_, sample)
            | Record::Fault(sample) => sample.header.time_ns,
            Record::Interval(interval) => interval.end_ns,
            Record::Turn(turn) => turn.end_ns,
            Record::Exit(exit) => exit.time_ns,
            Record::SlowCall(call) => call.end_ns,
            // A descriptor must be known before it is closed.
            Record::Io(io) if io.closed != 0 => io.stats.last_ns,
            Record::Loop(_) | Record::Io(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(kind in 0u32..20, mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(first) = bytes.first_chunk_mut() {
                *first = kind.to_ne_bytes();
            }
            if let Some(record) = Record::decode(&bytes) {
                record.time_ns();
            }
        }
    }
}
