//! Hooks on single kernel functions (fentry): whoever does not call them pays nothing. Not every kernel allows them, and
//! names differ by architecture: what can be hooked is tried before anything is relied on.

use std::{
    fs, mem,
    os::fd::{FromRawFd as _, OwnedFd},
};

use crate::kernel::btf::{self, Btf};

/// A program of the kernel object and the function it belongs to.
pub type Hook = (&'static str, &'static str);

/// Those of `hooks` whose function this kernel has, if it allows such hooks at all. A function that is there and cannot be
/// hooked makes them all useless: what it is called for would be missed.
pub fn allowed(hooks: &[Hook]) -> Vec<Hook> {
    let Ok(data) = fs::read(btf::VMLINUX) else { return Vec::new() };
    let names: Vec<&str> = hooks.iter().map(|&(_, function)| function).collect();
    let Ok(btf) = Btf::parse(&data, &names) else { return Vec::new() };
    let there: Vec<(Hook, u32)> =
        hooks.iter().filter_map(|&hook| Some((hook, btf.function_id(hook.1)?))).collect();
    if there.iter().any(|&(_, id)| !can_hook(id)) {
        return Vec::new();
    }
    there.into_iter().map(|(hook, _)| hook).collect()
}

/// Whether a program that does nothing can be loaded for the function with this id in the kernel's types.
fn can_hook(function_id: u32) -> bool {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_TRACING: u32 = 26;
    const BPF_TRACE_FENTRY: u32 = 24;
    /// `union bpf_attr` as far as loading needs it: include/uapi/linux/bpf.h.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        instructions_len: u32,
        instructions: u64,
        license: u64,
        log: [u32; 4],
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_kind: u32,
        types_fd: u32,
        function_info: [u32; 4],
        line_info: [u32; 4],
        attach_type_id: u32,
    }
    const { assert!(mem::offset_of!(Load, attach_kind) == 68 && mem::offset_of!(Load, attach_type_id) == 108) };
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let load = Load {
        kind: BPF_PROG_TYPE_TRACING,
        instructions_len: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_kind: BPF_TRACE_FENTRY,
        attach_type_id: function_id,
        ..Load::default()
    };
    // SAFETY: the structure and what it points to live until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return false;
    }
    // SAFETY: a descriptor that nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_exist_cannot_be_hooked() {
        assert_eq!(allowed(&[("none", "no_such_function")]), []);
        assert!(!can_hook(u32::MAX));
    }
}
