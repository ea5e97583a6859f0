//! A change of an alert on its way to the store, which may have to wait.

use anyhow::Result;

use crate::{
    daemon::{
        message::Message,
        store::{Change, Store},
    },
    model::finding::Severity,
};

/// A change of an alert that is to be stored.
pub struct Unstored {
    /// What is said of it.
    pub message: Message,
    /// How bad it is.
    pub severity: Severity,
    /// Who gets the message.
    pub receivers: Vec<String>,
    /// Whether it was not silenced.
    pub told: bool,
}

impl Unstored {
    /// Stores it, and its message to each receiver: all or nothing.
    pub fn store(&self, store: &mut Store) -> Result<()> {
        store.record(&Change {
            alert: &self.message.alert,
            rule: &self.message.rule,
            target: &self.message.target,
            severity: self.severity,
            change: &self.message.change,
            unix_ms: self.message.unix_ms,
            body: &serde_json::to_string(&self.message)?,
            receivers: &self.receivers,
            told: self.told,
        })
    }
}
