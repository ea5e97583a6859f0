//! When an alert begins, gets worse and ends: a pure state machine. Time and values are arguments, so that a rule can be
//! tried on any series. Nothing here sends or stores.
//!
//! A rule and a target have one [`State`]. Each window [`step`] is told the rule's value and answers with at most one
//! [`Transition`]:
//!
//! ```text
//! ok -> pending -> firing (warning | critical) -> clearing -> ok
//! ```

mod baseline;
mod forecast;
mod rule;

use std::time::Duration;

pub use baseline::times_as_high;
pub use forecast::{Forecast, Recent};
pub use rule::{BUILT_IN, NoData, Op, Rule};

use crate::model::finding::Severity;

/// What is known of a rule and a target at the end of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// The rule's value, in the unit of its metric.
    Value(f64),
    /// How bad a finding of the rule is; `None` if nothing was found.
    Found(Option<Severity>),
    /// The value is not known in this window.
    Nothing,
    /// Nothing is known: the window failed.
    Unseen,
    /// The target has ended and none of its processes is left.
    Gone,
}

/// Where a rule stands for a target. Times are those of the caller's clock, which must not go back and must not stand
/// still during the time that counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Since when the value is at least as bad as a warning, without a break.
    warning_since: Option<Duration>,
    /// Since when it is critical, without a break.
    critical_since: Option<Duration>,
    /// Since when it is good enough to end the alert, without a break.
    clear_since: Option<Duration>,
    /// The alert, while it fires.
    firing: Option<Firing>,
    /// No new alert before this time.
    quiet_until: Duration,
}

/// An alert that fires.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Firing {
    /// When it began to fire.
    pub since: Duration,
    /// How bad it is; it gets worse and never better.
    pub severity: Severity,
}

/// The name of where a rule stands, as the API gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is wrong.
    Ok,
    /// Something is wrong, for too short a time to say so.
    Pending,
    /// The alert fires.
    Firing,
    /// The alert fires, and its reason has gone for too short a time to end it.
    Clearing,
}

impl Phase {
    /// Name in machine-readable output.
    pub fn id(self) -> &'static str {
        match self {
            Phase::Ok => "ok",
            Phase::Pending => "pending",
            Phase::Firing => "firing",
            Phase::Clearing => "clearing",
        }
    }
}

/// A change that somebody should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Something went wrong just now: what came before is worth keeping.
    Pending(Severity),
    /// It was over before it lasted as long as the rule's `for`.
    Dropped,
    /// The alert begins.
    Fired(Severity),
    /// The alert has become critical.
    Escalated,
    /// The alert is over, and why.
    Resolved(Resolution),
}

/// Why an alert is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The value is good again.
    Cleared,
    /// The target is gone.
    TargetGone,
    /// The value is not known any more, and the rule says that this ends the alert.
    NoData,
}

impl Resolution {
    /// Words for a message.
    pub fn words(self) -> &'static str {
        match self {
            Resolution::Cleared => "the value is good again",
            Resolution::TargetGone => "the target has ended",
            Resolution::NoData => "nothing has been measured any more",
        }
    }
}

impl State {
    /// Where the rule stands.
    pub fn phase(&self) -> Phase {
        match (self.firing, self.clear_since, self.warning_since) {
            (Some(_), Some(_), _) => Phase::Clearing,
            (Some(_), None, _) => Phase::Firing,
            (None, _, Some(_)) => Phase::Pending,
            (None, _, None) => Phase::Ok,
        }
    }

    /// The alert, if it fires.
    pub fn firing(&self) -> Option<Firing> {
        self.firing
    }

    /// A state that was stored: an alert goes on to fire, everything else is found out anew.
    pub fn restored(firing: Option<Firing>) -> State {
        State { firing, ..State::default() }
    }
}

/// What surrounds a reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// Now.
    pub now: Duration,
    /// How long the target has lived: rules wait for their `warmup` after each start.
    pub target_age: Duration,
    /// An alert of a rule that explains this one fires for the same target.
    pub inhibited: bool,
}

/// Moves `state` on to the end of a window, and says what has changed.
pub fn step(rule: &Rule, state: &mut State, reading: Reading, moment: Moment) -> Option<Transition> {
    let (severity, is_clear) = match reading {
        Reading::Value(value) => (rule.severity(value), rule.is_clear(value)),
        Reading::Found(found) => (found, found.is_none()),
        Reading::Gone => return resolve(rule, state, Resolution::TargetGone, moment.now),
        Reading::Nothing | Reading::Unseen => match rule.no_data {
            NoData::Alert => (Some(Severity::Warning), false),
            // Without a window it is not known either that there is nothing to measure.
            NoData::Resolve if reading == Reading::Nothing => {
                return resolve(rule, state, Resolution::NoData, moment.now);
            }
            // What is not known neither makes it worse nor better, and its time does not count.
            NoData::Keep | NoData::Resolve => return None,
        },
    };
    let now = moment.now;
    let since = |before: Option<Duration>, holds: bool| holds.then(|| before.unwrap_or(now));
    let was_pending = state.phase() == Phase::Pending;
    let warm = moment.target_age >= rule.warmup;
    state.warning_since = since(state.warning_since, severity.is_some() && warm);
    state.critical_since = since(state.critical_since, severity == Some(Severity::Critical) && warm);
    state.clear_since = since(state.clear_since, is_clear && state.firing.is_some());
    let lasted = |since: Option<Duration>| since.is_some_and(|since| now.saturating_sub(since) >= rule.hold);
    match &mut state.firing {
        Some(firing) => {
            if lasted(state.critical_since) && firing.severity < Severity::Critical {
                firing.severity = Severity::Critical;
                return Some(Transition::Escalated);
            }
            let cleared = state.clear_since.is_some_and(|since| now - since >= rule.keep_firing);
            if cleared { resolve(rule, state, Resolution::Cleared, now) } else { None }
        }
        None => {
            let severity = match (lasted(state.critical_since), lasted(state.warning_since)) {
                (true, _) => Some(Severity::Critical),
                (false, true) => Some(Severity::Warning),
                (false, false) => None,
            };
            if let Some(severity) = severity.filter(|_| !moment.inhibited && now >= state.quiet_until) {
                state.firing = Some(Firing { since: now, severity });
                state.clear_since = None;
                return Some(Transition::Fired(severity));
            }
            match (was_pending, state.warning_since) {
                (false, Some(_)) => Some(Transition::Pending(match state.critical_since {
                    Some(_) => Severity::Critical,
                    None => Severity::Warning,
                })),
                (true, None) => Some(Transition::Dropped),
                _ => None,
            }
        }
    }
}

fn resolve(rule: &Rule, state: &mut State, why: Resolution, now: Duration) -> Option<Transition> {
    let (fired, was_pending) = (state.firing.is_some(), state.warning_since.is_some());
    let quiet_until = if fired { now + rule.cooldown } else { state.quiet_until };
    *state = State { quiet_until, ..State::default() };
    match (fired, was_pending) {
        (true, _) => Some(Transition::Resolved(why)),
        (false, true) => Some(Transition::Dropped),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests;
