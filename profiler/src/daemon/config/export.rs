//! Where profiles go: what the file may say of an export, and what it means.

use std::path::PathBuf;

use serde::Deserialize;

use super::{secret::Secret, units::bytes};

/// Somewhere that profiles are sent to.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// Name in metrics.
    pub name: String,
    /// What is spoken there.
    pub kind: ExportKind,
    /// Its address.
    pub url: Secret,
    /// What is sent as a bearer token.
    pub token: Option<Secret>,
    /// Profiles that wait on disk may take so much, bytes.
    pub queue_bytes: u64,
}

/// What an export speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportKind {
    /// Pyroscope's /ingest, with pprof profiles.
    Pyroscope,
    /// OTLP profiles over HTTP, `v1development`.
    Otlp,
}

/// What the file says of an export.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    #[serde(default)]
    pub name: String,
    #[serde(rename = "type")]
    kind: ExportKind,
    url: Option<String>,
    url_file: Option<PathBuf>,
    url_env: Option<String>,
    token_file: Option<PathBuf>,
    token_env: Option<String>,
    #[serde(default = "queue", deserialize_with = "bytes")]
    queue_bytes: u64,
}

fn queue() -> u64 {
    64_000_000
}

impl ExportConfig {
    /// What it means.
    pub fn export(&self) -> Result<Export, String> {
        let name = &self.name;
        let url = Secret::of(self.url.as_ref(), self.url_file.as_ref(), self.url_env.as_ref());
        let token = Secret::of(None, self.token_file.as_ref(), self.token_env.as_ref());
        Ok(Export {
            name: name.clone(),
            kind: self.kind,
            url: url
                .ok()
                .flatten()
                .ok_or_else(|| format!("export `{name}` needs one of url, url_file and url_env"))?,
            token: token
                .map_err(|()| format!("export `{name}` needs at most one of token_file and token_env"))?,
            queue_bytes: self.queue_bytes,
        })
    }
}
