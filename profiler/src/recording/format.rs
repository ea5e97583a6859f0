//! Guards of the wire format. `format.json` says what an event is made of, down to the last field, and `golden/` holds a
//! recording of each version. Both fail when the encoding changes and the version does not.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_reflection::{Tracer, TracerConfig};

use super::{Ending, Event, MAGIC, cleaning::Cleaning};
use crate::{
    commands,
    detect::rule::Overrides,
    model::{
        cause::WaitCause,
        finding::Severity,
        memory::{HeapKind, LimitKind, WatchMode},
        request::Side,
        stack::{Frame, Language, ModuleId, ModuleKind, StackEnd},
        syscall::WaitKind,
        wait::LongWaitKind,
    },
    recording::load::{Replayed, load},
    symbolize::Function,
};

/// Set after a change of the encoding: writes what the tests compare with.
const UPDATE: &str = "UPDATE_RECORDINGS";

const VERSION: u8 = MAGIC[7];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "src", "recording"].iter().collect()
}

fn updating() -> bool {
    std::env::var_os(UPDATE).is_some()
}

/// Every type that an event is made of, as it is encoded: names, fields and variants in order.
fn format() -> BTreeMap<String, serde_json::Value> {
    let mut tracer = Tracer::new(TracerConfig::default());
    tracer.trace_simple_type::<Event>().unwrap();
    // Every enum inside: the registry is refused as long as one is left out.
    tracer.trace_simple_type::<ModuleKind>().unwrap();
    tracer.trace_simple_type::<StackEnd>().unwrap();
    tracer.trace_simple_type::<WaitCause>().unwrap();
    tracer.trace_simple_type::<LongWaitKind>().unwrap();
    tracer.trace_simple_type::<WaitKind>().unwrap();
    tracer.trace_simple_type::<WatchMode>().unwrap();
    tracer.trace_simple_type::<Side>().unwrap();
    tracer.trace_simple_type::<LimitKind>().unwrap();
    tracer.trace_simple_type::<HeapKind>().unwrap();
    tracer.trace_simple_type::<Severity>().unwrap();
    tracer.trace_simple_type::<Language>().unwrap();
    let types = tracer.registry().unwrap();
    types.into_iter().map(|(name, format)| (name, serde_json::to_value(format).unwrap())).collect()
}

#[test]
fn the_encoding_changes_only_with_its_version() {
    let path = folder().join("format.json");
    let now = serde_json::json!({ "version": VERSION, "types": format() });
    let before: serde_json::Value = fs::read_to_string(&path)
        .map_or(serde_json::Value::Null, |text| serde_json::from_str(&text).unwrap());
    if now == before {
        return;
    }
    assert_ne!(
        before["version"], now["version"],
        "events are encoded in another way than before: raise the version in MAGIC, then run the tests of \
         recordings once with {UPDATE}=1"
    );
    assert!(
        updating(),
        "format.json is of version {}: run the tests once with {UPDATE}=1",
        before["version"]
    );
    fs::write(path, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
}

#[test]
fn a_recording_of_each_version_replays_or_is_refused_by_name() {
    let golden = folder().join("golden");
    let current = golden.join(format!("{VERSION}.prec"));
    if updating() && !current.exists() {
        fs::create_dir_all(&golden).unwrap();
        commands::replay::tests::record(&current, &GOLDEN, &[(0, 100), (300, 60)]);
    }
    let mut replayed = Vec::new();
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        let version: u8 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        match load(&path, &Overrides::default()) {
            Ok(recording) => {
                check(&recording);
                replayed.push(version);
            }
            // Nothing older than the current version has been released: none is read.
            Err(error) => {
                let why = error.to_string();
                assert!(
                    why.ends_with(&format!("its version is {version}, this profiler reads {VERSION}")),
                    "{why}"
                );
            }
        }
    }
    assert_eq!(replayed, [VERSION], "run the tests once with {UPDATE}=1");
}

/// Thread, address, weight and cause of the samples in a golden recording.
const GOLDEN: [(u32, u64, u64, u32); 4] = [(7, 1, 5, 0), (7, 2, 3, 0), (8, 9, 400, 1), (7, 1, 2, 0)];

/// What every golden recording holds, whatever its version.
fn check(recording: &Replayed) {
    let Replayed { run, samples, ending, .. } = recording;
    assert_eq!(*ending, Ending::Complete);
    assert_eq!(samples.len(), 2 * GOLDEN.len());
    assert_eq!(run.cpu.meta.target, "pid 7");
    assert_eq!((run.cpu.total, run.off_cpu.as_ref().unwrap().total), (10, 400));
    assert_eq!(run.cpu.stacks[0].weight, 7);
    assert_eq!((&*run.cpu.stacks[0].thread_name, run.cpu.stacks[0].end), ("t7", StackEnd::Complete));
    let functions = run.cpu.functions(&run.cpu.stacks[0]).map(|(function, ..)| function.name.as_str());
    assert_eq!(functions.take(2).collect::<Vec<_>>(), ["f1", "f1"]);
    assert_eq!(run.blocking.as_ref().unwrap().stalls.len(), 2);
    assert_eq!(run.memory.as_ref().unwrap().processes[0].process, "t7");
    assert!(!run.memory.as_ref().unwrap().sites.is_empty());
    assert_eq!(run.calls.as_ref().unwrap().waits.len(), GOLDEN.len());
}

#[test]
fn every_text_of_a_recording_is_cleaned() {
    use serde::Deserialize as _;
    let event = Event::Names(vec![(
        Frame { module: ModuleId(0), address: 7 },
        vec![Function { name: "\x1b[2Jx".into(), file: Some("a\nb".into()), line: Some(3), start: None }],
    )]);
    let bytes = postcard::to_stdvec(&event).unwrap();
    let mut from = postcard::Deserializer::from_bytes(&bytes);
    let Event::Names(names) = Event::deserialize(Cleaning(&mut from)).unwrap() else {
        panic!("another event")
    };
    let function = &names[0].1[0];
    assert_eq!((&*function.name, function.file.as_deref()), ("\u{fffd}[2Jx", Some("a\u{fffd}b")));
    assert_eq!((names[0].0.address, function.line), (7, Some(3)));
}
