//! Handlers that hold a lock of the standard library while they do slow work: workers wait for each other.

use std::{sync::Mutex, time::Duration};

static STOCK: Mutex<u64> = Mutex::new(0);

#[inline(never)]
fn reserve() -> u64 {
    let mut stock = STOCK.lock().unwrap();
    std::thread::sleep(Duration::from_millis(40));
    *stock += 1;
    *stock
}

async fn order() -> String {
    reserve().to_string()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 8)]
async fn main() -> std::io::Result<()> {
    verdict::serve(order).await
}
