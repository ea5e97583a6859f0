//! The rules against thousands of random programs whose answer is known: how often a program that does not leak is
//! called leaking, and how often a leak is found. `cargo test leak -- --nocapture` prints the figures.

use fastrand::Rng;

use super::*;
use crate::model::memory::fixtures;

const S: f64 = 1e9;

/// An object: born and freed, s (of which those after the end do not happen), and its size, bytes.
type Object = (f64, f64, f64);

/// What a profiler that attaches at zero sees of a process of one site. Objects born before were not seen; their frees
/// are.
fn watch(objects: &[Object], seconds: usize) -> Memory {
    let mut live = vec![(0.0, 0.0); seconds + 2];
    let mut older = vec![0u64; seconds + 2];
    let mut site = fixtures::site(0, []);
    let end = seconds as f64;
    // What happened by a whole second is seen then.
    let step = |time: f64| (time.max(0.0).ceil() as usize).min(seconds + 1);
    for &(born, freed, size) in objects {
        if born < 0.0 {
            older[step(freed)] += 1;
            continue;
        }
        if born > end {
            continue;
        }
        live[step(born)].0 += size;
        live[step(born)].1 += 1.0;
        live[step(freed)].0 -= size;
        live[step(freed)].1 -= 1.0;
        if freed <= end {
            site.lifetimes_ns.add(((freed - born) * S) as u64, 1);
        } else {
            site.ages_ns.add(((end - born) * S) as u64, 1);
        }
    }
    let mut heap = Heap::default();
    let mut process = Footprint { pid: site.pid, ..Footprint::default() };
    for second in 0..=seconds {
        heap.time_ns = second as u64 * 1_000_000_000;
        heap.live_bytes += live[second].0;
        heap.live_count += live[second].1;
        heap.older_freed_count += older[second];
        process.heap.push(heap);
        site.points.push(LivePoint {
            time_ns: heap.time_ns,
            live_bytes: heap.live_bytes,
            live_count: heap.live_count,
            live_bytes_err: 0.0,
        });
    }
    Memory { processes: vec![process], sites: vec![site], ..Memory::default() }
}

/// A site of which nothing is known but its live bytes, every second.
fn series(live: impl IntoIterator<Item = f64>) -> Memory {
    Memory { sites: vec![fixtures::site(0, live)], ..Memory::default() }
}

fn verdict(memory: &Memory) -> Trend {
    judge_sites(&memory.sites, &memory.processes)[0].trend
}

/// A random number between two, each order of magnitude as likely.
fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low * (high / low).powf(rng.f64())
}

fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// Objects that arrive at random, `rate` a second on average, from `from` to `to`.
fn arrivals(
    rng: &mut Rng,
    rate: f64,
    (from, to): (f64, f64),
    mut life: impl FnMut(&mut Rng, f64) -> f64,
) -> Vec<Object> {
    let mut objects = Vec::new();
    let mut at = from;
    loop {
        at += exponential(rng, 1.0 / rate);
        if at > to {
            return objects;
        }
        let size = between(rng, 50.0, 2000.0);
        objects.push((at, at + life(rng, at), size));
    }
}

/// A program, by random numbers and seconds.
type Harmless = fn(&mut Rng, usize) -> Memory;
/// And the bytes/s that leak.
type Leaking = fn(&mut Rng, usize) -> (Memory, f64);

