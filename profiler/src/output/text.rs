//! How text is laid out: styles, columns, and the end of a line.

use std::io::Write;

use anyhow::Result;

use crate::{
    detect::words::at,
    model::{
        report::{NamedFrame, Names},
        stack::{ModuleKind, StackId},
    },
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

/// A paragraph behind a label: broken between words where the line ends, the following lines set in.
pub(super) fn paragraph(
    label: &str,
    colour: &str,
    text: &str,
    indent: usize,
    style: &Style,
    out: &mut dyn Write,
) -> Result<()> {
    let limit = style.width.unwrap_or(usize::MAX);
    let text = fit(text, usize::MAX, Keep::Start);
    let mut column = width(label);
    write!(out, "{}", style.paint(colour, label))?;
    for word in text.split_whitespace() {
        let mut word = word.to_owned();
        if column + 1 + width(&word) > limit && column > indent {
            write!(out, "\n{:indent$}", "")?;
            column = indent;
        } else {
            write!(out, " ")?;
            column += 1;
        }
        let room = limit.saturating_sub(column).max(8);
        if width(&word) > room {
            word = fit(&word, room, Keep::Start);
        }
        write!(out, "{word}")?;
        column += width(&word);
    }
    writeln!(out)?;
    Ok(())
}

/// The innermost functions of a stack, `most` of them, and the first that a just-in-time compiler made, which is the
/// program's own, where the others are all its runtime's.
pub(super) fn told(names: &Names, frames: &[usize], most: usize) -> Vec<String> {
    let functions = user_functions(names, frames);
    let mut told: Vec<String> = functions.iter().take(most).map(|function| at(function)).collect();
    let compiled = |frame: &NamedFrame| {
        matches!(names.module_of(frame).kind, ModuleKind::Jit(_) | ModuleKind::Managed(_))
    };
    let own = names.functions(frames).find(|(_, frame, _)| compiled(frame)).map(|(function, ..)| function);
    if let Some(own) = own.filter(|own| !functions.iter().take(most).any(|function| function == own)) {
        told.push(format!("… {}", at(own)));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::words::SHOWN, model::stack::Module};

    #[test]
    fn names_from_the_target_cannot_steer_the_terminal() {
        assert_eq!(fit("a\x1b[2Jb", 8, Keep::Start), "a?[2Jb  ");
        assert_eq!(fit("abcdef", 4, Keep::Start), "abc…");
        assert_eq!(fit("abcdef", 4, Keep::End), "…def");
    }

    #[test]
    fn the_programs_own_function_is_told_however_deep_its_runtime() {
        let function = |name: String| Function { name, ..Function::default() };
        let frame = |(address, (module, name)): (usize, (usize, String))| NamedFrame {
            module,
            address: address as u64,
            functions: vec![function(name)],
        };
        let runtime = (0..7).map(|i| (0, format!("runtime{i}")));
        let stack =
            runtime.chain([(1, "JS:~mine app.js:1".to_owned()), (1, "JS:~caller app.js:9".to_owned())]);
        let file = Module { path: "/usr/bin/node".into(), ..Module::special(ModuleKind::File) };
        let names = Names {
            modules: vec![file, Module::special(ModuleKind::Jit(7))],
            frames: stack.enumerate().map(frame).collect(),
            ..Names::default()
        };
        let told = |first: usize| told(&names, &(first..9).collect::<Vec<_>>(), SHOWN);
        assert_eq!(told(0)[SHOWN - 1..], ["runtime4", "… JS:~mine app.js:1"]);
        assert_eq!(told(6), ["runtime6", "JS:~mine app.js:1", "JS:~caller app.js:9"]);
    }

    #[test]
    fn a_paragraph_fits_its_columns() {
        let style = Style { colour: false, width: Some(20), threads: false, top: 1 };
        let mut text = Vec::new();
        paragraph("CPU:", "1", "one two three four averyveryverylongwordindeed x\x1by", 4, &style, &mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "CPU: one two three\n    four\n    averyveryverylo…\n    x?y\n");
    }
}
