//! Development tasks: `cargo xtask VERB`. One file per verb.

use anyhow::Result;
use clap::Parser;

mod bench;
mod build_ebpf;
mod dist;
mod docs;
mod faults;
mod kernel_matrix;
mod licences;
mod shell;
mod stack_depth;
mod walls;

#[derive(Parser)]
#[command(about = "Development tasks of the profiler")]
enum Task {
    /// Build the kernel programs and their manifest, installing what that needs (Debian, as root)
    BuildEbpf(build_ebpf::Args),
    /// Measure what the profiler costs, against other profilers on the same workload (as root)
    Bench(bench::Args),
    /// Check what the profiler measures in Debian's kernels, emulated, installing what that needs (Debian, as root)
    KernelMatrix(kernel_matrix::Args),
    /// Make the Debian package, and check the unit in it
    Dist(dist::Args),
    /// Write docs/rules from the table of rules
    Docs(docs::Args),
    /// Let go wrong what can go wrong around a run, and check what is promised then (as root)
    Faults(faults::Args),
    /// Check that every dependency has a licence that this project can be distributed with
    Licences,
    /// Check which files of the profiler import which, and that long files say why they are long
    Walls,
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::KernelMatrix(args) => kernel_matrix::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Docs(args) => docs::run(&args),
        Task::Faults(args) => faults::run(&args),
        Task::Licences => licences::run(),
        Task::Walls => walls::run(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))),
    }
}
