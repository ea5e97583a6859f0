//! Which allocation sites leak: a leak is growth that persists, not an old allocation.
//!
//! A site's live bytes are judged by their lower envelope in the later two thirds of what was seen of it: the first
//! third belongs to warming up, and to objects that are not older than the run only because nobody watched before. The
//! growth must be there (Mann–Kendall), must be as steady as chance does not make a random walk ([`trend::drift`]), must
//! neither have stopped nor be slowing down, and the objects it is made of must be old ones that are hardly ever freed.
//! What from outside looks like a leak in every respect is called one: a cache that fills at a constant rate, of which
//! nothing has been evicted yet.

use crate::{
    detect::trend::{self, Point, Slope},
    model::{
        memory::{Footprint, Growth, Heap, LivePoint, Memory, Site},
        series::Series,
        stack::StackId,
    },
};

/// Less time and fewer points in the part that is judged say nothing.
const MIN_SECONDS: f64 = 15.0;
const MIN_POINTS: usize = 12;
/// Growth in the part that is judged that is worth reporting, bytes: of a site, and of a whole process.
const MIN_GROWTH: (f64, f64) = (16.0 * 1024.0, 1024.0 * 1024.0);
/// Points of the envelope: the work of the tests grows with their square.
const ENVELOPE: usize = 64;
/// Pieces for the test of steadiness.
const LEVELS: usize = 8;
/// Cycles of rise and fall that are needed to tell anything from their troughs.
const MIN_CYCLES: usize = 4;
/// A step is at least so small a part of all growth.
const STEPS: f64 = 12.0;
/// Steps that make up less of all growth than this are no stairs, only a part of what comes in lumps of any size.
const IN_STEPS: f64 = 0.8;
/// Of what is held, so much given back is a collection.
const COLLECTED: f64 = 0.05;
/// What is left after a collection must be so much more than was held before, as a part of that.
const KEPT: f64 = 0.1;
/// Chance that growth is none: of one series, and the share of all that are found to grow. The rules on shape and age
/// come after that.
const FALSE_DISCOVERIES: f64 = 0.01;
/// Growth in the second half of the part that is judged, over that in the first: below, it slows down. Of objects that
/// live 1.5 times as long as they were watched for, on average, it is 0.8. Below the second one it may.
const SLOWING: (f64, f64) = (0.8, 0.9);
/// Growth in the last quarter over the mean of all quarters: below, it has stopped.
const STOPPED: f64 = 0.5;
/// Objects that reached a quarter of the time watched live on for so many times the time watched, on average: below,
/// they are not leaked, and below the second one that is less than certain.
const REMAINING_LIFE: (f64, f64) = (2.0, 10.0);
/// Of the growth in a third of the time watched, what must be there as objects that are at least that old.
const OLD_SHARE: f64 = 0.5;
/// Fewer objects than that say nothing of ages: what grows is their size.
const MIN_OBJECTS: f64 = 5.0;

/// What a series of live bytes looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Seen for too short a time.
    TooShort,
    /// No growth that chance does not explain.
    Steady,
    /// It is higher later on, but rises and falls by more than it grows, and not often enough to tell what remains.
    Irregular,
    /// It grew, and has stopped.
    Stopped,
    /// It grows ever more slowly.
    Slowing,
    /// It grows, but its objects are freed at an age that the run has seen: it will level off.
    Turnover,
    /// It grows, but all of it is young: more is in use at a time.
    Load,
    /// It grows no faster than what had been allocated before the run is freed.
    Replacement,
    /// It grows, and keeps what it gets.
    Persistent,
}

impl Shape {
    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Shape::TooShort => "too_short",
            Shape::Steady => "steady",
            Shape::Irregular => "irregular",
            Shape::Stopped => "stopped",
            Shape::Slowing => "slowing",
            Shape::Turnover => "turnover",
            Shape::Load => "load",
            Shape::Replacement => "replacement",
            Shape::Persistent => "persistent",
        }
    }

    /// Words for a report.
    pub fn words(self) -> &'static str {
        match self {
            Shape::TooShort => "seen too briefly",
            Shape::Steady => "steady",
            Shape::Irregular => "up and down",
            Shape::Stopped => "stopped growing",
            Shape::Slowing => "levelling off",
            Shape::Turnover => "grows, its old objects are freed",
            Shape::Load => "grows with load, all of it young",
            Shape::Replacement => "replaces older objects",
            Shape::Persistent => "keeps growing",
        }
    }
}

