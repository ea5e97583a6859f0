//! Where V8 ends a program because its heap is full. It cannot be read from outside; it follows from options and the machine.

use std::path::Path;

use crate::{
    model::memory::LimitKind,
    process::{limits, shown::shown},
    text,
};

const MB: u64 = 1 << 20;

/// Bytes of heap that a Node.js process may have: what `--max-old-space-size` says, or else V8's default. `None` if the
/// process is gone.
pub fn of(proc_root: &Path, pid: u32) -> Option<u64> {
    let dir = shown(proc_root, pid);
    let words = |file: &str| {
        let text = text::read_to_parse(&dir.join(file)).ok()?;
        Some(text.split('\0').map(str::to_owned).collect::<Vec<_>>())
    };
    let options = words("environ").unwrap_or_default();
    let from_environment = options.iter().find_map(|word| word.strip_prefix("NODE_OPTIONS="));
    let given = old_space(words("cmdline")?.iter().map(String::as_str))
        .or_else(|| old_space(from_environment.unwrap_or_default().split(' ')));
    if given.is_some() {
        return given;
    }
    let has = |kind: &LimitKind| matches!(kind, LimitKind::Machine | LimitKind::Cgroup(_));
    let limits = limits::all(proc_root, pid).into_iter().filter(|limit| has(&limit.kind));
    Some(default(limits.map(|limit| limit.limit_bytes).min()?))
}

/// The last `--max-old-space-size` of a command line, in either of the forms that V8 takes.
fn old_space<'a>(words: impl Iterator<Item = &'a str>) -> Option<u64> {
    let (mut found, mut next) = (None, false);
    for word in words {
        let option = word.replace('_', "-");
        if std::mem::take(&mut next) {
            found = option.parse::<u64>().ok().or(found);
        } else if let Some(value) = option.strip_prefix("--max-old-space-size=") {
            found = value.parse::<u64>().ok().or(found);
        } else {
            next = option == "--max-old-space-size";
        }
    }
    found.filter(|mb| *mb > 0).map(|mb| mb.saturating_mul(MB))
}

/// V8's default for a machine, or a container, with so many bytes: half of them, but 2 GB at most, or 4 GB from 15 GB on
/// (`Heap::MaxOldGenerationSize` of V8 10 to 13).
fn default(bytes: u64) -> u64 {
    let most = if bytes >= 15 << 30 { 4 << 30 } else { 2 << 30 };
    (bytes / 2).clamp(128 * MB, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_option_counts() {
        let of = |line: &str| old_space(line.split(' '));
        assert_eq!(of("node app.js"), None);
        assert_eq!(of("node --max-old-space-size=300 app.js"), Some(300 * MB));
        assert_eq!(of("node --max_old_space_size=300 --max-old-space-size 512 app.js"), Some(512 * MB));
        assert_eq!(of("node --max-old-space-size=300 --max-old-space-size=400"), Some(400 * MB));
        assert_eq!(of("node --max-old-space-size=much"), None);
        assert_eq!(of("node --max-old-space-size=0"), None);
    }

    #[test]
    fn defaults_follow_the_machine() {
        assert_eq!(default(512 * MB), 256 * MB);
        assert_eq!(default(8 << 30), 2 << 30);
        assert_eq!(default(24_000 * MB), 4 << 30);
    }
}
