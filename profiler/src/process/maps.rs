//! `/proc/PID/maps`. Parsed here and not with a crate because its lines hold any path a process likes: nothing
//! in one may stop the agent (the crates looked at panic on file names such as `/SYSV`).

use std::{fs, io, path::Path};

use crate::text;

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapsEntry {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Offset of `start` in the file.
    pub file_offset: u64,
    /// Device of the file.
    pub device: (u32, u32),
    /// Inode of the file; zero for none.
    pub inode: u64,
    /// Path as the process sees it, a name in brackets, or nothing.
    pub path: String,
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// It can be read and written.
    pub write: bool,
    /// It can be executed.
    pub execute: bool,
    /// It is the process's own.
    pub private: bool,
}

impl MapsEntry {
    /// Whether this shows a file with a name of its own, and not memory that looks like one.
    pub fn has_name(&self) -> bool {
        const MEMORY: [&str; 4] = ["//anon", "/memfd:", "/dev/zero", "/SYSV"];
        let path = &self.path;
        self.inode != 0 && path.starts_with('/') && !MEMORY.iter().any(|memory| path.starts_with(memory))
    }
}

/// Executable mappings of a process.
pub fn read(proc_root: &Path, pid: u32) -> io::Result<Vec<MapsEntry>> {
    let all = read_all(proc_root, pid)?.into_iter();
    Ok(all.filter_map(|(entry, rights)| rights.execute.then_some(entry)).collect())
}

/// All mappings of a process, each with its rights.
pub fn read_all(proc_root: &Path, pid: u32) -> io::Result<Vec<(MapsEntry, Rights)>> {
    let bytes = fs::read(super::shown::shown(proc_root, pid).join("maps"))?;
    Ok(text::to_parse(&bytes).lines().filter_map(parse_line).collect())
}

/// `start-end perms offset major:minor inode   path`; `None` for what is not of that form.
pub(super) fn parse_line(line: &str) -> Option<(MapsEntry, Rights)> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let letters = fields.next()?.as_bytes();
    let rights = Rights {
        write: letters.starts_with(b"rw"),
        execute: letters.get(2) == Some(&b'x'),
        private: letters.get(3) == Some(&b'p'),
    };
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let file_offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_start();
    let entry = MapsEntry {
        start: hex(start)?,
        end: hex(end)?,
        file_offset,
        device: (hex(major)? as u32, hex(minor)? as u32),
        inode,
        path: text::clean_text(path.strip_suffix(" (deleted)").unwrap_or(path)).into_owned(),
    };
    Some((entry, rights))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn executable_lines_are_parsed() {
        let (entry, rights) =
            parse_line("55e0-66f0 r-xp 00001000 fe:01 1234       /usr/bin/a file (deleted)").unwrap();
        assert_eq!((entry.start, entry.end, entry.file_offset), (0x55e0, 0x66f0, 0x1000));
        assert_eq!((entry.device, entry.inode), ((0xfe, 1), 1234));
        assert_eq!(entry.path, "/usr/bin/a file");
        assert!(rights.execute);
        assert_eq!(parse_line("55e0-66f0 r-xp 0 00:00 0 ").unwrap().0.path, "");
        assert!(!parse_line("55e0-66f0 rw-p 00001000 fe:01 1234 /usr/bin/a").unwrap().1.execute);
        assert_eq!(parse_line("55e0 rw-p 00001000 fe:01 1234 /usr/bin/a"), None);
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "[0-9a-f]{0,17}-?[0-9a-f]{0,17} ?[r-][w-][x-]p? ?.*") {
            parse_line(&line);
        }
    }
}
