//! Every way in for bytes that somebody else wrote, as one table. The fuzz targets feed it, and a test does so with damaged
//! seeds in every run of the unit tests. Whatever the bytes are, nothing here may panic, hang or grow without bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

use crate::{
    detect::{compare::compare, rule::Overrides},
    kernel::{btf::Btf, sideband},
    model::function::Start,
    output::{FORMATS, OutputSpec, RenderOptions, report, text},
    probe::{
        alloc::{allocators, exits, site},
        record::Record,
        request::{h2, protocol},
        sched::records as sched,
        syscall::records as syscall,
    },
    process::{
        elf::ElfInfo,
        go::{GoSection, GoTable},
        hsperf,
        jit::JitCode,
        life, limits, maps,
        network::Networks,
        objects,
        redact::Redact,
        target,
    },
    recording,
    runtimes::{
        exported::Exported,
        v8::source_map::{self, SourceMap},
    },
    symbolize::facts::Facts,
    unwind::{RuleTable, Table},
};

/// Takes bytes as if they had come in by one of the ways.
pub type Feed = fn(&[u8]);

/// The ways in, by name.
pub static FOREIGN: &[(&str, Feed)] = &[
    ("btf", btf),
    ("config", config),
    ("elf", elf),
    ("go_table", go_table),
    ("jit_dump", jit_dump),
    ("machine_code", machine_code),
    ("perf_map", perf_map),
    ("proc", proc),
    ("recording", recording),
    ("records", records),
    ("requests", requests),
    ("sideband", side_band),
    ("source_map", source_map),
];

/// Feeds the way called `name`.
///
/// # Panics
/// If there is none, or if the bytes find a fault.
pub fn feed(name: &str, bytes: &[u8]) {
    let way = FOREIGN.iter().find(|(known, _)| *known == name);
    way.unwrap_or_else(|| panic!("no way in is called {name}")).1(bytes);
}

/// Records of the kernel programs.
fn records(bytes: &[u8]) {
    let redact = Redact::new(false);
    match Record::decode(bytes) {
        Some(Record::SlowCall(call)) => {
            syscall::arguments(&call, &redact, |descriptor| Some(descriptor.to_string()));
        }
        Some(Record::Io(io)) => {
            syscall::object(&io.stats.on, &io.name);
        }
        Some(record) => {
            record.time_ns();
        }
        None => {}
    }
}

/// A daemon's configuration.
fn config(bytes: &[u8]) {
    if let Err(problem) = crate::daemon::config::parse(&crate::text::to_parse(bytes)) {
        assert!(!problem.is_empty(), "an error says what is wrong");
    }
}

/// The first bytes of a request and of its answer: port, length of the request, and both; or what a name server says.
fn requests(bytes: &[u8]) {
    let Some((&[high, low, length], both)) = bytes.split_first_chunk::<3>() else { return };
    let (request, answer) = both.split_at(usize::from(length).min(both.len()));
    let (request_bytes, port) = (request.len() as u64, u16::from_be_bytes([high, low]));
    let head = protocol::Head { request, answer, request_bytes, port };
    protocol::addresses(both);
    h2::feed(both);
    let Some((spoken, _)) = protocol::read(&head, None) else { return };
    // However little of it is there, it is not taken for something else.
    for cut in 0..request.len() {
        let head = protocol::Head { request: &request[..cut], ..head };
        if let Some((known, _)) = protocol::read(&head, Some(spoken)) {
            assert_eq!(known.name, spoken.name, "what is cut off is the same thing, or not known");
        }
    }
}

/// Perf's side-band events: kind, flags, and the rest.
fn side_band(bytes: &[u8]) {
    if let Some((&[kind, misc, ..], body)) = bytes.split_first_chunk::<4>() {
        sideband::parse(kind.into(), u16::from(misc) << 8, body);
    }
}

/// The last lines of a script, and its source map.
fn source_map(bytes: &[u8]) {
    let text: Vec<u16> = bytes.iter().map(|byte| u16::from(*byte)).collect();
    if let Some(url) = source_map::url(&text)
        && url.starts_with("data:")
    {
        let _map = SourceMap::of(Path::new("/a.js"), &url, Path::new("/nowhere"), 1 << 20);
    }
    let Some(map) = SourceMap::parse(bytes, Path::new("/srv"), 1 << 20) else { return };
    for (line, column) in [(0, 0), (1, 1), (1, 40), (7, 3), (u32::MAX, u32::MAX)] {
        map.original(Start { line, column });
        map.name("x", Start { line, column });
    }
}

