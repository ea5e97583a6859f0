//! Opens files that a profiled process names, or has mapped. It may have put anything there: a pipe that never answers, a
//! device with side effects, a link out of its root, a file system that hangs.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
        mpsc::{self, Sender},
    },
    time::Duration,
};

/// A file system that does not answer within this time (FUSE, NFS) is not asked further.
const PATIENCE: Duration = Duration::from_secs(1);

/// Opens a regular file for reading. A path that the kernel made (`map_files`) is followed to where it leads.
pub fn regular(path: &Path) -> io::Result<File> {
    let path = path.to_owned();
    in_time(move || reopen(File::options().read(true).custom_flags(libc::O_PATH).open(path)?.into()))
}

/// Opens the regular file that a process calls `path`: in the root that `root` (`/proc/PID/root`) leads to, and nowhere
/// else, whatever the links on the way say.
pub fn in_root(root: &Path, path: &Path) -> io::Result<File> {
    let (root, path) = (root.to_owned(), path.to_owned());
    in_time(move || {
        let root = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root)?;
        reopen(within(&root, &path)?)
    })
}

/// A handle for what `path` is below `root`. Nothing is opened yet: that has no effect on a pipe or a device.
fn within(root: &File, path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: zeros are valid for this struct of numbers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the path ends in NUL, the struct is of the size that is told; both live during the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of_val(&how))
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens what a handle stands for, if that is a regular file. It cannot become another in between.
fn reopen(handle: OwnedFd) -> io::Result<File> {
    let handle = File::from(handle);
    if !handle.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"));
    }
    let itself = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(itself)
}

/// Something to do on another thread.
type Job = Box<dyn FnOnce() + Send>;

/// The thread that waits for the next file to open: to start one for each would wake both CPUs of a small machine.
static IDLE: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// Threads that may hang at once. With so many, file systems do not answer, and no file is opened any more until one does.
const MOST_HANGING: usize = 64;

/// Those that do.
static HANGING: AtomicUsize = AtomicUsize::new(0);

/// Runs `open` on another thread, which is left behind if it hangs.
fn in_time(open: impl FnOnce() -> io::Result<File> + Send + 'static) -> io::Result<File> {
    if HANGING.load(Relaxed) >= MOST_HANGING {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (sender, opened) = mpsc::channel();
    // Whoever is second knows what the first one did: the job that it has ended, or who waits that it was left behind.
    let ended_or_left = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&ended_or_left);
    let job: Job = Box::new(move || {
        let _too_late = sender.send(open());
        if state.swap(true, AcqRel) {
            HANGING.fetch_sub(1, Relaxed);
        }
    });
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let worker = match idle {
        Some(worker) => worker,
        None => start_worker()?,
    };
    worker.send(job).map_err(|_| io::Error::other("the thread that opens files has ended"))?;
    match opened.recv_timeout(PATIENCE) {
        Ok(opened) => {
            // Of several, one is enough to keep.
            *IDLE.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
            opened
        }
        Err(_) => {
            HANGING.fetch_add(1, Relaxed);
            if ended_or_left.swap(true, AcqRel) {
                HANGING.fetch_sub(1, Relaxed);
            }
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// Starts a thread that does what it is sent, until nobody can send it more.
fn start_worker() -> io::Result<Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    std::thread::Builder::new().name("open".into()).spawn(move || jobs.into_iter().for_each(|job| job()))?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, os::unix::fs::symlink, time::Instant};

    use super::*;

    fn text(file: io::Result<File>) -> Option<String> {
        let mut text = String::new();
        file.ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let fifo = CString::new(root.join("fifo").as_os_str().as_bytes()).unwrap();
        // SAFETY: the path ends in NUL.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        fs::write(root.join("file"), "here").unwrap();
        symlink("/dev/zero", root.join("device")).unwrap();
        let start = Instant::now();
        for name in ["fifo", "device", ".", "none"] {
            assert!(regular(&root.join(name)).is_err(), "{name}");
            assert!(in_root(root, Path::new(name)).is_err(), "{name}");
        }
        assert!(start.elapsed() < PATIENCE, "nothing was waited for");
        assert_eq!(text(regular(&root.join("file"))).as_deref(), Some("here"));
    }

    #[test]
    fn no_link_leads_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        fs::create_dir_all(root.join("tmp")).unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        fs::write(root.join("inside"), "inside").unwrap();
        symlink(outside.path().join("secret"), root.join("tmp/absolute")).unwrap();
        symlink("../../secret", root.join("tmp/relative")).unwrap();
        symlink("/inside", root.join("tmp/own")).unwrap();
        symlink("/proc/self/root/etc/passwd", root.join("tmp/magic")).unwrap();
        for name in ["tmp/absolute", "tmp/relative", "tmp/magic", "../secret", "/../secret"] {
            assert_eq!(text(in_root(&root, Path::new(name))), None, "{name}");
        }
        for name in ["tmp/own", "/tmp/own", "/inside", "tmp/../inside"] {
            assert_eq!(text(in_root(&root, Path::new(name))).as_deref(), Some("inside"), "{name}");
        }
    }

    #[test]
    fn what_hangs_is_left_behind() {
        let start = Instant::now();
        let never = in_time(|| {
            std::thread::sleep(Duration::from_secs(30));
            Err(io::ErrorKind::Other.into())
        });
        assert_eq!(never.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(regular(Path::new("/proc/self/exe")).is_ok(), "the next one is asked");
    }
}
