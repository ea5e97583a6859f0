//! What is left out when the profiler costs more than it may. Each level leaves out what the one before does, and more;
//! losses and alerts go on at every level, and metrics too, but for those of requests at the last one.

use crate::{metrics::Budget, settings::Requests};

/// What a window sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// System calls.
    pub syscalls: bool,
    /// Requests.
    pub requests: Requests,
    /// Who allocates, when a process grows.
    pub allocations: bool,
    /// Samples per second and CPU.
    pub frequency: u32,
}

/// The last level.
pub const LEVELS: u32 = 5;

/// Windows that must be cheap before more is seen again.
const PATIENCE: u32 = 10;

/// Below this part of what it may take, more is seen again: most of the memory is there whatever is seen.
const MEMORY_AGAIN: f64 = 0.9;

/// How much is left out now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shed {
    /// From 0, nothing, to [`LEVELS`].
    pub level: u32,
    /// Windows in a row that cost less than half of the CPU time that they may.
    cheap: u32,
    /// How often something more was left out.
    pub times: u64,
}

impl Shed {
    /// Takes in what a window has cost.
    pub fn window(&mut self, budget: &Budget) {
        let (cpu, memory) = (budget.cpu_ratio(), budget.memory_ratio());
        if cpu > 1.0 || memory > 1.0 {
            self.cheap = 0;
            if self.level < LEVELS {
                self.level += 1;
                self.times += 1;
            }
        } else if cpu < 0.5 && memory < MEMORY_AGAIN && self.level > 0 {
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
            3 => Detail { syscalls: false, allocations: false, frequency: most(51), ..wanted },
            4 => Detail { syscalls: false, allocations: false, frequency: most(21), ..wanted },
            // What alerts read goes last.
            _ => Detail { syscalls: false, allocations: false, frequency: most(21), requests: Requests::Off },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_too_much_is_left_out_step_by_step_and_comes_back_slowly() {
        let wanted = Detail { syscalls: true, requests: Requests::On, allocations: true, frequency: 101 };
        let cost = |cpu: f64, memory_bytes: f64| Budget {
            cpu,
            most_cpu: 0.05,
            memory_bytes,
            most_memory_bytes: 100.0,
            shed: (0, LEVELS),
        };
        let mut shed = Shed::default();
        assert_eq!(shed.detail(wanted), wanted);
        let levels: Vec<u32> = (0..7)
            .map(|_| {
                shed.window(&cost(0.06, 50.0));
                shed.level
            })
            .collect();
        assert_eq!((levels, shed.times), (vec![1, 2, 3, 4, 5, 5, 5], 5));
        let least = Detail { syscalls: false, requests: Requests::Off, allocations: false, frequency: 21 };
        assert_eq!(shed.detail(wanted), least);
        shed.window(&cost(0.04, 50.0));
        assert_eq!(shed.level, 5, "neither dear nor cheap");
        for _ in 0..PATIENCE {
            shed.window(&cost(0.01, 50.0));
        }
        assert_eq!((shed.level, shed.detail(wanted).requests), (4, Requests::On));
        shed.window(&cost(0.01, 101.0));
        assert_eq!(shed.level, 5, "memory counts, too");
        assert_eq!(
            shed.detail(Detail { frequency: 10, ..wanted }).frequency,
            10,
            "never more than asked for"
        );
    }
}
