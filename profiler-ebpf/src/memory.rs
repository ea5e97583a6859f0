//! The memory of the current process, as the unwinder and the walks of runtimes read it.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use profiler_common::unwind::Memory;

/// The memory of the current process.
pub struct UserMemory;

impl Memory for UserMemory {
    #[inline(always)]
    fn read_u64(&self, address: u64) -> Option<u64> {
        let mut word = 0u64;
        // SAFETY: the helper checks the address and does not fault.
        let error = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const _) };
        (error == 0).then_some(word)
    }

    #[inline(always)]
    fn read_pair(&self, address: u64) -> Option<[u64; 2]> {
        // Not zeroed: that can be a call, which takes 32 bytes of the stack that all functions in a chain of calls have together.
        let mut words = MaybeUninit::<[u64; 2]>::uninit();
        // SAFETY: as above; the helper fills all of it, with zeros where it fails.
        unsafe {
            let error = bpf_probe_read_user(words.as_mut_ptr().cast(), 16, address as *const _);
            (error == 0).then_some(words.assume_init())
        }
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, address: u64, into: &mut [u64; N]) -> Option<()> {
        let bytes = size_of::<[u64; N]>() as u32;
        // SAFETY: as above.
        let error = unsafe { bpf_probe_read_user(into.as_mut_ptr().cast(), bytes, address as *const _) };
        (error == 0).then_some(())
    }
}
