//! Where event loops ask for work: the first instruction of each system call that they wait in. All other system calls, of
//! any process, pay nothing. Only where the kernel allows function hooks; elsewhere `sched::wait_enter` does the same.

use aya_ebpf::{macros::fentry, programs::FEntryContext};

use profiler_common::sched::SyscallClass;

use crate::{
    sched::{ask_for_work, syscall_entry},
    unwind::current_task,
};

/// A program for each call, since a program is bound to one function when it is loaded.
macro_rules! hooks {
    ($class:ident: $($name:ident)*) => {
        $(
            #[fentry]
            pub fn $name(_ctx: FEntryContext) -> u32 {
                let number = syscall_entry(current_task()).number;
                ask_for_work(number as u32, SyscallClass::$class as u32)
            }
        )*
    };
}

hooks!(Epoll: enter_epoll_wait enter_epoll_pwait enter_epoll_pwait2);
hooks!(Poll: enter_poll enter_ppoll enter_select enter_pselect6 enter_io_uring_enter);
