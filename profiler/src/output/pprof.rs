//! pprof's profile.proto, compressed: for `go tool pprof` and everything that reads its format. Message and field
//! numbers: <https://github.com/google/pprof/blob/main/proto/profile.proto>.

use std::io::Write;

use anyhow::Result;
use indexmap::IndexSet;
use prost::Message;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    model::{report::Profile, stack::Module},
    output::{json::hex, options::RenderOptions},
};

#[derive(Clone, PartialEq, Message)]
struct ProfileProto {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
    #[prost(int64, tag = "3")]
    num: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(uint64, tag = "4")]
    file_offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
    #[prost(bool, tag = "8")]
    has_filenames: bool,
    #[prost(bool, tag = "9")]
    has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// The format's table of strings: index 0 is the empty one.
struct Strings(IndexSet<String>);

impl Strings {
    fn id(&mut self, text: &str) -> i64 {
        match self.0.get_index_of(text) {
            Some(index) => index as i64,
            None => self.0.insert_full(text.to_owned()).0 as i64,
        }
    }
}

/// Writes the profile: two values per sample, the weight and what it estimates; of what is exact, the weight only.
pub fn write(profile: &Profile, _options: &RenderOptions, out: &mut dyn Write) -> Result<()> {
    let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    gzip.write_all(&encode(profile).encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

fn encode(profile: &Profile) -> ProfileProto {
    let mut strings = Strings(IndexSet::from([String::new()]));
    let kind = &profile.kind;
    let exact = kind.sample_type == kind.period_type;
    let count = ValueType { r#type: strings.id(kind.sample_type), unit: strings.id(kind.unit.id()) };
    let period = ValueType { r#type: strings.id(kind.period_type), unit: strings.id(kind.period_unit.id()) };
    let mut message = ProfileProto {
        sample_type: if exact { vec![count] } else { vec![count, period] },
        period_type: Some(period),
        period: if exact { 1 } else { profile.meta.period_ns as i64 },
        time_nanos: profile.meta.start_unix_ns as i64,
        duration_nanos: profile.accounts.duration_ns as i64,
        ..ProfileProto::default()
    };

    // Addresses are relative to their module, so each module is one mapping that spans those seen in it.
    let mut mappings: FxHashMap<usize, usize> = FxHashMap::default();
    let mut functions: FxHashMap<(i64, i64), u64> = FxHashMap::default();
    let used: FxHashSet<usize> =
        profile.stacks.iter().flat_map(|stack| stack.frames.iter()).copied().collect();
    for (index, frame) in profile.names.frames.iter().enumerate().filter(|(index, _)| used.contains(index)) {
        let module: &Module = profile.module_of(frame);
        let mapping = *mappings.entry(frame.module).or_insert_with(|| {
            message.mapping.push(Mapping {
                id: message.mapping.len() as u64 + 1,
                memory_start: frame.address,
                memory_limit: frame.address,
                filename: strings.id(&module.path),
                build_id: strings.id(&hex(&module.build_id)),
                has_functions: true,
                ..Mapping::default()
            });
            message.mapping.len() - 1
        });
        let span = &mut message.mapping[mapping];
        span.memory_start = span.memory_start.min(frame.address & !0xfff);
        span.memory_limit = span.memory_limit.max((frame.address | 0xfff).saturating_add(1));
        span.file_offset = 0;
        span.has_inline_frames |= frame.functions.len() > 1;
        let line = frame.functions.iter().map(|function| {
            span.has_filenames |= function.file.is_some();
            span.has_line_numbers |= function.line.is_some();
            let name = strings.id(&function.name);
            let filename = strings.id(function.file.as_deref().unwrap_or_default());
            let next = functions.len() as u64 + 1;
            let id = *functions.entry((name, filename)).or_insert(next);
            if id == next {
                message.function.push(Function { id, name, system_name: name, filename });
            }
            Line { function_id: id, line: function.line.unwrap_or(0).into() }
        });
        let line = line.collect();
        message.location.push(Location {
            id: index as u64 + 1,
            mapping_id: mapping as u64 + 1,
            address: frame.address,
            line,
        });
    }

    for stack in &profile.stacks {
        let text = |key: i64, str: i64| Label { key, str, num: 0 };
        let number = |key: i64, num: u32| Label { key, str: 0, num: num.into() };
        let mut label = vec![
            number(strings.id("pid"), stack.thread.pid),
            number(strings.id("tid"), stack.thread.tid),
            text(strings.id("process"), strings.id(&stack.process)),
            text(strings.id("thread"), strings.id(&stack.thread_name)),
            text(strings.id("stack"), strings.id(stack.end.id())),
        ];
        label.extend(stack.cause.map(|cause| text(strings.id("cause"), strings.id(cause.id()))));
        let weight = stack.weight as i64;
        message.sample.push(Sample {
            location_id: stack.frames.iter().map(|&frame| frame as u64 + 1).collect(),
            value: if exact { vec![weight] } else { vec![weight, profile.estimated_ns(stack.weight) as i64] },
            label,
        });
    }
    let accounts = &profile.accounts;
    message.comment.push(strings.id(&format!("samples taken: {}", accounts.samples_taken)));
    message.comment.push(strings.id(&format!("samples lost: {}", accounts.losses.lost())));
    for (loss, count) in accounts.losses.iter() {
        message.comment.push(strings.id(&format!("{loss}: {count}")));
    }
    message.string_table = strings.0.into_iter().collect();
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures::profile;

    #[test]
    fn every_reference_leads_somewhere_and_the_weights_add_up() {
        let profile = profile(&[("main;a", 3), ("main;k:read", 2)]);
        let message = encode(&profile);
        assert_eq!(message.sample.iter().map(|sample| sample.value[0]).sum::<i64>(), 5);
        assert_eq!(message.sample.iter().map(|sample| sample.value[1]).sum::<i64>(), 50_000_000);
        let string = |id: i64| message.string_table[id as usize].as_str();
        let names: Vec<Vec<&str>> = message
            .sample
            .iter()
            .map(|sample| {
                sample
                    .location_id
                    .iter()
                    .map(|&id| {
                        let location = &message.location[id as usize - 1];
                        let mapping = &message.mapping[location.mapping_id as usize - 1];
                        assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
                        string(message.function[location.line[0].function_id as usize - 1].name)
                    })
                    .collect()
            })
            .collect();
        assert_eq!(names, [["a", "main"], ["k:read", "main"]]);
        assert_eq!(string(0), "");
        assert_eq!(string(message.sample[0].label[2].str), "app");
        assert_eq!(message.sample[0].label[1].num, 8);
    }

    #[test]
    fn time_off_cpus_is_one_exact_value() {
        let mut profile = profile(&[("main;read", 3_000_000), ("main;write", 1)]);
        profile.kind = crate::model::kind::OFF_CPU;
        profile.stacks.truncate(1);
        profile.stacks[0].cause = Some(crate::model::cause::WaitCause::Pipe);
        let message = encode(&profile);
        let string = |id: i64| message.string_table[id as usize].as_str();
        assert_eq!(message.sample[0].value, [3_000_000]);
        assert_eq!(message.sample_type.len(), 1);
        assert_eq!(string(message.sample_type[0].unit), "nanoseconds");
        assert_eq!(string(message.sample[0].label[5].str), "pipe");
        assert_eq!(message.location.len(), 2, "frames of other profiles are not in it");
    }
}
