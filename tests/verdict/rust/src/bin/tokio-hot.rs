//! A handler that computes for a long time without a point where other tasks could go on.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

#[inline(never)]
fn price_options() -> f64 {
    let (start, mut sum) = (Instant::now(), 0.0);
    while start.elapsed() < Duration::from_millis(300) {
        for i in 1..10_000 {
            sum += black_box(1.0 / f64::from(i));
        }
    }
    sum
}

async fn quote() -> String {
    price_options().to_string()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> std::io::Result<()> {
    verdict::serve(quote).await
}
