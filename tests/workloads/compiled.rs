//! What Rust compiles to: deep recursion, collections, sorting, trait objects and panics caught, in the main thread
//! and in one more. Runs until it is killed.

use std::{
    collections::{BTreeMap, HashMap},
    hint::black_box,
};

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 32
}

trait Job {
    fn run(&self, seed: u64) -> u64;
}

struct Recursion;
struct Collections;
struct Sorting;
struct Panics;

#[inline(never)]
fn recurse(depth: u64, seed: u64) -> u64 {
    let room = black_box([seed; 5]);
    if depth == 0 {
        return (0..200).fold(seed, |mut seed, _| next(&mut seed));
    }
    recurse(depth - 1, seed + 1) ^ room[depth as usize % 5]
}

impl Job for Recursion {
    #[inline(never)]
    fn run(&self, seed: u64) -> u64 {
        (0..50).map(|i| recurse(60, seed + i)).sum()
    }
}

impl Job for Collections {
    #[inline(never)]
    fn run(&self, mut seed: u64) -> u64 {
        let mut names: HashMap<String, Vec<u64>> = HashMap::new();
        for _ in 0..500 {
            let value = next(&mut seed);
            names.entry(format!("name {}", value % 50)).or_default().push(value);
        }
        let sorted: BTreeMap<_, _> = names.into_iter().collect();
        sorted.values().map(|values| values.iter().max().copied().unwrap_or(0)).max().unwrap_or(0)
    }
}

impl Job for Sorting {
    #[inline(never)]
    fn run(&self, mut seed: u64) -> u64 {
        let mut values: Vec<(u64, String)> =
            (0..300).map(|_| (next(&mut seed) % 10, next(&mut seed).to_string())).collect();
        values.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
        values[0].0
    }
}

impl Job for Panics {
    #[inline(never)]
    fn run(&self, seed: u64) -> u64 {
        std::panic::catch_unwind(|| if black_box(seed) > 0 { std::panic::resume_unwind(Box::new(seed)) })
            .map_or(1, |()| 0)
    }
}

fn work(mut seed: u64) {
    let jobs: [Box<dyn Job>; 4] =
        [Box::new(Recursion), Box::new(Collections), Box::new(Sorting), Box::new(Panics)];
    loop {
        let job = next(&mut seed) as usize % jobs.len();
        black_box(jobs[job].run(seed >> 40));
    }
}

fn main() {
    println!("ready");
    std::thread::spawn(|| work(1));
    work(2);
}