/// How sure it is that growth goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// Everything that can be known speaks for it, except that some objects of the kind were freed late, or that
    /// nothing is known of their ages.
    Probable,
    /// It grows steadily, and hardly an old object has been freed.
    Certain,
}

impl Certainty {
    /// The word, in machine-readable output too.
    pub fn id(self) -> &'static str {
        match self {
            Certainty::Probable => "probable",
            Certainty::Certain => "certain",
        }
    }
}

/// What was made of one series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// What it looks like.
    pub shape: Shape,
    /// Growth of its lower envelope in the part that was judged, bytes/s, with a 95 % interval.
    pub bytes_per_s: Slope,
    /// One less the probability that a series without growth rises as much, and as steadily; after correction for the
    /// number of sites. It says nothing of what the shape says.
    pub confidence: f64,
    /// How long the series is, ns.
    pub watched_ns: u64,
    /// Growth in the second half of the part that was judged, over that in the first: below one, it slows down.
    pub pace: f64,
    /// How long those objects that reached a quarter of that age lived on, on average, s: infinite if none was freed.
    /// `None` if ages are not known.
    pub remaining_life_s: Option<f64>,
}

impl Trend {
    /// How sure a leak is; `None` if it is none.
    pub fn certainty(&self) -> Option<Certainty> {
        if self.shape != Shape::Persistent {
            return None;
        }
        let watched_s = self.watched_ns as f64 / 1e9;
        let stays = self.remaining_life_s.is_some_and(|life| life >= REMAINING_LIFE.1 * watched_s);
        let certain = stays && self.pace >= SLOWING.1;
        Some(if certain { Certainty::Certain } else { Certainty::Probable })
    }
}

/// What was made of one site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteTrend {
    /// Process id.
    pub pid: u32,
    /// The stack that allocates.
    pub stack: StackId,
    /// What its live bytes do.
    pub trend: Trend,
}

/// What became of every site, in their order.
pub fn judge_sites(sites: &[Site], processes: &[Footprint]) -> Vec<SiteTrend> {
    let judged = sites.iter().map(|site| {
        let points = points(&site.points, |point| (point.time_ns, point.live_bytes));
        let mut trend = judge(&points, MIN_GROWTH.0);
        trend.remaining_life_s = remaining_life_s(site, trend.watched_ns);
        if let Some(last) = site.points.last() {
            widen(&mut trend, last);
        }
        trend
    });
    let mut judged: Vec<Trend> = judged.collect();
    correct(&mut judged);
    let each = sites.iter().zip(judged).map(|(site, mut trend)| {
        if trend.shape == Shape::Persistent {
            let process = processes.iter().find(|process| process.pid == site.pid);
            trend.shape = by_age(site, &trend, process);
        }
        SiteTrend { pid: site.pid, stack: site.stack, trend }
    });
    each.collect()
}

/// What became of every process as a whole, in their order: what cannot be dropped of its resident memory, and what was
/// swapped out.
pub fn processes(memory: &Memory) -> Vec<Trend> {
    let judged = memory.processes.iter().map(|process| {
        let held = |growth: &Growth| (growth.time_ns, growth.held_bytes() as f64);
        judge_process(&points(&process.growth, held))
    });
    let mut judged: Vec<Trend> = judged.collect();
    correct(&mut judged);
    judged
}

/// A process can have a heap whose garbage is collected now and then.
fn judge_process(points: &[Point]) -> Trend {
    let mut trend = judge(points, MIN_GROWTH.1);
    if matches!(trend.shape, Shape::Stopped | Shape::Slowing) && goes_on_in_lumps(points) {
        trend.shape = Shape::Persistent;
    }
    // A collection late in a watch looks like an end of growth, and makes its steps uneven.
    if matches!(trend.shape, Shape::Steady | Shape::Irregular | Shape::Stopped | Shape::Slowing)
        && let Some((slope, confidence)) = keeps(points, MIN_GROWTH.1)
    {
        (trend.shape, trend.bytes_per_s, trend.confidence) = (Shape::Persistent, slope, confidence);
    }
    trend
}

/// How much more a process holds at the end than ever in the first two thirds of the time, bytes; 0 if it does not.
pub fn late_rise(process: &Footprint) -> f64 {
    rise_of_last_third(&points(&process.growth, |growth| (growth.time_ns, growth.held_bytes() as f64)))
}

