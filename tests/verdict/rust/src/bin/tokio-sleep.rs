//! A handler that sleeps as threads do, and takes a worker away from all other tasks.

use std::time::Duration;

#[inline(never)]
fn ask_legacy_system() -> String {
    std::thread::sleep(Duration::from_millis(450));
    "late".into()
}

async fn report() -> String {
    ask_legacy_system()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> std::io::Result<()> {
    verdict::serve(report).await
}
