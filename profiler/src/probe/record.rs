//! Records of the kernel programs, as they come out of the ring buffer.

use std::mem::offset_of;

use profiler_common::{
    record::RecordKind,
    request::{Connection, Frames, Names},
    sched as raw, syscall as raw_calls,
};

use crate::probe::{
    cpu::records::{self as cpu, RawSample},
    sched::records as sched,
    wire,
};

/// What of a name is always there, bytes.
const NAME_HEADER: usize = offset_of!(raw_calls::Name, bytes);

/// A record from the kernel programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A CPU sample.
    Cpu(RawSample),
    /// A stack that blocks, by its id.
    Stack(u64, RawSample),
    /// A stack that allocates, by its id.
    AllocStack(u64, RawSample),
    /// A page fault.
    Fault(RawSample),
    /// A stack that wakes threads, by its id, and the name of its thread.
    Waker(u64, String, RawSample),
    /// A long block or wait for a CPU.
    Interval(raw::Interval),
    /// A long iteration of an event loop.
    Iteration(raw::Iteration),
    /// The end of a thread.
    Exit(raw::Exit),
    /// The first wait of an event loop.
    Loop(raw::LoopSeen),
    /// A slow system call.
    SlowCall(Box<raw_calls::SlowCall>),
    /// A descriptor is used for the first time, or has been closed.
    Io(Box<raw_calls::IoRecord>),
    /// A request and its answer.
    Exchange(Box<Connection>),
    /// What a name server said.
    Names(Box<Names>),
    /// What a call moved on a connection of HTTP/2.
    Frames(Box<Frames>),
}

impl Record {
    /// Decodes one; `None` for what is none, or not complete.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let kind = RecordKind::from_number(u32::from_ne_bytes(*bytes.first_chunk()?))?;
        match kind {
            RecordKind::CpuSample => cpu::decode(bytes).map(Record::Cpu),
            RecordKind::FaultSample => cpu::decode_stack(bytes, kind).map(Record::Fault),
            RecordKind::Stack => sched::decode_stack(bytes, kind).map(|(id, stack)| Record::Stack(id, stack)),
            RecordKind::Waker => {
                sched::decode_waker(bytes).map(|(id, name, stack)| Record::Waker(id, name, stack))
            }
            RecordKind::AllocStack => {
                sched::decode_stack(bytes, kind).map(|(id, stack)| Record::AllocStack(id, stack))
            }
            RecordKind::Interval => wire::plain(bytes).map(Record::Interval),
            RecordKind::Iteration => wire::plain(bytes).map(Record::Iteration),
            RecordKind::Exit => wire::plain(bytes).map(Record::Exit),
            RecordKind::Loop => wire::plain(bytes).map(Record::Loop),
            RecordKind::SlowCall => {
                let least = offset_of!(raw_calls::SlowCall, name) + NAME_HEADER;
                wire::cut_off(bytes, least).map(Record::SlowCall)
            }
            RecordKind::Io => {
                let least = offset_of!(raw_calls::IoRecord, name) + NAME_HEADER;
                wire::cut_off(bytes, least).map(Record::Io)
            }
            RecordKind::Exchange => wire::plain(bytes).map(Box::new).map(Record::Exchange),
            RecordKind::Frames => wire::plain(bytes).map(Box::new).map(Record::Frames),
            RecordKind::Names => wire::plain(bytes).map(Box::new).map(Record::Names),
        }
    }

    /// When it was complete: CLOCK_MONOTONIC, ns. Everything inside an interval or an iteration comes before it.
    pub fn time_ns(&self) -> u64 {
        match self {
            Record::Cpu(sample)
            | Record::Stack(_, sample)
            | Record::Waker(_, _, sample)
            | Record::AllocStack(_, sample)
            | Record::Fault(sample) => sample.header.time_ns,
            Record::Interval(interval) => interval.end_ns,
            Record::Iteration(iteration) => iteration.end_ns,
            Record::Exit(exit) => exit.time_ns,
            Record::SlowCall(call) => call.end_ns,
            Record::Exchange(of) => of.ended_ns,
            Record::Names(of) => of.time_ns,
            Record::Frames(of) => of.time_ns,
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
        fn any_bytes_are_survived(kind in 0u32..20, mut bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            if let Some(first) = bytes.first_chunk_mut() {
                *first = kind.to_ne_bytes();
            }
            if let Some(record) = Record::decode(&bytes) {
                record.time_ns();
            }
        }
    }
}
