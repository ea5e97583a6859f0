//! Who is told: what the file may say of a receiver, and what it means.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{secret::Secret, units::maybe_duration};

/// Somebody to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// Name in rules and messages.
    pub name: String,
    /// How.
    pub kind: ReceiverKind,
}

/// Ways to tell somebody.
#[derive(Clone, Debug, PartialEq)]
pub enum ReceiverKind {
    /// A Slack incoming webhook.
    Slack {
        /// Its address.
        url: Secret,
    },
    /// Any HTTP server: the alert as JSON, signed if there is a secret.
    Webhook {
        /// Its address.
        url: Secret,
        /// The key of the signature (HMAC-SHA256 of the body, in the header X-Profiler-Signature).
        secret: Option<Secret>,
    },
    /// Prometheus' Alertmanager, API v2.
    Alertmanager {
        /// Its address, without path.
        url: Secret,
    },
    /// E-mail over SMTP.
    Email(Email),
    /// A file to which each alert is added as a line of JSON.
    File {
        /// The file.
        path: PathBuf,
    },
    /// A command that gets the alert as JSON on its standard input.
    Command {
        /// The command and its arguments; no shell.
        command: Vec<String>,
    },
    /// The daemon's own standard error.
    Stderr,
    /// No alerts, but a sign of life: an address that is asked as long as windows end. Who misses it knows that nobody
    /// watches.
    Heartbeat {
        /// The address.
        url: Secret,
        /// How often.
        every: Duration,
    },
}

/// A mail server and who writes to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Email {
    /// Host of the server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted.
    pub security: Security,
    /// Certificates (PEM) that are trusted besides those of the system's list.
    pub ca_file: Option<PathBuf>,
    /// Who writes.
    pub from: String,
    /// To whom.
    pub to: Vec<String>,
    /// Name and password for the server.
    pub login: Option<(String, Secret)>,
}

/// How a connection to a mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// From the command STARTTLS on; without it nothing is sent.
    Starttls,
    /// From the beginning.
    Tls,
    /// Not at all.
    None,
}

/// What the file says of a receiver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverConfig {
    #[serde(default)]
    pub name: String,
    #[serde(rename = "type")]
    kind: ReceiverType,
    url: Option<String>,
    url_file: Option<PathBuf>,
    url_env: Option<String>,
    secret_file: Option<PathBuf>,
    secret_env: Option<String>,
    path: Option<PathBuf>,
    command: Option<Vec<String>>,
    server: Option<String>,
    security: Option<Security>,
    ca_file: Option<PathBuf>,
    from: Option<String>,
    to: Option<Vec<String>>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    #[serde(default, deserialize_with = "maybe_duration")]
    every: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReceiverType {
    Slack,
    Webhook,
    Alertmanager,
    Email,
    File,
    Command,
    Stderr,
    Heartbeat,
}

impl ReceiverType {
    /// The fields that it may have.
    fn takes(self) -> &'static [&'static str] {
        match self {
            ReceiverType::Slack | ReceiverType::Alertmanager => &["url", "url_file", "url_env"],
            ReceiverType::Webhook => &["url", "url_file", "url_env", "secret_file", "secret_env"],
            ReceiverType::Email => {
                &["server", "security", "ca_file", "from", "to", "user", "password_file", "password_env"]
            }
            ReceiverType::File => &["path"],
            ReceiverType::Command => &["command"],
            ReceiverType::Stderr => &[],
            ReceiverType::Heartbeat => &["url", "url_file", "url_env", "every"],
        }
    }
}

impl ReceiverConfig {
    /// What it means.
    pub fn receiver(&self) -> Result<Receiver, String> {
        let name = &self.name;
        let given = [
            ("url", self.url.is_some()),
            ("url_file", self.url_file.is_some()),
            ("url_env", self.url_env.is_some()),
            ("secret_file", self.secret_file.is_some()),
            ("secret_env", self.secret_env.is_some()),
            ("path", self.path.is_some()),
            ("command", self.command.is_some()),
            ("server", self.server.is_some()),
            ("security", self.security.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("from", self.from.is_some()),
            ("to", self.to.is_some()),
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
            ("password_env", self.password_env.is_some()),
            ("every", self.every.is_some()),
        ];
        let takes = self.kind.takes();
        if let Some((stray, _)) = given.iter().find(|(field, given)| *given && !takes.contains(field)) {
            return Err(format!("receiver `{name}`: its type has no {stray}"));
        }
        let needs = |field: &str| format!("receiver `{name}` needs {field}");
        let url = || {
            Secret::of(self.url.as_ref(), self.url_file.as_ref(), self.url_env.as_ref())
                .ok()
                .flatten()
                .ok_or_else(|| needs("one of url, url_file and url_env"))
        };
        let kind = match self.kind {
            ReceiverType::Slack => ReceiverKind::Slack { url: url()? },
            ReceiverType::Webhook => ReceiverKind::Webhook {
                url: url()?,
                secret: Secret::of(None, self.secret_file.as_ref(), self.secret_env.as_ref())
                    .map_err(|()| needs("either secret_file or secret_env"))?,
            },
            ReceiverType::Alertmanager => ReceiverKind::Alertmanager { url: url()? },
            ReceiverType::Email => ReceiverKind::Email(self.email()?),
            ReceiverType::File => {
                ReceiverKind::File { path: self.path.clone().ok_or_else(|| needs("a path"))? }
            }
            ReceiverType::Command => {
                let command = self.command.clone().filter(|command| !command.is_empty());
                ReceiverKind::Command { command: command.ok_or_else(|| needs("a command"))? }
            }
            ReceiverType::Stderr => ReceiverKind::Stderr,
            ReceiverType::Heartbeat => {
                ReceiverKind::Heartbeat { url: url()?, every: self.every.unwrap_or(Duration::from_secs(60)) }
            }
        };
        Ok(Receiver { name: name.clone(), kind })
    }

    fn email(&self) -> Result<Email, String> {
        let name = &self.name;
        let needs = |field: &str| format!("receiver `{name}` needs {field}");
        let security = self.security.unwrap_or(Security::Starttls);
        let server = self.server.clone().ok_or_else(|| needs("a server"))?;
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().map_err(|_| format!("receiver `{name}`: `{port}` is no port"))?;
                (host.to_owned(), port)
            }
            None => {
                let port = match security {
                    Security::Starttls => 587,
                    Security::Tls => 465,
                    Security::None => 25,
                };
                (server, port)
            }
        };
        let address = |text: &String| {
            text.parse::<lettre::message::Mailbox>()
                .map(|_| text.clone())
                .map_err(|_| format!("receiver `{name}`: `{text}` is no address"))
        };
        let to: Vec<String> = self.to.iter().flatten().map(address).collect::<Result<_, _>>()?;
        if to.is_empty() {
            return Err(needs("to: a list of addresses"));
        }
        let password = Secret::of(None, self.password_file.as_ref(), self.password_env.as_ref());
        let login = match (&self.user, password) {
            (None, Ok(None)) => None,
            (Some(user), Ok(Some(password))) => Some((user.clone(), password)),
            _ => return Err(needs("user and either password_file or password_env, or none of them")),
        };
        if login.is_some() && security == Security::None {
            return Err(format!("receiver `{name}`: a password needs a connection that is encrypted"));
        }
        Ok(Email {
            host,
            port,
            security,
            ca_file: self.ca_file.clone(),
            from: address(self.from.as_ref().ok_or_else(|| needs("from: an address"))?)?,
            to,
            login,
        })
    }
}
