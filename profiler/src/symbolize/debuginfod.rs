//! Debug information from debuginfod servers, as elfutils asks for it and keeps it: the same variables, the same cache. It is
//! asked for when profiling is over, and never for longer than a run's share of patience.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{process::elf::ElfInfo, say, text};

/// What all requests of a run may take together, where `DEBUGINFOD_MAXTIME` does not say.
const PATIENCE: Duration = Duration::from_secs(60);
/// What one of them may take, where `DEBUGINFOD_TIMEOUT` does not say.
const ONE: Duration = Duration::from_secs(30);
/// The largest file that is fetched, bytes, where `DEBUGINFOD_MAXSIZE` does not say.
const LARGEST: u64 = 2 << 30;
/// For how long a file counts as missing that no server had, as elfutils has it.
const MISSING_FOR: Duration = Duration::from_secs(600);
/// Where distributions say which servers are theirs.
const URLS: &str = "/etc/debuginfod";

/// The servers, and the files that they sent.
#[derive(Debug)]
pub struct Debuginfod {
    urls: Vec<String>,
    cache: PathBuf,
    one: Duration,
    patience: Duration,
    largest: u64,
    /// When patience is over: counts from the first request.
    until: Option<Instant>,
}

/// Why there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// The server knows no such file.
    Unknown,
    /// It could not be asked, or did not answer as it should.
    Failed,
}

/// The servers that the environment names (`DEBUGINFOD_URLS`), if any.
pub fn from_environment() -> Option<Vec<String>> {
    let urls = std::env::var("DEBUGINFOD_URLS").ok()?;
    Some(split(&urls)).filter(|urls| !urls.is_empty())
}

/// The servers that are asked for: those given, or those of the environment, or of this machine's distribution.
pub fn wanted(given: &str) -> Vec<String> {
    let given = split(given);
    if !given.is_empty() {
        return given;
    }
    from_environment().unwrap_or_else(|| {
        let files = fs::read_dir(URLS).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|extension| extension == "urls")).collect();
        files.sort();
        files.iter().flat_map(|file| split(&text::read_to_parse(file).unwrap_or_default())).collect()
    })
}

fn split(urls: &str) -> Vec<String> {
    let known = |url: &&str| ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
    urls.split_whitespace().filter(known).map(|url| url.trim_end_matches('/').to_owned()).collect()
}

impl Debuginfod {
    /// Asks these servers.
    pub fn new(urls: Vec<String>) -> Debuginfod {
        let number = |variable: &str| std::env::var(variable).ok()?.parse().ok().filter(|number| *number > 0);
        Debuginfod {
            urls,
            cache: cache(|variable| std::env::var_os(variable).map(PathBuf::from)),
            one: number("DEBUGINFOD_TIMEOUT").map_or(ONE, Duration::from_secs),
            patience: number("DEBUGINFOD_MAXTIME").map_or(PATIENCE, Duration::from_secs),
            largest: number("DEBUGINFOD_MAXSIZE").unwrap_or(LARGEST),
            until: None,
        }
    }

    /// Debug information of the file with a build id, which is called `name`.
    pub fn fetch(&mut self, build_id: &[u8], name: &str) -> Option<File> {
        if build_id.len() < 4 {
            return None;
        }
        let id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = self.cache.join(&id);
        let kept = folder.join("debuginfo");
        match cached(&kept) {
            Cached::File(file) => return Some(file).filter(|file| is_it(file, build_id)),
            Cached::Missing => return None,
            Cached::Nothing => {}
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.patience);
        let mut unknown = true;
        for url in &self.urls {
            let left = until.saturating_duration_since(Instant::now()).min(self.one);
            if left.is_zero() {
                say!("profiler: debuginfod: no time left for {name} (DEBUGINFOD_MAXTIME)");
                return None;
            }
            say!("profiler: debuginfod: asking {url} for {name}");
            match self.download(&format!("{url}/buildid/{id}/debuginfo"), &folder, &kept, left) {
                Ok(size) => {
                    say!("profiler: debuginfod: {name}, {:.1} MB", size as f64 / 1e6);
                    return File::open(&kept).ok().filter(|file| is_it(file, build_id));
                }
                Err(Missing::Unknown) => {}
                Err(Missing::Failed) => {
                    say!("profiler: debuginfod: no answer from {url}");
                    unknown = false;
                }
            }
        }
        if unknown {
            remember_missing(&folder, &kept);
        }
        None
    }

