//! The ways out. One file per format; a format is one line in [`FORMATS`] and reads nothing but a
//! [`Run`], or one [`Profile`] of it. Recordings are written while profiling goes on, see [`crate::recording`].

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Result;
use tempfile::NamedTempFile;

use crate::{
    error::Error,
    model::{
        kind::{CPU, KINDS, ProfileKind},
        report::{Profile, Run},
    },
};

pub mod backlog;
pub mod calls;
pub mod diff;
pub mod findings;
pub mod flamegraph;
pub mod flow;
pub mod folded;
pub mod html;
pub mod json;
pub mod live;
pub mod memory;
pub mod options;
pub mod pprof;
pub mod report;
pub mod requests;
pub mod results;
pub mod routes;
pub mod summary;
pub mod text;
pub mod waiting;

pub use options::RenderOptions;

/// Writes one profile.
pub type WriteProfile = fn(&Profile, &RenderOptions, &mut dyn Write) -> Result<()>;
/// Writes everything.
pub type WriteRun = fn(&Run, &RenderOptions, &mut dyn Write) -> Result<()>;

/// A format, as the table [`FORMATS`] lists it.
#[derive(Clone, Copy, Debug)]
pub struct FormatSpec {
    /// What files of it end with.
    pub extension: &'static str,
    /// What it is, in words.
    pub title: &'static str,
    /// How it comes about.
    pub format: Format,
}

/// Every format. What the last one does is a stream, not a rendering.
pub const FORMATS: [FormatSpec; 6] = [
    FormatSpec {
        extension: ".folded",
        title: "folded stacks, for flame graph tools; `-` is the same on stdout",
        format: Format::Profile(folded::write),
    },
    FormatSpec { extension: ".svg", title: "a flame graph", format: Format::Profile(flamegraph::write) },
    FormatSpec {
        extension: ".pb.gz",
        title: "a pprof profile, for `go tool pprof`",
        format: Format::Profile(pprof::write),
    },
    FormatSpec {
        extension: ".html",
        title: "one page with everything, for people: verdict, charts, tables, flame graphs",
        format: Format::Run(html::write),
    },
    FormatSpec { extension: ".json", title: "everything, for programs", format: Format::Run(json::write) },
    FormatSpec {
        extension: ".prec",
        title: "the raw recording, for `profiler replay`",
        format: Format::Recording,
    },
];

/// The kinds and formats of `-o`, for the help.
pub fn help() -> String {
    let formats = FORMATS.iter().map(|of| format!("  {:<9} {}\n", of.extension, of.title.replace('`', "")));
    let formats: String = formats.collect();
    let kinds = KINDS.iter().map(|kind| {
        let files: Vec<String> = kind.file_prefixes.iter().map(|prefix| format!("{prefix}…")).collect();
        let called = if files.is_empty() {
            String::new()
        } else {
            format!(", or a FILE called {}", files.join(" or "))
        };
        let option = kind.option.map_or(String::new(), |option| format!(" ({option})"));
        format!("  {:<14} {}{option}{called}\n", format!("{}:FILE", kind.name), kind.shows)
    });
    let kinds: String = kinds.collect();
    format!(
        "Output formats (-o FILE, by extension; '-' is stdout):\n{formats}\
         Those that hold one profile (.folded .svg .pb.gz) hold that of CPUs, unless another is asked for:\n{kinds}  \
         {REQUESTS}:FILE  time of requests, by route and part (.folded .svg), or a FILE called {REQUESTS}…\n"
    )
}

/// What asks for the time of requests instead of a profile: before a colon, or as the beginning of a file's name.
const REQUESTS: &str = "requests";

/// How a format comes about.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// At the end, from one profile.
    Profile(WriteProfile),
    /// At the end, from everything.
    Run(WriteRun),
    /// As samples come in.
    Recording,
}

/// One `-o` argument.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    /// Where to; `None` is stdout.
    pub path: Option<PathBuf>,
    /// How.
    pub format: Format,
    /// Which profile, where the format holds only one.
    pub kind: ProfileKind,
    /// It is the time of requests that is asked for, no profile.
    pub of_requests: bool,
}

impl OutputSpec {
    /// Writes what this asks for.
    pub fn write(&self, run: &Run, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
        if self.of_requests && run.requests.is_none() {
            return Err(Error::NotMeasured { kind: REQUESTS, output: self.to_string() }.into());
        }
        match self.format {
            Format::Profile(write) => match run.profile(&self.kind) {
                Some(profile) => write(profile, options, out),
                None => Err(Error::NotMeasured { kind: self.kind.name, output: self.to_string() }.into()),
            },
            Format::Run(write) => write(run, options, out),
            Format::Recording => Ok(()),
        }
    }
}