fn rise_of_last_third(points: &[Point]) -> f64 {
    let Some(&(end, last)) = points.last() else { return 0.0 };
    let before = points.iter().take_while(|point| point.0 <= end * 2.0 / 3.0);
    (last - before.map(|point| point.1).fold(0.0, f64::max)).max(0.0)
}

/// Times in seconds from the first point on.
fn points<T>(series: &Series<T>, of: impl Fn(&T) -> (u64, f64)) -> Vec<Point> {
    let first = series.points().first().map_or(0, |first| of(first).0);
    let each = series.points().iter().map(|point| {
        let (time_ns, value) = of(point);
        (time_ns.saturating_sub(first) as f64 / 1e9, value)
    });
    each.collect()
}

/// Applies the rules that need nothing but the series.
fn judge(points: &[Point], min_growth: f64) -> Trend {
    let watched = points.last().map_or(0.0, |last| last.0);
    let mut trend = Trend {
        shape: Shape::TooShort,
        bytes_per_s: Slope::default(),
        confidence: 0.0,
        watched_ns: (watched * 1e9) as u64,
        pace: 1.0,
        remaining_life_s: None,
    };
    let part = &points[points.partition_point(|point| point.0 < watched / 3.0)..];
    let seconds = part.first().map_or(0.0, |first| watched - first.0);
    if seconds < MIN_SECONDS || part.len() < MIN_POINTS {
        return trend;
    }
    trend.shape = Shape::Steady;
    // Most series end here.
    let lowest = part.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    if part.iter().all(|point| point.1 < lowest + min_growth / 2.0) {
        return trend;
    }
    let Some(envelope) = envelope(part) else {
        let level = |part: &[Point]| part.iter().map(|point| point.1).sum::<f64>() / part.len() as f64;
        let (first, second) = part.split_at(part.len() / 2);
        if level(second) - level(first) >= min_growth / 2.0 {
            trend.shape = Shape::Irregular;
        }
        return trend;
    };
    let Some(rough) = trend::theil_sen(&envelope, 0.0) else { return trend };
    let kendall = trend::mann_kendall(&envelope, rough.per_time);
    trend.bytes_per_s = trend::theil_sen(&envelope, kendall.variance).unwrap_or_default();
    if trend.bytes_per_s.per_time * seconds < min_growth {
        return trend;
    }
    let levels = stairs(part).unwrap_or_else(|| trend::minima(&envelope, LEVELS));
    let Some(drift) = trend::drift(&levels) else { return trend };
    trend.confidence = 1.0 - kendall.p.max(drift.p);
    let slope = &mut trend.bytes_per_s;
    (slope.low, slope.high) = (slope.low.min(drift.slope.low), slope.high.max(drift.slope.high));
    (trend.shape, trend.pace) = course(&levels);
    if kendall.p > FALSE_DISCOVERIES {
        trend.shape = Shape::Steady;
    }
    trend
}

/// The lower envelope: what is left when everything that comes and goes has gone. `None` if it comes and goes too slowly.
fn envelope(part: &[Point]) -> Option<Vec<Point>> {
    let fine = trend::minima(part, ENVELOPE);
    let slope = trend::theil_sen(&fine, 0.0)?.per_time;
    let rest: Vec<Point> = part.iter().map(|point| (point.0, point.1 - slope * point.0)).collect();
    // What is reached for less than a tenth of the time does not count.
    let values: Vec<f64> = rest.iter().map(|point| point.1).collect();
    let swing = trend::quantile(&values, 0.9)? - trend::quantile(&values, 0.1)?;
    let seconds = part.last()?.0 - part.first()?.0;
    // Next to the growth it does not matter; and what never falls has no cycles.
    if swing <= slope * seconds / 4.0 || deepest_fall(part) < swing / 2.0 {
        return Some(fine);
    }
    let troughs = trend::troughs(&rest, swing / 2.0);
    match troughs.len() {
        0..MIN_CYCLES => None,
        // Every piece has a trough then, however irregular they are.
        n if n >= 3 * LEVELS / 2 => Some(trend::minima(part, (n * 2 / 3).min(ENVELOPE))),
        _ => Some(troughs.into_iter().map(|(time, rest)| (time, rest + slope * time)).collect()),
    }
}

