//! Builds the unwind tables of the files given and prints what they take.

use std::{fs::File, time::Instant};

use profiler::unwind::{RuleTable, Table};

fn main() {
    let mut rules = RuleTable::new();
    println!(
        "{:>9} {:>9} {:>9} {:>6} {:>9} {:>7} {:>7} {:>6}  file",
        "ms", "functions", "rows", "pages", "KiB", "rules", "unsup", "skip"
    );
    for path in std::env::args_os().skip(1) {
        let start = Instant::now();
        let built = File::open(&path)
            .map_err(|err| err.to_string())
            .and_then(|file| Table::read(&file, &mut rules).map_err(|err| err.to_string()));
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        match built {
            Ok(table) => println!(
                "{ms:>9.1} {:>9} {:>9} {:>6} {:>9} {:>7} {:>7} {:>6}  {}",
                table.stats.fdes + table.stats.go_functions,
                table.rows,
                table.pages.len(),
                table.bytes() / 1024,
                rules.rules().len(),
                table.stats.unsupported,
                table.stats.skipped,
                path.display()
            ),
            Err(err) => println!("{ms:>9.1} {err}: {}", path.display()),
        }
    }
    // Not what getrusage says: that begins with the peak of whoever started this process.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown");
    println!("peak memory: {}", peak.trim());
}
