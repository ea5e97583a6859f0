//! Folded stacks, as flame graph tools read them: `process;outermost;…;innermost count`. Suffixes as FlameGraph's
//! own: `_[k]` kernel, `_[i]` inlined, `_[j]` just-in-time compiled. Counts are in the profile's unit: samples on
//! CPUs, nanoseconds off them.

use std::{collections::BTreeMap, fmt::Write as _, io::Write};

use anyhow::Result;

use crate::{
    model::{
        report::{Names, Profile, ProfileStack},
        stack::ModuleKind,
    },
    output::options::RenderOptions,
};

/// Writes all stacks, one line each, sorted by name. The counts add up to the profile's total.
pub fn write(profile: &Profile, options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    for (stack, weight) in lines(profile, options) {
        writeln!(out, "{stack} {weight}")?;
    }
    Ok(())
}

/// Stacks and weights; stacks that look the same are one.
pub(super) fn lines(profile: &Profile, options: &RenderOptions) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for stack in &profile.stacks {
        *lines.entry(fold(profile, stack, options)).or_default() += stack.weight;
    }
    lines
}

fn fold(profile: &Profile, stack: &ProfileStack, options: &RenderOptions) -> String {
    let mut line = clean(&stack.process);
    if options.threads {
        // Writing to a string cannot fail.
        let _ = write!(line, ";{} (tid {})", clean(&stack.thread_name), stack.thread.tid);
    }
    add_functions(&profile.names, &stack.frames, &mut line);
    line
}

/// Adds a stack's functions, each after a separator.
pub(super) fn add_functions(names: &Names, frames: &[usize], line: &mut String) {
    for (function, frame, inlined) in names.functions(frames).rev() {
        line.push(';');
        line.push_str(&clean(&function.name));
        line.push_str(match (inlined, &names.module_of(frame).kind) {
            (true, _) => "_[i]",
            (false, ModuleKind::Kernel) => "_[k]",
            (false, ModuleKind::Jit(_) | ModuleKind::Managed(_)) => "_[j]",
            (false, _) => "",
        });
    }
}

/// Names hold anything; the format's own separators and control characters must not.
pub(super) fn clean(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c == ';' {
                ':'
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures::profile;

    #[test]
    fn stacks_are_outermost_first_and_add_up() {
        let mut profile = profile(&[("main;a;k:read", 3), ("main", 2), ("main;a;k:read", 1)]);
        std::rc::Rc::make_mut(&mut profile.names).frames[2].functions[0].name = "odd;\nname".into();
        let mut text = Vec::new();
        write(&profile, &RenderOptions::default(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        insta::assert_snapshot!(text, @r"
        app;odd: name 2
        app;odd: name;a;k:read_[k] 4
        ");
    }

    #[test]
    fn threads_can_be_kept_apart() {
        let profile = profile(&[("main", 2)]);
        let options = RenderOptions { threads: true, ..RenderOptions::default() };
        assert_eq!(lines(&profile, &options).into_keys().next().unwrap(), "app;worker (tid 8);main");
    }

    #[test]
    fn names_cannot_break_the_format() {
        assert_eq!(clean("a;b\nc d"), "a:b c d");
    }
}
