//! Allocations: what the probes on a program's allocator keep in the kernel, and what userspace tells them.

use crate::{cpu::SampleScratch, runtime::Fingerprint};

/// Most objects that are watched at once. At about 100 bytes of kernel memory each: 100 MB.
pub const MAX_LIVE: u32 = 1 << 20;

/// Most mappings that are watched at once, at about 100 bytes each.
pub const MAX_MAPPED: u32 = 16_384;

/// Most stacks that are told apart, at about 1,250 bytes each.
pub const MAX_ALLOC_STACKS: u32 = 16_384;

/// Most processes whose allocations are watched at once.
pub const MAX_ALLOC_PROCESSES: u32 = 64;

/// Places for calls in progress, by the low bits of the thread id. A power of two.
pub const CALL_SLOTS: u32 = 32_768;

/// What a probed function does with its arguments: the low byte of a probe's cookie.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// `(size)`: malloc, valloc, pvalloc, mallocx.
    Malloc = 0,
    /// `(count, size)`: calloc.
    Calloc = 1,
    /// `(object, size)`: realloc, rallocx.
    Realloc = 2,
    /// `(object, count, size)`: reallocarray.
    Reallocarray = 3,
    /// `(alignment, size)`: memalign, `aligned_alloc`.
    Memalign = 4,
    /// `(result, alignment, size)`: `posix_memalign`.
    PosixMemalign = 5,
    /// `(address, length, protection)`: mmap. Without access it is a reservation, and not counted.
    Mmap = 6,
    /// `(object)`: free, operator delete, dallocx, sdallocx.
    Free = 7,
    /// `(address, length)`: munmap.
    Munmap = 8,
    /// `(size)`: operator new, which may throw, and is seen to end at its return instructions.
    New = 9,
    /// An exception is thrown, out of [`Call::New`] if that is in progress.
    Throw = 10,
}

impl Call {
    /// Whether it is known what the call does only when it returns.
    pub fn returns(self) -> bool {
        !matches!(self, Call::Free | Call::Munmap | Call::Throw)
    }

    /// How many arguments tell what it does.
    pub fn arguments(self) -> usize {
        match self {
            Call::Throw => 0,
            Call::Malloc | Call::New | Call::Free => 1,
            Call::Calloc | Call::Realloc | Call::Memalign | Call::Munmap => 2,
            Call::Reallocarray | Call::PosixMemalign | Call::Mmap => 3,
        }
    }
}

/// What userspace tells the probes: the one entry of `ALLOC_CONTROL`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocControl {
    /// New allocations count until then: CLOCK_MONOTONIC, ns.
    pub until_ns: u64,
    /// Number of the window: a call seen to begin in another one is not seen to end.
    pub window: u32,
    /// How many allocations each one seen stands for.
    pub weight: u32,
    /// One more than the time between windows is long on average, in windows: how many frees each one seen stands for.
    pub free_weight: u32,
    /// Length of the window, ns.
    pub length_ns: u32,
}

/// Who an object belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// Its address.
    pub address: u64,
    /// The process, in the profiler's PID namespace.
    pub pid: u32,
    /// Zero.
    pub _padding: u32,
}

/// An object that has been allocated and not yet freed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// As asked for, bytes.
    pub size: u64,
    /// Its stack's id.
    pub stack: u64,
    /// When it was allocated: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// How many it stands for.
    pub weight: u32,
    /// The window that it was allocated in.
    pub window: u32,
}

/// Length of a slice of time is 2 to this, ns: 16.8 ms, about a window's.
pub const SLICE_SHIFT: u32 = 24;

/// Buckets of the histograms: bucket n counts values from 2^n to 2^(n+1) - 1, the first one zero too.
///
/// As many as a number has bits, so that no bucket is out of bounds: the verifier of 6.1 loses track of a comparison.
pub const BUCKETS: usize = 64;

/// What one stack allocated and freed. Everything is weighted, except the objects seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackTotals {
    /// Bytes.
    pub allocated_bytes: u64,
    /// Objects.
    pub allocated_count: u64,
    /// Bytes freed of those, but for what follows.
    pub freed_bytes: u64,
    /// Objects freed of those.
    pub freed_count: u64,
    /// Bytes freed in another window than they were allocated in.
    pub later_bytes: u64,
    /// Objects.
    pub later_count: u64,
    /// Windows in which some of those were seen,
    pub later_windows: u64,
    /// the last of them,
    pub later_window: u64,
    /// how many objects its frees stand for,
    pub later_sum: u64,
    /// and the sum of the squares of those before it.
    pub later_squares: u64,
    /// Bytes whose address was given out again in a later window: what else is known to be freed.
    pub reused_bytes: u64,
    /// Objects.
    pub reused_count: u64,
    /// Allocations seen, unweighted.
    pub seen_allocated: u64,
    /// The window that the last allocation was seen in, what an allocation in it stands for, and how many were seen in it.
    pub window: u32,
    /// See above.
    pub window_weight: u32,
    /// See above.
    pub window_count: u64,
    /// Over all windows before that which stand for more than themselves: the sum of what their allocations stand for,
    pub window_sum: u64,
    /// of its squares,
    pub window_squares: u64,
    /// and of its products with the window's weight.
    pub window_products: u64,
    /// How many of those windows saw any.
    pub windows_hit: u64,
    /// The slice of time of the last allocation that stands for itself only, and in how many there was one.
    pub slice: u64,
    /// See above.
    pub slices_hit: u64,
    /// Lifetimes of freed objects, ns.
    pub lifetimes: [u64; BUCKETS],
    /// Sizes of allocated objects, bytes.
    pub sizes: [u64; BUCKETS],
}