/// Types of the kernel.
fn btf(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes, &["task_struct", "pair"]) {
        let _any_offset = btf.offset("task_struct", "comm");
    }
}

/// Code of an allocator.
fn machine_code(bytes: &[u8]) {
    for returns in [false, true] {
        let site = site::find(bytes, 3, returns);
        assert!(site.offset < bytes.len().max(1) as u64, "a breakpoint is inside the function");
    }
    let (slots, none) = (BTreeMap::new(), BTreeSet::new());
    let at = |address: u64| bytes.get(usize::try_from(address).unwrap_or(usize::MAX)..).unwrap_or_default();
    exits::find(0, &exits::Code { bytes: &at, slots: &slots, noreturn: &none }, &none);
}

/// A file that a process has mapped.
fn elf(bytes: &[u8]) {
    if let Some(table) = Facts::parse(bytes).and_then(|facts| GoTable::read(facts.go?)) {
        functions_of_go(&table);
    }
    if let Some(info) = ElfInfo::parse(bytes) {
        for file_offset in [0, 0x1000, u64::MAX] {
            let mapping = maps::MapsEntry {
                start: 0x5000,
                end: 0x9000,
                file_offset,
                device: (0, 1),
                inode: 1,
                path: "/x".into(),
            };
            info.bias(&mapping, None);
            info.bias(&mapping, Some(0x4000));
        }
    }
    let _any_table = Table::build(bytes, &mut RuleTable::new());
    Exported::parse(bytes, |_| true);
    let Ok(mut file) = tempfile::tempfile() else { return };
    if file.write_all(bytes).is_ok() {
        allocators::functions(&file, true);
    }
}

/// Go's table of functions, and code that may or may not be theirs.
fn go_table(bytes: &[u8]) {
    let section = || GoSection { table: bytes.into(), text: 0x1000 };
    if let Some(table) = GoTable::read(section()) {
        functions_of_go(&table);
    }
    for code in [bytes, &[0x55, 0x48, 0x89, 0xe5].repeat(0x1000)] {
        let _any_table = Table::of_go(section(), code, &mut RuleTable::new());
    }
}

fn functions_of_go(table: &GoTable<'_>) {
    for address in [0, 0x1000, 0x1020, 0x40_1000, u64::MAX] {
        table.function(address);
    }
}

/// Symbols that a just-in-time compiler wrote down.
fn perf_map(bytes: &[u8]) {
    jit_code(bytes, false);
}

/// The same with records and times.
fn jit_dump(bytes: &[u8]) {
    jit_code(bytes, true);
}

/// A whole file of either kind, that is read as it grows.
fn jit_code(bytes: &[u8], dump: bool) {
    let Ok((mut file, read)) = tempfile::tempfile().and_then(|file| Ok((file.try_clone()?, file))) else {
        return;
    };
    let mut code = JitCode::default();
    code.open(read, dump);
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    for (now_ns, piece) in [(10, first), (20, rest)] {
        if file.write_all(piece).is_err() {
            return;
        }
        code.read(now_ns);
    }
    for address in [0, 0x110, 0x1008, u64::MAX] {
        for time_ns in [0, 15, 250, u64::MAX] {
            code.name(address, code.tenant(address, time_ns).number);
        }
    }
}

/// Any text of /proc, as all of them.
fn proc(bytes: &[u8]) {
    const TEXTS: [&str; 17] = [
        "meminfo",
        "self/mountinfo",
        "7/cgroup",
        "7/comm",
        "7/limits",
        "7/maps",
        "7/net/tcp",
        "7/net/tcp6",
        "7/net/udp",
        "7/net/udp6",
        "7/net/unix",
        "7/stat",
        "7/status",
        "7/task/7/comm",
        "7/task/7/schedstat",
        "7/task/7/stat",
        "7/task/7/syscall",
    ];
    thread_local! {
        static ROOT: Option<tempfile::TempDir> = fake_proc();
    }
    fn fake_proc() -> Option<tempfile::TempDir> {
        let root = tempfile::tempdir().ok()?;
        for folder in ["self", "7/fd", "7/net", "7/task/7"] {
            fs::create_dir_all(root.path().join(folder)).ok()?;
        }
        std::os::unix::fs::symlink("socket:[1]", root.path().join("7/fd/3")).ok()?;
        Some(root)
    }
    hsperf::collections(bytes);
    ROOT.with(|root| {
        let Some(root) = root.as_ref().map(tempfile::TempDir::path) else { return };
        for text in TEXTS {
            let _full_disk = fs::write(root.join(text), bytes);
        }
        read_proc(root);
    });
}