    fn download(&self, url: &str, folder: &Path, kept: &Path, left: Duration) -> Result<u64, Missing> {
        let config = ureq::Agent::config_builder().timeout_global(Some(left)).http_status_as_error(false);
        let agent: ureq::Agent = config.build().into();
        let response = agent.get(url).call().map_err(|_| Missing::Failed)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Err(Missing::Unknown),
            _ => return Err(Missing::Failed),
        }
        let mut body = response.into_body().into_with_config().limit(self.largest).reader();
        let mut write = || -> io::Result<u64> {
            make(folder)?;
            let mut file = tempfile::Builder::new().prefix("debuginfo.").tempfile_in(folder)?;
            let mut bytes = vec![0; 1 << 16];
            let mut size = 0;
            loop {
                let read = body.read(&mut bytes)?;
                if read == 0 {
                    break;
                }
                file.write_all(&bytes[..read])?;
                size += read as u64;
            }
            file.persist(kept).map_err(|error| error.error)?;
            Ok(size)
        };
        write().map_err(|_| Missing::Failed)
    }
}

/// Where elfutils keeps what it has fetched.
fn cache(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    if let Some(path) = variable("DEBUGINFOD_CACHE_PATH").filter(|path| path.is_absolute()) {
        return path;
    }
    let home = variable("HOME").unwrap_or_else(|| PathBuf::from("/"));
    let old = home.join(".debuginfod_client_cache");
    if old.exists() {
        return old;
    }
    let caches = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    caches.unwrap_or_else(|| home.join(".cache")).join("debuginfod_client")
}

enum Cached {
    File(File),
    /// No server had it a while ago.
    Missing,
    Nothing,
}

fn cached(path: &Path) -> Cached {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Cached::Nothing };
    if !metadata.is_file() {
        return Cached::Nothing;
    }
    if metadata.len() > 0 {
        return File::open(path).map_or(Cached::Nothing, Cached::File);
    }
    let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
    if age.is_none_or(|age| age < MISSING_FOR) { Cached::Missing } else { Cached::Nothing }
}

/// An empty file that nobody may read says that no server had it.
fn remember_missing(folder: &Path, kept: &Path) {
    let write = || -> io::Result<()> {
        make(folder)?;
        let file = tempfile::Builder::new().prefix("debuginfo.").tempfile_in(folder)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o000))?;
        file.persist(kept).map(drop).map_err(|error| error.error)
    };
    let _only_asked_again = write();
}

fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn is_it(file: &File, build_id: &[u8]) -> bool {
    ElfInfo::read(file).is_some_and(|elf| elf.build_id == build_id)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// Answers requests by their path, once for each answer.
    fn server(answers: Vec<(&'static str, Vec<u8>)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
            }
        });
        url
    }

    fn client(urls: Vec<String>, cache: &Path) -> Debuginfod {
        Debuginfod { cache: cache.to_owned(), ..Debuginfod::new(urls) }
    }

    #[test]
    fn a_file_is_fetched_once_and_only_what_is_it_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let cat = fs::read("/bin/cat").unwrap();
        let id = ElfInfo::parse(&*cat).unwrap().build_id;
        let other = vec![7; 20];
        let url = server(vec![("200 OK", cat.clone()), ("200 OK", cat), ("404 Not Found", Vec::new())]);
        let mut client = client(vec![url], folder.path());
        assert!(client.fetch(&id, "cat").is_some());
        assert!(
            client.fetch(&id, "cat").is_some(),
            "out of the cache: the server would answer something else"
        );
        assert!(client.fetch(&other, "other").is_none(), "another file");
        let missing = vec![9; 20];
        assert!(client.fetch(&missing, "missing").is_none());
        assert!(client.fetch(&missing, "missing").is_none(), "remembered: nobody answers any more");
        let name = "09".repeat(20);
        let kept = fs::metadata(folder.path().join(name).join("debuginfo")).unwrap();
        assert_eq!((kept.len(), kept.permissions().mode() & 0o777), (0, 0));
    }

    #[test]
    fn servers_that_do_not_answer_cost_no_more_than_patience() {
        let folder = tempfile::tempdir().unwrap();
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let mut client = client(vec![url.clone(), url], folder.path());
        (client.one, client.patience) = (Duration::from_millis(100), Duration::from_millis(150));
        let start = Instant::now();
        assert!(client.fetch(&[1; 20], "one").is_none());
        assert!(client.fetch(&[2; 20], "two").is_none());
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is said to be missing");
    }

    #[test]
    fn the_cache_is_that_of_elfutils() {
        let home = tempfile::tempdir().unwrap();
        let at = |variables: &[(&str, &str)]| {
            cache(|wanted| {
                let of = variables.iter().find(|(name, _)| *name == wanted);
                of.map(|(_, value)| PathBuf::from(value))
                    .or((wanted == "HOME").then(|| home.path().to_owned()))
            })
        };
        assert_eq!(at(&[]), home.path().join(".cache/debuginfod_client"));
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/debuginfod_client"));
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x"), ("DEBUGINFOD_CACHE_PATH", "/y")]), Path::new("/y"));
        fs::create_dir(home.path().join(".debuginfod_client_cache")).unwrap();
        assert_eq!(at(&[("XDG_CACHE_HOME", "/x")]), home.path().join(".debuginfod_client_cache"));
        assert_eq!(split("https://a/ ftp://b  http://c"), ["https://a", "http://c"]);
    }
}
