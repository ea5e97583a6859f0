//! Breakpoints in a process's code that run kernel programs (uprobes), many at once.
//!
//! From Linux 6.10 on one link holds all breakpoints of a program in a file (`uprobe_multi`, 6.6, which until 6.10 ran for
//! one thread only where it was asked for one process). Before, each is a perf event of its own, and taking each away
//! waits for all CPUs: over 100 ms a breakpoint have been measured. aya 0.14 knows only the latter, so the programs are
//! loaded here once more, with the attach type that the former wants.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Map, MapData},
    programs::UProbe,
};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_type};
use perf_event_open_sys::bindings as sys;

use crate::{
    kernel::{perf_event, preflight},
    process::shown::shown,
};

/// A kernel program that breakpoints run.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program {
    /// Its name in the kernel object.
    pub name: &'static str,
    /// It runs when the function that begins at the breakpoint has returned.
    pub at_return: bool,
}

/// A breakpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    /// The file, as it is found from here.
    pub path: PathBuf,
    /// Where in it.
    pub file_offset: u64,
    /// What it runs.
    pub program: &'static Program,
    /// What it tells the program.
    pub cookie: u64,
    /// What is known of its price: whether the kernel emulates the instruction, and whether it is passed often.
    pub emulated: bool,
    /// See above.
    pub frequent: bool,
}

/// The loaded programs.
pub struct Programs {
    loaded: Vec<(&'static Program, OwnedFd)>,
    /// Whether one link can hold many breakpoints.
    multi: bool,
    perf_type: u32,
}

/// Breakpoints in place; they go when this is dropped.
#[derive(Default)]
pub struct Attached(Vec<OwnedFd>);

impl Attached {
    /// Takes over others.
    pub fn append(&mut self, other: &mut Attached) {
        self.0.append(&mut other.0);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Each may wait for all CPUs; at the same time they wait for the same.
        std::thread::scope(|scope| {
            for fd in self.0.drain(..) {
                scope.spawn(move || drop(fd));
            }
        });
    }
}

/// What it takes to load the programs later.
pub struct Unloaded {
    maps: BTreeMap<String, RawFd>,
}

impl Unloaded {
    /// Takes note of an object's maps, which must outlive this.
    pub fn of(ebpf: &Ebpf) -> Unloaded {
        let maps = ebpf.maps().filter_map(|(name, map)| Some((name.to_owned(), map_fd(map)?)));
        Unloaded { maps: maps.collect() }
    }

    /// One of the maps, once more.
    pub fn map(&self, name: &str) -> Result<OwnedFd> {
        let fd = *self.maps.get(name).with_context(|| format!("kernel object has no map {name}"))?;
        // SAFETY: the maps outlive this.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?)
    }

    /// Loads some programs of an object that is loaded as `ebpf`. Breakpoints are put in place in their order.
    pub fn load(&self, object: &[u8], ebpf: &mut Ebpf, programs: &[&'static Program]) -> Result<Programs> {
        let perf_type = crate::text::read_to_parse("/sys/bus/event_source/devices/uprobe/type".as_ref())
            .context("this kernel has no uprobes (CONFIG_UPROBE_EVENTS)")?;
        let perf_type = perf_type.trim().parse().context("/sys/bus/event_source/devices/uprobe/type")?;
        let multi = supports_multi();
        let fds = if multi {
            load_for_multi(object, &self.maps, programs)?
        } else {
            let mut fds = Vec::new();
            for Program { name, .. } in programs {
                let program: &mut UProbe = ebpf
                    .program_mut(name)
                    .with_context(|| format!("kernel object has no program {name}"))?
                    .try_into()?;
                program.load()?;
                fds.push(program.fd()?.as_fd().try_clone_to_owned()?);
            }
            fds
        };
        Ok(Programs { loaded: programs.iter().copied().zip(fds).collect(), multi, perf_type })
    }
}

impl Programs {
    /// Whether breakpoints come and go all at once.
    pub fn is_quick(&self) -> bool {
        self.multi
    }

    /// Puts breakpoints into a process. If one cannot be, none is.
    pub fn attach(&self, pid: u32, breakpoints: &[Breakpoint]) -> io::Result<Attached> {
        // The kernel tells whose they are by the memory of the main thread, which has none when it has ended.
        if self.multi && shown(Path::new("/proc"), pid) != Path::new("/proc").join(pid.to_string()) {
            return Err(io::Error::other("its main thread has ended: the kernel runs no breakpoints of it"));
        }
        let mut attached = Attached::default();
        for (program, fd) in &self.loaded {
            let mut files: BTreeMap<&Path, Vec<&Breakpoint>> = BTreeMap::new();
            for breakpoint in breakpoints.iter().filter(|breakpoint| breakpoint.program == *program) {
                if self.multi {
                    files.entry(&breakpoint.path).or_default().push(breakpoint);
                } else {
                    self.attach_one(pid, breakpoint, fd, &mut attached)?;
                }
            }
            for (path, some) in files {
                let link = attach_many(pid, path, program, fd, &some)?;
                attached.0.push(link);
            }
        }
        Ok(attached)
    }

