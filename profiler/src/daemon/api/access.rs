//! Who may use the API: whoever has one of our own tokens, or one of the site's login.

use anyhow::Result;

use super::{
    jwt::Issuer,
    token::{Caller, Token},
};
use crate::daemon::config::Daemon;

/// Who may use the API.
#[derive(Clone)]
pub struct Access {
    /// Nobody needs a token.
    pub is_open: bool,
    tokens: Vec<Token>,
    issuer: Option<Issuer>,
}

impl Access {
    /// Reads tokens and keys.
    pub fn load(settings: &Daemon) -> Result<Access> {
        let issuer = settings.jwt.as_ref().map(Issuer::load).transpose()?;
        let tokens = Token::load(settings.token_file.as_deref())?;
        Ok(Access { is_open: settings.is_open(), tokens, issuer })
    }

    /// Whose a token is.
    pub fn caller(&self, given: &str) -> Option<Caller> {
        let issued = || self.issuer.as_ref()?.caller(given);
        Token::caller(&self.tokens, given).or_else(issued)
    }
}