/// Whether what is left after something was given back (a collection of garbage) is more than was ever held until a third
/// of the time before, garbage and all; then how fast it grows, and how sure it is that it does. Too few cycles for an envelope
/// can be enough for this.
fn keeps(points: &[Point], min_growth: f64) -> Option<(Slope, f64)> {
    let (first, last) = (points.first()?, points.last()?);
    let part = (last.0 - first.0) / 3.0;
    // The deepest fall of the last third: from the high before it to the low after it.
    let (mut high, mut fall) = (*first, None::<(f64, Point)>);
    for &point in points {
        let depth = high.1 - point.1;
        if point.0 >= last.0 - part
            && depth >= COLLECTED * high.1
            && fall.is_none_or(|(deepest, _)| depth > deepest)
        {
            fall = Some((depth, point));
        }
        if point.1 > high.1 {
            high = point;
        }
    }
    let (_, floor) = fall?;
    let before = points.iter().take_while(|point| point.0 <= floor.0 - part);
    let held = before.map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    if !held.is_finite() || floor.1 - held < min_growth.max(KEPT * held) {
        return None;
    }
    let levels = trend::minima(points, LEVELS);
    let rough = trend::theil_sen(&levels, 0.0)?;
    let kendall = trend::mann_kendall(&levels, rough.per_time);
    let slope = trend::theil_sen(&levels, kendall.variance)?;
    (kendall.p <= FALSE_DISCOVERIES).then_some((slope, 1.0 - kendall.p))
}

/// The most that was ever given back.
fn deepest_fall(points: &[Point]) -> f64 {
    let fall = |(high, deepest): (f64, f64), point: &Point| {
        (high.max(point.1), deepest.max(high.max(point.1) - point.1))
    };
    points.iter().fold((f64::NEG_INFINITY, 0.0), fall).1
}

/// Where each stair of a series that grows by steps ends, if it does: pieces of equal length would hold two steps, or none. The
/// end is one more if no step has come for longer than before.
fn stairs(part: &[Point]) -> Option<Vec<Point>> {
    let last = part.last()?;
    let growth = last.1 - part.first()?.1;
    let step = growth / STEPS;
    let steps = part.windows(2).filter(|pair| pair[1].1 - pair[0].1 >= step);
    let in_steps: f64 = steps.clone().map(|pair| pair[1].1 - pair[0].1).sum();
    let mut stairs: Vec<Point> = steps.map(|pair| pair[0]).collect();
    let even = in_steps >= IN_STEPS * growth && stairs.len() >= MIN_CYCLES && stairs.len() * 2 <= part.len();
    if step <= 0.0 || !even || deepest_fall(part) >= step {
        return None;
    }
    let longest = stairs.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(0.0, f64::max);
    if last.0 - stairs.last()?.0 > 1.5 * longest {
        stairs.push(*last);
    }
    Some(stairs)
}

/// Whether growth goes on at the end, and [`Trend::pace`].
fn course(levels: &[Point]) -> (Shape, f64) {
    let slope = |levels: &[Point]| match levels {
        [first, .., last] => (last.1 - first.1) / (last.0 - first.0),
        _ => 0.0,
    };
    let whole = slope(levels);
    let (first, second) = (slope(&levels[..=levels.len() / 2]), slope(&levels[levels.len() / 2..]));
    let last = slope(&levels[levels.len() - (levels.len() / 4).max(2).min(levels.len())..]);
    let pace = if first > 0.0 { second / first } else { f64::INFINITY };
    let shape = match () {
        () if last < STOPPED * whole => Shape::Stopped,
        () if pace < SLOWING.0 => Shape::Slowing,
        () => Shape::Persistent,
    };
    (shape, pace)
}

/// Whether growth that seems to stop or to slow down may do so by chance only: a heap that takes memory in lumps of any size
/// is faster and slower in turn. Then it goes on if the end of all that was seen is as steep as the rest, by its level or, where
/// nothing is ever given back, by what it has risen to, and if its lumps differ by more than their mean grows smaller.
fn goes_on_in_lumps(points: &[Point]) -> bool {
    let watched = points.last().map_or(0.0, |last| last.0);
    let part = &points[points.partition_point(|point| point.0 < watched / 3.0)..];
    let part = trend::slopes(&trend::minima(part, LEVELS));
    let ((first, first_error), (second, second_error)) = {
        let (first, second) = part.split_at(part.len() / 2);
        (trend::mean(first), trend::mean(second))
    };
    // Of so few pieces the spread itself is hardly known.
    let certain = trend::t95(part.len().saturating_sub(2));
    let slower = SLOWING.0 * first - second > certain * (SLOWING.0 * first_error).hypot(second_error);
    let rise = points.last().zip(points.first()).map_or(0.0, |(last, first)| last.1 - first.1);
    let steep =
        3.0 * rise_of_last_third(points) >= SLOWING.0 * rise && deepest_fall(points) < COLLECTED * rise;
    !slower && (steep || course(&trend::minima(points, LEVELS)).0 == Shape::Persistent)
}

