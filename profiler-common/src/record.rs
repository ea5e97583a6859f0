//! What the kernel programs send.

use crate::table::table;

table! {
    /// The first word of each record in the ring buffer: what it is.
    pub enum RecordKind {
        /// A CPU sample, a [`SampleHeader`](crate::cpu::SampleHeader).
        CpuSample = 1, "cpu_sample", "CPU sample";
        /// A stack that blocks, a [`StackHeader`](crate::sched::StackHeader).
        Stack = 2, "stack", "stack that blocks";
        /// A long block or wait for a CPU, an [`Interval`](crate::sched::Interval).
        Interval = 3, "interval", "long wait";
        /// A long iteration of an event loop, an [`Iteration`](crate::sched::Iteration).
        Iteration = 4, "iteration", "long iteration of an event loop";
        /// The end of a thread, an [`Exit`](crate::sched::Exit).
        Exit = 5, "exit", "end of a thread";
        /// The first wait of an event loop, a [`LoopSeen`](crate::sched::LoopSeen).
        Loop = 6, "loop", "event loop";
        /// A stack that allocates, a [`StackHeader`](crate::sched::StackHeader).
        AllocStack = 7, "alloc_stack", "stack that allocates";
        /// A page fault, a [`SampleHeader`](crate::cpu::SampleHeader); stands for as many as the sampling period says.
        FaultSample = 8, "fault_sample", "page fault";
        /// A slow system call, a [`SlowCall`](crate::syscall::SlowCall).
        SlowCall = 9, "slow_call", "slow system call";
        /// A descriptor that is used for the first time or has been closed, an [`IoRecord`](crate::syscall::IoRecord).
        Io = 10, "io", "descriptor";
        /// A stack that wakes threads, a [`StackHeader`](crate::sched::StackHeader); its thread's name follows the addresses.
        Waker = 11, "waker", "stack that wakes threads";
        /// A request and its answer, a [`Connection`](crate::request::Connection).
        Exchange = 12, "exchange", "request and answer";
        /// What a name server said, a [`Names`](crate::request::Names).
        Names = 13, "names", "answer of a name server";
        /// What a call moved on a connection of HTTP/2, a [`Frames`](crate::request::Frames).
        Frames = 14, "frames", "frames of HTTP/2";
    }
}
