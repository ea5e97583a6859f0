//! What a program was called when it was started. Its mappings show the file that links led to: `redis-server` would be
//! `redis-check-rdb`.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{memory::ProcessMemory, open, shown::shown};
use crate::text;

/// Key of the address of the path that exec was given, in the auxiliary vector (linux/auxvec.h).
const AT_EXECFN: u64 = 31;

/// Bytes of a path at most.
const LONGEST: usize = 4096;

/// Bytes that are read at once: a path may lie at the end of its memory.
const PIECE: usize = 256;

/// Programs whose names are remembered.
const MOST: usize = 4096;

/// What files that are programs were started as.
#[derive(Debug, Default)]
pub struct StartedAs {
    /// The last name of each that is not its own.
    last: HashMap<String, String>,
}

impl StartedAs {
    /// What to call the program, mapped as `file`, of a process; if that is gone already, what the file was called before.
    pub fn name(&mut self, proc_root: &Path, pid: u32, file: &str) -> String {
        let started = started_as(proc_root, pid, file);
        match started {
            Some(name) => {
                if self.last.len() < MOST {
                    self.last.insert(file.to_owned(), name.clone());
                }
                name
            }
            None if proc_root.join(pid.to_string()).exists() => file.to_owned(),
            None => self.last.get(file).map_or_else(|| file.to_owned(), Clone::clone),
        }
    }
}

/// The path that a process's program, mapped as `file`, was started by; `None` if that is `file`, or not known.
fn started_as(proc_root: &Path, pid: u32, file: &str) -> Option<String> {
    let process = shown(proc_root, pid);
    let program = fs::metadata(process.join("exe")).ok()?;
    let vector = fs::read(process.join("auxv")).ok()?;
    let (pairs, _) = vector.as_chunks::<16>();
    let address = pairs.iter().find_map(|pair| {
        let word = |at: usize| Some(u64::from_ne_bytes(*pair.get(at..)?.first_chunk()?));
        (word(0)? == AT_EXECFN).then(|| word(8)).flatten()
    })?;
    let path = path_at(&ProcessMemory::open(proc_root, pid)?, address)?;
    let path = if path.starts_with('/') {
        PathBuf::from(path)
    } else {
        fs::read_link(process.join("cwd")).ok()?.join(path.trim_start_matches("./"))
    };
    if path.file_name() == Path::new(file).file_name() {
        return None;
    }
    // A script's path leads to the script, and a program may change its memory.
    let metadata = open::in_root(&process.join("root"), &path).ok()?.metadata().ok()?;
    let same = (metadata.dev(), metadata.ino()) == (program.dev(), program.ino());
    same.then(|| text::path(&path))
}

/// A path in a process's memory.
fn path_at(memory: &ProcessMemory, address: u64) -> Option<String> {
    let mut path = Vec::new();
    while path.len() < LONGEST {
        let at = address.checked_add(path.len() as u64)?;
        let piece = PIECE - at as usize % PIECE;
        let mut bytes = [0; PIECE];
        memory.read_exact(at, &mut bytes[..piece])?;
        let end = bytes[..piece].iter().position(|&byte| byte == 0);
        path.extend_from_slice(&bytes[..end.unwrap_or(piece)]);
        if end.is_some() {
            return String::from_utf8(path).ok().filter(|path| !path.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        process::{Child, Command, Stdio},
    };

    use super::*;

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ended = self.0.kill();
            let _ended = self.0.wait();
        }
    }

    fn name(program: &Path, directory: &Path) -> Option<String> {
        let mut command = Command::new(program);
        let child = Killed(command.current_dir(directory).stdin(Stdio::piped()).spawn().unwrap());
        let proc_root = Path::new("/proc");
        // For its parent, a program runs a moment before it is what its process is, and is known how it was called.
        let own = std::env::current_exe().unwrap();
        let of = |name: &str| Path::new("/proc").join(child.0.id().to_string()).join(name);
        // An auxiliary vector that is not there yet is read as its end: one pair.
        while fs::read_link(of("exe")).unwrap() == own || fs::read(of("auxv")).unwrap().len() <= 16 {
            std::thread::yield_now();
        }
        let file = fs::read_link(format!("/proc/{}/exe", child.0.id())).unwrap();
        started_as(proc_root, child.0.id(), file.to_str().unwrap())
    }

    #[test]
    fn a_link_gives_its_name_and_a_script_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let cat = fs::canonicalize("/bin/cat").unwrap();
        assert_eq!(name(&cat, folder), None, "its own name");
        let link = folder.join("called-so");
        symlink(&cat, &link).unwrap();
        assert_eq!(name(&link, folder).as_deref(), link.to_str());
        assert_eq!(name(Path::new("./called-so"), folder).as_deref(), link.to_str());
        let script = folder.join("script");
        fs::write(&script, "#!/bin/sh\nread line\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(name(&script, folder), None);
    }
}
