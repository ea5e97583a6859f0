//! Numbers as people read them: three digits and a unit.

/// A share in percent; of nothing it is zero.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// A part of a whole in percent, however small.
pub fn share(part: u64, whole: u64) -> String {
    match percent(part, whole) {
        0.0 => "0 %".to_owned(),
        ..0.001 => "less than 0.001 %".to_owned(),
        share @ ..0.1 => format!("{share:.3} %"),
        share => format!("{share:.1} %"),
    }
}

/// How often something happens.
pub fn per_second(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { thousands(rate as u64) }
}

/// A number with separators.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An estimated number with two digits and separators.
pub fn rounded(number: f64) -> String {
    let number = number.max(0.0);
    let step = 10f64.powi((number.max(1.0).log10().floor() as i32 - 1).max(0));
    thousands(((number / step).round() * step) as u64)
}

/// An amount of memory with three digits, in powers of ten.
pub fn bytes(bytes: f64) -> String {
    let bytes = bytes + 0.0; // a sum of nothing is minus zero
    let (value, unit) = match bytes.abs() {
        ..1e3 => return format!("{bytes:.0} B"),
        ..1e6 => (bytes / 1e3, "kB"),
        ..1e9 => (bytes / 1e6, "MB"),
        _ => (bytes / 1e9, "GB"),
    };
    let digits = if value.abs() < 9.995 { 2 } else { usize::from(value.abs() < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// A number of things.
pub fn count(number: u64, noun: &str) -> String {
    let plural = if noun.ends_with('s') { "es" } else { "s" };
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { plural })
}

/// A duration with three digits.
pub fn time(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// A long duration, in its two largest units.
pub fn long(ns: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = ns / 1_000_000_000;
    if seconds == 0 {
        return time(ns);
    }
    let first = UNITS.iter().position(|&(unit, _)| seconds >= unit).unwrap_or(3);
    let (unit, name) = UNITS[first];
    let rest = UNITS.get(first + 1).map(|&(smaller, name)| (seconds % unit / smaller, name));
    match rest.filter(|&(rest, _)| rest > 0 && seconds / unit < 10) {
        Some((rest, smaller)) => format!("{} {name} {rest} {smaller}", seconds / unit),
        None => format!("{} {name}", thousands(seconds / unit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_three_digits() {
        let text = [0.0, 999.0, 1234.0, 99_940.0, 123_456_789.0, 2e9].map(bytes);
        assert_eq!(text, ["0 B", "999 B", "1.23 kB", "99.9 kB", "123 MB", "2.00 GB"]);
        assert_eq!([-0.0, -999.0, -1234.0].map(bytes), ["0 B", "-999 B", "-1.23 kB"]);
    }

    #[test]
    fn a_small_part_is_not_none() {
        let text =
            [(0, 9), (1, 1_000_000), (1, 10_000), (1, 8), (9, 9)].map(|(part, whole)| share(part, whole));
        assert_eq!(text, ["0 %", "less than 0.001 %", "0.010 %", "12.5 %", "100.0 %"]);
    }

    #[test]
    fn numbers_have_separators() {
        assert_eq!([0, 999, 1000, 1234567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn estimates_have_two_digits() {
        let text = [-1.0, 0.4, 7.0, 94.6, 12_345.0, 1_960_000.0].map(rounded);
        assert_eq!(text, ["0", "0", "7", "95", "12,000", "2,000,000"]);
    }

    #[test]
    fn durations_have_three_digits() {
        let text = [0, 999, 1_000, 12_345, 999_999, 203_400_000, 9_996_000_000, 3_600_000_000_000].map(time);
        assert_eq!(text, ["0 ns", "999 ns", "1 us", "12.3 us", "1000 us", "203 ms", "10 s", "3600 s"]);
    }

    #[test]
    fn long_durations_have_two_units() {
        let text = [0, 999_000_000, 59_900_000_000, 61_000_000_000, 3_600_000_000_000, 200_000_000_000_000]
            .map(long);
        assert_eq!(text, ["0 ns", "999 ms", "59 s", "1 m 1 s", "1 h", "2 d 7 h"]);
        assert_eq!(long(u64::MAX), "213,503 d");
    }
}
