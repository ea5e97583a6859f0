//! Asks others over HTTP.

use std::time::Duration;

use anyhow::Result;

/// Longest answer that is read, bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Posts a body once; status and body of the answer. What it says of an error holds no address: that can be a secret.
pub fn post(url: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Result<(u16, Vec<u8>)> {
    // Whoever was redirected would send a secret to somebody that nobody named.
    let config = ureq::Agent::config_builder().timeout_global(Some(timeout)).max_redirects(0);
    let agent: ureq::Agent = config.http_status_as_error(false).build().into();
    let mut request = agent.post(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let said = |error: ureq::Error| match error {
        ureq::Error::Timeout(_) => anyhow::anyhow!("no answer within {} s", timeout.as_secs()),
        ureq::Error::Io(error) => anyhow::anyhow!("{error}"),
        ureq::Error::HostNotFound => anyhow::anyhow!("the host is not known"),
        ureq::Error::ConnectionFailed => anyhow::anyhow!("no connection"),
        _ => anyhow::anyhow!("the request could not be made"),
    };
    let mut response = request.send(body).map_err(said)?;
    let answer = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(said)?;
    Ok((response.status().as_u16(), answer))
}