/// Programs that do not leak.
const HARMLESS: [(&str, Harmless); 15] = [
    ("bounded random walk, no ages", |rng, seconds| {
        let step = between(rng, 1e3, 1e6);
        let (mut level, top) = (rng.f64() * 30.0 * step, 30.0 * step);
        series((0..=seconds).map(|_| {
            level = (level + normal(rng) * step).abs();
            level = if level > top { 2.0 * top - level } else { level };
            level
        }))
    }),
    ("AR(1) noise, no ages", |rng, seconds| {
        let (phi, sigma, mut noise) = (0.5 + rng.f64() * 0.49, between(rng, 1e3, 1e6), 0.0);
        series((0..=seconds).map(|_| {
            noise = phi * noise + sigma * normal(rng);
            20.0 * sigma + noise
        }))
    }),
    ("saturating exponential and noise, no ages", |rng, seconds| {
        let (end, noise) = (seconds as f64, between(rng, 1e2, 1e5));
        let tau = between(rng, end / 100.0, end);
        series((0..=seconds).map(|at| 1e7 * (1.0 - (-(at as f64) / tau).exp()) + noise * normal(rng)))
    }),
    ("linear warm-up, then flat, no ages", |rng, seconds| {
        let (until, noise) = (seconds as f64 * (0.05 + rng.f64() * 0.75), between(rng, 1e1, 1e5));
        series((0..=seconds).map(|at| 1e7 * (at as f64 / until).min(1.0) + noise * normal(rng)))
    }),
    ("one to three steps, no ages", |rng, seconds| {
        let steps: Vec<usize> = (0..=rng.usize(0..3)).map(|_| rng.usize(0..seconds)).collect();
        let noise = between(rng, 1e1, 1e4);
        series(
            (0..=seconds).map(|at| {
                1e6 * steps.iter().filter(|step| **step <= at).count() as f64 + noise * normal(rng)
            }),
        )
    }),
    ("sawtooth of a collector", |rng, seconds| {
        let (period, end) = (between(rng, 2.0, seconds as f64 / 3.0), seconds as f64);
        let phase = rng.f64() * period;
        let rate = between(rng, 10.0, 3000.0 / end * 10.0);
        watch(&arrivals(rng, rate, (-period, end), |_, at| period - (at + phase).rem_euclid(period)), seconds)
    }),
    ("batches, freed at their end", |rng, seconds| {
        let (work, pause) =
            (between(rng, 3.0, seconds as f64 / 6.0), between(rng, 3.0, seconds as f64 / 6.0));
        let mut objects = Vec::new();
        let mut at = -rng.f64() * (work + pause);
        while at < seconds as f64 {
            objects.extend(arrivals(rng, 20.0, (at, at + work), |_, born| at + work - born));
            at += work + pause;
        }
        watch(&objects, seconds)
    }),
    ("steady state, exponential lifetimes", |rng, seconds| {
        let (mean, rate) = (between(rng, 0.05, seconds as f64), between(rng, 2.0, 50.0));
        let from = -6.0 * mean;
        watch(&arrivals(rng, rate, (from, seconds as f64), |rng, _| exponential(rng, mean)), seconds)
    }),
    ("from zero, exponential lifetimes", |rng, seconds| {
        let (mean, rate) = (between(rng, 0.05, seconds as f64), between(rng, 2.0, 50.0));
        watch(&arrivals(rng, rate, (0.0, seconds as f64), |rng, _| exponential(rng, mean)), seconds)
    }),
    ("steady state, Pareto lifetimes", |rng, seconds| {
        let (alpha, least) = (1.2 + rng.f64() * 1.3, between(rng, 0.1, 2.0));
        let pareto = move |rng: &mut Rng, _| least * (1.0 - rng.f64()).powf(-1.0 / alpha);
        let from = -10.0 * seconds as f64;
        watch(&arrivals(rng, 10.0, (from, seconds as f64), pareto), seconds)
    }),
    ("steady state, lognormal lifetimes", |rng, seconds| {
        let (sigma, median) = (1.0 + rng.f64() * 1.5, between(rng, 0.1, seconds as f64 / 10.0));
        let from = -10.0 * seconds as f64;
        let life = move |rng: &mut Rng, _| median * (sigma * normal(rng)).exp();
        watch(&arrivals(rng, 10.0, (from, seconds as f64), life), seconds)
    }),
    ("load that grows, short lifetimes", |rng, seconds| {
        let (end, mean) = (seconds as f64, between(rng, 0.1, seconds as f64 / 20.0));
        let (swing, phase) = (between(rng, 1.0, 4.0) * end, rng.f64());
        let mut objects = arrivals(rng, 200.0, (-5.0 * mean, end), |rng, _| exponential(rng, mean));
        objects.retain(|object| {
            rng.f64() < 0.55 + 0.45 * (std::f64::consts::TAU * (object.0 / swing + phase)).sin()
        });
        watch(&objects, seconds)
    }),
    ("cache that fills and evicts the oldest", |rng, seconds| {
        let (end, rate) = (seconds as f64, between(rng, 5.0, 50.0));
        let full = end * (0.05 + 0.7 * rng.f64());
        watch(&arrivals(rng, rate, (0.0, end), |_, _| full), seconds)
    }),
    ("cache of random keys that fills", |rng, seconds| {
        // Each key is asked for at random; a miss stays, until it is evicted or not.
        let (end, keys) = (seconds as f64, 2000 + rng.usize(0..2000));
        let mean = between(rng, end / 20.0, end);
        let first = (0..keys).map(|_| (exponential(rng, mean), f64::INFINITY, 300.0));
        watch(&first.collect::<Vec<_>>(), seconds)
    }),
    ("full cache when the run begins", |rng, seconds| {
        let (end, rate) = (seconds as f64, between(rng, 5.0, 50.0));
        let turnover = end * between(rng, 0.2, 5.0);
        watch(&arrivals(rng, rate, (-turnover, end), |_, _| turnover), seconds)
    }),
];

