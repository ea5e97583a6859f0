//! OTLP profiles (`v1development`, the wire of proto 1.10 and 1.11) over HTTP.

use anyhow::{Context as _, Result};
use indexmap::IndexSet;
use opentelemetry_proto::tonic::{
    collector::profiles::v1development::{ExportProfilesServiceRequest, ExportProfilesServiceResponse},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    profiles::v1development::{
        Function, KeyValueAndUnit, Line, Link, Location, Mapping, Profile, ProfilesDictionary,
        ResourceProfiles, Sample, ScopeProfiles, Stack, ValueType,
    },
    resource::v1::Resource,
};
use prost::Message as _;
use rustc_hash::FxHashMap;

use super::window::Window;
use crate::{model::report::Profile as Measured, output::json::hex};

/// Where the collector takes profiles.
pub const PATH: &str = "/v1development/profiles";

/// A window of a target as a request.
pub fn request(window: &Window<'_>) -> Vec<u8> {
    let mut tables = Tables::default();
    let profile = tables.profile(window.profile);
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    };
    let resource = Resource {
        attributes: vec![
            text("service.name", window.target),
            text("host.name", &window.profile.meta.host),
            text("os.type", "linux"),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "profiler".to_owned(),
        version: window.profile.meta.profiler_version.clone(),
        ..InstrumentationScope::default()
    };
    let request = ExportProfilesServiceRequest {
        resource_profiles: vec![ResourceProfiles {
            resource: Some(resource),
            scope_profiles: vec![ScopeProfiles {
                scope: Some(scope),
                profiles: vec![profile],
                ..ScopeProfiles::default()
            }],
            ..ResourceProfiles::default()
        }],
        dictionary: Some(tables.dictionary()),
    };
    request.encode_to_vec()
}

/// Profiles that the collector says it did not take, and why.
pub fn rejected(answer: &[u8]) -> Result<Option<(u64, String)>> {
    let answer = ExportProfilesServiceResponse::decode(answer).context("its answer cannot be read")?;
    let partial = answer.partial_success.filter(|partial| partial.rejected_profiles > 0);
    Ok(partial.map(|partial| {
        (
            partial.rejected_profiles.unsigned_abs(),
            crate::model::text::clean_text(&partial.error_message).into_owned(),
        )
    }))
}

/// The tables that everything refers to by place; what is at place 0 is nothing.
struct Tables {
    strings: IndexSet<String>,
    attributes: IndexSet<(i32, String)>,
    stacks: IndexSet<Vec<i32>>,
    functions: IndexSet<(i32, i32)>,
    mappings: Vec<Mapping>,
    locations: Vec<Location>,
}

impl Default for Tables {
    fn default() -> Tables {
        Tables {
            strings: IndexSet::from([String::new()]),
            attributes: IndexSet::from([(0, String::new())]),
            stacks: IndexSet::from([Vec::new()]),
            functions: IndexSet::from([(0, 0)]),
            mappings: vec![Mapping::default()],
            locations: vec![Location::default()],
        }
    }
}

impl Tables {
    fn string(&mut self, text: &str) -> i32 {
        match self.strings.get_index_of(text) {
            Some(index) => index as i32,
            None => self.strings.insert_full(text.to_owned()).0 as i32,
        }
    }

    fn attribute(&mut self, key: &str, value: &str) -> i32 {
        let key = self.string(key);
        self.attributes.insert_full((key, value.to_owned())).0 as i32
    }

    fn profile(&mut self, of: &Measured) -> Profile {
        let mut mappings: FxHashMap<usize, usize> = FxHashMap::default();
        let mut places: FxHashMap<usize, i32> = FxHashMap::default();
        let mut samples = Vec::with_capacity(of.stacks.len());
        for stack in &of.stacks {
            let locations: Vec<i32> = stack
                .frames
                .iter()
                .map(|&frame| self.location(of, frame, &mut places, &mut mappings))
                .collect();
            let attributes = vec![
                self.attribute("process.executable.name", &stack.process),
                self.attribute("thread.name", &stack.thread_name),
            ];
            samples.push(Sample {
                stack_index: self.stacks.insert_full(locations).0 as i32,
                attribute_indices: attributes,
                values: vec![of.estimated_ns(stack.weight) as i64],
                ..Sample::default()
            });
        }
        let (cpu, nanoseconds) = (self.string("cpu"), self.string("nanoseconds"));
        let kind = ValueType { type_strindex: cpu, unit_strindex: nanoseconds };
        Profile {
            sample_type: Some(kind),
            samples,
            time_unix_nano: of.meta.start_unix_ns,
            duration_nano: of.accounts.duration_ns,
            period_type: Some(kind),
            period: of.meta.period_ns.max(1) as i64,
            profile_id: profile_id(of),
            ..Profile::default()
        }
    }

