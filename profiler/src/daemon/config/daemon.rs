//! How the daemon itself runs.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    jwt::Jwt,
    units::{bytes, duration},
};
use crate::settings::{DEFAULT_HZ, Requests};

/// How the daemon itself runs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daemon {
    /// Length of a window: what is seen in it is added up, then rules are asked.
    #[serde(deserialize_with = "duration")]
    pub window: Duration,
    /// Samples per second and CPU.
    pub frequency: u32,
    /// Count system calls too.
    pub syscalls: bool,
    /// Watch requests and their answers: `true`, `false`, or `"auto"`, as a run does that is not told.
    #[serde(deserialize_with = "requests")]
    pub requests: Requests,
    /// Names of functions whose CPU time is a metric of its own.
    pub functions: Vec<String>,
    /// What all of the profiler may cost the machine, percent of one CPU: beyond, it sees less, in a stated order.
    pub max_overhead: f64,
    /// How much memory all of the profiler may take, bytes: beyond, it sees less, too.
    #[serde(deserialize_with = "bytes")]
    pub max_memory: u64,
    /// Where alerts, history and evidence are kept.
    pub state_dir: PathBuf,
    /// Where the API listens: `ADDRESS:PORT`, or a path for a Unix socket; empty for nowhere.
    pub listen: String,
    /// A file with the tokens of the API, a line `ROLE:SHA256` each; it or `jwt` is needed to listen beyond this machine.
    pub token_file: Option<PathBuf>,
    /// Whose tokens open the API, too.
    pub jwt: Option<Jwt>,
    /// The certificate chain of the API (PEM); needed to listen beyond this machine.
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    pub tls_key: Option<PathBuf>,
    /// How long the windows before an alert are kept.
    #[serde(deserialize_with = "duration")]
    pub keep_windows: Duration,
    /// How much evidence of alerts may be kept, bytes.
    #[serde(deserialize_with = "bytes")]
    pub evidence_bytes: u64,
    /// How much history may be kept, bytes.
    #[serde(deserialize_with = "bytes")]
    pub history_bytes: u64,
}

/// Functions whose CPU time is a metric of its own: so many at most.
const MAX_FUNCTIONS: usize = 50;

/// When requests are watched.
fn requests<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Requests, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Switch {
        Set(bool),
        Word(String),
    }
    const WRONG: &str = "write true, false or \"auto\"";
    match Switch::deserialize(deserializer) {
        Ok(Switch::Set(true)) => Ok(Requests::On),
        Ok(Switch::Set(false)) => Ok(Requests::Off),
        Ok(Switch::Word(word)) if word == "auto" => Ok(Requests::Auto),
        _ => Err(serde::de::Error::custom(WRONG)),
    }
}

impl Default for Daemon {
    fn default() -> Daemon {
        Daemon {
            window: Duration::from_secs(30),
            frequency: DEFAULT_HZ,
            syscalls: true,
            requests: Requests::DEFAULT,
            functions: Vec::new(),
            max_overhead: 10.0,
            max_memory: 500_000_000,
            state_dir: "/var/lib/profiler".into(),
            listen: "127.0.0.1:9464".to_owned(),
            token_file: None,
            jwt: None,
            tls_cert: None,
            tls_key: None,
            keep_windows: Duration::from_secs(15 * 60),
            evidence_bytes: 500_000_000,
            history_bytes: 2_000_000_000,
        }
    }
}

impl Daemon {
    /// Whether every value can be.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(what.to_owned());
        if self.window < Duration::from_secs(5) || self.window > Duration::from_secs(3600) {
            return wrong("daemon.window must be from 5s to 1h");
        }
        if self.frequency == 0 || self.frequency > 10_000 {
            return wrong("daemon.frequency must be from 1 to 10000");
        }
        if !(self.max_overhead > 0.0 && self.max_overhead <= 100.0) {
            return wrong("daemon.max_overhead must be above 0 and at most 100, in percent of one CPU");
        }
        if self.max_memory == 0 {
            return wrong("daemon.max_memory must be above 0");
        }
        if self.functions.len() > MAX_FUNCTIONS {
            return Err(format!("daemon.functions may name {MAX_FUNCTIONS} functions at most"));
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return wrong("daemon.tls_cert and daemon.tls_key need each other");
        }
        self.jwt.as_ref().map_or(Ok(()), Jwt::check)
    }

    /// Whether nobody needs a token: whoever is on this machine may read.
    pub fn is_open(&self) -> bool {
        self.token_file.is_none() && self.jwt.is_none()
    }
}