impl fmt::Display for OutputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// The profile that `-o text` asks for, and the file: `KIND:FILE`, or a file whose name begins as [`KINDS`] say.
fn split_kind(text: &str) -> (ProfileKind, &str) {
    for kind in KINDS {
        if let Some(file) = text.strip_prefix(kind.name).and_then(|rest| rest.strip_prefix(':')) {
            return (kind, file);
        }
    }
    (ProfileKind::of_file(text.rsplit('/').next().unwrap_or(text)), text)
}

/// What `-o text` says if it asks for the time of requests.
fn of_requests(text: &str) -> Option<Result<OutputSpec, String>> {
    let asked = text.strip_prefix(REQUESTS).and_then(|rest| rest.strip_prefix(':'));
    let path = asked.unwrap_or(text);
    let called = path.rsplit('/').next().unwrap_or(path).starts_with(REQUESTS);
    let write: WriteRun = match path.rsplit_once('.') {
        Some((_, "svg")) => routes::write_svg,
        Some((_, "folded")) => routes::write_folded,
        _ if path == "-" => routes::write_folded,
        _ => return asked.map(|_| Err("requests are told by .folded and .svg".to_owned())),
    };
    let path = (path != "-").then(|| path.into());
    let spec = OutputSpec { path, format: Format::Run(write), kind: CPU, of_requests: true };
    (asked.is_some() || called).then_some(Ok(spec))
}

impl FromStr for OutputSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(spec) = of_requests(text) {
            return spec;
        }
        let (kind, text) = split_kind(text);
        if text == "-" {
            return Ok(OutputSpec {
                path: None,
                format: Format::Profile(folded::write),
                kind,
                of_requests: false,
            });
        }
        let is_it = |of: &FormatSpec| text.ends_with(of.extension) && text != of.extension;
        match FORMATS.into_iter().find(is_it) {
            Some(FormatSpec { format, .. }) => {
                Ok(OutputSpec { path: Some(text.into()), format, kind, of_requests: false })
            }
            None => {
                let known: Vec<&str> = FORMATS.iter().map(|of| of.extension).collect();
                Err(format!("the extension says the format; known are {} and '-'", known.join(" ")))
            }
        }
    }
}

/// A place for a result that was writable before the work began. A file gets its name only once it is complete, so an
/// older one is never half overwritten, and nothing is left behind by a profiler that is killed.
#[derive(Debug)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A regular file, new or to be replaced.
    File(PathBuf),
    /// A device or pipe, written directly.
    Special(File),
}

impl Destination {
    /// Opens `path` (stdout if `None`), or says now that it cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Destination, Error> {
        let Some(path) = path else { return Ok(Destination::Stdout) };
        Self::try_open(path).map_err(|reason| Error::OutputNotWritable { path: path.to_owned(), reason })
    }

    fn try_open(path: &Path) -> io::Result<Destination> {
        let path = follow_own_link(path)?;
        match fs::metadata(&path) {
            Ok(existing) if existing.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Ok(existing) if !existing.is_file() => {
                Ok(Destination::Special(File::options().write(true).open(path)?))
            }
            Ok(_) => {
                File::options().append(true).open(&path)?; // refuses a read-only file
                beside(&path).map(|_writable| Destination::File(path))
            }
            Err(_new) => beside(&path).map(|_writable| Destination::File(path)),
        }
    }

    /// Whether this is standard output.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Destination::Stdout)
    }

    /// Writes with `write` and gives the file its name.
    pub fn finish(self, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        match self {
            Destination::Stdout => {
                let mut out = io::BufWriter::new(io::stdout().lock());
                write(&mut out)?;
                Ok(out.flush()?)
            }
            Destination::Special(file) => {
                let mut out = io::BufWriter::new(file);
                write(&mut out)?;
                Ok(out.flush()?)
            }
            Destination::File(path) => {
                let not_writable = |reason| Error::OutputNotWritable { path: path.clone(), reason };
                let mut file = beside(&path).map_err(not_writable)?;
                let _unfinished = crate::quit::removes(file.path());
                let mut out = io::BufWriter::new(file.as_file_mut());
                write(&mut out)?;
                out.flush().map_err(not_writable)?;
                drop(out);
                file.persist(&path).map_err(|error| not_writable(error.error))?;
                Ok(())
            }
        }
    }
}

