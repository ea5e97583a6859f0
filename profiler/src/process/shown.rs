//! Where /proc shows what a process has, also after its main thread has ended.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The directory in /proc that shows the memory and the files of a process. It is the process's own as long as its main
/// thread lives; after that only those of its other threads show any.
pub fn shown(proc_root: &Path, pid: u32) -> PathBuf {
    let own = proc_root.join(pid.to_string());
    let ended = |directory: &Path| {
        let stat = thread_stat(directory).unwrap_or_default();
        // The state follows the name, which may itself hold parentheses.
        let after = stat.iter().rposition(|&byte| byte == b')').map_or(&[][..], |at| &stat[at + 1..]);
        matches!(after, [b' ', b'Z' | b'X', ..])
    };
    if !ended(&own) {
        return own;
    }
    let threads = fs::read_dir(own.join("task")).into_iter().flatten().flatten();
    let mut others = threads.filter(|thread| !ended(&thread.path()));
    // /proc/TID is not listed, but shows all that /proc/PID does; /proc/PID/task/TID has no map_files.
    others.next().map_or(own, |thread| proc_root.join(thread.file_name()))
}

/// `stat` of the thread that a directory in /proc is named after, as in proc_pid_stat(5). That of a whole process adds up
/// what its threads have used: with 10,000 of them it takes the kernel a millisecond each time.
pub fn thread_stat(directory: &Path) -> Option<Vec<u8>> {
    let thread = directory.file_name()?;
    fs::read(directory.join("task").join(thread).join("stat"))
        .or_else(|_| fs::read(directory.join("stat")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_its_main_thread_is_shown_by_another() {
        let root = tempfile::tempdir().unwrap();
        let set = |directory: &str, state: &str| {
            let directory = root.path().join(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("stat"), format!("7 (a) Z) {state} 1 1")).unwrap();
        };
        set("7", "S");
        assert_eq!(shown(root.path(), 7), root.path().join("7"));
        set("7", "Z");
        assert_eq!(shown(root.path(), 7), root.path().join("7"), "it has ended altogether");
        set("7/task/7", "Z");
        set("7/task/9", "R");
        assert_eq!(shown(root.path(), 7), root.path().join("9"));
    }
}