fn read_proc(root: &Path) {
    let _any_mappings = maps::read(root, 7);
    limits::nearest(root, 7);
    life::start_time(root, 7);
    target::comm(root, 7);
    let networks = Networks::new(root);
    objects::descriptor(&networks, 7, 3);
    objects::serves(&networks, 7, "tcp 127.0.0.1:1 -> 127.0.0.1:2");
    objects::listens(&networks, &[7]);
    sched::seed(&networks, 7, 7, 1);
    sched::SchedStat::read(root, 7, 7);
}

/// A recording: as a file, and as what is in one.
fn recording(bytes: &[u8]) {
    replay(bytes);
    let mut whole = recording::MAGIC.to_vec();
    let mut events = GzEncoder::new(&mut whole, Compression::none());
    if events.write_all(bytes).and_then(|()| events.finish().map(drop)).is_ok() {
        replay(&whole);
    }
}

fn replay(bytes: &[u8]) {
    let Ok(replayed) = recording::load::load_stream(bytes, &Overrides::default()) else { return };
    let options = RenderOptions { threads: true, top: Some(10), details: true };
    for format in FORMATS {
        if let Ok(spec) = format!("x{}", format.extension).parse::<OutputSpec>() {
            let _any_result = spec.write(&replayed.run, &options, &mut std::io::sink());
        }
    }
    compare(replayed.measured(), replayed.measured());
    let style = text::Style { colour: false, width: Some(80), threads: true, top: 10 };
    let _any_result = report::write(&replayed.run, &style, &mut std::io::sink());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::process::{go, jit};

    /// Something of each kind that is in order, to be damaged.
    fn seed(name: &str) -> Vec<u8> {
        match name {
            "elf" => fs::read("/proc/self/exe")
                .map(|mut bytes| {
                    bytes.truncate(8192);
                    bytes
                })
                .unwrap(),
            "recording" => {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/recording/golden");
                let golden = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
                fs::read(golden).unwrap()
            }
            "config" => include_bytes!("daemon/profiler.toml").to_vec(),
            "go_table" => go::fixtures::table(go::fixtures::Written::By1_20, &go::fixtures::some()).0,
            "requests" => {
                b"\x00\x50\x24GET /users/17 HTTP/1.1\r\nHost: x\r\n\r\nHTTP/1.1 200 OK\r\n".to_vec()
            }
            "source_map" => {
                b"{\"version\":3,\"sources\":[\"../src/x.ts\"],\"names\":[\"n\"],\"mappings\":\"AAUAA,SAAS;AACA\"}".to_vec()
            }
            "jit_dump" => jit::fixtures::dump(),
            "perf_map" => b"1000 20 a /x.js:3\n0x1010 10 b\n".to_vec(),
            "proc" => b"7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 2 0 9 0 0\nName:\tx\nNSpid:\t7\n\
                55e0-66f0 r-xp 00001000 fe:01 1234 /usr/bin/a\n0::/a\n\
                0: 0100007F:1F90 0200007F:1538 0A 0:0 0:0 0 1000 0 1 1 0\n"
                .to_vec(),
            _ => (0..=255).collect(),
        }
    }

    #[test]
    fn every_way_has_a_fuzz_target() {
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
        for (name, _) in FOREIGN {
            let target = fs::read_to_string(targets.join(format!("{name}.rs"))).unwrap_or_default();
            assert!(target.contains(&format!("feed(\"{name}\"")), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn damage_is_survived_whichever_way_it_comes_in(
            way in 0..FOREIGN.len(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            cut: Option<prop::sample::Index>,
        ) {
            let (name, feed) = FOREIGN[way];
            let mut bytes = seed(name);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            feed(&bytes);
        }

        #[test]
        fn any_bytes_are_survived(way in 0..FOREIGN.len(), kind in 0u32..40, bytes: Vec<u8>) {
            let mut record = kind.to_ne_bytes().to_vec();
            record.extend(&bytes);
            FOREIGN[way].1(&record);
            FOREIGN[way].1(&bytes);
        }
    }
}
