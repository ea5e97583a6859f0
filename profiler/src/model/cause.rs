//! What a blocked thread waits for: the kernel programs' own table.

pub use profiler_common::sched::WaitCause;
