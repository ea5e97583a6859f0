//! Values that should not stand in a file that many read: they come from a file of their own, or from the environment.

use std::{fmt, path::PathBuf};

/// Where a value is that should not be shown.
#[derive(Clone, PartialEq)]
pub enum Secret {
    /// The value itself.
    Value(String),
    /// The file that holds it.
    File(PathBuf),
    /// The environment variable that holds it.
    Env(String),
}

impl Secret {
    /// Out of the fields `NAME`, `NAME_file` and `NAME_env`, of which one may be given.
    pub fn of(
        value: Option<&String>,
        file: Option<&PathBuf>,
        env: Option<&String>,
    ) -> Result<Option<Secret>, ()> {
        match (value, file, env) {
            (None, None, None) => Ok(None),
            (Some(value), None, None) => Ok(Some(Secret::Value(value.clone()))),
            (None, Some(file), None) => Ok(Some(Secret::File(file.clone()))),
            (None, None, Some(env)) => Ok(Some(Secret::Env(env.clone()))),
            _ => Err(()),
        }
    }

    /// The value. The error does not hold it.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Secret::Value(value) => Ok(value.clone()),
            Secret::File(file) => match crate::text::read_to_parse(file) {
                Ok(text) => Ok(text.trim().to_owned()),
                Err(error) => Err(format!("{}: {error}", file.display())),
            },
            Secret::Env(name) => {
                std::env::var(name).map_err(|_| format!("the environment has no variable {name}"))
            }
        }
    }
}

/// What is secret is not shown, wherever a configuration is printed.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Value(_) => f.write_str("…"),
            Secret::File(file) => write!(f, "in {}", file.display()),
            Secret::Env(name) => write!(f, "in ${name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "hidden\n").unwrap();
        let all = [Secret::Value("hidden".into()), Secret::File(file)];
        for secret in all {
            assert_eq!(secret.read().unwrap(), "hidden");
            assert!(!format!("{secret:?}").contains("hidden"));
        }
        assert!(Secret::Env("PROFILER_NO_SUCH_VARIABLE".into()).read().is_err());
        assert_eq!(Secret::Env("PATH".into()).read().unwrap(), std::env::var("PATH").unwrap());
        let (text, path) = ("x".to_owned(), PathBuf::from("x"));
        assert!(Secret::of(Some(&text), Some(&path), None).is_err(), "one place, not two");
    }
}
