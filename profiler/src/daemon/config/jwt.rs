//! Whose tokens (JWT) open the API besides those of `token_file`.

use std::path::PathBuf;

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde::Deserialize;

/// A site's login, and what the names that it gives to people open.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// Who signs: the claim `iss`.
    pub issuer: String,
    /// For whom a token must be: one of the claim `aud`.
    pub audience: String,
    /// How it may be signed; none that takes a secret.
    #[serde(default = "algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// The issuer's public keys (a JWKS document, what it has at `jwks_uri`).
    pub keys_file: PathBuf,
    /// Which claim says what somebody is: a list of names, or names with blanks between.
    #[serde(default = "role_claim")]
    pub role_claim: String,
    /// Who may see everything.
    #[serde(default)]
    pub readers: Vec<String>,
    /// Who may change what can be changed, too.
    #[serde(default)]
    pub admins: Vec<String>,
}

fn algorithms() -> Vec<Algorithm> {
    vec![Algorithm::RS256, Algorithm::ES256]
}

fn role_claim() -> String {
    "roles".to_owned()
}

impl Jwt {
    /// Whether every value can be.
    pub fn check(&self) -> Result<(), String> {
        let empty =
            [("issuer", &self.issuer), ("audience", &self.audience), ("role_claim", &self.role_claim)];
        if let Some((name, _)) = empty.iter().find(|(_, text)| text.is_empty()) {
            return Err(format!("daemon.jwt.{name} is empty"));
        }
        if self.algorithms.is_empty() {
            return Err("daemon.jwt.algorithms is empty".to_owned());
        }
        if let Some(secret) = self.algorithms.iter().find(|of| of.family() == AlgorithmFamily::Hmac) {
            return Err(format!(
                "daemon.jwt.algorithms: whoever can check {secret:?} can sign with it, too: use RS256, PS256, ES256 or EdDSA"
            ));
        }
        if self.readers.is_empty() && self.admins.is_empty() {
            return Err("daemon.jwt lets nobody in: add readers or admins".to_owned());
        }
        Ok(())
    }
}
