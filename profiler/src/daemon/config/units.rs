//! Numbers that are written with their unit.

use std::time::Duration;

use serde::Deserialize as _;

use crate::metrics::Unit;

/// A threshold in the unit of its metric: a number, or a text with a unit.
pub fn number(value: &toml::Value, unit: Unit) -> Result<f64, String> {
    let number = match value {
        toml::Value::Integer(number) => Ok(*number as f64),
        toml::Value::Float(number) => Ok(*number),
        toml::Value::String(text) => unit.parse(text),
        other => Err(format!("a {} is no threshold", other.type_str())),
    }?;
    if number.is_finite() { Ok(number) } else { Err("a threshold must be a finite number".to_owned()) }
}

/// A length of time, like `30s`.
pub fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}; write it like 30s or 5m")))
}

/// The same where it may be left out.
pub fn maybe_duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A size, like `500MB`.
pub fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size::parse_size(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}; write it like 500MB or 2GiB")))
}
