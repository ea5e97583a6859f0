//! Sends a message once, in the way of each kind of receiver.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;

use super::smtp;
use crate::daemon::{client, config::ReceiverKind, message::Message};

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The receiver does not want this message, however often it is sent.
#[derive(Debug, thiserror::Error)]
#[error("it refused the message with {0}")]
pub struct Refused(pub u16);

/// Sends a message once. What it says of an error holds no secret: addresses can be some.
/// Those that take several at once get all of them, the others one.
pub fn send(kind: &ReceiverKind, messages: &[Message]) -> Result<()> {
    let Some(message) = messages.first() else { return Ok(()) };
    match kind {
        ReceiverKind::Slack { url } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            post(&url, &json!({ "text": slack_text(message) }).to_string(), &[])
        }
        ReceiverKind::Webhook { url, secret } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            let body = serde_json::to_string(message)?;
            let mut headers = vec![("X-Profiler-Message", message.message.clone())];
            if let Some(secret) = secret {
                let key = secret.read().map_err(anyhow::Error::msg)?;
                headers.push(("X-Profiler-Signature", format!("sha256={}", sign(key.as_bytes(), &body)?)));
            }
            post(&url, &body, &headers)
        }
        ReceiverKind::Alertmanager { url } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            let url = format!("{}/api/v2/alerts", url.trim_end_matches('/'));
            post(&url, &alertmanager(messages).to_string(), &[])
        }
        ReceiverKind::Email(email) => smtp::send(email, message, TIMEOUT),
        ReceiverKind::File { path } => {
            let mut lines = String::new();
            for message in messages {
                lines.push_str(&serde_json::to_string(message)?);
                lines.push('\n');
            }
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(lines.as_bytes())?;
            Ok(file.sync_data()?)
        }
        ReceiverKind::Command { command } => run(command, &serde_json::to_string(message)?),
        ReceiverKind::Stderr => {
            crate::say!("profiler: {}", message.text().replace('\n', "\nprofiler:   "));
            Ok(())
        }
        ReceiverKind::Heartbeat { url, .. } => {
            let url = url.read().map_err(anyhow::Error::msg)?;
            post(&url, &json!({ "host": message.host, "unix_ms": message.unix_ms }).to_string(), &[])
        }
    }
}

