//! The ways out. One file per format; a format is one line in [`FORMATS`] and reads nothing but a
//! [`Profile`]. Recordings are written while profiling goes on, see [`crate::recording`].

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Result;
use tempfile::NamedTempFile;

use crate::{error::Error, profile::Profile};

pub mod flamegraph;
pub mod folded;
pub mod json;
pub mod live;
pub mod pprof;
pub mod report;

/// Writes a whole profile.
pub type WriteProfile = fn(&Profile, &RenderOptions, &mut dyn Write) -> Result<()>;

/// Every format by its file name extension; what the last one does is a stream, not a rendering.
pub const FORMATS: [(&str, Format); 5] = [
    (".folded", Format::Rendered(folded::write)),
    (".svg", Format::Rendered(flamegraph::write)),
    (".pb.gz", Format::Rendered(pprof::write)),
    (".json", Format::Rendered(json::write)),
    (".prec", Format::Recording),
];

/// How a format comes about.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// At the end, from the profile.
    Rendered(WriteProfile),
    /// As samples come in.
    Recording,
}

/// What applies to all renderings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderOptions {
    /// Keep threads apart.
    pub threads: bool,
    /// Functions in a table.
    pub top: usize,
}

/// One `-o` argument.
#[derive(Clone, Debug)]
pub struct OutputSpec {
    /// Where to; `None` is stdout.
    pub path: Option<PathBuf>,
    /// What.
    pub format: Format,
}

impl FromStr for OutputSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(OutputSpec { path: None, format: Format::Rendered(folded::write) });
        }
        let found =
            FORMATS.into_iter().find(|(extension, _)| text.ends_with(extension) && text != *extension);
        match found {
            Some((_, format)) => Ok(OutputSpec { path: Some(text.into()), format }),
            None => {
                let known: Vec<&str> = FORMATS.iter().map(|(extension, _)| *extension).collect();
                Err(format!("the extension says the format; known are {} and '-'", known.join(" ")))
            }
        }
    }
}

/// A place for a result that is known to be writable before the work begins. The file gets its name only once it
/// is complete, so an older one is never half overwritten.
#[derive(Debug)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A regular file, new or to be replaced.
    File(NamedTempFile, PathBuf),
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
        match fs::metadata(path) {
            Ok(existing) if existing.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Ok(existing) if !existing.is_file() => {
                Ok(Destination::Special(File::options().write(true).open(path)?))
            }
            Ok(_) => {
                // A link stays a link: what it points to is replaced.
                let path = fs::canonicalize(path)?;
                File::options().append(true).open(&path)?; // refuses a read-only file
                Self::beside(&path)
            }
            Err(_new) => Self::beside(path),
        }
    }

    fn beside(path: &Path) -> io::Result<Destination> {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".profiler-")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(directory)
            .map_err(|error| io::Error::from(error.kind()))?; // without the temporary name in its text
        Ok(Destination::File(file, path.to_owned()))
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
            Destination::File(mut file, path) => {
                let mut out = io::BufWriter::new(file.as_file_mut());
                write(&mut out)?;
                out.flush()?;
                drop(out);
                file.persist(&path)
                    .map_err(|error| Error::OutputNotWritable { path, reason: error.error })?;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_is_the_format() {
        for (extension, _) in FORMATS {
            let spec: OutputSpec = format!("dir/x{extension}").parse().unwrap();
            assert_eq!(spec.path.unwrap(), PathBuf::from(format!("dir/x{extension}")));
        }
        assert!("x.txt".parse::<OutputSpec>().is_err());
        assert!(".svg".parse::<OutputSpec>().is_err());
        assert!("-".parse::<OutputSpec>().unwrap().path.is_none());
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
