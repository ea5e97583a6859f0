//! The table of programs with their right answers: `tests/verdict/corpus.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What is wrong with a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Healthy,
    Cpu,
    Memory,
    Io,
    Network,
    Lock,
    Sleep,
    CpuStarvation,
    Descriptors,
    Stopped,
}

impl Verdict {
    /// As the profiler's JSON calls it.
    pub fn id(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Cpu => "cpu",
            Verdict::Memory => "memory",
            Verdict::Io => "io",
            Verdict::Network => "network",
            Verdict::Lock => "lock",
            Verdict::Sleep => "sleep",
            Verdict::CpuStarvation => "cpu_starvation",
            Verdict::Descriptors => "descriptors",
            Verdict::Stopped => "stopped",
        }
    }
}

/// A program and its right answer; the keys are explained in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    #[serde(default)]
    pub name: String,
    pub program: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub load: String,
    #[serde(default)]
    pub needs: Vec<String>,
    #[serde(default = "default_seconds")]
    pub seconds: u64,
    #[serde(default)]
    pub flags: Vec<String>,
    pub verdict: Verdict,
    #[serde(default)]
    pub rules: Vec<String>,
    #[serde(default)]
    pub words: Vec<String>,
}

fn default_seconds() -> u64 {
    8
}

/// How a program is built and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    C,
    Go,
    Java,
    Node,
    Python,
    Rust,
    Shell,
}

impl Language {
    fn of(program: &str) -> Option<Language> {
        Some(match Path::new(program).extension().and_then(|extension| extension.to_str()) {
            Some("c") => Language::C,
            Some("go") => Language::Go,
            Some("java") => Language::Java,
            Some("js") => Language::Node,
            Some("py") => Language::Python,
            Some("sh") => Language::Shell,
            None if program.starts_with("rust/") => Language::Rust,
            _ => return None,
        })
    }

    /// The programs that must be installed.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Language::C => &["cc"],
            Language::Go => &["go"],
            Language::Java => &["javac", "java"],
            Language::Node => &["node"],
            Language::Python => &["python3"],
            Language::Rust => &["cargo"],
            Language::Shell => &["bash"],
        }
    }
}

impl Entry {
    pub fn language(&self) -> Result<Language> {
        Language::of(&self.program).with_context(|| format!("{}: no known kind of program", self.program))
    }

    /// What is missing to run it, if anything.
    pub fn missing(&self) -> Option<String> {
        let language = self.language().map(Language::needs).unwrap_or_default();
        let needs = language.iter().copied().chain(self.needs.iter().map(String::as_str));
        needs.into_iter().find(|need| !available(need)).map(str::to_owned)
    }
}

fn available(need: &str) -> bool {
    match need {
        "cgroup-cpu" => {
            let probe = Path::new("/sys/fs/cgroup/cpu").join(format!("verdict-{}", std::process::id()));
            fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).is_ok()
        }
        program => find(program).is_some(),
    }
}

/// The system's own installation of a program, before whatever a version manager has put into the path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
    system
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

#[derive(Deserialize)]
struct Table {
    program: Vec<Entry>,
}

/// Reads and checks the table.
pub fn load(path: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut entries = toml::from_str::<Table>(text)?.program;
    for entry in &mut entries {
        entry.language()?;
        if entry.name.is_empty() {
            entry.name = Path::new(&entry.program).with_extension("").display().to_string();
        }
        let healthy = entry.verdict == Verdict::Healthy;
        ensure!(
            !healthy || entry.rules.is_empty(),
            "{}: rules are for those that are not healthy",
            entry.name
        );
        ensure!(healthy || !entry.words.is_empty(), "{}: which words must be in the report?", entry.name);
    }
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("{} is there twice", twice[0]);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_what_it_says_and_its_files_are_there() {
        let dir = crate::shell::workspace().join("tests/verdict");
        let entries = load(&dir.join("corpus.toml")).unwrap();
        for entry in &entries {
            let file = match entry.language().unwrap() {
                Language::Rust => dir.join(entry.program.replace("rust/", "rust/src/bin/") + ".rs"),
                _ => dir.join(&entry.program),
            };
            assert!(file.is_file(), "{} is missing", file.display());
        }
        let healthy = entries.iter().filter(|entry| entry.verdict == Verdict::Healthy).count();
        assert!(entries.len() >= 40 && healthy >= 12, "{healthy} of {}", entries.len());
    }

    #[test]
    fn an_entry_without_a_right_answer_is_refused() {
        let refused = |text: &str| parse(text).is_err();
        assert!(!refused("[[program]]\nprogram = 'a.js'\nverdict = 'healthy'"));
        assert!(!refused("[[program]]\nprogram = 'a.js'\nverdict = 'cpu'\nwords = ['f']"));
        assert!(refused("[[program]]\nprogram = 'a.js'\nverdict = 'cpu'"));
        assert!(refused("[[program]]\nprogram = 'a.js'\nverdict = 'cpu'\nrules = ['stall']"));
        assert!(refused("[[program]]\nprogram = 'a.js'\nverdict = 'healthy'\nrules = ['stall']"));
        assert!(refused("[[program]]\nprogram = 'a.txt'\nverdict = 'healthy'"));
        assert!(refused("[[program]]\nprogram = 'a.js'\nverdict = 'healthy'\nminutes = 1"));
        let twice = "[[program]]\nprogram = 'a.js'\nverdict = 'healthy'\n";
        assert!(refused(&twice.repeat(2)));
    }
}
