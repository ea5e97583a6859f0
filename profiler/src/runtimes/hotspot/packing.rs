//! Numbers as the VM packs them in its tables.

/// How the VM packs numbers: base 64, the lowest digit first; a byte below `256 - 64 - excluded` is the last. Since Java 20 no byte
/// is zero: `excluded` is 1, and added to each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    pub(super) excluded: u8,
}

impl Packing {
    /// Every one that there is.
    pub const ALL: [Packing; 2] = [Packing { excluded: 0 }, Packing { excluded: 1 }];

    /// Takes a number from the beginning of `bytes`.
    pub fn unsigned(self, bytes: &mut &[u8]) -> Option<u32> {
        let mut sum = 0u32;
        for digit in 0..5 {
            let (first, rest) = bytes.split_first()?;
            *bytes = rest;
            let value = first.checked_sub(self.excluded)?;
            sum = sum.wrapping_add(u32::from(value) << (6 * digit));
            if u32::from(value) < 256 - 64 - u32::from(self.excluded) {
                break;
            }
        }
        Some(sum)
    }

    /// The same for a number with a sign, which is in the lowest bit.
    pub fn signed(self, bytes: &mut &[u8]) -> Option<i32> {
        let value = self.unsigned(bytes)?;
        Some((value >> 1) as i32 ^ -((value & 1) as i32))
    }
}
