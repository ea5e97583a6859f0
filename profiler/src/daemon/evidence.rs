//! The recordings of the last windows, and those of alerts. Windows are thrown away when they are old; those that an alert
//! may need are linked into a folder of its own before, and kept under a limit of bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::text::clean_text;

/// The processes of 64 targets take less.
const MAX_TARGETS_BYTES: u64 = 16 << 20;
/// The windows before something goes wrong that are evidence of it.
const BEFORE: Duration = Duration::from_secs(120);

/// A window that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// When it began, ms since 1970 (UTC).
    pub unix_ms: i64,
    /// Its recording.
    pub path: PathBuf,
    /// Size of that.
    pub bytes: u64,
    /// The processes of each target in it.
    pub targets: BTreeMap<String, BTreeSet<u32>>,
}

/// The windows that are kept and complete, the oldest first.
pub fn kept(state_dir: &Path) -> Vec<Kept> {
    let all = windows_in(&state_dir.join("windows")).into_iter();
    all.filter_map(|(unix_ms, path)| {
        let targets = serde_json::from_slice(&read_targets(&targets_of(&path)).ok()?).ok()?;
        let bytes = fs::metadata(&path).ok()?.len();
        Some(Kept { unix_ms, path, bytes, targets })
    })
    .collect()
}

/// The window that began at a time.
pub fn find(state_dir: &Path, unix_ms: i64) -> Option<Kept> {
    kept(state_dir).into_iter().find(|kept| kept.unix_ms == unix_ms)
}

/// The processes of a target in a recording that the daemon has kept; an error says what is missing.
pub fn processes(recording: &Path, target: &str) -> Result<BTreeSet<u32>> {
    let beside = targets_of(recording);
    let bytes = read_targets(&beside)
        .with_context(|| format!("cannot read {}, which says whose processes are in it", beside.display()))?;
    let mut targets: BTreeMap<String, BTreeSet<u32>> =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", beside.display()))?;
    targets.remove(target).with_context(|| {
        let known: Vec<String> = targets.into_keys().map(|name| clean_text(&name).into_owned()).collect();
        format!("{} has no target {target}; it has {}", beside.display(), known.join(", "))
    })
}

/// Reads such a file; it may have come with a recording of somebody else's.
fn read_targets(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_TARGETS_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Which process of a recording belongs to which target is in a file beside it.
fn targets_of(recording: &Path) -> PathBuf {
    recording.with_extension("targets.json")
}

/// Windows with the time that they began at, ms since 1970, the oldest first.
fn windows_in(folder: &Path) -> Vec<(i64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut windows: Vec<(i64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let is_recording = path.extension().is_some_and(|extension| extension == "prec");
            Some((path.file_stem()?.to_str()?.parse().ok().filter(|_| is_recording)?, path))
        })
        .collect();
    windows.sort();
    windows
}

/// Recordings in a folder of the daemon.
pub struct Evidence {
    windows: PathBuf,
    alerts: PathBuf,
    keep: Duration,
    budget_bytes: u64,
}

impl Evidence {
    /// Makes the folders where they are missing.
    pub fn open(state_dir: &Path, keep: Duration, budget_bytes: u64) -> io::Result<Evidence> {
        let (windows, alerts) = (state_dir.join("windows"), state_dir.join("evidence"));
        fs::create_dir_all(&windows)?;
        fs::create_dir_all(&alerts)?;
        // What a daemon that was killed has left unfinished.
        for (_, path) in windows_in(&windows) {
            if !targets_of(&path).exists() {
                fs::remove_file(path)?;
            }
        }
        Ok(Evidence { windows, alerts, keep, budget_bytes })
    }

    /// Where the recording of a window that begins now goes.
    pub fn window_path(&self, unix_ms: i64) -> PathBuf {
        self.windows.join(format!("{unix_ms}.prec"))
    }

    /// Notes which processes belong to which target in a window that is complete.
    pub fn note(&self, recording: &Path, targets: &BTreeMap<&str, &BTreeSet<u32>>) -> io::Result<()> {
        fs::write(targets_of(recording), serde_json::to_vec(targets)?)
    }

    /// Keeps the last windows under a name.
    pub fn pin(&self, name: &str, now_unix_ms: i64) -> io::Result<()> {
        let folder = self.folder(name);
        fs::create_dir_all(&folder)?;
        let since = now_unix_ms - BEFORE.as_millis() as i64;
        for (unix_ms, path) in windows_in(&self.windows) {
            let link = folder.join(path.file_name().unwrap_or_default());
            if unix_ms < since {
                continue;
            }
            // Of a window that is not complete it is not known which process is whose.
            for (path, link) in [(&path, &link), (&targets_of(&path), &targets_of(&link))] {
                if path.exists() && !link.exists() {
                    fs::hard_link(path, link)?;
                }
            }
        }
        Ok(())
    }

