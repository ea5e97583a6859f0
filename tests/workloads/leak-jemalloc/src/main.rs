//! Programs that leak or do not, in Rust with jemalloc: `leak-jemalloc MODE [SPEED]`, as leak.c.

use std::{
    collections::VecDeque,
    hint::black_box,
    io::Write as _,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[inline(never)]
fn open_session() {
    Box::leak(black_box(Box::new([1u8; 1000])));
}

#[inline(never)]
fn remember(cache: &mut VecDeque<Vec<u8>>) {
    cache.push_back(black_box(vec![1; 1000]));
    if cache.len() > 3000 {
        cache.pop_front();
    }
}

/// Calls `each` so many times a second of the program's own time.
fn paced(rate: f64, speed: f64, mut each: impl FnMut()) -> ! {
    let (start, mut done) = (Instant::now(), 0.0);
    loop {
        while done < start.elapsed().as_secs_f64() * speed * rate {
            each();
            done += 1.0;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let speed: f64 = args.get(2).map_or(1.0, |speed| speed.parse().expect("a number"));
    match args.get(1).map(String::as_str) {
        Some("leak") => {
            println!("leaks open_session {:.0}", 100_000.0 * speed);
            std::io::stdout().flush().expect("stdout");
            paced(100.0, speed, open_session)
        }
        Some("bounded") => {
            println!("harmless");
            let mut cache = VecDeque::new();
            paced(200.0, speed, || remember(&mut cache))
        }
        _ => panic!("usage: leak-jemalloc leak|bounded [SPEED]"),
    }
}
