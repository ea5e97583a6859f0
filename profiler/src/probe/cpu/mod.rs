//! The CPU probe: samples of what runs, at a fixed period of CPU time.

pub mod records;
