//! Profiles for the engine that a site already runs: each window of each target is written to a queue on disk, and a thread
//! per export sends what is in it, the oldest first. What the queue has no room for, and what the other side does not take, is
//! counted.

mod otlp;
mod pyroscope;
mod window;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

pub use self::window::Window;
use super::{
    client,
    config::{Export, ExportKind},
    threads::wait_for,
};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How often the queue is looked into.
const POLL: Duration = Duration::from_millis(500);
/// The waits between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// What became of profiles.
#[derive(Debug, Default)]
pub struct Counts {
    /// Taken by the other side.
    pub sent: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Not taken by the other side, which said so.
    pub rejected: AtomicU64,
    /// Without room in the queue.
    pub dropped: AtomicU64,
}

/// The threads that send profiles.
pub struct Exports {
    all: Vec<Export>,
    dir: PathBuf,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// What became of each export's profiles.
    pub counts: Vec<(String, Arc<Counts>)>,
}

impl Exports {
    /// Goes on with what is in the queues.
    pub fn start(state_dir: &Path, all: &[Export]) -> Result<Exports> {
        let stop = Arc::new(AtomicBool::new(false));
        let dir = state_dir.join("exports");
        let (mut threads, mut counts) = (Vec::new(), Vec::new());
        for export in all.iter().cloned() {
            let queue = queue(&dir, &export.name);
            fs::create_dir_all(&queue)?;
            let count = Arc::new(Counts::default());
            counts.push((export.name.clone(), Arc::clone(&count)));
            let stop = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name(format!("ex-{}", export.name));
            threads.push(thread.spawn(move || send_all(&export, &queue, &count, &stop))?);
        }
        Ok(Exports { all: all.to_vec(), dir, threads, stop, counts })
    }

    /// Whether there is anybody to send to.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Puts a window into every queue.
    pub fn add(&self, window: Window<'_>) -> io::Result<()> {
        // Nothing was sampled: there is nothing to show.
        if window.profile.stacks.is_empty() {
            return Ok(());
        }
        for (export, (_, counts)) in self.all.iter().zip(&self.counts) {
            let body = match export.kind {
                ExportKind::Otlp => otlp::request(&window),
                ExportKind::Pyroscope => match pyroscope::request(&window) {
                    Ok(body) => body,
                    Err(error) => return Err(io::Error::other(error)),
                },
            };
            let queue = queue(&self.dir, &export.name);
            put(&queue, &format!("{}-{}", window.profile.meta.start_unix_ns, safe(window.target)), &body)?;
            counts.dropped.fetch_add(trim(&queue, export.queue_bytes)?, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lets no thread begin anything more.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets every thread finish what it is at, until then.
    pub fn stop(self, until: Instant) {
        self.end();
        wait_for(self.threads, until);
    }
}

fn queue(dir: &Path, name: &str) -> PathBuf {
    dir.join(safe(name))
}

/// A name as a file's.
fn safe(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
    name.chars().map(safe).take(100).collect()
}

/// Writes a file that is whole or not there.
fn put(queue: &Path, name: &str, body: &[u8]) -> io::Result<()> {
    let new = queue.join(format!("{name}.new"));
    fs::write(&new, body)?;
    fs::rename(new, queue.join(format!("{name}.profile")))
}

/// What waits, the oldest first, with sizes in bytes.
fn waiting(queue: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(queue).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<(PathBuf, u64)> = entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "profile"))
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len())))
        .collect();
    files.sort();
    files
}

/// Throws away the oldest beyond the limit; how many those were.
fn trim(queue: &Path, limit_bytes: u64) -> io::Result<u64> {
    let files = waiting(queue);
    let mut bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let mut dropped = 0;
    for (file, size) in files {
        if bytes <= limit_bytes {
            break;
        }
        match fs::remove_file(file) {
            Ok(()) => dropped += 1,
            // It was sent just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        bytes -= size;
    }
    Ok(dropped)
}

fn send_all(export: &Export, queue: &Path, counts: &Counts, stop: &AtomicBool) {
    let mut failures = 0u32;
    while !stop.load(Ordering::Relaxed) {
        let next = waiting(queue).into_iter().next().map(|(file, _)| file);
        let Some((file, body)) = next.and_then(|file| fs::read(&file).ok().map(|body| (file, body))) else {
            std::thread::sleep(POLL);
            continue;
        };
        match send(export, &body) {
            Ok(rejected) => {
                failures = 0;
                counts.sent.fetch_add(u64::from(rejected.is_none()), Ordering::Relaxed);
                if let Some(why) = rejected
                    && counts.rejected.fetch_add(1, Ordering::Relaxed) == 0
                {
                    crate::say!("profiler: export {}: a profile was not taken: {why}", export.name);
                }
                let _ = fs::remove_file(file);
            }
            Err(error) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                if failures == 0 {
                    crate::say!("profiler: export {}: {error:#}; it is tried again", export.name);
                }
                let wait = BACKOFF.0.saturating_mul(2u32.saturating_pow(failures.min(16))).min(BACKOFF.1);
                failures = failures.saturating_add(1);
                let until = Instant::now() + wait;
                while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(POLL.min(wait));
                }
            }
        }
    }
}

/// Sends a profile once; why the other side did not take it, if it said so. What is said of an error holds no secret.
fn send(export: &Export, body: &[u8]) -> Result<Option<String>> {
    let base = export.url.read().map_err(anyhow::Error::msg)?;
    let base = base.trim_end_matches('/');
    // A pyroscope request carries its own query; see there.
    let (url, kind, body) = match export.kind {
        ExportKind::Otlp => {
            (format!("{base}{}", otlp::PATH), "application/x-protobuf".to_owned(), body.to_vec())
        }
        ExportKind::Pyroscope => pyroscope::parts(base, body)?,
    };
    let token = export.token.as_ref().map(|token| token.read().map_err(anyhow::Error::msg)).transpose()?;
    let token = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("Content-Type", kind.as_str())];
    headers.extend(token.iter().map(|token| ("Authorization", token.as_str())));
    let (status, answer) = client::post(&url, &headers, &body, TIMEOUT)?;
    match (status, export.kind) {
        (200..300, ExportKind::Otlp) => Ok(otlp::rejected(&answer)?.map(|(_, why)| why)),
        (200..300, ExportKind::Pyroscope) => Ok(None),
        // It will never be taken: neither this wire, nor so large.
        (400 | 404 | 413 | 415 | 422, _) => Ok(Some(format!("it answered {status}"))),
        _ => bail!("it answered {status}"),
    }
}

#[cfg(test)]
mod tests;
