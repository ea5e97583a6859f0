//! What is wrong in a configuration: where, and what was probably meant.

use std::ops::Range;

use toml::Spanned;

/// Something that is wrong in a text, and where.
pub struct Wrong {
    /// Bytes of the text.
    pub at: Option<Range<usize>>,
    /// What is wrong.
    pub what: String,
}

/// Checks things that have names: each has one, and no other thing has the same.
pub fn each_named<T>(
    what: &str,
    things: Vec<Spanned<T>>,
    name: impl Fn(&T) -> &String,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<Vec<T>, Wrong> {
    let mut checked: Vec<T> = Vec::with_capacity(things.len());
    for thing in things {
        let at = Some(thing.span());
        let thing = thing.into_inner();
        let mine = name(&thing);
        let wrong = if mine.is_empty() {
            Some(format!("a {what} needs a name"))
        } else if checked.iter().any(|other| name(other) == mine) {
            Some(format!("two {what}s are named `{mine}`"))
        } else {
            check(&thing).err()
        };
        if let Some(what) = wrong {
            return Err(Wrong { at, what });
        }
        checked.push(thing);
    }
    Ok(checked)
}

/// An unknown name, with what was probably meant.
pub fn unknown(what: &str, name: &Spanned<String>, known: &[&str]) -> Wrong {
    let hint = match nearest(name.get_ref(), known) {
        Some(near) => format!("; did you mean `{near}`?"),
        None if known.is_empty() => format!("; there is no {what}"),
        None => format!("; known are {}", known.join(", ")),
    };
    Wrong { at: Some(name.span()), what: format!("unknown {what} `{}`{hint}", name.get_ref()) }
}

/// Adds what was probably meant to what serde says of an unknown field.
pub fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let suggestion = match (message.starts_with("unknown "), quoted.next()) {
        (true, Some(unknown)) => nearest(unknown, &quoted.collect::<Vec<_>>()).map(str::to_owned),
        _ => None,
    };
    match suggestion {
        Some(known) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}

/// The known word that is most like `word`, if one is at all.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|known| (strsim::jaro_winkler(word, known), *known));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Says where in the text something is wrong.
pub fn point_at(text: &str, Wrong { at, what }: Wrong) -> String {
    let Some(at) = at.filter(|at| text.is_char_boundary(at.start)) else { return what };
    let before = &text[..at.start];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let source = text[start..].lines().next().unwrap_or_default();
    let column = text[start..at.start].chars().count();
    let rest = source.chars().count().saturating_sub(column);
    let length = text.get(at.clone()).map_or(1, |marked| marked.chars().take_while(|c| *c != '\n').count());
    let marks = "^".repeat(length.clamp(1, rest.max(1)));
    let number = line.to_string();
    let gap = " ".repeat(number.len());
    format!(
        "line {line}, column {}: {what}\n{gap} |\n{number} | {source}\n{gap} | {}{marks}",
        column + 1,
        " ".repeat(column)
    )
}