    /// Lets go of what was pinned.
    pub fn unpin(&self, name: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives what was pinned the name of the alert it has become, with all windows since.
    pub fn promote(&self, name: &str, alert: &str, now_unix_ms: i64) -> io::Result<()> {
        let (from, to) = (self.folder(name), self.folder(alert));
        if from.exists() && !to.exists() {
            fs::rename(from, to)?;
        }
        self.pin(alert, now_unix_ms)
    }

    /// The recordings kept under a name, the oldest first.
    pub fn of(&self, name: &str) -> Vec<String> {
        windows_in(&self.folder(name)).into_iter().map(|(_, path)| path.display().to_string()).collect()
    }

    /// Throws away windows that are old, and the oldest evidence beyond the limit.
    pub fn clean(&self, now_unix_ms: i64) -> io::Result<()> {
        let oldest = now_unix_ms - self.keep.as_millis() as i64;
        for (_, path) in windows_in(&self.windows).into_iter().filter(|(unix_ms, _)| *unix_ms < oldest) {
            let _ = fs::remove_file(targets_of(&path));
            fs::remove_file(path)?;
        }
        let mut folders: Vec<(std::time::SystemTime, PathBuf, u64)> = fs::read_dir(&self.alerts)?
            .filter_map(Result::ok)
            .filter_map(|entry| {
                Some((entry.metadata().ok()?.modified().ok()?, entry.path(), size(&entry.path())))
            })
            .collect();
        folders.sort();
        let mut bytes: u64 = folders.iter().map(|(.., size)| size).sum();
        for (_, folder, size) in folders {
            if bytes <= self.budget_bytes {
                break;
            }
            fs::remove_dir_all(folder)?;
            bytes -= size;
        }
        Ok(())
    }

    fn folder(&self, name: &str) -> PathBuf {
        // Names of rules and targets come from the configuration and may hold anything.
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let name: String = name.chars().map(safe).collect();
        self.alerts.join(format!("a{name}"))
    }
}

fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_before_an_alert_are_kept_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::open(dir.path(), Duration::from_secs(900), 1000).unwrap();
        let window = |unix_ms: i64| fs::write(evidence.window_path(unix_ms), [0; 100]).unwrap();
        (0..40).for_each(|i| window(i * 30_000));
        let pids = BTreeSet::from([7]);
        evidence.note(&evidence.window_path(0), &BTreeMap::from([("api", &pids)])).unwrap();
        assert_eq!(kept(dir.path())[0].targets["api"], pids, "others are not complete");
        assert_eq!((kept(dir.path()).len(), find(dir.path(), 30_000)), (1, None));
        evidence.pin("rule--../../x", 39 * 30_000).unwrap();
        assert_eq!(evidence.of("rule--../../x").len(), 5, "two minutes and the window itself");
        window(40 * 30_000);
        evidence.note(&evidence.window_path(40 * 30_000), &BTreeMap::from([("api", &pids)])).unwrap();
        evidence.promote("rule--../../x", "id1", 40 * 30_000).unwrap();
        assert_eq!((evidence.of("rule--../../x").len(), evidence.of("id1").len()), (0, 6));
        let last = PathBuf::from(evidence.of("id1").pop().unwrap());
        assert_eq!(processes(&last, "api").unwrap(), pids, "whose processes are whose is kept, too");
        let missing =
            |recording: &Path, target: &str| format!("{:#}", processes(recording, target).unwrap_err());
        assert!(
            missing(&last, "web").ends_with("has no target web; it has api"),
            "{}",
            missing(&last, "web")
        );
        assert!(missing(Path::new("x.prec"), "api").starts_with("cannot read x.targets.json"));
        evidence.clean(40 * 30_000).unwrap();
        assert_eq!(windows_in(&evidence.windows).len(), 31);
        assert_eq!(
            fs::read_dir(&evidence.windows).unwrap().count(),
            32,
            "nothing is left of those that went; of the last there is what is beside it"
        );
        evidence.clean(1_000_000_000).unwrap();
        assert_eq!((windows_in(&evidence.windows).len(), evidence.of("id1").len()), (0, 6));
        evidence.unpin("nothing").unwrap();
    }

    #[test]
    fn what_was_left_unfinished_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Evidence::open(dir.path(), Duration::from_secs(900), 1000).unwrap();
        let evidence = open();
        fs::write(evidence.window_path(1), [0; 100]).unwrap();
        fs::write(evidence.window_path(2), []).unwrap();
        evidence.note(&evidence.window_path(1), &BTreeMap::new()).unwrap();
        open();
        assert_eq!(windows_in(&evidence.windows).len(), 1);
    }

    #[test]
    fn the_oldest_evidence_goes_when_there_is_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::open(dir.path(), Duration::from_secs(900), 250).unwrap();
        for i in 0..4 {
            fs::write(evidence.window_path(i * 1_000_000), [0; 100]).unwrap();
            evidence.promote("x", &format!("id{i}"), i * 1_000_000).unwrap();
            let at = std::time::UNIX_EPOCH + Duration::from_secs(1000 + i as u64);
            fs::File::open(evidence.folder(&format!("id{i}"))).unwrap().set_modified(at).unwrap();
        }
        evidence.clean(4_000_000).unwrap();
        let left: Vec<usize> = (0..4).map(|i| evidence.of(&format!("id{i}")).len()).collect();
        assert_eq!(left, [0, 0, 1, 1]);
    }
}
