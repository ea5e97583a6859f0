//! Where the profiler's own programs are in the kernel: they run where the target runs, and are seen in its stacks.

use std::{collections::BTreeSet, fs, ops::Range, os::fd::RawFd};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};

/// Functions of a program that are asked for.
const MOST: usize = 256;

/// Addresses of the programs' code.
#[derive(Clone, Debug, Default)]
pub struct OwnCode(BTreeSet<(u64, u64)>);

impl OwnCode {
    /// Adds the programs that are loaded now.
    pub fn look(&mut self) {
        for entry in fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten() {
            let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let is_program =
                crate::text::read_to_parse(&entry.path()).is_ok_and(|text| text.contains("\nprog_id:"));
            if let Some(fd) = fd.filter(|_| is_program) {
                self.0.extend(functions(fd).map(|function| (function.start, function.end)));
            }
        }
    }

    /// Whether no program has been seen.
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of them.
    pub fn contains(&self, address: u64) -> bool {
        self.0.range(..=(address, u64::MAX)).next_back().is_some_and(|&(_, end)| address < end)
    }
}

/// Where the functions of a loaded program are; none where the kernel does not say.
fn functions(program: RawFd) -> impl Iterator<Item = Range<u64>> {
    let (mut starts, mut lengths) = ([0u64; MOST], [0u32; MOST]);
    // SAFETY: zeros are valid for these structs of numbers.
    let (mut info, mut attr) =
        unsafe { (std::mem::zeroed::<bpf_prog_info>(), std::mem::zeroed::<bpf_attr>()) };
    info.jited_ksyms = starts.as_mut_ptr() as u64;
    info.jited_func_lens = lengths.as_mut_ptr() as u64;
    (info.nr_jited_ksyms, info.nr_jited_func_lens) = (MOST as u32, MOST as u32);
    attr.info.bpf_fd = program as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    // SAFETY: the kernel writes at most as much as it is told there is room for, into values that live during the call.
    let done = unsafe {
        let command = bpf_cmd::BPF_OBJ_GET_INFO_BY_FD as libc::c_int;
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(&mut attr), size_of::<bpf_attr>())
    };
    let told = if done < 0 { 0 } else { info.nr_jited_ksyms.min(info.nr_jited_func_lens) as usize };
    let code = starts.into_iter().zip(lengths).take(told);
    code.filter(|&(start, _)| start != 0).map(|(start, length)| start..start.saturating_add(length.into()))
}
