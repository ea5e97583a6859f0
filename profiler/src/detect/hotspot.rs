//! Where the CPU time goes: functions by their own samples (self) and by those of everything they call (total).

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::model::{
    report::{Names, Profile, ProfileStack},
    stack::ThreadKey,
};

/// One function's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hotspot {
    /// Function name.
    pub function: String,
    /// Source location with the most samples, where debug information has one.
    pub location: Option<String>,
    /// Path of the module.
    pub module: String,
    /// Samples with this function innermost, see [`own`].
    pub self_samples: u64,
    /// Samples with this function anywhere in the stack, each counted once.
    pub total_samples: u64,
}

/// Hotspots of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadHotspots {
    /// Whose they are.
    pub thread: ThreadKey,
    /// Process and thread name.
    pub names: (String, String),
    /// All samples of the thread.
    pub samples: u64,
    /// Its functions, hottest first.
    pub hotspots: Vec<Hotspot>,
}

/// Functions of the whole profile, hottest (by self, then total) first.
pub fn hotspots(profile: &Profile) -> Vec<Hotspot> {
    of_stacks(profile, profile.stacks.iter())
}

/// The same thread by thread, busiest first.
pub fn by_thread(profile: &Profile) -> Vec<ThreadHotspots> {
    let mut threads: FxHashMap<ThreadKey, Vec<&ProfileStack>> = FxHashMap::default();
    for stack in &profile.stacks {
        threads.entry(stack.thread).or_default().push(stack);
    }
    let mut result: Vec<_> = threads
        .into_iter()
        .map(|(thread, stacks)| ThreadHotspots {
            thread,
            names: (stacks[0].process.to_string(), stacks[0].thread_name.to_string()),
            samples: stacks.iter().map(|stack| stack.weight).sum(),
            hotspots: of_stacks(profile, stacks.into_iter()),
        })
        .collect();
    result.sort_by_key(|thread| (std::cmp::Reverse(thread.samples), thread.thread));
    result
}

#[derive(Default)]
struct Counts<'a> {
    own: u64,
    total: u64,
    last_stack: usize,
    lines: FxHashMap<(&'a str, u32), (u64, u64)>,
}

/// Where source files lie that come with a compiler, in all its versions.
const WITH_COMPILERS: [&str; 6] = [
    "/rustc/",
    "/rustlib/src/rust/",
    "/include/c++/",
    "/usr/include/",
    "/usr/lib/gcc/",
    "/usr/local/go/src/",
];

/// Which function of a stack its samples are the own ones of: the innermost. But what the compiler has put there out of
/// its own library (`<i32 as PartialOrd>::lt`) is a piece of the function that it was put into.
pub fn own(profile: &Profile, stack: &ProfileStack) -> usize {
    own_of(&profile.names, &stack.frames)
}

/// As [`own`], of a stack's frames.
pub fn own_of(names: &Names, frames: &[usize]) -> usize {
    let mut outermost = 0;
    for (position, (function, _, inlined)) in names.functions(frames).enumerate() {
        outermost = position;
        let of_compiler = |file: &String| WITH_COMPILERS.iter().any(|folder| file.contains(folder));
        if !inlined || !function.file.as_ref().is_some_and(of_compiler) {
            break;
        }
    }
    outermost
}

fn of_stacks<'a>(profile: &'a Profile, stacks: impl Iterator<Item = &'a ProfileStack>) -> Vec<Hotspot> {
    let mut counts: FxHashMap<_, Counts<'_>> = FxHashMap::default();
    for (number, stack) in (1..).zip(stacks) {
        let innermost = own(profile, stack);
        for (position, (function, frame, _)) in profile.functions(stack).enumerate() {
            let count = counts.entry((function.identity(), frame.module)).or_default();
            let own = if position == innermost { stack.weight } else { 0 };
            // A recursive function is in the stack many times and in the sample once.
            let total = if count.last_stack == number { 0 } else { stack.weight };
            count.last_stack = number;
            count.own += own;
            count.total += total;
            if let (Some(file), Some(line)) = (&function.file, function.line) {
                let at = count.lines.entry((file, line)).or_default();
                at.0 += own;
                at.1 += total;
            }
        }
    }
    let mut hotspots: Vec<_> = counts
        .into_iter()
        .map(|(((function, _), module), count)| Hotspot {
            function: function.to_owned(),
            location: count
                .lines
                .iter()
                .max_by_key(|&(&(file, line), &weights)| (weights, std::cmp::Reverse((file, line))))
                .map(|((file, line), _)| format!("{file}:{line}")),
            module: profile.names.modules[module].path.clone(),
            self_samples: count.own,
            total_samples: count.total,
        })
        .collect();
    hotspots.sort_by(|a, b| {
        (b.self_samples, b.total_samples, &a.function, &a.module).cmp(&(
            a.self_samples,
            a.total_samples,
            &b.function,
            &b.module,
        ))
    });
    hotspots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures::profile;

    #[test]
    fn self_is_the_innermost_and_total_counts_recursion_once() {
        let profile = profile(&[("a;b;b", 3), ("a;c", 2), ("a", 1)]);
        let find = |name: &str| {
            let all = hotspots(&profile);
            let hotspot = all.iter().find(|hotspot| hotspot.function == name).unwrap();
            (hotspot.self_samples, hotspot.total_samples)
        };
        assert_eq!(find("a"), (1, 6));
        assert_eq!(find("b"), (3, 3));
        assert_eq!(find("c"), (2, 2));
        assert_eq!(hotspots(&profile)[0].function, "b", "hottest first");
        assert_eq!(hotspots(&profile).iter().map(|hotspot| hotspot.self_samples).sum::<u64>(), profile.total);
    }

    #[test]
    fn what_comes_with_the_compiler_is_a_piece_of_what_it_was_put_into() {
        use crate::model::function::Function;
        let mut profile = profile(&[("main;render_report", 3)]);
        let function = |name: &str, file: &str| Function {
            name: name.into(),
            file: Some(file.into()),
            ..Function::default()
        };
        let less = function("<i32 as PartialOrd>::lt", "/rustc/1234/library/core/src/cmp.rs");
        let serde = function("serde::ser", "/root/.cargo/registry/src/index/serde-1/src/ser.rs");
        let frames = |profile: &mut Profile, functions: Vec<Function>| {
            let names = std::rc::Rc::make_mut(&mut profile.names);
            let frame = names
                .frames
                .iter_mut()
                .find(|frame| frame.functions.iter().any(|of| of.name == "render_report"));
            frame.unwrap().functions = functions;
        };
        let report = function("render_report", "app.rs");
        let own = |profile: &Profile| hotspots(profile)[0].function.clone();
        frames(&mut profile, vec![less.clone(), less.clone(), report.clone()]);
        assert_eq!((own(&profile), hotspots(&profile)[1].self_samples), ("render_report".to_owned(), 0));
        frames(&mut profile, vec![less.clone(), serde, report]);
        assert_eq!(own(&profile), "serde::ser");
        frames(&mut profile, vec![less.clone(), Function { name: "render_report".into(), ..less }]);
        assert_eq!(own(&profile), "render_report", "a function of its own, wherever it comes from");
    }

    #[test]
    fn threads_are_kept_apart() {
        let mut profile = profile(&[("a", 3), ("b", 2)]);
        profile.stacks[1].thread.tid = 9;
        let threads = by_thread(&profile);
        assert_eq!(threads.iter().map(|thread| thread.samples).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(threads[1].hotspots[0].function, "b");
        assert_eq!(threads[1].hotspots.len(), 1);
    }
}
