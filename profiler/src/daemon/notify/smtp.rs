//! E-mail: one message, one connection.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lettre::{
    Transport as _,
    message::header::ContentType,
    transport::smtp::{
        SmtpTransport,
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use crate::daemon::{
    config::{Email, Security},
    message::Message,
};

/// Sends a message to all its readers. What it says of an error holds no password.
pub fn send(to: &Email, message: &Message, timeout: Duration) -> Result<()> {
    let mail = mail(to, message)?;
    let tls = match to.security {
        Security::None => Tls::None,
        Security::Starttls => Tls::Required(parameters(to)?),
        Security::Tls => Tls::Wrapper(parameters(to)?),
    };
    let mut transport =
        SmtpTransport::builder_dangerous(&to.host).port(to.port).tls(tls).timeout(Some(timeout));
    if let Some((user, password)) = &to.login {
        let password = password.read().map_err(anyhow::Error::msg)?;
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    // The server's own words may repeat what was said to it.
    transport.build().send(&mail).map(drop).map_err(|error| match error.status() {
        Some(code) => anyhow::anyhow!("the mail server answered {code}"),
        None if error.is_timeout() => anyhow::anyhow!("no answer within {} s", timeout.as_secs()),
        // Of a connection, or of a certificate: nothing of what was said on it.
        None => match std::error::Error::source(&error) {
            Some(why) => anyhow::anyhow!("no connection to the mail server: {why}"),
            None => anyhow::anyhow!("no connection to the mail server"),
        },
    })
}

fn parameters(to: &Email) -> Result<TlsParameters> {
    let mut parameters = TlsParameters::builder(to.host.clone());
    if let Some(file) = &to.ca_file {
        let pem = std::fs::read(file).with_context(|| file.display().to_string())?;
        let trusted =
            Certificate::from_pem(&pem).map_err(|_| anyhow::anyhow!("{}: no certificate", file.display()))?;
        parameters = parameters.add_root_certificate(trusted);
    }
    Ok(parameters.build()?)
}

/// The same message has the same Message-ID, so that a reader's program can tell that it has come twice.
fn mail(to: &Email, message: &Message) -> Result<lettre::Message> {
    let domain = to.from.rsplit_once('@').map_or("localhost", |(_, domain)| domain.trim_end_matches('>'));
    let mut mail = lettre::Message::builder()
        .from(to.from.parse()?)
        .subject(message.title())
        .message_id(Some(format!("<{}@{domain}>", message.message)))
        .header(ContentType::TEXT_PLAIN);
    for reader in &to.to {
        mail = mail.to(reader.parse()?);
    }
    Ok(mail.body(message.text())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::message::fixtures::message;

    /// A mail server for one connection: what it was told, encrypted from STARTTLS on, if it offers that.
    fn server(certificate: Option<(Vec<u8>, Vec<u8>)>) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        use std::io::{BufRead as _, BufReader, Read, Write};
        trait Stream: Read + Write {}
        impl<T: Read + Write> Stream for T {}
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let stream = listener.accept().unwrap().0;
            let mut told = Vec::new();
            let mut talk: BufReader<Box<dyn Stream>> = BufReader::new(Box::new(stream.try_clone().unwrap()));
            let (mut in_mail, mut encrypted) = (false, false);
            let _ = talk.get_mut().write_all(b"220 here\r\n");
            loop {
                let mut line = String::new();
                if talk.read_line(&mut line).unwrap_or(0) == 0 {
                    return told;
                }
                let line = line.trim_end().to_owned();
                told.push(format!("{}{line}", if encrypted { "tls: " } else { "" }));
                let answer = match line.split(' ').next().unwrap_or_default() {
                    "." => {
                        in_mail = false;
                        "250 taken"
                    }
                    _ if in_mail => continue,
                    "EHLO" if encrypted => "250-here\r\n250 AUTH PLAIN LOGIN",
                    "EHLO" if certificate.is_some() => "250-here\r\n250 STARTTLS",
                    "EHLO" => "250 here",
                    "STARTTLS" => "220 go on",
                    "AUTH" => "235 welcome",
                    "DATA" => {
                        in_mail = true;
                        "354 go on"
                    }
                    "QUIT" => "221 bye",
                    _ => "250 yes",
                };
                let _ = talk.get_mut().write_all(format!("{answer}\r\n").as_bytes());
                if line == "STARTTLS" {
                    let (cert, key) = certificate.clone().unwrap();
                    let config = rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(
                        rustls::crypto::ring::default_provider(),
                    ))
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_single_cert(vec![cert.into()], rustls::pki_types::PrivateKeyDer::Pkcs8(key.into()))
                    .unwrap();
                    let connection = rustls::ServerConnection::new(std::sync::Arc::new(config)).unwrap();
                    let stream = stream.try_clone().unwrap();
                    talk = BufReader::new(Box::new(rustls::StreamOwned::new(connection, stream)));
                    encrypted = true;
                }
            }
        });
        (port, thread)
    }

    fn reader(port: u16, dir: &std::path::Path) -> (Email, rcgen::CertifiedKey<rcgen::KeyPair>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (ca_file, password) = (dir.join("ca"), dir.join("password"));
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        std::fs::write(&password, "hidden\n").unwrap();
        let to = Email {
            host: "localhost".into(),
            port,
            security: Security::Starttls,
            ca_file: Some(ca_file),
            from: "Profiler <profiler@example.org>".into(),
            to: vec!["ops@example.org".into(), "dev@example.org".into()],
            login: Some(("profiler".into(), crate::daemon::config::Secret::File(password))),
        };
        (to, made)
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_mail_goes_to_all_readers_and_the_password_goes_encrypted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut to, made) = reader(0, dir.path());
        let (port, server) = server(Some((made.cert.der().to_vec(), made.signing_key.serialize_der())));
        to.port = port;
        send(&to, &message(), PATIENCE).unwrap();
        let told = server.join().unwrap();
        let starts = |what: &str| told.iter().filter(|line| line.starts_with(what)).count();
        assert_eq!((starts("tls: RCPT TO:"), starts("tls: AUTH"), starts("AUTH")), (2, 1, 0), "{told:?}");
        assert!(told.iter().any(|line| line == "tls: Message-ID: <a1-fired@example.org>"), "{told:?}");
        assert!(told.iter().any(|line| line.contains("renderReport")), "{told:?}");
    }

    #[test]
    fn without_encryption_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (mut to, _) = reader(0, dir.path());
        let (port, plain) = server(None);
        to.port = port;
        let error = send(&to, &message(), PATIENCE).unwrap_err();
        let told = plain.join().unwrap();
        assert!(!told.iter().any(|line| line.contains("MAIL") || line.contains("AUTH")), "{told:?}");
        assert!(!format!("{error:#}").contains("hidden"), "{error:#}");
        // A certificate that nobody trusts.
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (port, stranger) = server(Some((other.cert.der().to_vec(), other.signing_key.serialize_der())));
        to.port = port;
        let error = send(&to, &message(), PATIENCE).unwrap_err();
        assert!(format!("{error:#}").contains("certificate"), "{error:#}");
        assert!(!stranger.join().unwrap().iter().any(|line| line.starts_with("tls: EHLO")));
    }

    #[test]
    fn a_mail_is_the_message_and_names_cannot_add_headers() {
        let to = Email {
            host: "localhost".into(),
            port: 25,
            security: Security::None,
            ca_file: None,
            from: "Profiler <profiler@example.org>".into(),
            to: vec!["ops@example.org".into()],
            login: None,
        };
        let evil = Message { target: "api\r\nBcc: thief@example.org".into(), ..message() };
        let text = String::from_utf8(mail(&to, &evil).unwrap().formatted()).unwrap();
        let head = text.split("\r\n\r\n").next().unwrap();
        assert!(head.contains("Message-ID: <a1-fired@example.org>"), "{head}");
        assert!(!head.lines().any(|line| line.starts_with("Bcc")), "{head}");
        assert!(text.contains("renderReport"), "{text}");
    }
}