/// Corrects confidences for how many series were looked at, and drops growth that chance explains.
fn correct(judged: &mut [Trend]) {
    let mut seen: Vec<&mut Trend> =
        judged.iter_mut().filter(|trend| trend.shape != Shape::TooShort).collect();
    let p: Vec<f64> = seen.iter().map(|trend| 1.0 - trend.confidence).collect();
    for (trend, p) in seen.iter_mut().zip(trend::false_discovery(&p)) {
        trend.confidence = 1.0 - p;
        if p > FALSE_DISCOVERIES && trend.shape == Shape::Persistent {
            trend.shape = Shape::Steady;
        }
    }
}

/// Takes the error of estimates into account; it is that of the last point at most.
fn widen(trend: &mut Trend, last: &LivePoint) {
    let slope = &mut trend.bytes_per_s;
    let seconds = trend.watched_ns as f64 / 1e9 * 2.0 / 3.0;
    let error = trend::Z95 * last.live_bytes_err / seconds.max(1.0);
    slope.low = slope.per_time - (slope.per_time - slope.low).hypot(error);
    slope.high = slope.per_time + (slope.high - slope.per_time).hypot(error);
    if slope.low <= 0.0 && trend.shape == Shape::Persistent {
        trend.shape = Shape::Steady;
    }
}

/// How long objects of a site that were at least a quarter of the time watched old lived on, on average, if ages are
/// known: the time they spent beyond that age over how many were freed there.
fn remaining_life_s(site: &Site, watched_ns: u64) -> Option<f64> {
    let ages = site.ages_ns.total();
    let live = site.points.last().map_or(0.0, |live| live.live_count);
    if ages == 0 && live > 0.0 {
        return None;
    }
    // Of very many objects only some have been asked for their age.
    let stands_for = live / (ages as f64).max(1.0);
    let age = watched_ns as f64 / 4.0;
    let (live, freed) = (site.ages_ns.beyond(age), site.lifetimes_ns.beyond(age));
    Some(if freed.0 > 0.0 { (stands_for * live.1 + freed.1) / freed.0 / 1e9 } else { f64::INFINITY })
}

/// Whether what grows is made of objects that are old and stay.
fn by_age(site: &Site, trend: &Trend, process: Option<&Footprint>) -> Shape {
    let watched_s = trend.watched_ns as f64 / 1e9;
    if trend.remaining_life_s.is_some_and(|life| life < REMAINING_LIFE.0 * watched_s) {
        return Shape::Turnover;
    }
    let Some(live) = site.points.last() else { return Shape::TooShort };
    let objects_per_s = trend.bytes_per_s.per_time * live.live_count / live.live_bytes.max(1.0);
    let ages = site.ages_ns.total() as f64;
    let old = live.live_count * site.ages_ns.beyond(trend.watched_ns as f64 / 3.0).0 / ages.max(1.0);
    let leaked = objects_per_s * watched_s / 3.0;
    if ages > 0.0 && leaked >= MIN_OBJECTS && old < OLD_SHARE * leaked {
        return Shape::Load;
    }
    let net = process.filter(|_| !site.estimated).and_then(|process| net_objects_per_s(&process.heap));
    if let Some((net, older_freed)) = net
        && net < 0.5 * objects_per_s
        && older_freed > 0.5 * objects_per_s
    {
        return Shape::Replacement;
    }
    Shape::Persistent
}

/// By how many objects a process grows each second, frees of older objects counted, and how many those are; in the later
/// two thirds.
fn net_objects_per_s(heap: &Series<Heap>) -> Option<(f64, f64)> {
    let rate = |of: fn(&Heap) -> f64| {
        let points = points(heap, |heap| (heap.time_ns, of(heap)));
        let watched = points.last()?.0;
        let part = &points[points.partition_point(|point| point.0 < watched / 3.0)..];
        Some(trend::theil_sen(&trend::minima(part, ENVELOPE), 0.0)?.per_time)
    };
    let net = rate(|heap| heap.live_count - heap.older_freed_count as f64)?;
    Some((net, rate(|heap| heap.older_freed_count as f64)?))
}

#[cfg(test)]
mod tests;
