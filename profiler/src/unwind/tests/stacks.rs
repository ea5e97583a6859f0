//! Real stacks: this process's own, with and without a signal in between, and those of children.

use std::{
    arch::asm,
    cell::RefCell,
    fs::{self, File},
    hint::black_box,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use gimli::{EhFrame, LittleEndian, UnwindSection};
use profiler_common::unwind::{RULE_NO_INFO, Registers, Step, StopReason, X86_64};

use crate::{
    process::{elf::ElfInfo, maps, memory::ProcessMemory},
    unwind::{RuleTable, Table, image::Image, tests::vdso, walk::walk},
};

/// How a walk ended, and its frames.
type Stack = (Step, Vec<u64>);

/// The tables of everything mapped executable into a process.
struct Tables {
    rules: RuleTable,
    /// Start, end, bias.
    modules: Vec<(u64, u64, u64, Table)>,
}

impl Tables {
    fn of(pid: u32) -> Tables {
        let mut tables = Tables { rules: RuleTable::new(), modules: Vec::new() };
        for entry in maps::read(Path::new("/proc"), pid).unwrap() {
            let (table, bias) = if entry.path == "[vdso]" {
                (Table::build(vdso(), &mut tables.rules), entry.start)
            } else if let Ok(file) = File::open(&entry.path) {
                let Some(info) = ElfInfo::read(&file) else { continue };
                let Some(bias) = info.bias(&entry, None) else { continue };
                let bias = entry.start.wrapping_sub(entry.file_offset).wrapping_sub(bias);
                (Table::read(&file, &mut tables.rules), bias)
            } else {
                continue;
            };
            if let Ok(table) = table {
                tables.modules.push((entry.start, entry.end, bias, table));
            }
        }
        tables
    }

    fn walk(&self, pid: u32, registers: Registers) -> Stack {
        let memory = ProcessMemory::open(Path::new("/proc"), pid).unwrap();
        let find = |address: u64| {
            let module = self.modules.iter().find(|(start, end, ..)| (start..end).contains(&&address));
            let (_, _, bias, table) = module.ok_or(StopReason::NoTable)?;
            let id = table.find(address.wrapping_sub(*bias)).unwrap_or(RULE_NO_INFO);
            self.rules.get(id).copied().ok_or(StopReason::NoRow)
        };
        let (frames, step) = walk::<X86_64, _>(registers, &memory, 127, find, |_, _, _| None);
        (step, frames)
    }
}

/// This process's.
fn own_tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| Tables::of(std::process::id()))
}

/// The registers of this very instruction, and the stack above it.
#[inline(never)]
fn own_stack() -> Stack {
    let (ip, sp, fp): (u64, u64, u64);
    // SAFETY: copies registers.
    unsafe {
        asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp", out(reg) ip, out(reg) sp, out(reg) fp,
            options(nomem, nostack, preserves_flags));
    }
    black_box(own_tables().walk(std::process::id(), Registers { ip, sp, fp, lr: 0 }))
}

/// Whether one of the frames is in a function of this program.
fn has_frame_in(frames: &[u64], function: *const ()) -> bool {
    let &(_, _, bias, _) = own_tables()
        .modules
        .iter()
        .find(|module| (module.0..module.1).contains(&(function as u64)))
        .expect("mapped");
    let data = fs::read("/proc/self/exe").unwrap();
    let image = Image::parse(data.as_slice()).unwrap();
    let section = image.sections[0];
    let bases = image.bases.clone().set_eh_frame(section.address);
    let fde = EhFrame::new(section.data, LittleEndian)
        .fde_for_address(&bases, function as u64 - bias, EhFrame::cie_from_offset)
        .unwrap();
    frames.iter().any(|frame| fde.contains(frame.wrapping_sub(bias).wrapping_sub(1)))
}

#[inline(never)]
fn outer(depth: u32) -> Stack {
    let stack = if depth == 0 { inner(&[1; 100]) } else { outer(depth - 1) };
    black_box(stack)
}

#[inline(never)]
fn inner(values: &[u64]) -> Stack {
    black_box(values);
    black_box(own_stack())
}

#[test]
fn the_own_stack_is_followed_to_the_start_of_the_thread() {
    let (step, frames) = outer(20);
    assert_eq!(step, Step::End, "{frames:x?}");
    assert!(frames.len() > 25);
    assert!(has_frame_in(&frames, own_stack as *const ()));
    assert!(has_frame_in(&frames, inner as *const ()));
    assert!(has_frame_in(&frames, outer as *const ()));
    assert!(has_frame_in(&frames, the_own_stack_is_followed_to_the_start_of_the_thread as *const ()));
    let (step, frames) = std::thread::spawn(|| outer(200)).join().unwrap();
    assert_eq!(step, Step::Stop(profiler_common::unwind::StopReason::TooDeep));
    assert_eq!(frames.len(), 127);
}

thread_local! {
    /// What the handler saw: its own stack, and the interrupted one.
    static SEEN: RefCell<Option<[Stack; 2]>> = const { RefCell::new(None) };
}

