//! What the growth of a garbage-collected heap is made of, in words.

use crate::{
    detect::words::at,
    model::{
        memory::{Footprint, HeapClass, HeapKind},
        names::is_of_package,
        units::{bytes, rounded},
    },
};

/// What to do about it, where nothing more is known.
const ADVICE: &str =
    "find what keeps them: listeners, timers, closures, caches and lists that nothing is taken out of";

/// Classes that say more: what to do where there are more and more of them.
const ADVICE_BY_CLASS: [(&[&str], &str); 4] = [
    (&["Timeout", "Immediate"], "clear timers that are not needed any more (clearInterval, clearTimeout)"),
    (
        &["Promise"],
        "find who never settles these promises: a wait without a time limit, or an event that never comes",
    ),
    (
        &["Socket", "TLSSocket", "ClientRequest"],
        "end connections that are not needed any more, or use an agent that keeps few",
    ),
    (&["ServerResponse"], "end every answer, on errors too: these requests are never done"),
];

/// The heap explains the growth of its process if so much of that is in it.
const EXPLAINS: f64 = 0.5;
/// Classes that are named.
const NAMED: usize = 3;
/// A class tells something if there are so many more of it, as a part of the most numerous one.
const MANY: f64 = 0.1;
/// What there is most of is named, too, if that is so much of the growth.
const LARGE: f64 = 0.3;
/// Objects whose bytes are outside of the heap.
const BUFFERS: [&str; 3] = ["Buffer", "ArrayBuffer", "Uint8Array"];
/// Fewer more objects than this say nothing.
const FEWEST: f64 = 100.0;

/// A heap that explains its process's growth.
pub struct Grown {
    /// How much of the growth it is, and what there is more of.
    pub words: String,
    /// The function, or class, that there is more of.
    pub subject: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// The heap of a process, if it, or what it refers to, explains the growth.
pub fn of(process: &Footprint) -> Option<Grown> {
    let heap = process.managed.as_ref()?;
    let share = heap.share_of(process.growth.points())?;
    let grew = heap.last.bytes - heap.first.bytes;
    let error = heap.last.bytes_err.hypot(heap.first.bytes_err);
    let more = heap.more();
    if share < EXPLAINS || grew < 3.0 * error {
        return outside(&more, heap.last.bytes);
    }
    let mut named: Vec<_> = more.iter().filter(|(class, ..)| telling(class).0).collect();
    let most = named.iter().map(|(_, count, _)| *count).fold(FEWEST / MANY, f64::max);
    named.retain(|(_, count, _)| *count >= MANY * most);
    named.sort_by_key(|(class, ..)| std::cmp::Reverse(telling(class).1));
    named.truncate(NAMED);
    let each: Vec<String> = named.iter().map(|(class, count, _)| words(class, *count)).collect();
    let largest = more.iter().filter(|(class, ..)| class.kind != HeapKind::Internal);
    let largest = largest.max_by(|a, b| a.2.total_cmp(&b.2)).filter(|(class, _, more)| {
        *more >= LARGE * grew && !named.iter().any(|(named, ..)| std::ptr::eq(*named, *class))
    });
    let largest = largest.map(|(class, _, more)| {
        let name = if class.name.is_empty() { String::new() } else { format!(" {}", class.name) };
        format!("{} of {}{name}", bytes(*more), class.kind.words())
    });
    let parts: Vec<String> = each.into_iter().chain(largest).collect();
    let holds = if parts.is_empty() { String::new() } else { format!(": {} more", parts.join(", ")) };
    Some(Grown {
        words: format!("about {:.0} % of that is its JavaScript heap{holds}", 100.0 * share),
        subject: named.first().map_or_else(|| "JavaScript heap".to_owned(), |(class, ..)| class.name.clone()),
        advice: advice(named.iter().map(|(class, ..)| *class)),
    })
}

/// Buffers hold memory outside of the heap.
fn outside(more: &[(&HeapClass, f64, f64)], heap_bytes: f64) -> Option<Grown> {
    let buffers = more.iter().filter(|(class, count, _)| {
        class.kind == HeapKind::Objects && BUFFERS.contains(&&*class.name) && *count >= FEWEST
    });
    let (class, count, _) = buffers.max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Grown {
        words: format!(
            "it is not in its JavaScript heap ({}), which holds {} buffers more",
            bytes(heap_bytes),
            rounded(*count),
        ),
        subject: class.name.clone(),
        advice: ADVICE,
    })
}

/// What to do where there are more and more objects of these classes.
fn advice<'a>(mut classes: impl Iterator<Item = &'a HeapClass>) -> &'static str {
    let of = |class: &HeapClass| {
        let known = class.kind == HeapKind::Objects && class.function.is_none();
        ADVICE_BY_CLASS
            .iter()
            .find(|(names, _)| known && names.contains(&&*class.name))
            .map(|(_, advice)| *advice)
    };
    classes.find_map(of).unwrap_or(ADVICE)
}

