//! Tokens of the API: what is kept of them, and what they open.

use std::path::Path;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Somebody who uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What he may do.
    pub role: Role,
    /// Who it is, as far as that is known; of a site's login its own words.
    pub who: String,
    /// Until when that holds, s since 1970; `None` for as long as the file says so.
    pub until_unix_s: Option<u64>,
}

/// Somebody who may use the API: the hash of a token, and what it opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    role: Role,
    hash: [u8; 32],
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See everything.
    Reader,
    /// Change what can be changed, too.
    Admin,
}

impl Token {
    /// Reads a file of tokens; none without a file.
    pub fn load(file: Option<&Path>) -> Result<Vec<Token>> {
        let Some(file) = file else { return Ok(Vec::new()) };
        let text = crate::text::read_to_parse(file).with_context(|| file.display().to_string())?;
        Token::parse(&text).with_context(|| file.display().to_string())
    }

    /// A line each: role, colon, SHA-256 of the token in hexadecimal. Empty lines and those that begin with `#` are skipped.
    fn parse(text: &str) -> Result<Vec<Token>> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut tokens = Vec::new();
        for (number, line) in lines {
            // The line itself is not shown: it may be a token that somebody put there by mistake.
            let token =
                Token::of_line(line).with_context(|| format!("line {} is not ROLE:SHA256", number + 1))?;
            tokens.push(token);
        }
        Ok(tokens)
    }

    /// Whose a token is. All are compared, each in constant time, so that the time says nothing.
    pub fn caller(tokens: &[Token], given: &str) -> Option<Caller> {
        let hash = Sha256::digest(given.as_bytes());
        let mut role = None;
        for token in tokens {
            if bool::from(token.hash.ct_eq(hash.as_slice())) {
                role = role.max(Some(token.role));
            }
        }
        let who =
            || format!("token {}", hash[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        role.map(|role| Caller { role, who: who(), until_unix_s: None })
    }

    fn of_line(line: &str) -> Option<Token> {
        let (role, hex) = line.split_once(':')?;
        let role = match role {
            "reader" => Role::Reader,
            "admin" => Role::Admin,
            _ => return None,
        };
        let digits = hex.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Token { role, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_token_file_is_refused_without_showing_it() {
        let hash = "0".repeat(64);
        assert_eq!(Token::parse(&format!("# ours\n\nreader:{hash}\n")).unwrap().len(), 1);
        let plus = format!("reader:+{}", "0".repeat(63));
        for text in ["reader", "king:00", &format!("reader:{hash}x"), "reader:\u{fc}\u{fc}", &plus] {
            let error = format!("{:#}", Token::parse(text).unwrap_err());
            assert_eq!(error, "line 1 is not ROLE:SHA256");
        }
    }
}
