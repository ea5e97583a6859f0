//! Healthy: small answers to few requests, each after a timer; none without load.

use std::time::Duration;

async fn hello() -> String {
    tokio::time::sleep(Duration::from_millis(5)).await;
    "hello".into()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> std::io::Result<()> {
    verdict::serve(hello).await
}
