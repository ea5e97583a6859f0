//! How text is laid out: styles, columns, and the end of a line.

use std::io::Write;

use anyhow::Result;

use crate::{
    model::{report::Names, stack::StackId},
    symbolize::Function,
};

/// How to lay the report out.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Bold and colours.
    pub colour: bool,
    /// Columns to fill at most; `None` for no limit (a file or a pipe).
    pub width: Option<usize>,
    /// Keep threads apart.
    pub threads: bool,
    /// Functions in a table.
    pub top: usize,
}

impl Style {
    pub(super) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn heat(&self, text: &str, percent: f64) -> String {
        match percent {
            20.0.. => self.paint("31", text),
            5.0.. => self.paint("33", text),
            _ => text.to_owned(),
        }
    }

    pub(super) fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Which end of a text survives cutting.
#[derive(Clone, Copy)]
pub(super) enum Keep {
    Start,
    End,
}

pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

/// Pads or cuts to exactly `limit` columns (no padding where there is no limit). Control characters are replaced:
/// names come from the target, and a terminal must not obey them.
pub(super) fn fit(text: &str, limit: usize, keep: Keep) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let len = width(&text);
    if limit == usize::MAX {
        return text;
    }
    if len <= limit {
        return format!("{text:<limit$}");
    }
    let kept = limit.saturating_sub(1);
    match keep {
        Keep::Start => text.chars().take(kept).chain(['…']).collect(),
        Keep::End => ['…'].into_iter().chain(text.chars().skip(len - kept)).collect(),
    }
}

/// A line that is cut where the terminal ends.
pub(super) fn line(text: &str, style: &Style, out: &mut dyn Write) -> Result<()> {
    let limit = style.width.filter(|limit| width(text) > *limit).unwrap_or(usize::MAX);
    writeln!(out, "{}", fit(text, limit, Keep::Start))?;
    Ok(())
}

/// As [`user_functions`], of a stack by its id.
pub(super) fn innermost(names: &Names, stack: StackId) -> Vec<&Function> {
    user_functions(names, names.stack(stack))
}

/// The user's functions of a stack, innermost first, or the kernel's if there are no others.
pub(super) fn user_functions<'a>(names: &'a Names, frames: &'a [usize]) -> Vec<&'a Function> {
    let all = || names.functions(frames);
    let user: Vec<_> =
        all().filter(|(_, frame, _)| !names.is_kernel(frame)).map(|(function, ..)| function).collect();
    if user.is_empty() { all().map(|(function, ..)| function).collect() } else { user }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_target_cannot_steer_the_terminal() {
        assert_eq!(fit("a\x1b[2Jb", 8, Keep::Start), "a?[2Jb  ");
        assert_eq!(fit("abcdef", 4, Keep::Start), "abc…");
        assert_eq!(fit("abcdef", 4, Keep::End), "…def");
    }
}
