//! Ways to the files that a process has mapped.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::process::{maps::MapsEntry, open, shown::shown};

/// Opens a mapped file, also one that has been deleted.
pub fn open(proc_root: &Path, pid: u32, entry: &MapsEntry) -> io::Result<File> {
    open::regular(&by_mapping(proc_root, pid, entry))
        .or_else(|_| open::in_root(&shown(proc_root, pid).join("root"), Path::new(&entry.path)))
}

/// A path that leads to a mapped file from here: by its name if that is still it.
pub fn path(proc_root: &Path, pid: u32, entry: &MapsEntry) -> PathBuf {
    let named = shown(proc_root, pid).join("root").join(entry.path.trim_start_matches('/'));
    if is_same(&named, entry) { named } else { by_mapping(proc_root, pid, entry) }
}

fn by_mapping(proc_root: &Path, pid: u32, entry: &MapsEntry) -> PathBuf {
    shown(proc_root, pid).join(format!("map_files/{:x}-{:x}", entry.start, entry.end))
}

fn is_same(path: &Path, entry: &MapsEntry) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    path.metadata().is_ok_and(|metadata| metadata.ino() == entry.inode)
}