/// Whether a class tells where to look, and whether it names a function of the program's own.
fn telling(class: &HeapClass) -> (bool, bool) {
    let file = class.function.as_ref().and_then(|function| function.file.as_deref());
    let own = file.is_some_and(|file| !file.starts_with("node:") && !is_of_package(file));
    let tells = match class.kind {
        HeapKind::Closures => file.is_some(),
        HeapKind::Objects => !["Object", "Array", "Function"].contains(&&*class.name),
        HeapKind::Variables => class.name != "(anonymous)",
        HeapKind::Elements | HeapKind::Strings | HeapKind::Internal => false,
    };
    (tells, own)
}

fn words(class: &HeapClass, count: f64) -> String {
    let count = rounded(count);
    match (&class.kind, &class.function) {
        (HeapKind::Closures, Some(function)) => format!("{count} closures of {}", at(function)),
        (HeapKind::Objects, Some(function)) if function.name == class.name => {
            format!("{count} {}", at(function))
        }
        (HeapKind::Objects, _) => format!("{count} {}", class.name),
        (kind, _) => format!("{count} {} {}", kind.words(), class.name),
    }
}

#[cfg(test)]
pub mod fixtures {
    //! A process whose heap grows, made by hand.

    use super::*;
    use crate::model::{
        function::Function,
        memory::{Growth, HeapSample, ManagedHeap},
    };

    const MB: f64 = 1e6;

    /// Objects of a class that keep so many bytes each.
    fn class(kind: HeapKind, name: &str, file: Option<&str>, count: f64, each: f64) -> HeapClass {
        let function = file.map(|file| Function {
            name: name.to_owned(),
            file: Some(file.to_owned()),
            line: Some(15),
            start: None,
        });
        HeapClass {
            kind,
            name: name.to_owned(),
            function,
            count,
            count_err: count / 20.0,
            bytes: each * count,
        }
    }

    fn sample(time_ns: u64, kept: f64) -> HeapSample {
        let classes = vec![
            class(HeapKind::Elements, "", None, kept, 4000.0),
            class(HeapKind::Closures, "(anonymous)", Some("/srv/app.js"), kept, 56.0),
            class(HeapKind::Objects, "Timeout", None, kept, 120.0),
            class(HeapKind::Variables, "handle", None, kept, 40.0),
            class(HeapKind::Closures, "nextTick", Some("node:internal/x"), 90.0, 56.0),
            class(HeapKind::Internal, "", None, 10.0 * kept, 16.0),
        ];
        let bytes = classes.iter().map(|class| class.bytes).sum();
        HeapSample { time_ns, bytes, bytes_err: MB, classes }
    }

    /// It grows by 12.5 MB/s for 40 s, by what its heap keeps; the limit of the heap is given, bytes.
    pub fn process(limit_bytes: u64) -> Footprint {
        let held = |s: u64| 50_000_000 + s * 12_500_000;
        let point = |s: u64| Growth { time_ns: s * 1_000_000_000, anon_bytes: held(s), ..Growth::default() };
        Footprint {
            pid: 7,
            process: "node".into(),
            growth: (0..=40).map(point).collect(),
            managed: Some(ManagedHeap {
                first: sample(2_000_000_000, 5_000.0),
                last: sample(40_000_000_000, 110_000.0),
                limit_bytes: Some(limit_bytes),
            }),
            ..Footprint::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_more_of_is_named_the_programs_own_first() {
        let process = fixtures::process(1 << 32);
        let grown = of(&process).unwrap();
        assert_eq!(
            grown.words,
            "about 97 % of that is its JavaScript heap: 110,000 closures of (anonymous) (srv/app.js:15), 110,000 \
             Timeout, 110,000 variables of handle, 420 MB of elements of arrays and tables more"
        );
        assert_eq!(grown.subject, "(anonymous)");
        assert!(grown.advice.starts_with("clear timers"), "{}", grown.advice);
    }

    #[test]
    fn what_may_be_chance_or_is_elsewhere_is_not_named() {
        let mut process = fixtures::process(1 << 32);
        for class in process.managed.iter_mut().flat_map(|heap| &mut heap.last.classes) {
            class.count_err = class.count;
        }
        assert_eq!(of(&process).unwrap().words, "about 97 % of that is its JavaScript heap");
        let heap = process.managed.as_mut().unwrap();
        heap.last = heap.first.clone();
        heap.last.time_ns = 40_000_000_000;
        assert!(of(&process).is_none());
        let heap = process.managed.as_mut().unwrap();
        let mut buffers = heap.last.classes[2].clone();
        (buffers.name, buffers.count, buffers.count_err) = ("Buffer".into(), 40_000.0, 1_000.0);
        heap.last.classes.push(buffers);
        let words = of(&process).unwrap().words;
        assert!(words.ends_with("which holds 40,000 buffers more"), "{words}");
        assert!(words.starts_with("it is not in its JavaScript heap"), "{words}");
    }
}