/// Programs that do.
const LEAKING: [(&str, Leaking); 8] = [
    ("objects at random, 1 KB/s to 10 MB/s", |rng, seconds| {
        let (rate, bytes) = (between(rng, 3.0, 100.0), between(rng, 1e3, 1e7));
        let mut objects = arrivals(rng, rate, (0.0, seconds as f64), |_, _| f64::INFINITY);
        objects.iter_mut().for_each(|object| object.2 = bytes / rate);
        (watch(&objects, seconds), bytes)
    }),
    ("one large object now and then", |rng, seconds| {
        let every = seconds as f64 / between(rng, 20.0, 100.0);
        let objects = (0..(seconds as f64 / every) as usize)
            .map(|i| ((i as f64 + 0.5) * every, f64::INFINITY, 1e5))
            .collect::<Vec<_>>();
        (watch(&objects, seconds), 1e5 / every)
    }),
    ("1 % of short-lived objects", |rng, seconds| {
        let mean = between(rng, 0.05, 1.0);
        let mut objects = arrivals(rng, 500.0, (0.0, seconds as f64), |rng, _| {
            if rng.f64() < 0.01 { f64::INFINITY } else { exponential(rng, mean) }
        });
        objects.iter_mut().for_each(|object| object.2 = 500.0);
        (watch(&objects, seconds), 2500.0)
    }),
    ("a tenth of objects that live for seconds", |rng, seconds| {
        let mean = between(rng, 1.0, seconds as f64 / 20.0);
        let mut objects = arrivals(rng, 100.0, (-10.0 * mean, seconds as f64), |rng, _| {
            if rng.f64() < 0.1 { f64::INFINITY } else { exponential(rng, mean) }
        });
        objects.iter_mut().for_each(|object| object.2 = 500.0);
        (watch(&objects, seconds), 5000.0)
    }),
    ("under a collector's sawtooth", |rng, seconds| {
        let (period, end) = (between(rng, 2.0, seconds as f64 / 10.0), seconds as f64);
        let mut objects = arrivals(rng, 100.0, (0.0, end), |rng, at| {
            if rng.f64() < 0.1 { f64::INFINITY } else { period - at.rem_euclid(period) }
        });
        objects.iter_mut().for_each(|object| object.2 = 500.0);
        (watch(&objects, seconds), 5000.0)
    }),
    ("a realloc that grows, no ages", |rng, seconds| {
        let (bytes, noise) = (between(rng, 1e4, 1e7), rng.f64());
        (series((0..=seconds).map(|at| bytes * (at as f64 + noise * rng.f64()))), bytes)
    }),
    ("AR(1) noise of ten times a second's leak, no ages", |rng, seconds| {
        let (phi, bytes, mut noise) = (0.5 + rng.f64() * 0.4, between(rng, 1e4, 1e6), 0.0);
        let live = (0..=seconds).map(|at| {
            noise = phi * noise + (1.0 - phi * phi).sqrt() * normal(rng);
            bytes * (at as f64 + 50.0 + seconds as f64 / 60.0 * noise)
        });
        (series(live), bytes)
    }),
    ("from a third of the run on", |rng, seconds| {
        let mut objects = arrivals(rng, 50.0, (seconds as f64 / 3.0, seconds as f64), |_, _| f64::INFINITY);
        objects.iter_mut().for_each(|object| object.2 = 500.0);
        (watch(&objects, seconds), 25_000.0)
    }),
];

/// Programs that do not leak, and that nobody can tell from those that do within the run: no bounds are set for them.
const UNDECIDABLE: [(&str, Harmless); 2] = [
    ("cache that fills evenly, all the while", |rng, seconds| {
        let rate = between(rng, 5.0, 50.0);
        watch(&arrivals(rng, rate, (0.0, seconds as f64), |_, _| f64::INFINITY), seconds)
    }),
    ("from zero, lifetimes of 1.5 to 20 times the run", |rng, seconds| {
        let mean = between(rng, 1.5, 20.0) * seconds as f64;
        watch(&arrivals(rng, 50.0, (0.0, seconds as f64), |rng, _| exponential(rng, mean)), seconds)
    }),
];

