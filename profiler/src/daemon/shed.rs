//! What is left out when the profiler costs more than it may. Each level leaves out what the one before does, and more;
//! metrics, losses and alerts go on at every level.

/// What a window sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// System calls.
    pub syscalls: bool,
    /// Who allocates, when a process grows.
    pub allocations: bool,
    /// Samples per second and CPU.
    pub frequency: u32,
}

/// The last level.
pub const LEVELS: u32 = 4;

/// Windows that must be cheap before more is seen again.
const PATIENCE: u32 = 10;

/// How much is left out now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shed {
    /// From 0, nothing, to [`LEVELS`].
    pub level: u32,
    /// Windows in a row that cost less than half of what they may.
    cheap: u32,
    /// How often something more was left out.
    pub times: u64,
}

impl Shed {
    /// Takes in what a window has cost and may cost, both as parts of one CPU.
    pub fn window(&mut self, cost: f64, budget: f64) {
        if cost > budget {
            self.cheap = 0;
            if self.level < LEVELS {
                self.level += 1;
                self.times += 1;
            }
        } else if cost < budget / 2.0 && self.level > 0 {
            self.cheap += 1;
            if self.cheap == PATIENCE {
                (self.level, self.cheap) = (self.level - 1, 0);
            }
        } else {
            self.cheap = 0;
        }
    }

    /// What is seen at this level, of what is wanted.
    pub fn detail(&self, wanted: Detail) -> Detail {
        let most = |hz: u32| wanted.frequency.min(hz);
        match self.level {
            0 => wanted,
            1 => Detail { syscalls: false, ..wanted },
            2 => Detail { syscalls: false, allocations: false, ..wanted },
            3 => Detail { syscalls: false, allocations: false, frequency: most(49) },
            _ => Detail { syscalls: false, allocations: false, frequency: most(19) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_too_much_is_left_out_step_by_step_and_comes_back_slowly() {
        let wanted = Detail { syscalls: true, allocations: true, frequency: 99 };
        let mut shed = Shed::default();
        assert_eq!(shed.detail(wanted), wanted);
        let levels: Vec<u32> = (0..6)
            .map(|_| {
                shed.window(0.06, 0.05);
                shed.level
            })
            .collect();
        assert_eq!((levels, shed.times), (vec![1, 2, 3, 4, 4, 4], 4));
        assert_eq!(shed.detail(wanted), Detail { syscalls: false, allocations: false, frequency: 19 });
        shed.window(0.04, 0.05);
        assert_eq!(shed.level, 4, "neither dear nor cheap");
        for _ in 0..PATIENCE {
            shed.window(0.01, 0.05);
        }
        assert_eq!(shed.level, 3);
        assert_eq!(
            shed.detail(Detail { frequency: 10, ..wanted }).frequency,
            10,
            "never more than asked for"
        );
    }
}
