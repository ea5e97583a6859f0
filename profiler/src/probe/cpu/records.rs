//! The on-CPU sampler.

use profiler_common::{
    cpu::{
        FLAG_KERNEL_STACK_FAILED, FLAG_KERNEL_STACK_TRUNCATED, FLAG_USER_END_SHIFT, FLAG_USER_STACK_FAILED,
        FLAG_USER_STACK_TRUNCATED, SAMPLE_HEADER_LEN, SampleHeader,
    },
    record::RecordKind,
    runtime::Entry,
};

use crate::model::stack::{StackEnd, comm};

/// A record as the kernel program sent it: raw addresses, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSample {
    /// The record's fixed part.
    pub header: SampleHeader,
    /// Kernel addresses.
    pub kernel: Vec<u64>,
    /// User addresses.
    pub user: Vec<u64>,
    /// What tells frames of language runtimes.
    pub entries: Vec<Entry>,
}

impl RawSample {
    /// The kernel stack could not be read.
    pub fn kernel_stack_failed(&self) -> bool {
        self.header.flags & FLAG_KERNEL_STACK_FAILED != 0
    }

    /// The user stack could not be read.
    pub fn user_stack_failed(&self) -> bool {
        self.header.flags & FLAG_USER_STACK_FAILED != 0
    }

    /// One of the stacks was too deep.
    pub fn truncated(&self) -> bool {
        self.header.flags & (FLAG_KERNEL_STACK_TRUNCATED | FLAG_USER_STACK_TRUNCATED) != 0
            || self.user_end() == StackEnd::TooDeep
    }

    /// How the user stack ends.
    pub fn user_end(&self) -> StackEnd {
        if self.user.is_empty() {
            return StackEnd::None;
        }
        StackEnd::from_number((self.header.flags >> FLAG_USER_END_SHIFT) & 0xff)
            .unwrap_or(StackEnd::NoProgress)
    }

    /// Name of the thread.
    pub fn thread_name(&self) -> String {
        comm(&self.header.comm)
    }
}

/// Sampling period for a frequency, ns of CPU clock.
pub fn period_ns(frequency_hz: u32) -> u64 {
    1_000_000_000 / u64::from(frequency_hz.max(1))
}

/// Decodes one record; `None` if it is not a complete CPU sample.
pub fn decode(record: &[u8]) -> Option<RawSample> {
    decode_stack(record, RecordKind::CpuSample)
}

/// Decodes a record of some kind that is laid out as a CPU sample is.
pub fn decode_stack(record: &[u8], kind: RecordKind) -> Option<RawSample> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    if u32_at(0)? != kind as u32 {
        return None;
    }
    let header = SampleHeader {
        kind: kind as u32,
        flags: u32_at(4)?,
        time_ns: u64_at(8)?,
        pid: u32_at(16)?,
        tid: u32_at(20)?,
        cpu: u16_at(24)?,
        runtime_words: u16_at(26)?,
        kernel_frames: u16_at(28)?,
        user_frames: u16_at(30)?,
        comm: *record.get(32..)?.first_chunk()?,
    };
    let mut words = record.get(SAMPLE_HEADER_LEN..)?.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_ne_bytes(bytes)
    });
    let kernel: Vec<u64> = words.by_ref().take(header.kernel_frames.into()).collect();
    let user: Vec<u64> = words.by_ref().take(header.user_frames.into()).collect();
    let told: Vec<u64> = words.take(header.runtime_words.into()).collect();
    let entries = told.as_chunks::<2>().0.iter().map(|entry| Entry::decode(*entry)).collect();
    let complete = kernel.len() == usize::from(header.kernel_frames)
        && user.len() == usize::from(header.user_frames)
        && told.len() == usize::from(header.runtime_words);
    complete.then_some(RawSample { header, kernel, user, entries })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes the kernel program would send.
    fn encode(sample: &RawSample) -> Vec<u8> {
        let header = &sample.header;
        let mut bytes = Vec::new();
        for word in [header.kind, header.flags] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(header.time_ns.to_ne_bytes());
        for word in [header.pid, header.tid] {
            bytes.extend(word.to_ne_bytes());
        }
        for half in [header.cpu, header.runtime_words, header.kernel_frames, header.user_frames] {
            bytes.extend(half.to_ne_bytes());
        }
        bytes.extend(header.comm);
        let told: Vec<u64> = sample.entries.iter().flat_map(Entry::encode).collect();
        for word in sample.kernel.iter().chain(&sample.user).chain(&told) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn every_end_has_its_own_meaning() {
        let end = |code: u32| {
            let header = SampleHeader { flags: code << FLAG_USER_END_SHIFT, ..SampleHeader::default() };
            RawSample { header, kernel: vec![], user: vec![1], entries: vec![] }.user_end()
        };
        for known in StackEnd::ALL {
            assert_eq!(end(known as u32), known);
        }
        assert_eq!(end(200), StackEnd::NoProgress);
    }

    proptest! {
        #[test]
        fn what_was_sent_is_what_is_read(
            time_ns: u64, pid: u32, tid: u32, cpu: u16, flags: u32, comm: [u8; 16],
            kernel in prop::collection::vec(any::<u64>(), 0..127),
            user in prop::collection::vec(any::<u64>(), 0..127),
            told in prop::collection::vec((0u8..127, any::<u8>(), 0u64..1 << 48, any::<u64>()), 0..127),
            missing in 1usize..8,
        ) {
            let header = SampleHeader {
                kind: RecordKind::CpuSample as u32, flags, time_ns, pid, tid, cpu, comm,
                kernel_frames: kernel.len() as u16, user_frames: user.len() as u16,
                runtime_words: 2 * told.len() as u16,
            };
            let entries = told.into_iter().map(|(frame, kind, value, payload)| Entry { frame, kind, value, payload });
            let sample = RawSample { header, kernel, user, entries: entries.collect() };
            let bytes = encode(&sample);
            prop_assert_eq!(decode(&bytes[..bytes.len() - missing]), None);
            prop_assert_eq!(decode(&bytes), Some(sample));
        }

        #[test]
        fn any_bytes_are_survived(record: Vec<u8>) {
            decode(&record);
        }
    }
}