/// Runs of each program; each has its own random numbers.
const RUNS: u64 = 200;

#[test]
fn harmless_programs_are_seldom_called_leaking() {
    println!(
        "{:<52} {:>16} {:>16}   most common shapes",
        format!("harmless, of {RUNS} runs"),
        "alarms, 60 s",
        "300 s"
    );
    for (i, (name, program)) in HARMLESS.into_iter().chain(UNDECIDABLE).enumerate() {
        let mut line = format!("{name:<52}");
        let mut shapes = Vec::new();
        for seconds in [60, 300] {
            let trends: Vec<Trend> =
                (0..RUNS).map(|seed| verdict(&program(&mut Rng::with_seed(seed), seconds))).collect();
            let of = |certainty| trends.iter().filter(|trend| trend.certainty() == Some(certainty)).count();
            let (probable, certain) = (of(Certainty::Probable), of(Certainty::Certain));
            if i < HARMLESS.len() {
                assert!(certain == 0 && probable * 100 <= RUNS as usize, "{name}: {probable} and {certain}");
            }
            line += &format!(" {:>16}", format!("{} ({certain} certain)", probable + certain));
            let mut counts: Vec<(usize, &str)> = Vec::new();
            for trend in &trends {
                match counts.iter_mut().find(|(_, id)| *id == trend.shape.id()) {
                    Some((n, _)) => *n += 1,
                    None => counts.push((1, trend.shape.id())),
                }
            }
            counts.sort_unstable_by(|a, b| b.cmp(a));
            shapes
                .push(counts.iter().take(3).map(|(n, id)| format!("{id} {n}")).collect::<Vec<_>>().join(" "));
        }
        println!("{line}   {}", shapes.join(" | "));
    }
}

