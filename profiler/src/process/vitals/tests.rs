use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

const STAT: &str = "7 (a) b) T 1 7 7 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 5 0 0";

/// A /proc with one process that has these descriptors.
fn proc_with(dir: &Path, links: &[&str]) {
    let process = dir.join("7");
    fs::create_dir_all(process.join("task/7")).unwrap();
    let _none = fs::remove_dir_all(process.join("fd"));
    fs::create_dir_all(process.join("fd")).unwrap();
    fs::create_dir_all(process.join("net")).unwrap();
    fs::write(process.join("stat"), STAT).unwrap();
    fs::write(
        process.join("limits"),
        "Max open files            64                   4096                 files\n",
    )
    .unwrap();
    let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
         0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0\n   \
         1: 0100007F:9C40 0200000A:1538 01 00000000:00000000 00:00000000 00000000     0        0 6 1 0 100 0 0 10 0\n   \
         2: 0100007F:1F90 0300000A:9C41 08 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0\n";
    fs::write(process.join("net/tcp"), tcp).unwrap();
    for (number, link) in links.iter().enumerate() {
        symlink(link, process.join("fd").join(number.to_string())).unwrap();
    }
}

#[test]
fn descriptors_are_told_by_kind_and_peer() {
    let dir = tempfile::tempdir().unwrap();
    proc_with(dir.path(), &["/var/log/app.log", "socket:[5]", "socket:[6]"]);
    let mut sampler = VitalsSampler::new(&Networks::new(dir.path()), Redact::No);
    sampler.look(|| vec![7], 1);
    proc_with(dir.path(), &["/var/log/x", "/var/log/y", "socket:[6]", "socket:[7]", "pipe:[9]"]);
    sampler.look(|| vec![7], 2_000_000_001);
    let vitals = sampler.vitals();
    let of = &vitals.processes[0];
    assert_eq!((of.process.as_str(), of.samples, of.span_ns, of.stopped), ("a) b", 2, 2_000_000_000, 2));
    assert_eq!((of.descriptors.points().len(), of.descriptors.last().unwrap().open), (2, 5));
    assert_eq!((of.descriptor_limit, of.listens, of.most_connections), (Some(64), true, 2));
    let kinds: Vec<_> = of.kinds.iter().map(|kind| (kind.kind.as_str(), kind.first, kind.last)).collect();
    assert_eq!(
        kinds,
        [
            ("TCP, 10.0.0.2:5432", 1, 1),
            ("TCP, clients of :8080, closed by the other side", 0, 1),
            ("file in /var/log", 1, 2),
            ("listening socket", 1, 0),
            ("pipe", 0, 1),
        ]
    );
    assert_eq!(
        of.peers.iter().map(|peer| (peer.clients, peer.seen)).collect::<Vec<_>>(),
        [(false, 1), (true, 1)]
    );
}

#[test]
fn many_are_looked_at_in_turn_and_the_living_have_the_places() {
    let dir = tempfile::tempdir().unwrap();
    let set = |pid: u32, flags: u32| {
        let process = dir.path().join(pid.to_string());
        fs::create_dir_all(&process).unwrap();
        let stat = format!("{pid} (app) S 1 7 7 0 -1 {flags} 100 0 0 0 11 22 33 44 20 0 1 0 5 0 0");
        fs::write(process.join("stat"), stat).unwrap();
    };
    let mut sampler = VitalsSampler::new(&Networks::new(dir.path()), Redact::No);
    set(1, 0x0020_8040); // a thread of the kernel
    let pids: Vec<u32> = (1..=1 + MAX_PROCESSES as u32).collect();
    pids.iter().skip(1).for_each(|&pid| set(pid, 0x0040_0000));
    let turns = pids.len().div_ceil(AT_ONCE) as u64;
    (1..=turns).for_each(|turn| sampler.look(|| pids.clone(), turn));
    let vitals = sampler.vitals();
    assert_eq!((vitals.processes.len(), vitals.unlisted), (MAX_PROCESSES, 0));
    assert!(vitals.processes.iter().all(|of| (1..=2).contains(&of.samples)), "each in its turn");
    set(9000, 0x0040_0000);
    sampler.last_look([&pids[..], &[9000]].concat(), turns + 1);
    assert_eq!(sampler.vitals().unlisted, 1, "and that is said");
    // One ends.
    let pids: Vec<u32> = pids.into_iter().filter(|&pid| pid != 5).chain([9000]).collect();
    sampler.last_look(pids, turns + 2);
    assert!(sampler.processes.contains_key(&9000) && !sampler.processes.contains_key(&5));
}

#[test]
fn own_children_are_seen_with_their_cpu_time() {
    let mut sampler = VitalsSampler::new(&Networks::new(Path::new("/proc")), Redact::No);
    let pid = std::process::id();
    sampler.look(|| vec![pid], 1);
    let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    assert!(std::process::Command::new("sh").args(["-c", burn]).status().unwrap().success());
    sampler.look(|| vec![pid], 2);
    let vitals = sampler.vitals();
    assert!(vitals.processes[0].children_cpu_ns >= 10_000_000, "{:?}", vitals.processes[0].children_cpu_ns);
}

/// A worker of an hour's CPU time ends: its hour was not in this run.
#[test]
fn a_child_that_ends_brings_only_what_it_used_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let stat = |pid: u32, own: u64, reaped: u64| {
        fs::create_dir_all(dir.path().join(format!("{pid}/task/{pid}"))).unwrap();
        let text = format!("{pid} (app) S 1 7 7 0 -1 4194304 100 0 0 0 {own} 0 {reaped} 0 20 0 1 0 5 0 0");
        fs::write(dir.path().join(format!("{pid}/stat")), text).unwrap();
    };
    let children = |list: &str| fs::write(dir.path().join("7/task/7/children"), list).unwrap();
    stat(7, 0, 500);
    stat(8, 360_000, 0);
    children("8");
    let mut sampler = VitalsSampler::new(&Networks::new(dir.path()), Redact::No);
    sampler.last_look(vec![7], 1);
    fs::remove_dir_all(dir.path().join("8")).unwrap();
    stat(7, 0, 500 + 360_002);
    children("");
    sampler.last_look(vec![7], 2);
    assert_eq!(sampler.vitals().processes[0].children_cpu_ns, 2 * sampler.tick_ns);
}

#[test]
fn a_connection_is_late_that_was_pending_a_look_ago() {
    let dir = tempfile::tempdir().unwrap();
    proc_with(dir.path(), &[]);
    let socket = |inode: u32| {
        format!(
            "   0: 0100007F:9C40 0200000A:1538 02 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0\n"
        )
    };
    let late = |inodes: [u32; 2]| {
        let mut sampler = VitalsSampler::new(&Networks::new(dir.path()), Redact::No);
        for (time_ns, inode) in inodes.into_iter().enumerate() {
            proc_with(dir.path(), &[&format!("socket:[{inode}]")]);
            fs::write(dir.path().join("7/net/tcp"), format!("  sl  local_address\n{}", socket(inode)))
                .unwrap();
            sampler.networks = Networks::new(dir.path());
            sampler.last_look(vec![7], time_ns as u64);
        }
        sampler.vitals().processes[0].peers[0].connecting
    };
    assert_eq!((late([41, 41]), late([41, 42])), (1, 1), "the same, and one that is tried again");
}

proptest! {
    #[test]
    fn any_text_is_survived(text in ".{0,200}") {
        parse_stat(&text);
        descriptor_limit(&text);
        kind(&text, &Redact::No);
        inode(&text);
    }
}
