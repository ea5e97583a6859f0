//! What a stack allocated and freed in all, from what windows of time have seen of it, and how far that may be off.

use profiler_common::alloc::{BUCKETS, StackTotals};

use crate::{
    model::memory::LivePoint,
    probe::alloc::governor::{Status, WINDOW_NS},
};

/// So many windows must have seen objects of other windows freed, before these frees are taken to tell how many there are.
const TELLING_WINDOWS: u64 = 5;

/// What a stack allocated and freed so far, and the standard error of the difference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Objects allocated.
    pub allocated_count: u64,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Objects freed.
    pub freed_count: u64,
    /// Standard error of the bytes that live.
    pub live_bytes_err: f64,
}

impl Estimate {
    /// What is known of a stack; `gone` are bytes and objects that went with their process or its former program.
    pub fn of(totals: &StackTotals, gone: (u64, u64), status: &Status) -> Estimate {
        let freed = freed(totals, gone);
        let exact = Estimate {
            allocated_bytes: totals.allocated_bytes,
            allocated_count: totals.allocated_count,
            freed_bytes: freed.0,
            freed_count: freed.1,
            live_bytes_err: 0.0,
        };
        let unseen = Unseen::of(totals, status);
        if status.windows == 0 && unseen.since == 0.0 {
            return exact;
        }
        let more = |n: u64| n + (n as f64 * unseen.more()) as u64;
        Estimate {
            allocated_bytes: more(exact.allocated_bytes),
            allocated_count: more(exact.allocated_count),
            freed_bytes: more(exact.freed_bytes),
            freed_count: more(exact.freed_count),
            live_bytes_err: exact.error(&unseen),
        }
    }

    fn live(&self) -> (f64, f64) {
        ((self.allocated_bytes - self.freed_bytes) as f64, (self.allocated_count - self.freed_count) as f64)
    }

    /// The standard error of what lives, bytes. It has three parts: what windows that were not there would have seen
    /// allocated, what they would have seen freed, and, of the objects seen that live, how many these happen to be and how
    /// large.
    fn error(&self, unseen: &Unseen) -> f64 {
        let (bytes, count) = self.live();
        let allocated = self.allocated_count.max(1) as f64;
        let seen_share = (unseen.totals.seen_allocated as f64 / allocated).min(1.0);
        // What a live object occupies, or one of those allocated if none seems to live.
        let each = if count > 0.0 { bytes / count } else { self.allocated_bytes as f64 / allocated };
        let between = unseen.variance_of_allocations() * (count / allocated).powi(2);
        let objects =
            count * (1.0 - seen_share) * (1.0 + size_spread(&unseen.totals.sizes)) / seen_share.max(1e-9);
        each * (between + unseen.variance_of_frees() + objects).sqrt()
    }

    /// As a point of a series.
    pub fn point(&self, time_ns: u64) -> LivePoint {
        let (live_bytes, live_count) = self.live();
        LivePoint { time_ns, live_bytes, live_count, live_bytes_err: self.live_bytes_err }
    }
}

/// Bytes and objects freed; of what is seen in windows only, as many as the frees seen stand for. Where something frees
/// much at once and rarely (a collector), windows miss it, but later ones see addresses given out again: then, as many as
/// those stand for, which can be too many.
fn freed(totals: &StackTotals, gone: (u64, u64)) -> (u64, u64) {
    let bursts = totals.later_windows < TELLING_WINDOWS && totals.reused_count > totals.later_count;
    let later = if bursts {
        (totals.reused_bytes, totals.reused_count)
    } else {
        (totals.later_bytes, totals.later_count)
    };
    (
        (totals.freed_bytes + later.0 + gone.0).min(totals.allocated_bytes),
        (totals.freed_count + later.1 + gone.1).min(totals.allocated_count),
    )
}

/// What windows have seen of a stack, to tell what they have not.
struct Unseen {
    totals: StackTotals,
    /// How many windows, the sum of what an allocation in each stood for, and of its squares.
    windows: f64,
    weights: (f64, f64),
    /// Time since the last one, in windows.
    since: f64,
}

impl Unseen {
    fn of(totals: &StackTotals, status: &Status) -> Unseen {
        let mut totals = *totals;
        totals.close_window();
        totals.close_later();
        let since = status.since_ns as f64 / WINDOW_NS as f64;
        Unseen { totals, windows: status.windows as f64, weights: status.weights, since }
    }

    /// What goes on as windows have seen it makes everything larger by this part, since the last of them.
    fn more(&self) -> f64 {
        let in_windows = self.totals.window_sum as f64 / self.totals.allocated_count.max(1) as f64;
        in_windows * self.since / self.weights.0.max(self.since).max(1.0)
    }

