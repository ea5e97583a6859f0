//! A hash of 64-bit words, for stacks and for places in tables.

/// A step of a 64-bit hash: multiplication by 2^64 over the golden ratio, and the high half folded in.
#[inline(always)]
pub fn mix(value: u64) -> u64 {
    let product = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}
