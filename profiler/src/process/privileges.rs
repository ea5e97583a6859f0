//! The profiler's own rights. Once outputs are open and the command is there, most of what root may do is given up, before
//! anything of the target is read: damage in what comes from it cannot be used for that.

use caps::{CapSet, Capability, CapsHashSet};

/// What a run needs to the end, and for what.
const NEEDED: [Capability; 9] = [
    // Kernel programs and their maps.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // Memory, mappings, files of processes of other users,
    Capability::CAP_SYS_PTRACE,
    // of what was deleted,
    Capability::CAP_CHECKPOINT_RESTORE,
    // below folders that only others may read.
    Capability::CAP_DAC_READ_SEARCH,
    // Outputs in folders of others.
    Capability::CAP_DAC_OVERRIDE,
    // The kernel's symbols.
    Capability::CAP_SYSLOG,
    // Buffers and descriptors of new processes.
    Capability::CAP_IPC_LOCK,
    Capability::CAP_SYS_RESOURCE,
];

/// Gives up all other rights, of this thread and of those that it starts. `suffices` says whether the rights that are left
/// do: some distributions' kernels want CAP_SYS_ADMIN for perf events, which is kept there. A failure leaves some rights.
pub fn give_up(suffices: impl FnOnce() -> bool) -> Result<(), caps::errors::CapsError> {
    let had = caps::read(None, CapSet::Permitted)?;
    let mut keep: CapsHashSet = NEEDED.into_iter().filter(|needed| had.contains(needed)).collect();
    let bounding = had.contains(&Capability::CAP_SETPCAP);
    let also = bounding.then_some(Capability::CAP_SETPCAP);
    caps::set(None, CapSet::Effective, &keep.iter().copied().chain(also).collect())?;
    if had.contains(&Capability::CAP_SYS_ADMIN) && !suffices() {
        keep.insert(Capability::CAP_SYS_ADMIN);
    }
    if bounding {
        for &other in caps::all().difference(&keep) {
            // One that this kernel does not know cannot be had either.
            let _unknown = caps::drop(None, CapSet::Bounding, other);
        }
    }
    let _before_4_3 = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)
}
