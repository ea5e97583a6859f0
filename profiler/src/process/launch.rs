//! Starting the command to profile, held before its first instruction until the probes are attached.

use std::{
    ffi::{OsStr, OsString},
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Child, Command, ExitStatus},
    thread::JoinHandle,
};

use crate::{error::Error, process::target::kernel_name};

/// A command that exists as a process but has not been executed yet.
pub struct Held {
    name: String,
    pid: u32,
    go: PipeWriter,
    spawner: JoinHandle<io::Result<Child>>,
}

/// A command that runs.
pub struct Running {
    child: Child,
}

/// What the kernel will call a command once it runs: the last part of its program's path, 15 bytes at most.
pub fn name(program: &OsStr) -> String {
    let file = Path::new(program).file_name().unwrap_or(program);
    kernel_name(&crate::text::path(file.as_ref())).to_owned()
}

/// Forks `command` and holds it before exec.
pub fn hold(command: &[OsString]) -> Result<Held, Error> {
    let name = crate::text::path(command[0].as_ref());
    try_hold(command, &name).map_err(|reason| Error::CommandNotStarted { command: name, reason })
}

fn try_hold(command: &[OsString], name: &str) -> io::Result<Held> {
    let (mut pid_reader, mut pid_writer): (PipeReader, PipeWriter) = io::pipe()?;
    let (mut go_reader, go) = io::pipe()?;
    let go_fd = go.as_raw_fd();
    let mut to_start = Command::new(&command[0]);
    to_start.args(&command[1..]);
    // SAFETY: between fork and exec only async-signal-safe calls are made: close, getpid, write, read.
    unsafe {
        to_start.pre_exec(move || {
            // Without its own copy of the writing end the child wakes up with an error if the profiler dies.
            libc::close(go_fd);
            pid_writer.write_all(&(libc::getpid() as u32).to_ne_bytes())?;
            go_reader.read_exact(&mut [0])
        });
    }
    // `spawn` returns only after exec, so it has a thread of its own.
    let spawner = std::thread::spawn(move || to_start.spawn());
    let mut pid = [0; 4];
    match pid_reader.read_exact(&mut pid) {
        Ok(()) => Ok(Held { name: name.to_owned(), pid: u32::from_ne_bytes(pid), go, spawner }),
        Err(error) => Err(match spawner.join() {
            Ok(Err(reason)) => reason,
            _ => error,
        }),
    }
}

impl Held {
    /// Process id, which exec does not change.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the command run.
    pub fn start(mut self) -> Result<Running, Error> {
        let started = self
            .go
            .write_all(&[1])
            .and_then(|()| self.spawner.join().unwrap_or_else(|_| Err(io::Error::other("cannot fork"))));
        match started {
            Ok(child) => Ok(Running { child }),
            Err(reason) => Err(Error::CommandNotStarted { command: self.name, reason }),
        }
    }
}

impl Running {
    /// The code with which a shell would say how the command ended: its own, or 128 and the signal that ended it. `None`
    /// if it has not ended.
    pub fn exit_code(&mut self) -> Option<u8> {
        let status = self.child.try_wait().ok().flatten()?;
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).map(|code| code as u8)
    }

    /// How the command ended, in words, or that it has not.
    pub fn describe(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => describe(status),
            Ok(None) => format!("the command is still running (pid {})", self.child.id()),
            Err(error) => format!("how the command ended is unknown: {error}"),
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("the command ended with exit code {code}"),
        (None, Some(signal)) => format!("the command was ended by signal {signal}"),
        (None, None) => "the command ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_command_waits_and_then_runs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("made");
        let held = hold(&["touch".into(), file.clone().into()]).unwrap();
        assert!(std::path::Path::new(&format!("/proc/{}", held.pid())).exists());
        assert!(!file.exists(), "it must not run yet");
        let pid = held.pid();
        let mut running = held.start().unwrap();
        assert_eq!(running.child.id(), pid);
        running.child.wait().unwrap();
        assert!(file.exists());
        assert_eq!(running.describe(), "the command ended with exit code 0");
    }

    #[test]
    fn a_command_ends_as_it_would_for_a_shell() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let mut running = hold(&["sh".into(), "-c".into(), script.into()]).unwrap().start().unwrap();
            running.child.wait().unwrap();
            assert_eq!(running.exit_code(), Some(code), "{script}");
        }
    }

    #[test]
    fn a_command_that_is_not_there_is_an_error() {
        let held = hold(&["/no/such/command".into()]).unwrap();
        assert!(matches!(held.start(), Err(Error::CommandNotStarted { .. })));
    }
}
