#![no_main]

use libfuzzer_sys::fuzz_target;
use profiler::process::elf::ElfInfo;

fuzz_target!(|data: &[u8]| {
    if let Some(info) = ElfInfo::parse(data) {
        for offset in [0, 0x1000, u64::MAX] {
            info.bias(offset);
        }
    }
});