    fn attach_one(
        &self,
        pid: u32,
        breakpoint: &Breakpoint,
        program: &OwnedFd,
        attached: &mut Attached,
    ) -> io::Result<()> {
        let path = CString::new(breakpoint.path.as_os_str().as_bytes())?;
        let mut attr = sys::perf_event_attr {
            size: size_of::<sys::perf_event_attr>() as u32,
            type_: self.perf_type,
            // Bit 0 asks for the return: /sys/bus/event_source/devices/uprobe/format/retprobe.
            config: u64::from(breakpoint.program.at_return),
            ..Default::default()
        };
        attr.__bindgen_anon_3.config1 = path.as_ptr() as u64;
        attr.__bindgen_anon_4.config2 = breakpoint.file_offset;
        let event = perf_event::open(&mut attr, pid as i32, -1)?;
        // SAFETY: plain old data.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        attr.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
        attr.link_create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
        attr.link_create.__bindgen_anon_3.perf_event.bpf_cookie = breakpoint.cookie;
        attached.0.push(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?);
        // The link holds the event.
        Ok(())
    }
}

fn attach_many(
    pid: u32,
    path: &Path,
    program: &Program,
    fd: &OwnedFd,
    some: &[&Breakpoint],
) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let offsets: Vec<u64> = some.iter().map(|breakpoint| breakpoint.file_offset).collect();
    let cookies: Vec<u64> = some.iter().map(|breakpoint| breakpoint.cookie).collect();
    link_multi(fd.as_fd(), &path, &offsets, &cookies, pid, program.at_return)
}

/// `BPF_F_UPROBE_MULTI_RETURN`
const MULTI_RETURN: u32 = 1;

fn link_multi(
    program: BorrowedFd<'_>,
    path: &CString,
    offsets: &[u64],
    cookies: &[u64],
    pid: u32,
    returns: bool,
) -> io::Result<OwnedFd> {
    // SAFETY: plain old data.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    // SAFETY: a member of a union of plain old data that has been zeroed.
    let multi = unsafe { &mut attr.link_create.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr() as u64;
    multi.offsets = offsets.as_ptr() as u64;
    multi.cookies = cookies.as_ptr() as u64;
    multi.cnt = offsets.len() as u32;
    multi.flags = if returns { MULTI_RETURN } else { 0 };
    multi.pid = pid;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Whether one link can hold many breakpoints, for all threads of a process.
pub fn supports_multi() -> bool {
    if preflight::version(&preflight::release()) < Some((6, 10)) {
        return false;
    }
    // return 0
    let instructions = [
        // SAFETY: plain old data.
        bpf_insn { code: 0xb7, ..unsafe { std::mem::zeroed() } },
        // SAFETY: plain old data.
        bpf_insn { code: 0x95, ..unsafe { std::mem::zeroed() } },
    ];
    // SAFETY: plain old data.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a member of a union of plain old data that has been zeroed.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    let Ok(program) = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) else { return false };
    // A folder is no file to put breakpoints into: who knows this kind of link says so.
    let refused = link_multi(program.as_fd(), &c"/".to_owned(), &[0], &[0], 0, false);
    refused.is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
}

/// Loads the programs with the attach type that many breakpoints in one link need.
fn load_for_multi(
    data: &[u8],
    maps: &BTreeMap<String, RawFd>,
    programs: &[&Program],
) -> Result<Vec<OwnedFd>> {
    let mut object = aya_obj::Object::parse(data)?;
    let btf = match aya::features().btf() {
        Some(features) => {
            object.fixup_and_sanitize_btf(features)?.map(|btf| load_btf(&btf.to_bytes())).transpose()?
        }
        None => None,
    };
    let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
    let described = std::mem::take(&mut object.maps);
    let located = described.iter().filter_map(|(name, map)| Some((name.as_str(), *maps.get(name)?, map)));
    object.relocate_maps(located, &text_sections)?;
    object.relocate_calls(&text_sections)?;
    object.sanitize_functions(aya::features());
    programs.iter().map(|program| load_program(&object, program.name, btf.as_ref())).collect()
}

fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: plain old data.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a member of a union of plain old data that has been zeroed.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = bytes.len() as u32;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)
}

/// Room for what the verifier says of a program that it refuses: it writes down every instruction that it follows.
const VERIFIER_LOG_BYTES: usize = 16 * 1024 * 1024;

fn load_program(object: &aya_obj::Object, name: &str, btf: Option<&OwnedFd>) -> Result<OwnedFd> {
    let program =
        object.programs.get(name).with_context(|| format!("kernel object has no program {name}"))?;
    let function = &object.functions[&program.function_key()];
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    // SAFETY: plain old data.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a member of a union of plain old data that has been zeroed.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    for (to, from) in load.prog_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as _;
    }
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
    load.expected_attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = function.instructions.len() as u32;
    load.license = program.license.as_ptr() as u64;
    if let Some(btf) = btf {
        load.prog_btf_fd = btf.as_raw_fd() as u32;
        if function.func_info_rec_size > 0 {
            load.func_info = functions.as_ptr() as u64;
            load.func_info_cnt = function.func_info.len() as u32;
            load.func_info_rec_size = function.func_info_rec_size as u32;
        }
        if function.line_info_rec_size > 0 {
            load.line_info = lines.as_ptr() as u64;
            load.line_info_cnt = function.line_info.len() as u32;
            load.line_info_rec_size = function.line_info_rec_size as u32;
        }
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).or_else(|refused| {
        // Once more, to hear why.
        let mut log = vec![0u8; VERIFIER_LOG_BYTES];
        // SAFETY: as above.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = log.len() as u32;
        // A log that is too long even so has an error of its own: the first one is the reason.
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map_err(|_again| {
            let said = crate::text::to_parse(&log);
            let said = said.trim_end_matches('\0').trim_end();
            let tail: Vec<&str> = said.lines().rev().take(5).collect();
            anyhow::Error::new(refused)
                .context(format!("loading {name}: {}", tail.into_iter().rev().collect::<Vec<_>>().join("; ")))
        })
    })
}

/// The bpf system call, for commands that answer with a descriptor.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: attr is valid for the call and whatever it points to too, promised by all callers here.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn map_fd(map: &Map) -> Option<RawFd> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::CgroupArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd().as_raw_fd())
}