extern "C" fn handler(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext to handlers installed with SA_SIGINFO.
    let general = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let interrupted = Registers {
        ip: general[libc::REG_RIP as usize] as u64,
        sp: general[libc::REG_RSP as usize] as u64,
        fp: general[libc::REG_RBP as usize] as u64,
        lr: 0,
    };
    let own = own_stack();
    let interrupted = own_tables().walk(std::process::id(), interrupted);
    SEEN.with_borrow_mut(|seen| *seen = Some([own, interrupted]));
}

#[inline(never)]
fn interrupted_function() {
    // SAFETY: the handler touches nothing that this thread is in the middle of changing.
    assert_eq!(black_box(unsafe { libc::raise(libc::SIGUSR1) }), 0);
}

#[test]
fn a_signal_frame_is_crossed() {
    own_tables();
    // The second time on the thread's alternate stack, if it has one (std gives one to its threads).
    for flags in [libc::SA_SIGINFO, libc::SA_SIGINFO | libc::SA_ONSTACK] {
        // SAFETY: installs a handler of the type that the flags ask for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = flags;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
        }
        interrupted_function();
        let [(own_step, own), (step, interrupted)] = SEEN.take().unwrap();
        assert_eq!(step, Step::End, "{interrupted:x?}");
        assert_eq!(own_step, Step::End, "{own:x?}");
        assert!(own.ends_with(&interrupted), "{own:x?} {interrupted:x?}");
        assert!(own.len() >= interrupted.len() + 3, "own, handler, trampoline");
        assert!(has_frame_in(&own, handler as *const ()));
        assert!(has_frame_in(&interrupted, interrupted_function as *const ()));
    }
}

/// A child that is killed at the end.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says that a test, or a part of it, is skipped; see `kernel_ready` of the end-to-end tests.
fn skipped(why: &str) {
    let line = format!("{}: {why}\n", std::thread::current().name().unwrap_or("a test"));
    eprint!("skipped: {line}");
    if let Some(file) = std::env::var_os("PROFILER_SKIPPED") {
        let mut file = File::options().create(true).append(true).open(file).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

impl Traced {
    fn start(command: &mut Command) -> Option<Traced> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            skipped("a program is not installed");
            return None;
        };
        let traced = Traced(child);
        std::thread::sleep(Duration::from_millis(500));
        Some(traced)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn threads(&self) -> Vec<i32> {
        fs::read_dir(format!("/proc/{}/task", self.pid()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect()
    }

    /// Stops a thread, walks its stack, and lets it go on. `None` where tracing is not allowed.
    fn stack(&self, tid: i32, tables: &Tables) -> Option<Stack> {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: traces a child of ours; the kernel writes the structure of registers it is given.
        unsafe {
            if libc::ptrace(libc::PTRACE_SEIZE, tid, none, none) != 0 {
                return None;
            }
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none), 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(tid, &mut status, libc::__WALL), tid);
            let mut general: libc::user_regs_struct = std::mem::zeroed();
            assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, tid, none, &mut general), 0);
            let registers = Registers { ip: general.rip, sp: general.rsp, fp: general.rbp, lr: 0 };
            let stack = tables.walk(self.pid() as u32, registers);
            assert_eq!(libc::ptrace(libc::PTRACE_DETACH, tid, none, none), 0);
            Some(stack)
        }
    }
}

#[test]
fn every_thread_at_rest_is_followed_to_its_start() {
    let mut sleep = Command::new("sleep");
    sleep.arg("100");
    let mut node = Command::new("node");
    node.args(["-e", "setTimeout(() => {}, 100000)"]);
    for mut command in [sleep, node] {
        let Some(child) = Traced::start(&mut command) else { continue };
        let tables = Tables::of(child.0.id());
        for tid in child.threads() {
            let Some((step, frames)) = child.stack(tid, &tables) else {
                skipped("tracing is not allowed");
                continue;
            };
            eprintln!("{command:?} thread {tid}: {} frames", frames.len());
            assert_eq!(step, Step::End, "{command:?}: {frames:x?}");
            assert!(frames.len() >= 3, "{command:?}: {frames:x?}");
        }
    }
}

#[test]
fn a_busy_program_is_followed_from_wherever_it_is() {
    const SAMPLES: usize = 300;
    let mut shell = Command::new("sh");
    shell.args(["-c", "while :; do x=$(( x + 1 )); test $x; done"]);
    let Some(child) = Traced::start(&mut shell) else { return };
    let tables = Tables::of(child.0.id());
    let mut ended = 0;
    let mut other = Vec::new();
    for sample in 0..SAMPLES {
        std::thread::sleep(Duration::from_micros(500 + sample as u64 * 7));
        match child.stack(child.pid(), &tables) {
            None => {
                skipped("tracing is not allowed");
                return;
            }
            Some((Step::End, _)) => ended += 1,
            Some(stack) => other.push(stack),
        }
    }
    assert!(ended >= SAMPLES - SAMPLES / 100, "{ended} of {SAMPLES}: {other:x?}");
}
