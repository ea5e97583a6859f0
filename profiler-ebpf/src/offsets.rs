//! Offsets in the running kernel's structures, in bytes: userspace finds them in the kernel's BTF and sets them before
//! loading. Zero where they are not needed, or the kernel is without.

use aya_ebpf::Global;

macro_rules! globals {
    ($($(#[$doc:meta])* $need:ident $group:ident {
        $($(#[$row_doc:meta])* $global:ident: $($($of:ident . $member:tt),+)/+;)+
    })+) => {
        $($(
            $(#[$row_doc])*
            #[unsafe(no_mangle)]
            pub static $global: Global<u32> = Global::new(0);
        )+)+
    };
}

profiler_common::offsets!(globals);
