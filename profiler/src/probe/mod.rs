//! One room per probe: its options, how it attaches, how its records are decoded.

pub mod cpu;