    /// Variance of the number of objects that windows say were allocated: how much they differ (Cochran, Sampling
    /// Techniques, 3rd edition, 6.4: a ratio estimate, windows being the sample and what each stands for its size); and,
    /// since a few windows differ less than many would, what is to be expected of bursts: that the share of windows that
    /// see one is not known better than by Laplace's rule of succession, (hit + 1) / (windows + 2).
    fn variance_of_allocations(&self) -> f64 {
        let Unseen { totals, windows: n, weights, since } = self;
        let rate = totals.window_sum as f64 / weights.0.max(1.0);
        let squares = totals.window_squares as f64 - 2.0 * rate * totals.window_products as f64
            + rate * rate * weights.1;
        // Of few windows, the variance is not known well either: that of Student's t with so
        // many degrees of freedom, three at least.
        let degrees = n - 1.0;
        let student = degrees / (degrees - 2.0).max(degrees / 3.0);
        let observed = if *n < 2.0 { 0.0 } else { squares.max(0.0) * n / degrees * student };
        let hit = totals.windows_hit as f64;
        let burst = totals.seen_allocated as f64 / (hit + totals.slices_hit as f64).max(1.0);
        // A window may have ended since they were counted.
        let share = ((hit + 1.0) / (n + 2.0)).min(1.0);
        observed * (1.0 + self.more()).powi(2)
            + (weights.1 + since * since) * burst * burst * share * (1.0 - share)
    }

    /// Variance of the number of objects that windows say were freed: what they saw comes in bursts that are as likely as
    /// the windows (Poisson), and one more might have been missed.
    fn variance_of_frees(&self) -> f64 {
        let stands_for = self.totals.allocated_count as f64 / self.totals.seen_allocated.max(1) as f64;
        let one = stands_for * (self.weights.0 / self.windows.max(1.0)).max(1.0);
        self.totals.later_squares as f64 + one * one
    }
}

/// Variance of sizes over their mean squared.
fn size_spread(sizes: &[u64; BUCKETS]) -> f64 {
    let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for (bucket, &count) in sizes.iter().enumerate() {
        let (size, count) = (1.5 * (1u64 << bucket) as f64, count as f64);
        n += count;
        sum += count * size;
        squares += count * size * size;
    }
    if n == 0.0 { 0.0 } else { (squares * n / (sum * sum) - 1.0).max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_has_an_error_and_a_count_has_none() {
        let mut totals = StackTotals {
            allocated_bytes: 6400,
            allocated_count: 100,
            seen_allocated: 100,
            slices_hit: 5,
            ..StackTotals::EMPTY
        };
        totals.sizes[6] = 100;
        let always = Estimate::of(&totals, (0, 0), &Status::default()).point(1);
        assert_eq!((always.live_bytes, always.live_count, always.live_bytes_err), (6400.0, 100.0, 0.0));
        let windows = Status { windows: 5, weights: (20.0, 80.0), ..Status::default() };
        let live_point = |totals: &StackTotals, gone| Estimate::of(totals, gone, &windows).point(1);
        // Five bursts of twenty objects when all was seen, none in any of the five windows of weight four.
        let exact = live_point(&totals, (0, 0));
        let expected = 64.0 * (80.0 * 20.0f64.powi(2) * 1.0 / 7.0 * 6.0 / 7.0 + 4.0f64.powi(2)).sqrt();
        assert!((exact.live_bytes_err - expected).abs() < 1e-9, "{exact:?}");
        // Five windows, five objects in each.
        totals.seen_allocated = 25;
        (totals.slices_hit, totals.windows_hit) = (0, 5);
        (totals.window_sum, totals.window_squares, totals.window_products) = (100, 5 * 400, 5 * 80);
        let estimate = live_point(&totals, (0, 0));
        let between = 80.0 * 25.0 * 6.0 / 7.0 * 1.0 / 7.0;
        let expected = 64.0 * (between + 16.0f64.powi(2) + 100.0 * 0.75 * 4.0).sqrt();
        assert!((estimate.live_bytes_err - expected).abs() < 1e-9);
        assert_eq!(live_point(&totals, (6400, 100)).live_bytes, 0.0);
        // One free, in another window, of an object like them.
        (totals.later_bytes, totals.later_count, totals.later_windows, totals.later_sum) =
            (16 * 64, 16, 1, 16);
        let freed = live_point(&totals, (0, 0));
        assert_eq!((freed.live_bytes, freed.live_count), (84.0 * 64.0, 84.0));
        assert!(freed.live_bytes_err > estimate.live_bytes_err, "{freed:?}");
        // Addresses are given out again that nobody freed.
        (totals.reused_bytes, totals.reused_count) = (48 * 64, 48);
        assert_eq!(live_point(&totals, (0, 0)).live_count, 52.0);
        totals.later_windows = TELLING_WINDOWS;
        assert_eq!(live_point(&totals, (0, 0)).live_count, 84.0);
        totals.sizes[12] = 100;
        assert!(live_point(&totals, (0, 0)).live_bytes_err > freed.live_bytes_err);
        // All of them in one of the five: it might as well have been none.
        totals.windows_hit = 1;
        (totals.window_squares, totals.window_products) = (100 * 100, 100 * 4);
        let burst = live_point(&totals, (0, 0));
        assert!(burst.live_bytes_err > 0.9 * burst.live_bytes, "{burst:?}");
    }
}
