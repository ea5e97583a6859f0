//! `/tmp/perf-PID.map`: symbols that just-in-time compilers write down for profilers. One per line: start
//! address and size in hexadecimal, then the name.

/// Symbols of one process's JIT code, sorted by address.
#[derive(Debug, Default)]
pub struct PerfMap {
    symbols: Vec<Symbol>,
}

#[derive(Debug)]
struct Symbol {
    start: u64,
    size: u64,
    /// Position in the file: code that is compiled later takes the place of earlier code.
    order: usize,
    name: String,
}

/// Larger files are read up to here; Node.js writes about 100 bytes per compiled function.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

impl PerfMap {
    /// Reads a map from its start.
    pub fn read(file: &std::fs::File) -> std::io::Result<PerfMap> {
        use std::os::unix::fs::FileExt as _;
        let len = file.metadata()?.len().min(MAX_BYTES) as usize;
        let mut bytes = vec![0; len];
        let mut read = 0;
        while read < len {
            match file.read_at(&mut bytes[read..], read as u64)? {
                0 => break,
                n => read += n,
            }
        }
        Ok(Self::parse(&bytes[..read]))
    }

    /// Parses a map's text; lines that are not symbols are skipped.
    pub fn parse(bytes: &[u8]) -> PerfMap {
        let text = crate::text::to_parse(bytes);
        let mut symbols: Vec<Symbol> = text
            .lines()
            .enumerate()
            .filter_map(|(order, line)| {
                let mut fields = line.splitn(3, ' ');
                let mut hex = || {
                    let field = fields.next()?;
                    u64::from_str_radix(field.strip_prefix("0x").unwrap_or(field), 16).ok()
                };
                let (start, size) = (hex()?, hex()?);
                Some(Symbol { start, size, order, name: fields.next()?.trim().to_owned() })
            })
            .collect();
        symbols.sort_unstable_by_key(|symbol| (symbol.start, symbol.order));
        PerfMap { symbols }
    }

    /// The name at an address: of all functions that cover it the one compiled last.
    pub fn find(&self, address: u64) -> Option<&str> {
        const NEIGHBOURS: usize = 64;
        let end = self.symbols.partition_point(|symbol| symbol.start <= address);
        self.symbols[end.saturating_sub(NEIGHBOURS)..end]
            .iter()
            .filter(|symbol| address - symbol.start < symbol.size)
            .max_by_key(|symbol| symbol.order)
            .map(|symbol| symbol.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_function_compiled_last_wins() {
        let map =
            PerfMap::parse(b"100 20 LazyCompile:~a /app/x.js:3\n0x200 10 b\nnonsense\n108 8 c\n100 10 d\n");
        assert_eq!(map.find(0x11f), Some("LazyCompile:~a /app/x.js:3"));
        assert_eq!(map.find(0x105), Some("d"));
        assert_eq!(map.find(0x10f), Some("d"));
        assert_eq!(map.find(0x205), Some("b"));
        assert_eq!(map.find(0x210), None);
        assert_eq!(map.find(0xff), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "([0-9a-fx]{0,17} [0-9a-f]{0,17} ?.{0,9}\n?){0,9}", address: u64) {
            PerfMap::parse(text.as_bytes()).find(address);
        }
    }
}
