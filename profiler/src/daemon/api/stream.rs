//! What happens, as it happens: server-sent events, that go on where a listener was cut off. If something is missing, that is
//! said.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event as Sent, KeepAlive},
    },
};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::{answer::error, events::TOPICS, shared::Shared, token::Caller};
use crate::process::clock;

/// Those who may listen at the same time.
const MAX_LISTENERS: usize = 64;

/// What is asked for.
#[derive(Deserialize)]
pub struct Asked {
    topics: Option<String>,
}

/// Events from now on, or from the last that came.
pub async fn events(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<Asked>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Response {
    let topics: Option<Vec<String>> =
        asked.topics.map(|topics| topics.split(',').map(|topic| topic.trim().to_owned()).collect());
    let known = |asked: &String| TOPICS.iter().any(|topic| fits(asked, topic));
    if !topics.iter().flatten().all(known) {
        let message = format!("topics are {}, or the beginning of one", TOPICS.join(", "));
        return error(StatusCode::BAD_REQUEST, "topics", &message);
    }
    if shared.events.listeners() >= MAX_LISTENERS {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too_many", "too many are listening already");
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let (missed, live) = shared.events.since(last);
    let is_gap = missed.is_none();
    let listening = (missed.unwrap_or_default(), live, topics, is_gap);
    // Who was let in for a time listens no longer.
    let until = caller.and_then(|Extension(caller)| caller.until_unix_s);
    let left =
        until.map(|until| Duration::from_secs(until.saturating_sub(clock::unix_ms().max(0) as u64 / 1000)));
    let end = async move {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    };
    let stream = stream::unfold(listening, async |(mut missed, mut live, topics, is_gap)| {
        if is_gap {
            return Some((Ok::<Sent, Infallible>(reset()), (missed, live, topics, false)));
        }
        loop {
            let event = match missed.pop_front() {
                Some(event) => event,
                None => match live.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => return Some((Ok(reset()), (missed, live, topics, false))),
                    Err(RecvError::Closed) => return None,
                },
            };
            let wanted =
                topics.as_ref().is_none_or(|topics| topics.iter().any(|asked| fits(asked, event.topic)));
            if wanted {
                let sent = Sent::default().id(&event.id).event(event.topic).data(&event.data);
                return Some((Ok(sent), (missed, live, topics, false)));
            }
        }
    });
    Sse::new(stream.take_until(Box::pin(end))).keep_alive(KeepAlive::default()).into_response()
}

/// Whether a topic is asked for: by name, or by what it begins with.
fn fits(asked: &str, topic: &str) -> bool {
    topic == asked || topic.strip_prefix(asked).is_some_and(|rest| rest.starts_with('.'))
}

/// Says that events are missing: whoever keeps a state reads it anew.
fn reset() -> Sent {
    Sent::default()
        .event("reset")
        .data(json!({ "reason": "events are missing: read the state anew" }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_names_or_their_beginning() {
        assert!(fits("alert", "alert.new") && fits("alert.new", "alert.new"));
        assert!(!fits("al", "alert.new") && !fits("", "alert.new") && !fits("alert.new", "alert"));
    }
}
