//! Pyroscope's `/ingest`: a pprof profile as a form, with name and times in the query.

use anyhow::{Context as _, Result};

use super::window::Window;
use crate::output::{RenderOptions, pprof};

/// What parts of the form are divided by: nothing that is compressed holds it by chance.
const BOUNDARY: &str = "profiler-5f1c0f7e9a3b4d8c";

/// A window of a target: the query in the first line, then the profile.
pub fn request(window: &Window<'_>) -> Result<Vec<u8>> {
    let profile = window.profile;
    let from_s = profile.meta.start_unix_ns / 1_000_000_000;
    let until_s = from_s + (profile.accounts.duration_ns / 1_000_000_000).max(1);
    let name = format!("{}{{host={}}}", label(window.target), label(&profile.meta.host));
    let mut body =
        format!("name={}&from={from_s}&until={until_s}&format=pprof&spyName=ebpfspy\n", encoded(&name))
            .into_bytes();
    pprof::write(profile, &RenderOptions::default(), &mut body)?;
    Ok(body)
}

/// Address, type and body of what [`request`] wrote.
pub fn parts(base: &str, request: &[u8]) -> Result<(String, String, Vec<u8>)> {
    let end =
        request.iter().position(|&byte| byte == b'\n').context("the profile in the queue is damaged")?;
    let query = std::str::from_utf8(&request[..end]).context("the profile in the queue is damaged")?;
    let head = "Content-Disposition: form-data; name=\"profile\"; filename=\"profile.pprof\"\r\n\
                Content-Type: application/octet-stream";
    let mut form = format!("--{BOUNDARY}\r\n{head}\r\n\r\n").into_bytes();
    form.extend_from_slice(&request[end + 1..]);
    form.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    Ok((format!("{base}/ingest?{query}"), format!("multipart/form-data; boundary={BOUNDARY}"), form))
}

/// A name without what means something in a list of labels.
fn label(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() || "-_./".contains(c) { c } else { '_' }).collect()
}

/// A text as it stands in a query.
fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (byte as char).to_string(),
        _ => format!("%{byte:02X}"),
    });
    each.collect()
}