/// Opens a file that is written under its own name from the start, and empties it later.
pub fn open_in_place(path: &Path) -> io::Result<File> {
    let path = follow_own_link(path)?;
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    // The link is followed above, so one that is here now was put here by somebody in between.
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

/// A new file in the folder of `path`, which it is to replace.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".profiler-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder(path))
        .map_err(|error| io::Error::from(error.kind())) // without the temporary name in its text
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// What `path` stands for. A link stays a link: what it points to is replaced. But in a folder that others can write to
/// (/tmp), what another user has put under that name, a link, a pipe or a file, is not touched: it would lead root's
/// output to wherever they like.
fn follow_own_link(path: &Path) -> io::Result<PathBuf> {
    let Ok(existing) = fs::symlink_metadata(path) else { return Ok(path.to_owned()) };
    // SAFETY: takes nothing, returns a number.
    let own = unsafe { libc::geteuid() };
    let others_write = fs::metadata(folder(path))?.mode() & 0o022 != 0;
    if others_write && existing.uid() != own && existing.uid() != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {} has put it there, in a folder that others can write to", existing.uid()),
        ));
    }
    if existing.is_symlink() { fs::canonicalize(path) } else { Ok(path.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_is_the_format() {
        for FormatSpec { extension, .. } in FORMATS {
            let spec: OutputSpec = format!("dir/x{extension}").parse().unwrap();
            assert_eq!(spec.path.unwrap(), PathBuf::from(format!("dir/x{extension}")));
        }
        assert!("x.txt".parse::<OutputSpec>().is_err());
        assert!(".svg".parse::<OutputSpec>().is_err());
        assert!("-".parse::<OutputSpec>().unwrap().path.is_none());
    }

    #[test]
    fn the_name_says_which_profile() {
        let parse = |text: &str| {
            let spec: OutputSpec = text.parse().unwrap();
            (spec.kind.name, spec.to_string())
        };
        assert_eq!(parse("x.svg"), ("cpu", "x.svg".into()));
        assert_eq!(parse("offcpu:dir/x.svg"), ("offcpu", "dir/x.svg".into()));
        assert_eq!(parse("offcpu:-"), ("offcpu", "-".into()));
        assert_eq!(parse("dir/offcpu.folded"), ("offcpu", "dir/offcpu.folded".into()));
        assert_eq!(parse("off-cpu2.pb.gz"), ("offcpu", "off-cpu2.pb.gz".into()));
        assert_eq!(parse("dir/syscalls.folded"), ("syscalls", "dir/syscalls.folded".into()));
        assert_eq!(parse("syscalls:x.svg"), ("syscalls", "x.svg".into()));
        assert_eq!(parse("cpu:offcpu.folded"), ("cpu", "offcpu.folded".into()));
        assert_eq!(parse("offcpu/x.svg"), ("cpu", "offcpu/x.svg".into()));
        let asks = |text: &str| text.parse::<OutputSpec>().unwrap().of_requests;
        assert!(
            asks("requests.svg")
                && asks("requests:-")
                && asks("requests:x.folded")
                && asks("dir/requests-1.folded")
        );
        assert!(
            !asks("requests.json")
                && !asks("requests/x.svg")
                && "requests:x.json".parse::<OutputSpec>().is_err()
        );
        assert_eq!(parse("heap:x.svg"), ("cpu", "heap:x.svg".into()), "any file may have a colon");
    }

    #[test]
    fn what_was_not_measured_is_one_clear_failure() {
        let run = crate::model::report::fixtures::run(&[("main", 1)]);
        let spec: OutputSpec = "offcpu:x.svg".parse().unwrap();
        let error = spec.write(&run, &RenderOptions::default(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("no offcpu profile was measured, so x.svg"), "{error}");
        let spec: OutputSpec = "requests.svg".parse().unwrap();
        assert!(spec.write(&run, &RenderOptions::default(), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_file_is_replaced_only_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "old").unwrap();
        let destination = Destination::open(Some(&path)).unwrap();
        assert!(destination.finish(|_| anyhow::bail!("failed half way")).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let destination = Destination::open(Some(&path)).unwrap();
        destination.finish(|out| Ok(out.write_all(b"new")?)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn what_cannot_be_written_is_known_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Destination::open(Some(dir.path())).is_err());
        assert!(Destination::open(Some(&dir.path().join("none/x.json"))).is_err());
        Destination::open(Some(Path::new("/dev/null")))
            .unwrap()
            .finish(|out| Ok(out.write_all(b"x")?))
            .unwrap();
        assert!(fs::metadata("/dev/null").is_ok_and(|metadata| !metadata.is_file()), "devices stay devices");
    }
}
