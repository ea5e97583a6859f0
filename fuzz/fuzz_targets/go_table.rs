#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| profiler::foreign::feed("go_table", bytes));
