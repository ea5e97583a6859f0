//! Names of a live program's frames, read from outside. Needs Node.js (`NODE`, or `node` in the path) and the right to trace
//! it, so it is run by hand: `cargo test -p profiler --lib v8::tests::live -- --ignored --nocapture`.

use std::{
    collections::BTreeMap,
    fs::File,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;
use crate::process::{maps, memory::ProcessMemory};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Instruction, frame and stack pointer of a thread that stands still for as long as `while_still` runs.
fn stopped<T>(tid: i32, while_still: impl FnOnce(u64, u64) -> T) -> T {
    // SAFETY: ptrace of a child of ours; registers go to a struct of their own.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0), 0);
        libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0);
        libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL);
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut registers);
        let result = while_still(registers.rip, registers.rbp);
        libc::ptrace(libc::PTRACE_DETACH, tid, 0, 0);
        result
    }
}

#[test]
#[ignore = "needs Node.js"]
fn frames_of_a_live_program_have_their_names() {
    let node = std::env::var("NODE").unwrap_or_else(|_| "node".to_owned());
    let script = std::env::var("SCRIPT").expect("SCRIPT: a program to run");
    let samples: usize = std::env::var("SAMPLES").map_or(300, |n| n.parse().unwrap());
    let flags = std::env::var("FLAGS").unwrap_or_default();
    let child = Killed(
        Command::new(node).args(flags.split_whitespace()).arg(script).stdout(Stdio::null()).spawn().unwrap(),
    );
    let pid = child.0.id();
    std::thread::sleep(Duration::from_secs(2));
    let layout = build::layout_of(&File::open(format!("/proc/{pid}/exe")).unwrap()).unwrap().unwrap();
    println!("{layout:?}");
    let memory = ProcessMemory::open("/proc".as_ref(), pid).unwrap();
    let mut v8 = V8::new(
        ProcessMemory::open("/proc".as_ref(), pid).unwrap(),
        format!("/proc/{pid}/root").into(),
        layout.clone(),
    );
    let mut stacks: BTreeMap<String, usize> = BTreeMap::new();
    let (mut frames, mut gone) = (0, 0);
    for sample in 0..samples {
        std::thread::sleep(Duration::from_millis(3));
        let mapped = maps::read("/proc".as_ref(), pid).unwrap();
        let find = |ip: u64| mapped.iter().find(|entry| (entry.start..entry.end).contains(&ip));
        let taken = stopped(pid as i32, |mut ip, mut fp| {
            let mut taken = Vec::new();
            for depth in 0..100 {
                let Some(entry) = find(ip) else { break };
                let compiled = entry.path.is_empty();
                if depth == 0 && !compiled && !entry.path.ends_with("node") {
                    break;
                }
                let Some(words) = memory.words::<7>(fp.wrapping_sub(40)) else { break };
                let [.., caller, returns_to] = words;
                if let Some(function) = runtime::v8::function(&words) {
                    let shared = memory.u64(function + layout.function_shared).unwrap_or(0);
                    let entry = runtime::v8::entry(depth, shared, &words);
                    taken.push(JsFrame::new(if depth == 0 { ip } else { ip - 1 }, compiled, &entry));
                }
                if caller <= fp {
                    break;
                }
                (ip, fp) = (returns_to, caller);
            }
            taken
        });
        if sample % 16 == 0 {
            v8.new_round();
        }
        let named = taken.iter().map(|frame| match v8.name_frame(frame) {
            Ok(named) => {
                let functions = named.functions.iter().map(|function| {
                    format!(
                        "{}@{}:{}",
                        function.name,
                        function.file.as_deref().unwrap_or("-").rsplit('/').next().unwrap(),
                        function.line.unwrap_or(0)
                    )
                });
                let mut text: Vec<String> = functions.collect();
                if named.in_builtin {
                    text.insert(0, "<builtin>".into());
                }
                text.join(" < ")
            }
            Err(_) => {
                gone += 1;
                "?".to_owned()
            }
        });
        frames += taken.len();
        *stacks.entry(named.collect::<Vec<_>>().join(" < ")).or_default() += 1;
    }
    let mut stacks: Vec<_> = stacks.into_iter().collect();
    stacks.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (stack, count) in stacks.iter().take(25) {
        println!("{count} {stack}");
    }
    println!("{frames} frames, {gone} without a name, {} ranges replaced", v8.code.replaced);
    assert!(frames > samples / 4 && gone * 100 <= frames, "{frames} frames, {gone} without a name");
}