impl StackTotals {
    /// Nothing yet.
    pub const EMPTY: StackTotals = StackTotals {
        allocated_bytes: 0,
        allocated_count: 0,
        freed_bytes: 0,
        freed_count: 0,
        later_bytes: 0,
        later_count: 0,
        later_windows: 0,
        later_window: 0,
        later_sum: 0,
        later_squares: 0,
        reused_bytes: 0,
        reused_count: 0,
        seen_allocated: 0,
        window: 0,
        window_weight: 1,
        window_count: 0,
        window_sum: 0,
        window_squares: 0,
        window_products: 0,
        windows_hit: 0,
        slice: 0,
        slices_hit: 0,
        lifetimes: [0; BUCKETS],
        sizes: [0; BUCKETS],
    };

    /// Adds the last window to those before it. A window of weight one is no sample: everything was seen.
    #[inline(always)]
    pub fn close_window(&mut self) {
        if self.window_weight > 1 {
            let sum = self.window_count.wrapping_mul(self.window_weight.into());
            self.window_sum = self.window_sum.wrapping_add(sum);
            self.window_squares = self.window_squares.wrapping_add(sum.wrapping_mul(sum));
            self.window_products =
                self.window_products.wrapping_add(sum.wrapping_mul(self.window_weight.into()));
            self.windows_hit = self.windows_hit.wrapping_add(u64::from(sum > 0));
        }
        self.window_count = 0;
    }

    /// Adds the last window in which later frees were seen to those before it.
    #[inline(always)]
    pub fn close_later(&mut self) {
        let squares = self.later_sum.wrapping_mul(self.later_sum);
        self.later_squares = self.later_squares.wrapping_add(squares);
        self.later_sum = 0;
    }
}

/// A thread's call in progress: the outermost one of an allocator's functions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallInProgress {
    /// Thread, in the initial PID namespace; zero for none.
    pub tid: u32,
    /// The window it began in.
    pub window: u32,
    /// Stack pointer at its first instruction.
    pub sp: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Where the result goes: `posix_memalign`.
    pub result_at: u64,
    /// The object it was given to resize, if that is known.
    pub old_address: u64,
    /// What is known of that.
    pub old: Object,
    /// A [`Call`].
    pub call: u32,
    /// Calls seen inside of this one.
    pub nested: u32,
    /// What the thread has freed since its last call.
    pub freed: u64,
}

/// Words of stack memory that a known stack may reach over: 16 KiB.
pub const CACHE_WORDS: usize = 2048;

/// Places for known stacks. A power of two.
pub const CACHE_SLOTS: u32 = 16_384;

/// A stack as it was walked: where its return addresses lie. The same thread is at the same place with the same stack
/// if the words there give the same id.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CachedStack {
    /// Instruction pointer of the innermost frame.
    pub ip: u64,
    /// Its stack pointer.
    pub sp: u64,
    /// Its frame pointer, zero if the register does not point into the stack.
    pub fp: u64,
    /// Its id: hash of process, end, all addresses and all words of runtimes.
    pub id: u64,
    /// What [`check`](Self::check) makes of the id and the hash of process, end and all addresses.
    pub check: u64,
    /// The process, and how the stack ends: what the hash begins with.
    pub seed: u64,
    /// Frames but the innermost.
    pub count: u32,
    /// Words of stack memory up to the outermost return address, and that one.
    pub words: u32,
    /// Where the mappings were by which it was walked, see `ProcessMappings`: by others it may go further.
    pub mappings: u64,
    /// Tells it from stacks with the same addresses.
    pub fingerprint: Fingerprint,
    /// Where the return addresses are, in words from the stack pointer.
    pub offsets: [u16; 128],
}

impl CachedStack {
    /// Ties an id to the addresses it stands for: an entry that two CPUs write at once may have one's id and the other's
    /// addresses.
    #[inline(always)]
    pub fn check(id: u64, hash: u64) -> u64 {
        hash.rotate_left(32) ^ id
    }
}

/// Where a stack is compared or walked, see [`CachedStack`].
#[repr(C)]
pub struct AllocScratch {
    /// How many use it: one, or it is not theirs.
    pub users: u64,
    /// A walk's frames, and the record of a new stack.
    pub sample: SampleScratch,
    /// What a walk finds.
    pub found: CachedStack,
    /// Stack memory.
    pub memory: [u64; CACHE_WORDS],
}

const _: () = {
    assert!(size_of::<AllocControl>() == 24);
    assert!(size_of::<ObjectKey>() == 16);
    assert!(size_of::<Object>() == 32);
    assert!(size_of::<CallInProgress>() == 88);
    assert!(size_of::<StackTotals>() == 168 + 16 * BUCKETS);
    assert!(size_of::<AllocScratch>() <= 32 * 1024); // PCPU_MIN_UNIT_SIZE
};

#[cfg(feature = "user")]
mod pod {
    use super::{AllocControl, Object, ObjectKey, StackTotals};
    // SAFETY: repr(C), integers without padding, every bit pattern is valid.
    unsafe impl aya::Pod for AllocControl {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ObjectKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Object {}
    // SAFETY: as above.
    unsafe impl aya::Pod for StackTotals {}
}
