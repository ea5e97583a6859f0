//! What has happened, and who is told of it. Each event has an id; who comes back with the last one that it got is given what
//! it missed, as far as it is still known.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::broadcast;

/// Events that are remembered, and bytes of them.
const REMEMBERED: usize = 1024;
const REMEMBERED_BYTES: usize = 4 << 20;

/// Every kind of event.
pub const TOPICS: [&str; 6] =
    ["metrics.update", "alert.new", "alert.critical", "alert.resolved", "capture.done", "reset"];

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id: of this start, and a number that grows.
    pub id: String,
    /// One of [`TOPICS`].
    pub topic: &'static str,
    /// JSON.
    pub data: String,
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
    bytes: usize,
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
        past.bytes += event.data.len();
        past.events.push_back(Arc::clone(&event));
        while past.events.len() > REMEMBERED || past.bytes > REMEMBERED_BYTES {
            let Some(oldest) = past.events.pop_front() else { break };
            past.bytes -= oldest.data.len();
        }
        // Nobody may be listening. Sent under the lock, so that nobody gets an event twice or not at all.
        let _ = self.live.send(event);
    }

    /// Those who listen.
    pub fn listeners(&self) -> usize {
        self.live.receiver_count()
    }

    /// What came after an event, and then what comes. `None` if what came after it is not known any more.
    pub fn since(
        &self,
        last: Option<&str>,
    ) -> (Option<VecDeque<Arc<Event>>>, broadcast::Receiver<Arc<Event>>) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

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
        let large = "x".repeat(REMEMBERED_BYTES / 8);
        (2000..2020).for_each(|_| events.publish("metrics.update", &json!(large)));
        assert_eq!(missed(&events, &id(2011)), None, "too much came since");
        assert_eq!(missed(&events, &id(2013)).unwrap().len(), 6);
        events.publish("metrics.update", &json!("x".repeat(2 * REMEMBERED_BYTES)));
        assert_eq!(missed(&events, &id(2020)).unwrap().len(), 0, "more than there is room for");
    }
}
