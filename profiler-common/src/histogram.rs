//! Log-linear histograms: each power of two is split into [`SUB_BUCKETS`] equal buckets, so that a value is known to
//! within 1/32 of itself (3.1 %) when its bucket's middle stands for it.

/// Buckets in each power of two.
pub const SUB_BUCKETS: u64 = 16;
const SUB_BITS: u32 = SUB_BUCKETS.trailing_zeros();

/// Powers of two above [`SUB_BUCKETS`] that are told apart: up to 2^40 ns, 18 minutes. What is longer counts as that.
const POWERS: u32 = 36;

/// Buckets of a histogram.
pub const BUCKETS: usize = (SUB_BUCKETS as usize) * (POWERS as usize + 1);

/// Durations, ns, by bucket. Filled by the kernel programs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Histogram {
    /// Longest, ns.
    pub max_ns: u64,
    /// Sum, ns.
    pub sum_ns: u64,
    /// How many fell into each bucket, see [`bucket`].
    pub counts: [u32; BUCKETS],
}

impl Histogram {
    /// Nothing yet.
    pub const EMPTY: Histogram = Histogram { max_ns: 0, sum_ns: 0, counts: [0; BUCKETS] };

    /// Counts a duration.
    pub fn count(&mut self, ns: u64) {
        self.max_ns = self.max_ns.max(ns);
        self.sum_ns += ns;
        self.counts[bucket(ns)] += 1;
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Histogram) {
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns += other.sum_ns;
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }
}

/// The bucket a value falls into. The kernel programs call it: no loop, no division.
#[inline(always)]
pub fn bucket(ns: u64) -> usize {
    let power = log2(ns | 1).saturating_sub(SUB_BITS); // how far to shift so that SUB_BITS bits follow the first
    let index = (power as u64) * SUB_BUCKETS + (ns >> power);
    if index < BUCKETS as u64 { index as usize } else { BUCKETS - 1 }
}

/// Lowest value of a bucket and the number of values in it.
pub fn bounds(bucket: usize) -> (u64, u64) {
    let (power, sub) = (bucket as u64 / SUB_BUCKETS, bucket as u64 % SUB_BUCKETS);
    if power <= 1 { (bucket as u64, 1) } else { ((SUB_BUCKETS + sub) << (power - 1), 1 << (power - 1)) }
}

/// Position of the highest set bit, by bisection: BPF has no instruction for it.
#[inline(always)]
pub fn log2(mut value: u64) -> u32 {
    let mut result = 0;
    if value >> 32 != 0 {
        value >>= 32;
        result += 32;
    }
    if value >> 16 != 0 {
        value >>= 16;
        result += 16;
    }
    if value >> 8 != 0 {
        value >>= 8;
        result += 8;
    }
    if value >> 4 != 0 {
        value >>= 4;
        result += 4;
    }
    if value >> 2 != 0 {
        value >>= 2;
        result += 2;
    }
    result + (value >> 1) as u32
}

#[cfg(feature = "user")]
// SAFETY: repr(C), integers without padding (BUCKETS is even), every bit pattern is valid.
unsafe impl aya::Pod for Histogram {}

const _: () = assert!(BUCKETS.is_multiple_of(2));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for shift in 0..44 {
            for low in [0u64, 1, 7, 12345, 999_999] {
                let value = (1u64 << shift) + low;
                let index = bucket(value);
                let (first, width) = bounds(index);
                if index < BUCKETS - 1 {
                    assert!(first <= value && value < first + width, "{value}: {first} + {width}");
                    assert!(width * SUB_BUCKETS <= first.max(SUB_BUCKETS), "{value}: too wide");
                }
            }
        }
        assert_eq!((bucket(0), bucket(15), bucket(16), bucket(31), bucket(32)), (0, 15, 16, 31, 32));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_one_another() {
        for index in 1..BUCKETS {
            let (first, width) = bounds(index - 1);
            assert_eq!(first + width, bounds(index).0);
        }
    }
}
