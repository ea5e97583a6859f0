//! Refuses to build with a kernel object that was not built from the sources beside it.

use std::{fs, path::Path};

#[path = "build/manifest.rs"]
mod manifest;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=bpf");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if !workspace.join("profiler-ebpf").exists() {
        return; // a packaged crate has the objects only
    }
    println!("cargo:rerun-if-changed=../profiler-ebpf");
    println!("cargo:rerun-if-changed=../profiler-common");
    let committed = fs::read_to_string("bpf/sources.sha256").unwrap_or_default();
    let actual = manifest::source_files(&workspace).and_then(|files| manifest::render(&workspace, &files));
    let actual = actual.expect("the kernel programs' sources can be read");
    let changed = manifest::differences(&committed, &actual);
    assert!(
        changed.is_empty(),
        "the kernel programs in profiler/bpf are not built from these sources (changed: {}); run `cargo xtask build-ebpf`",
        changed.join(", ")
    );
}