/// HMAC-SHA256 of a body, in hexadecimal.
fn sign(key: &[u8], body: &str) -> Result<String> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).map_err(|_| anyhow::anyhow!("the key cannot be used"))?;
    mac.update(body.as_bytes());
    Ok(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn post(url: &str, body: &str, headers: &[(&str, String)]) -> Result<()> {
    let mut all = vec![("Content-Type", "application/json")];
    all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
    match client::post(url, &all, body.as_bytes(), TIMEOUT)?.0 {
        200..300 => Ok(()),
        status @ (400 | 413 | 422) => Err(Refused(status).into()),
        status => bail!("it answered {status}"),
    }
}

/// Slack's own characters are written so that names of the target cannot become links or mentions.
fn slack_text(message: &Message) -> String {
    message.text().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Alerts in Alertmanager's form. One that fires ends by itself unless it is sent again in time.
fn alertmanager(messages: &[Message]) -> serde_json::Value {
    let stamp = |unix_ms: i64| {
        let at = std::time::UNIX_EPOCH + Duration::from_millis(unix_ms.max(0) as u64);
        humantime::format_rfc3339_millis(at).to_string()
    };
    let alert = |message: &Message, severity: &str, ended: Option<i64>| {
        let mut alert = json!({
            "labels": {
                "alertname": message.rule, "target": message.target, "severity": severity, "host": message.host,
            },
            "annotations": {
                "summary": message.title(), "description": message.text(), "id": message.alert,
            },
            "startsAt": stamp(message.started_unix_ms),
        });
        if let Some(ended) = ended {
            alert["endsAt"] = json!(stamp(ended));
        }
        alert
    };
    let mut alerts = Vec::new();
    for message in messages {
        let ended = (message.change == "resolved").then_some(message.unix_ms);
        alerts.push(alert(message, &message.severity, ended));
        if message.change == "escalated" {
            // By its labels it is another alert there: the one that it was before is over.
            alerts.push(alert(message, "warning", Some(message.unix_ms)));
        }
    }
    serde_json::Value::Array(alerts)
}

/// Runs a command with the message on its standard input; it must end in time, and well.
fn run(command: &[String], input: &str) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { bail!("the command is empty") };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    // One that does not read is not waited for: small messages fit the pipe, and a broken pipe is no failure by itself.
    let mut stdin = child.stdin.take();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(input.as_bytes())));
    let end = Instant::now() + 3 * TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("{program} did not end within {} s", 3 * TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = writer.join();
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _},
        net::TcpListener,
    };

    use std::thread::JoinHandle;

    use super::*;
    use crate::daemon::{config::Secret, message::fixtures::message};

    /// Answers requests with these status codes, and gives what was asked: headers in lower case, and body.
    pub fn server(answers: Vec<u16>) -> (String, JoinHandle<Vec<(String, String)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let each = answers.into_iter().map(|status| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    head += &line.to_lowercase();
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                let mut body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .unwrap();
                (head, crate::text::to_parse(&body).into_owned())
            });
            each.collect()
        });
        (url, thread)
    }

    #[test]
    fn a_webhook_gets_json_that_it_can_verify() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "secret\n").unwrap();
        let (url, server) = server(vec![204]);
        send(
            &ReceiverKind::Webhook { url: Secret::Value(url), secret: Some(Secret::File(key)) },
            &[message()],
        )
        .unwrap();
        let (head, body) = server.join().unwrap().remove(0);
        assert_eq!(serde_json::from_str::<Message>(&body).unwrap(), message());
        assert!(
            head.contains(&format!("x-profiler-signature: sha256={}", sign(b"secret", &body).unwrap())),
            "{head}"
        );
        // RFC 4231, test case 2.
        assert_eq!(
            sign(b"Jefe", "what do ya want for nothing?").unwrap(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn slack_gets_text_in_which_names_are_no_markup() {
        let (url, server) = server(vec![200]);
        send(&ReceiverKind::Slack { url: Secret::Value(url) }, &[message()]).unwrap();
        let (_, body) = server.join().unwrap().remove(0);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["text"], slack_text(&message()));
        let text = slack_text(&Message { target: "<!channel> & co".into(), ..message() });
        assert!(text.contains("&lt;!channel&gt; &amp; co") && !text.contains('<'), "{text}");
    }

    #[test]
    fn alertmanager_gets_the_same_labels_at_both_ends() {
        let fired = alertmanager(&[message()]);
        let over = alertmanager(&[Message { change: "resolved".into(), ..message() }]);
        assert_eq!(fired[0]["labels"], over[0]["labels"]);
        assert_eq!(fired[0]["startsAt"], "2023-11-14T22:13:20.000Z");
        assert!(fired[0]["endsAt"].is_null() && over[0]["endsAt"].is_string());
        let worse = alertmanager(&[Message { change: "escalated".into(), ..message() }]);
        assert_eq!(
            (&worse[0]["labels"]["severity"], &worse[1]["labels"]["severity"]),
            (&"critical".into(), &"warning".into())
        );
        assert!(worse[0]["endsAt"].is_null() && worse[1]["endsAt"].is_string());
    }

    #[test]
    fn a_command_gets_the_message_and_must_end_well() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out").display().to_string();
        let shell = |script: String| vec!["sh".to_owned(), "-c".to_owned(), script];
        send(&ReceiverKind::Command { command: shell(format!("cat > {out}")) }, &[message()]).unwrap();
        assert_eq!(serde_json::from_slice::<Message>(&std::fs::read(&out).unwrap()).unwrap(), message());
        assert!(send(&ReceiverKind::Command { command: shell("exit 3".into()) }, &[message()]).is_err());
        assert!(send(&ReceiverKind::Command { command: vec![] }, &[message()]).is_err());
    }

    #[test]
    fn a_file_gets_a_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alerts.jsonl");
        for _ in 0..2 {
            send(&ReceiverKind::File { path: path.clone() }, &[message(), message()]).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    #[test]
    fn an_error_does_not_show_the_address() {
        let url = "http://127.0.0.1:1/T0/B0/secret-token".to_owned();
        let kind = ReceiverKind::Webhook { url: Secret::Value(url), secret: None };
        let error = send(&kind, &[message()]).unwrap_err();
        assert!(!format!("{error:#}").contains("secret"), "{error:#}");
    }
}
