//! Which stack most of something comes from, in 16 bytes.

/// A majority vote of stacks, weighted (Boyer and Moore): the one that has more than half of the weight wins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Majority {
    /// Stack id, zero for none.
    pub stack: u64,
    /// By how much it leads.
    pub lead: u64,
}

impl Majority {
    /// Takes in a vote.
    #[inline(always)]
    pub fn vote(&mut self, stack: u64, weight: u64) {
        if self.stack == stack {
            self.lead += weight;
        } else if weight > self.lead {
            *self = Majority { stack, lead: weight - self.lead };
        } else {
            self.lead -= weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_wins_its_vote() {
        let mut most = Majority::default();
        for (stack, weight) in [(1, 5), (2, 9), (1, 4), (3, 1), (2, 8)] {
            most.vote(stack, weight);
        }
        assert_eq!(most.stack, 2, "17 of 27");
    }
}