#[test]
fn leaks_are_found_and_measured() {
    println!(
        "{:<52} {:>10} {:>10} {:>22} {:>16}",
        format!("leaking, of {RUNS} runs"),
        "found 60 s",
        "300 s",
        "rate within 10 %",
        "in interval"
    );
    for (name, program) in LEAKING {
        let (mut found, mut near, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for seconds in [60, 300] {
            let runs: Vec<(Trend, f64)> = (0..RUNS)
                .map(|seed| program(&mut Rng::with_seed(seed), seconds))
                .map(|(memory, bytes)| (verdict(&memory), bytes))
                .filter(|(trend, _)| trend.certainty().is_some())
                .collect();
            found.push(runs.len());
            near.push(
                runs.iter()
                    .filter(|(trend, bytes)| (trend.bytes_per_s.per_time / bytes - 1.0).abs() < 0.1)
                    .count(),
            );
            held.push(
                runs.iter()
                    .filter(|(trend, bytes)| {
                        (trend.bytes_per_s.low * 0.999..=trend.bytes_per_s.high * 1.001).contains(bytes)
                    })
                    .count(),
            );
        }
        println!("{name:<52} {:>10} {:>10} {near:>22?} {held:>16?}", found[0], found[1]);
        assert!(found[1] * 100 >= RUNS as usize * 93, "{name}: {found:?}");
        assert!(near[1] * 100 >= found[1] * 95, "{name}: {near:?} of {found:?}");
        assert!(held[1] * 100 >= found[1] * 92, "{name}: {held:?} of {found:?}");
    }
}

#[test]
fn shapes_of_clean_series_are_told_apart() {
    let shape = |live: &dyn Fn(f64) -> f64| {
        verdict(&series((0..=120).map(|second| 1e6 * live(f64::from(second))))).shape
    };
    assert_eq!(shape(&|t| t), Shape::Persistent);
    assert_eq!(shape(&|_| 5.0), Shape::Steady);
    assert_eq!(shape(&|t| 200.0 - t), Shape::Steady);
    assert_eq!(shape(&|t| t.min(90.0)), Shape::Stopped);
    assert_eq!(shape(&|t| 1.0 - (-t / 60.0).exp()), Shape::Slowing);
    assert_eq!(shape(&|t| t % 10.0), Shape::Steady);
    assert_eq!(shape(&|t| t % 10.0 + t / 5.0), Shape::Persistent, "a leak under a sawtooth");
    assert_eq!(shape(&|t| t % 70.0 + t / 2.0), Shape::Irregular, "too few cycles");
    assert_eq!(verdict(&series((0..20).map(|second| f64::from(second) * 1e6))).shape, Shape::TooShort);
    assert_eq!(verdict(&series([])).shape, Shape::TooShort);
    assert_eq!(verdict(&series([1e6])).shape, Shape::TooShort);
}

#[test]
fn an_estimate_must_be_better_than_its_error() {
    let mut memory = series((0..=120).map(|second| f64::from(second) * 1e4));
    let exact = verdict(&memory);
    assert_eq!(exact.certainty(), Some(Certainty::Probable), "nothing is known of ages");
    let with_error = |memory: &mut Memory, error: f64| {
        let points: Vec<LivePoint> = memory.sites[0].points.points().to_vec();
        memory.sites[0].points =
            points.into_iter().map(|point| LivePoint { live_bytes_err: error, ..point }).collect();
        verdict(memory)
    };
    let rough = with_error(&mut memory, 1e5);
    assert_eq!(rough.shape, Shape::Persistent);
    assert!(rough.bytes_per_s.low < exact.bytes_per_s.low && rough.bytes_per_s.high > exact.bytes_per_s.high);
    assert_eq!(with_error(&mut memory, 1e6).shape, Shape::Steady);
}

#[test]
fn a_process_is_judged_by_what_it_cannot_drop() {
    let grow = |anon: u64, file: u64| {
        let points = (0..=120).map(|second| Growth {
            time_ns: second * 1_000_000_000,
            anon_bytes: second * anon,
            file_bytes: second * file,
            ..Growth::default()
        });
        let process = Footprint { pid: 1, growth: points.collect(), ..Footprint::default() };
        processes(&Memory { processes: vec![process], ..Memory::default() })[0]
    };
    assert_eq!(grow(100_000, 0).certainty(), Some(Certainty::Probable));
    assert_eq!(grow(0, 100_000).shape, Shape::Steady);
    assert_eq!(grow(10_000, 0).shape, Shape::Steady, "less than a megabyte");
}

#[test]
fn of_many_sites_only_few_are_wrong() {
    let mut rng = Rng::with_seed(7);
    let sites = (0..500).map(|_| {
        let mut level = 1e7;
        fixtures::site(
            0,
            (0..=60).map(|_| {
                level += 1e5 * normal(&mut rng);
                level
            }),
        )
    });
    let memory = Memory { sites: sites.collect(), ..Memory::default() };
    let found =
        judge_sites(&memory.sites, &[]).iter().filter(|site| site.trend.certainty().is_some()).count();
    assert!(found <= 1, "{found} of 500 random walks");
}

/// A heap whose garbage is collected twice in the time, MB a second from `live` on.
fn collected(live: impl Fn(f64) -> f64) -> Vec<Point> {
    let garbage = |t: f64| if t < 36.0 { t.min(18.0) } else { t - 36.0 };
    (0..=40).map(|t| (f64::from(t), 1e6 * (live(f64::from(t)) + garbage(f64::from(t))))).collect()
}

#[test]
fn what_a_collection_leaves_tells_a_leak_in_few_cycles() {
    let leak = judge_process(&collected(|t| 21.0 + 2.2 * t));
    assert_eq!(leak.shape, Shape::Persistent, "{leak:?}");
    assert!((1.5e6..3.5e6).contains(&leak.bytes_per_s.per_time), "{leak:?}");
    let garbage = judge_process(&collected(|_| 21.0));
    assert_ne!(garbage.shape, Shape::Persistent, "{garbage:?}");
    let cache = judge_process(&collected(|t| 21.0 + 4.0 * t.min(14.0)));
    assert_ne!(cache.shape, Shape::Persistent, "filled in the first third: {cache:?}");
}

/// A Node.js server that never stops its timers: a collection at three quarters of the watch makes its steps uneven.
#[test]
fn a_collection_late_in_a_watch_is_no_chance() {
    const HELD: [f64; 38] = [
        22.0, 25.0, 36.0, 37.0, 40.0, 44.0, 52.0, 64.0, 65.0, 65.0, 64.0, 66.0, 77.0, 77.0, 77.0, 78.0, 89.0,
        89.0, 89.0, 89.0, 89.0, 100.0, 101.0, 101.0, 101.0, 102.0, 113.0, 113.0, 113.0, 98.0, 102.0, 109.0,
        111.0, 117.0, 124.0, 124.0, 127.0, 130.0,
    ];
    let series = |held: &[f64]| -> Vec<Point> {
        (0..).zip(held).map(|(i, held)| (1.08 * f64::from(i), held * 1e6)).collect()
    };
    let leak = judge_process(&series(&HELD));
    assert_eq!(leak.shape, Shape::Persistent, "{leak:?}");
    assert!((2e6..4e6).contains(&leak.bytes_per_s.per_time), "{leak:?}");
    // The same, where that collection leaves what was held long before.
    let garbage = HELD.map(|held| if held > 97.0 { held - 30.0 } else { held });
    let garbage = judge_process(&series(&garbage));
    assert_ne!(garbage.shape, Shape::Persistent, "{garbage:?}");
}

/// A Node.js server that never stops its timers: the collector gives something back just before the end.
#[test]
fn a_collection_at_the_end_is_no_end_of_growth() {
    const HELD: [f64; 38] = [
        22.0, 25.0, 36.0, 36.0, 38.0, 42.0, 51.0, 64.0, 64.0, 64.0, 64.0, 66.0, 78.0, 78.0, 78.0, 78.0, 79.0,
        90.0, 90.0, 90.0, 90.0, 101.0, 101.0, 101.0, 101.0, 102.0, 113.0, 113.0, 113.0, 116.0, 116.0, 117.0,
        117.0, 135.0, 135.0, 135.0, 118.0, 119.0,
    ];
    let points: Vec<Point> = (0..).zip(HELD).map(|(i, held)| (1.08 * f64::from(i), held * 1e6)).collect();
    let grows = judge_process(&points);
    assert_eq!(grows.shape, Shape::Persistent, "{grows:?}");
    assert!((1.5e6..3.5e6).contains(&grows.bytes_per_s.per_time), "{grows:?}");
}

#[test]
fn heaps_that_wander_or_are_only_used_are_seldom_called_growing() {
    let mut rng = Rng::with_seed(11);
    let mut wrong = 0;
    for _ in 0..300 {
        // Garbage grows at a rate of its own up to a limit of its own; what lives wanders within a fifth.
        let (rate, limit) = (0.5 + 4.0 * rng.f64(), 10.0 + 60.0 * rng.f64());
        let (mut live, mut garbage) = (30.0, limit * rng.f64());
        let points: Vec<Point> = (0..60)
            .map(|t| {
                live = (live + 2.0 * (rng.f64() - 0.5)).clamp(27.0, 33.0);
                garbage = if garbage + rate > limit { 0.0 } else { garbage + rate };
                (f64::from(t), 1e6 * (live + garbage))
            })
            .collect();
        // One whose garbage is never collected in the time looks like a leak to anybody.
        let grows = judge(&points, MIN_GROWTH.1).shape == Shape::Persistent;
        wrong += usize::from(!grows && judge_process(&points).shape == Shape::Persistent);
    }
    assert!(wrong <= 3, "{wrong} of 300");
}

#[test]
fn stairs_grow_as_long_as_steps_come() {
    // A step of 12 MB each 5 s, as heaps get their memory; `stops` at a time, s.
    let stairs = |phase: f64, stops: f64| -> Vec<Point> {
        let level = |t: f64| 20.0 + 12.0 * ((t.min(stops) + phase) / 5.0).floor();
        (0..=40).map(|t| (f64::from(t), 1e6 * level(f64::from(t)))).collect()
    };
    for phase in 0..5 {
        let grows = judge_process(&stairs(f64::from(phase), 99.0));
        assert_eq!(grows.shape, Shape::Persistent, "{phase}: {grows:?}");
        assert!((1.9e6..2.9e6).contains(&grows.bytes_per_s.per_time), "{grows:?}");
        let stopped = judge_process(&stairs(f64::from(phase), 24.0));
        assert_ne!(stopped.shape, Shape::Persistent, "{phase}: {stopped:?}");
    }
}

/// A heap that gets memory in lumps of many sizes, none of them in many seconds: neither even, nor stairs, nor ever slower.
#[test]
fn what_comes_in_lumps_of_any_size_goes_on() {
    // Three runs of a Java program that remembers sessions for ever, MB each 1.08 s.
    const HELD: [[f64; 38]; 3] = [
        [
            75.6, 91.3, 107.0, 107.0, 122.7, 138.4, 156.2, 156.2, 181.3, 183.1, 214.9, 214.9, 257.9, 257.9,
            257.9, 311.4, 331.0, 335.7, 370.3, 387.6, 387.6, 423.8, 461.6, 461.6, 476.3, 476.3, 484.3, 504.3,
            517.9, 534.3, 534.3, 573.5, 573.5, 573.5, 629.1, 644.8, 658.4, 670.8,
        ],
        [
            75.0, 91.0, 107.0, 107.0, 122.0, 138.0, 156.0, 156.0, 183.0, 183.0, 218.0, 218.0, 220.0, 262.0,
            262.0, 262.0, 327.0, 341.0, 381.0, 399.0, 399.0, 423.0, 442.0, 476.0, 476.0, 484.0, 484.0, 492.0,
            512.0, 526.0, 541.0, 541.0, 580.0, 580.0, 582.0, 636.0, 654.0, 665.0,
        ],
        // Its pieces happen to grow less in its last third.
        [
            75.2, 90.9, 106.6, 106.6, 122.3, 138.0, 157.9, 157.9, 186.2, 186.2, 225.0, 225.0, 225.0, 269.0,
            269.0, 269.0, 336.5, 350.3, 395.6, 413.9, 413.9, 438.8, 458.0, 487.2, 487.2, 493.5, 493.5, 509.8,
            527.7, 544.4, 547.5, 549.8, 585.8, 585.8, 591.0, 651.6, 665.1, 677.1,
        ],
    ];
    for held in HELD {
        let points: Vec<Point> = (0..).zip(held).map(|(i, held)| (1.08 * f64::from(i), held * 1e6)).collect();
        let grows = judge_process(&points);
        assert_eq!(grows.shape, Shape::Persistent, "{grows:?}");
        assert!((13e6..18e6).contains(&grows.bytes_per_s.per_time), "{grows:?}");
    }
    // Another run, s and MB: its level rests just before its end.
    const RESTS: [(f64, f64); 38] = [
        (0.0, 75.2),
        (1.0, 90.9),
        (2.1, 106.6),
        (3.1, 106.6),
        (4.2, 122.3),
        (5.3, 138.0),
        (6.4, 157.9),
        (7.5, 157.9),
        (8.6, 186.2),
        (9.7, 186.2),
        (10.8, 225.0),
        (11.9, 225.0),
        (13.0, 226.0),
        (14.1, 269.0),
        (15.2, 269.0),
        (16.3, 269.0),
        (17.4, 338.9),
        (18.5, 352.7),
        (19.6, 395.6),
        (20.6, 413.9),
        (21.7, 413.9),
        (22.8, 446.1),
        (23.9, 459.9),
        (25.0, 485.6),
        (26.1, 493.0),
        (27.2, 493.0),
        (28.3, 493.8),
        (29.4, 516.4),
        (30.5, 530.2),
        (31.6, 549.7),
        (32.7, 549.7),
        (33.8, 587.9),
        (34.9, 587.9),
        (36.0, 587.9),
        (37.1, 596.5),
        (38.2, 660.7),
        (39.3, 674.5),
        (40.0, 684.3),
    ];
    let rests = judge_process(&RESTS.map(|(second, held)| (second, held * 1e6)));
    assert_eq!(rests.shape, Shape::Persistent, "{rests:?}");
    // A cache of a Java program that fills ever more slowly takes its memory in lumps, too.
    const CACHE: [f64; 42] = [
        74.0, 105.3, 121.0, 136.6, 153.6, 153.8, 180.9, 180.9, 216.9, 215.3, 215.5, 257.0, 257.0, 257.0,
        322.3, 330.0, 364.5, 364.6, 384.6, 384.6, 384.9, 384.9, 386.8, 386.8, 401.6, 415.0, 424.8, 443.8,
        443.8, 444.3, 444.3, 444.3, 444.3, 444.4, 444.4, 449.4, 463.0, 476.4, 490.2, 512.5, 512.6, 512.7,
    ];
    let points: Vec<Point> = (0..).zip(CACHE).map(|(i, held)| (f64::from(i), held * 1e6)).collect();
    let cache = judge_process(&points);
    assert_eq!(cache.shape, Shape::Slowing, "{cache:?}");
}
