//! What happens, as it happens: server-sent events. Each has an id; who comes back with the last one that it got is given
//! what it missed, as far as it is still known, and is told if something is missing.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event as Sent, KeepAlive},
    },
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{answer::error, shared::Shared};

/// Events that are remembered.
const REMEMBERED: usize = 1024;
/// Those who may listen at the same time.
const MAX_LISTENERS: usize = 64;

/// Every kind of event.
pub const TOPICS: [&str; 6] =
    ["metrics.update", "alert.new", "alert.critical", "alert.resolved", "capture.done", "reset"];

/// Something that happened.
#[derive(Clone, Debug)]
struct Event {
    id: String,
    topic: &'static str,
    data: String,
}

/// What has happened, and who is told of what does.
pub struct Events {
    /// Ids of another start say nothing of this one.
    start: i64,
    past: Mutex<Past>,
    live: broadcast::Sender<Arc<Event>>,
}

#[derive(Default)]
struct Past {
    next: u64,
    events: VecDeque<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Events {
        let start = crate::process::clock::unix_ms();
        Events { start, past: Mutex::default(), live: broadcast::channel(256).0 }
    }
}

impl Events {
    /// Tells of something.
    pub fn publish(&self, topic: &'static str, data: &Value) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let id = format!("{}-{}", self.start, past.next);
        past.next += 1;
        let event = Arc::new(Event { id, topic, data: data.to_string() });
        past.events.push_back(Arc::clone(&event));
        if past.events.len() > REMEMBERED {
            past.events.pop_front();
        }
        // Nobody may be listening. Sent under the lock, so that nobody gets an event twice or not at all.
        let _ = self.live.send(event);
    }

    /// What came after an event, and then what comes. `None` if what came after it is not known any more.
    fn since(&self, last: Option<&str>) -> (Option<VecDeque<Arc<Event>>>, broadcast::Receiver<Arc<Event>>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let Some(last) = last else { return (Some(VecDeque::new()), live) };
        let number =
            last.strip_prefix(&format!("{}-", self.start)).and_then(|number| number.parse::<u64>().ok());
        let first = past.next - past.events.len() as u64;
        let missed = number.filter(|number| *number < past.next && number + 1 >= first);
        let missed = missed.map(|number| {
            let known = past.events.iter().skip((number + 1 - first) as usize);
            known.cloned().collect()
        });
        (missed, live)
    }
}

/// What is asked for.
#[derive(Deserialize)]
pub struct Asked {
    topics: Option<String>,
}

/// Events from now on, or from the last that came.
pub async fn events(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let topics: Option<Vec<String>> =
        asked.topics.map(|topics| topics.split(',').map(|topic| topic.trim().to_owned()).collect());
    let known = |asked: &String| TOPICS.iter().any(|topic| fits(asked, topic));
    if !topics.iter().flatten().all(known) {
        let message = format!("topics are {}, or the beginning of one", TOPICS.join(", "));
        return error(StatusCode::BAD_REQUEST, "topics", &message);
    }
    if shared.events.live.receiver_count() >= MAX_LISTENERS {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too_many", "too many are listening already");
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let (missed, live) = shared.events.since(last);
    let is_gap = missed.is_none();
    let listening = (missed.unwrap_or_default(), live, topics, is_gap);
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
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
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

    fn missed(events: &Events, last: &str) -> Option<Vec<String>> {
        events.since(Some(last)).0.map(|all| all.iter().map(|event| event.data.clone()).collect())
    }

    #[test]
    fn who_comes_back_gets_what_it_missed_or_is_told_so() {
        let events = Events::default();
        (0..5).for_each(|i| events.publish("metrics.update", &json!(i)));
        let id = |n: u64| format!("{}-{n}", events.start);
        assert_eq!(missed(&events, &id(2)).unwrap(), ["3", "4"]);
        assert_eq!(missed(&events, &id(4)).unwrap(), [""; 0]);
        assert_eq!(missed(&events, &id(5)), None, "that was never sent");
        assert_eq!(missed(&events, "1-2"), None, "of another start");
        assert_eq!(missed(&events, "nonsense"), None);
        (5..2000).for_each(|i| events.publish("metrics.update", &json!(i)));
        assert_eq!(missed(&events, &id(2)), None, "too long ago");
        assert_eq!(missed(&events, &id(975)).unwrap().len(), 1024);
    }

    #[test]
    fn topics_are_names_or_their_beginning() {
        assert!(fits("alert", "alert.new") && fits("alert.new", "alert.new"));
        assert!(!fits("al", "alert.new") && !fits("", "alert.new") && !fits("alert.new", "alert"));
    }
}
