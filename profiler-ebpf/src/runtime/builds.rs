//! Builds of runtimes that are in use.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use profiler_common::runtime::{MAX_RUNTIME_OFFSETS, RuntimeOffsets};

/// What must be known of runtimes, by [`ProcessMappings::offsets`](profiler_common::mapping::ProcessMappings::offsets).
#[btf_map]
pub static RUNTIMES: Array<RuntimeOffsets, MAX_RUNTIME_OFFSETS> = Array::new();
