//! How the profiler ends early. The first signal ends the run, and everything is written; the second one, while that is
//! done, ends the profiler at once, and leaves no half-written file behind. A run that has ended by itself has its first one
//! still to come.

use std::{
    ffi::{CString, c_char, c_int},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What ends a run.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where it is ignored: `nohup profiler …`.
    hangup: Option<Signal>,
    came: bool,
}

impl Signals {
    /// From here on, signals wait for [`Signals::received`].
    pub fn new() -> Result<Signals> {
        let hangup = if is_ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
            came: false,
        })
    }

    /// Waits for one: Ctrl-C, `kill`, or the end of the terminal.
    pub async fn received(&mut self) {
        let hung_up = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hung_up => {}
        }
        self.came = true;
    }

    /// From now on a further SIGINT or SIGTERM ends the profiler at once: see [`at_once_from_now_on`].
    pub fn written_from_now_on(self) {
        AWAITS_FIRST.store(!self.came, Ordering::Release);
        at_once_from_now_on();
    }
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: only reads the disposition into a struct of its own, for which zeros are valid.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// The file that is being written, to be removed by whoever ends the profiler. A C string, leaked as long as it may be read.
static UNFINISHED: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// As long as this lives, [`at_once_from_now_on`] removes a file.
#[must_use]
pub struct Removes(());

/// Has `path` removed if the profiler ends at once. One file at a time.
pub fn removes(path: &Path) -> Removes {
    if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
        // Never freed: the handler may be reading it. One per output.
        UNFINISHED.store(path.into_raw(), Ordering::Release);
    }
    Removes(())
}

impl Drop for Removes {
    fn drop(&mut self) {
        UNFINISHED.store(ptr::null_mut(), Ordering::Release);
    }
}

/// From now on SIGINT and SIGTERM end the profiler at once. SIGHUP is ignored: the terminal is gone, the files are not.
pub fn at_once_from_now_on() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        if !is_ignored(signal) {
            // SAFETY: the handler makes only async-signal-safe calls.
            unsafe { libc::signal(signal, end as extern "C" fn(c_int) as libc::sighandler_t) };
        }
    }
    // SAFETY: ignoring a signal needs no handler.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
}

/// No signal has come so far: the first one changes nothing.
static AWAITS_FIRST: AtomicBool = AtomicBool::new(false);

extern "C" fn end(signal: c_int) {
    const FIRST: &[u8] = b"profiler: it has ended and is writing everything; once more ends it at once\n";
    if AWAITS_FIRST.swap(false, Ordering::AcqRel) {
        // SAFETY: write is async-signal-safe.
        unsafe { libc::write(libc::STDERR_FILENO, FIRST.as_ptr().cast(), FIRST.len()) };
        return;
    }
    const WORDS: &[u8] = b"profiler: ended before everything was written\n";
    let unfinished = UNFINISHED.load(Ordering::Acquire);
    // SAFETY: unlink, write and _exit are async-signal-safe; a pointer that was stored stays valid for ever.
    unsafe {
        if !unfinished.is_null() {
            libc::unlink(unfinished);
        }
        libc::write(libc::STDERR_FILENO, WORDS.as_ptr().cast(), WORDS.len());
        libc::_exit(128 + signal);
    }
}