    fn location(
        &mut self,
        of: &Measured,
        index: usize,
        places: &mut FxHashMap<usize, i32>,
        mappings: &mut FxHashMap<usize, usize>,
    ) -> i32 {
        if let Some(place) = places.get(&index) {
            return *place;
        }
        let frame = &of.names.frames[index];
        let module = of.module_of(frame);
        let mapping = match mappings.get(&frame.module) {
            Some(mapping) => *mapping,
            None => {
                let build_id = hex(&module.build_id);
                let attributes = match build_id.is_empty() {
                    true => Vec::new(),
                    false => vec![self.attribute("process.executable.build_id.gnu", &build_id)],
                };
                let mapping = Mapping {
                    memory_start: frame.address & !0xfff,
                    memory_limit: (frame.address | 0xfff).saturating_add(1),
                    filename_strindex: self.string(&module.path),
                    attribute_indices: attributes,
                    ..Mapping::default()
                };
                self.mappings.push(mapping);
                mappings.insert(frame.module, self.mappings.len() - 1);
                self.mappings.len() - 1
            }
        };
        // Addresses are relative to their module, so each module is one mapping that spans those seen in it.
        let span = &mut self.mappings[mapping];
        span.memory_start = span.memory_start.min(frame.address & !0xfff);
        span.memory_limit = span.memory_limit.max((frame.address | 0xfff).saturating_add(1));
        let lines = frame
            .functions
            .iter()
            .map(|function| {
                let name = self.string(&function.name);
                let file = self.string(function.file.as_deref().unwrap_or_default());
                let place = self.functions.insert_full((name, file)).0 as i32;
                Line { function_index: place, line: function.line.unwrap_or(0).into(), column: 0 }
            })
            .collect();
        self.locations.push(Location {
            mapping_index: mapping as i32,
            address: frame.address,
            lines,
            ..Location::default()
        });
        let place = self.locations.len() as i32 - 1;
        places.insert(index, place);
        place
    }

    fn dictionary(self) -> ProfilesDictionary {
        let attribute = |(key, value): (i32, String)| KeyValueAndUnit {
            key_strindex: key,
            // What is at place 0 is nothing, a value included.
            value: (key != 0).then_some(AnyValue { value: Some(Value::StringValue(value)) }),
            ..KeyValueAndUnit::default()
        };
        let function = |(name, file): (i32, i32)| Function {
            name_strindex: name,
            system_name_strindex: name,
            filename_strindex: file,
            ..Function::default()
        };
        ProfilesDictionary {
            mapping_table: self.mappings,
            location_table: self.locations,
            function_table: self.functions.into_iter().map(function).collect(),
            link_table: vec![Link::default()],
            string_table: self.strings.into_iter().collect(),
            attribute_table: self.attributes.into_iter().map(attribute).collect(),
            stack_table: self
                .stacks
                .into_iter()
                .map(|locations| Stack { location_indices: locations })
                .collect(),
        }
    }
}

/// 16 bytes that are the same for the same window of the same machine.
fn profile_id(of: &Measured) -> Vec<u8> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    hash.update(of.meta.host.as_bytes());
    hash.update(of.meta.start_unix_ns.to_le_bytes());
    for stack in &of.stacks {
        hash.update(stack.thread.pid.to_le_bytes());
        hash.update(stack.weight.to_le_bytes());
    }
    hash.finalize()[..16].to_vec()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesPartialSuccess;

    use super::*;
    use crate::model::report::fixtures;

    #[test]
    fn every_reference_leads_somewhere_and_the_weights_add_up() {
        let measured = fixtures::profile(&[("main;a", 3), ("main;k:read", 2)]);
        let bytes = request(&Window { target: "api", profile: &measured });
        let request = ExportProfilesServiceRequest::decode(&bytes[..]).unwrap();
        let tables = request.dictionary.unwrap();
        let profile = &request.resource_profiles[0].scope_profiles[0].profiles[0];
        assert_eq!(profile.samples.iter().map(|sample| sample.values[0]).sum::<i64>(), 50_000_000);
        assert!(profile.period > 0 && profile.profile_id.len() == 16);
        let string = |index: i32| tables.string_table[index as usize].as_str();
        let names: Vec<Vec<&str>> = profile
            .samples
            .iter()
            .map(|sample| {
                let stack = &tables.stack_table[sample.stack_index as usize];
                let each = stack.location_indices.iter().map(|&index| {
                    let location = &tables.location_table[index as usize];
                    let mapping = &tables.mapping_table[location.mapping_index as usize];
                    assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
                    string(tables.function_table[location.lines[0].function_index as usize].name_strindex)
                });
                each.collect()
            })
            .collect();
        assert_eq!(names, [["a", "main"], ["k:read", "main"]]);
        // Place 0 of every table is nothing.
        assert_eq!(tables.string_table[0], "");
        assert_eq!(tables.stack_table[0], Stack::default());
        assert_eq!(tables.location_table[0], Location::default());
        assert_eq!(tables.mapping_table[0], Mapping::default());
        assert_eq!(tables.function_table[0], Function::default());
        assert_eq!(tables.attribute_table[0], KeyValueAndUnit::default());
        let sample = &profile.samples[0];
        let thread = &tables.attribute_table[sample.attribute_indices[0] as usize];
        assert_eq!(string(thread.key_strindex), "process.executable.name");
    }

    #[test]
    fn what_was_not_taken_is_read_out_of_the_answer() {
        let partial =
            ExportProfilesPartialSuccess { rejected_profiles: 1, error_message: "too\u{1b} old".to_owned() };
        let answer = ExportProfilesServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        let (n, why) = rejected(&answer).unwrap().unwrap();
        assert!(n == 1 && why.contains("old") && !why.contains('\u{1b}'), "{why}");
        assert_eq!(rejected(&[]).unwrap(), None);
        assert!(rejected(&[0xff; 9]).is_err());
    }
}
