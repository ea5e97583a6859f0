//! Names of code without a file, as its process writes them down: `/tmp/perf-PID.map`, one line per function (start and
//! size in hexadecimal, name), or a `jit-PID.dump` with records and times. Both grow while the process runs, and memory
//! of code that is no longer needed is given to other code. So both are read as they grow, and what takes the place of
//! something else is another tenant: an address and its tenant have one name for ever.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{life::namespace_ids, open, shown::shown};
use crate::text;

/// Most that is read of one file.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Most that is read at once.
const MAX_READ_BYTES: u64 = 16 << 20;
/// Longest line or record that is waited for.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Names kept of one process.
const MAX_NAME_BYTES: usize = 64 << 20;
/// Functions kept of one process.
const MAX_FUNCTIONS: usize = 1 << 20;
/// Longest name that is kept.
const MAX_NAME: usize = 1024;
/// Tenants of one place that are told apart; more are taken for the last of them.
const MAX_TENANTS: usize = 64;

/// How often a source is looked for: most processes never have one, and each sample of theirs would ask.
const LOOK_INTERVAL_NS: u64 = 1_000_000_000;

/// First bytes of a dump, in the order of this machine.
const DUMP_MAGIC: u32 = 0x4a69_5444;
/// Size of the header's fixed part.
const DUMP_HEADER_BYTES: usize = 40;
/// Prefix of each record: kind, size, time.
const RECORD_HEADER_BYTES: usize = 16;
/// Code begins to exist.
const CODE_LOAD: u32 = 0;
/// Code moves.
const CODE_MOVE: u32 = 1;

/// The names of one process's code.
#[derive(Debug, Default)]
pub struct JitCode {
    source: Option<Source>,
    /// Functions by tenant, then by start. Those of one tenant number do not overlap.
    tenants: Vec<BTreeMap<u64, Code>>,
    names: String,
    functions: usize,
    /// When the source was last read, CLOCK_MONOTONIC, ns.
    read_ns: u64,
    /// When a source is looked for again, CLOCK_MONOTONIC, ns.
    look_ns: u64,
}

#[derive(Debug)]
struct Source {
    file: File,
    offset: u64,
    /// What has been read of a line or record that is not complete.
    partial: Vec<u8>,
    /// It is a dump, not a map.
    dump: bool,
    /// The dump's header has been read.
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code {
    end: u64,
    /// Where its name is.
    name: (u32, u32),
    /// It was not there before, and was there after, CLOCK_MONOTONIC, ns.
    begins: (u64, u64),
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Number of the tenant, from zero.
    pub number: u64,
    /// It took the place of another, and perhaps not before the moment asked about.
    pub uncertain: bool,
}

impl JitCode {
    /// Whether there may be something to read from that is not known yet, and it is time to look for it, or it is looked
    /// for now in any case.
    pub fn wants_source(&mut self, now_ns: u64, in_any_case: bool) -> bool {
        let due = self.source.is_none() && (in_any_case || now_ns >= self.look_ns);
        if due {
            self.look_ns = now_ns + LOOK_INTERVAL_NS;
        }
        due
    }

    /// Reads from a map's beginning, or a dump's.
    pub fn open(&mut self, file: File, dump: bool) {
        self.source = Some(Source { file, offset: 0, partial: Vec::new(), dump, begun: false });
    }

    /// Whether no function has a name.
    pub fn is_empty(&self) -> bool {
        self.functions == 0
    }

    /// Whether what is known may be older than a moment.
    pub fn is_older_than(&self, time_ns: u64) -> bool {
        self.read_ns < time_ns
    }

    /// Reads what has been added by `now_ns`.
    pub fn read(&mut self, now_ns: u64) {
        let before = std::mem::replace(&mut self.read_ns, now_ns);
        let Some(mut source) = self.source.take() else { return };
        let mut budget = MAX_READ_BYTES;
        while let Some(bytes) = source.next(&mut budget) {
            if source.dump {
                self.dump(&mut source, &bytes)
            } else {
                self.lines(&mut source, &bytes, (before, now_ns))
            }
        }
        self.source = Some(source);
    }

    /// Who has an address at a moment; the first tenant where nothing is known.
    pub fn tenant(&self, address: u64, time_ns: u64) -> Tenant {
        let at = |code: &&Code| address < code.end && code.begins.0 <= time_ns;
        let covering = |tenants: &BTreeMap<u64, Code>| {
            tenants.range(..=address).next_back().map(|(_, code)| code).filter(at).copied()
        };
        let found =
            self.tenants.iter().enumerate().rev().find_map(|(number, all)| Some((number, covering(all)?)));
        let (number, uncertain) =
            found.map_or((0, false), |(number, code)| (number, number > 0 && time_ns <= code.begins.1));
        Tenant { number: number as u64, uncertain }
    }

    /// The name of a tenant's function at an address.
    pub fn name(&self, address: u64, tenant: u64) -> Option<&str> {
        let (_, code) = self.tenants.get(usize::try_from(tenant).ok()?)?.range(..=address).next_back()?;
        (address < code.end).then(|| self.text(*code))
    }

    fn text(&self, code: Code) -> &str {
        let (at, len) = (code.name.0 as usize, code.name.1 as usize);
        self.names.get(at..at + len).unwrap_or_default()
    }

    fn lines(&mut self, source: &mut Source, bytes: &[u8], begins: (u64, u64)) {
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() && line.last() != Some(&b'\n') {
                source.keep(line);
                return;
            }
            if let Some((start, size, name)) = parse_line(&text::to_parse(line)) {
                self.add(start, size, name, begins);
            }
        }
    }

    fn dump(&mut self, source: &mut Source, bytes: &[u8]) {
        let mut rest = bytes;
        if !source.begun {
            let header = (word(rest, 0), word(rest, 8));
            match header {
                _ if rest.len() < DUMP_HEADER_BYTES => return source.keep(rest),
                (Some(DUMP_MAGIC), Some(size))
                    if rest.len() >= size as usize && size as usize >= DUMP_HEADER_BYTES =>
                {
                    rest = &rest[size as usize..];
                    source.begun = true;
                }
                _ => return source.give_up(),
            }
        }
        while rest.len() >= RECORD_HEADER_BYTES {
            let (Some(kind), Some(size), Some(time)) = (word(rest, 0), word(rest, 4), long(rest, 8)) else {
                return;
            };
            let size = size as usize;
            if !(RECORD_HEADER_BYTES..=MAX_RECORD_BYTES).contains(&size) {
                return source.give_up();
            }
            let Some(record) = rest.get(RECORD_HEADER_BYTES..size) else { break };
            match kind {
                CODE_LOAD => {
                    let name = record
                        .get(40..)
                        .unwrap_or_default()
                        .split(|&byte| byte == 0)
                        .next()
                        .unwrap_or_default();
                    if let (Some(start), Some(size)) = (long(record, 16), long(record, 24)) {
                        self.add(start, size, &text::to_parse(name), (time, time));
                    }
                }
                CODE_MOVE => {
                    if let (Some(from), Some(to), Some(size)) =
                        (long(record, 16), long(record, 24), long(record, 32))
                    {
                        let name = self.name(from, self.tenant(from, time).number).map(str::to_owned);
                        self.add(to, size, name.as_deref().unwrap_or_default(), (time, time));
                    }
                }
                _ => {}
            }
            rest = &rest[size..];
        }
        source.keep(rest);
    }

    /// Adds a function. What it takes the place of keeps its number, unless it is the same function again.
    fn add(&mut self, start: u64, size: u64, name: &str, begins: (u64, u64)) {
        let Some(end) = start.checked_add(size).filter(|&end| end > start) else { return };
        let name = &name[..name.floor_char_boundary(MAX_NAME)];
        if name.is_empty()
            || self.functions >= MAX_FUNCTIONS
            || self.names.len() + name.len() > MAX_NAME_BYTES
        {
            return;
        }
        let above = self
            .tenants
            .iter()
            .rposition(|tenants| tenants.range(..end).next_back().is_some_and(|(_, code)| code.end > start));
        let number = match above {
            None => 0,
            Some(highest) => {
                let (&first, &code) =
                    self.tenants[highest].range(..end).next_back().unwrap_or((&0, &NOTHING));
                if (first, code.end) == (start, end) && self.text(code) == name {
                    return;
                }
                (highest + 1).min(MAX_TENANTS - 1)
            }
        };
        if self.tenants.len() <= number {
            self.tenants.push(BTreeMap::new());
        }
        let at = self.names.len() as u32;
        self.names.push_str(name);
        self.functions += 1;
        let tenants = &mut self.tenants[number];
        // Only among the last tenants there can be any.
        while let Some((&first, code)) = tenants.range(..end).next_back()
            && code.end > start
        {
            tenants.remove(&first);
        }
        tenants.insert(start, Code { end, name: (at, name.len() as u32), begins });
    }
}

const NOTHING: Code = Code { end: 0, name: (0, 0), begins: (0, 0) };

impl Source {
    /// What was added, after what was not complete; at most so much.
    fn next(&mut self, budget: &mut u64) -> Option<Vec<u8>> {
        let len = self.file.metadata().ok()?.len().min(MAX_FILE_BYTES);
        if len < self.offset {
            // Begun anew.
            (self.offset, self.begun) = (0, false);
            self.partial.clear();
        }
        let wanted = (len - self.offset).min(*budget).min(1 << 20) as usize;
        let mut bytes = std::mem::take(&mut self.partial);
        let kept = bytes.len();
        bytes.resize(kept + wanted, 0);
        let read = self.file.read_at(&mut bytes[kept..], self.offset).unwrap_or(0);
        bytes.truncate(kept + read);
        if read == 0 {
            self.partial = bytes;
            return None;
        }
        self.offset += read as u64;
        *budget -= read as u64;
        Some(bytes)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if bytes.len() <= MAX_RECORD_BYTES {
            self.partial = bytes.to_vec();
        }
    }

    /// Never reads again: it is not what it seemed to be.
    fn give_up(&mut self) {
        self.offset = MAX_FILE_BYTES;
    }
}

/// One line of a perf map: start, size and name.
pub fn parse_line(line: &str) -> Option<(u64, u64, &str)> {
    let mut fields = line.trim_end().splitn(3, ' ');
    let mut hex = || {
        let field = fields.next()?;
        u64::from_str_radix(field.strip_prefix("0x").unwrap_or(field), 16).ok()
    };
    let (start, size) = (hex()?, hex()?);
    Some((start, size, fields.next()?.trim()))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The symbol map that a process's just-in-time compiler writes (`/tmp/perf-PID.map`, as the process sees /tmp and its
/// own pid).
pub fn perf_map(proc_root: &Path, pid: u32) -> Option<File> {
    let inner_pid = namespace_ids(&proc_root.join(pid.to_string())).last().copied().unwrap_or(pid);
    let name = PathBuf::from(format!("/tmp/perf-{inner_pid}.map"));
    let root = shown(proc_root, pid).join("root");
    open::in_root(&root, &name).or_else(|_gone| open::regular(&name)).ok()
}

/// Whether a file is named as the dump of a just-in-time compiler, `jit-PID.dump`.
pub fn is_dump(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let pid = name.strip_prefix("jit-").and_then(|rest| rest.strip_suffix(".dump"));
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A dump made by hand.

    use super::*;

    fn record(kind: u32, time: u64, words: &[u64], rest: &[u8]) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(((16 + 8 * words.len() + rest.len()) as u32).to_ne_bytes());
        bytes.extend(time.to_ne_bytes());
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(rest);
        bytes
    }

    /// Two functions at one address, the second of which moves.
    pub fn dump() -> Vec<u8> {
        let mut bytes = DUMP_MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1u32, 40].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.resize(40, 0);
        // pid and tid, place in memory, code, size, index
        bytes.extend(record(CODE_LOAD, 100, &[7, 0x100, 0x100, 0x20, 1], b"first\0\x90\x90"));
        bytes.extend(record(4, 150, &[1], b""));
        bytes.extend(record(CODE_LOAD, 200, &[7, 0x100, 0x100, 0x20, 2], b"second\0\x90"));
        bytes.extend(record(CODE_MOVE, 300, &[7, 0, 0x100, 0x500, 0x20, 2], b""));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use proptest::prelude::*;

    use super::{fixtures::dump, *};

    fn growing(dump: bool) -> (File, JitCode) {
        let file = tempfile::tempfile().unwrap();
        let mut code = JitCode::default();
        code.open(file.try_clone().unwrap(), dump);
        (file, code)
    }

    fn append(mut file: &File, bytes: &[u8]) {
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(bytes).unwrap();
    }

    fn name(code: &JitCode, address: u64, time: u64) -> Option<&str> {
        code.name(address, code.tenant(address, time).number)
    }

    #[test]
    fn a_source_is_looked_for_once_a_second_or_when_it_matters() {
        let mut code = JitCode::default();
        assert!(code.wants_source(5, false));
        assert!(!code.wants_source(6, false));
        assert!(code.wants_source(7, true));
        assert!(code.wants_source(7 + LOOK_INTERVAL_NS, false));
        code.open(tempfile::tempfile().unwrap(), false);
        assert!(!code.wants_source(u64::MAX, true), "there is one");
    }

    #[test]
    fn an_address_is_named_by_who_had_it_then() {
        let (file, mut code) = growing(false);
        append(&file, b"100 20 LazyCompile:~a /app/x.js:3\n0x200 10 b\nnonsense\n30");
        code.read(10);
        append(&file, b"0 8 c\n110 8 second\n");
        code.read(20);
        append(&file, b"100 20 third\n200 10 b\n");
        code.read(30);
        assert_eq!(name(&code, 0x11f, 15), Some("LazyCompile:~a /app/x.js:3"));
        assert_eq!(
            [name(&code, 0x110, 9), name(&code, 0x110, 12), name(&code, 0x110, 25)].map(Option::unwrap),
            ["LazyCompile:~a /app/x.js:3", "second", "third"]
        );
        assert_eq!(name(&code, 0x304, 99), Some("c"), "a line in two pieces");
        assert_eq!(code.tenant(0x205, 99), Tenant { number: 0, uncertain: false }, "the same again");
        assert!(code.tenant(0x110, 15).uncertain);
        assert!(!code.tenant(0x110, 99).uncertain);
        assert_eq!((name(&code, 0x210, 99), name(&code, 0xff, 99)), (None, None));
        file.set_len(0).unwrap();
        append(&file, b"400 10 anew\n");
        code.read(40);
        assert_eq!(name(&code, 0x400, 99), Some("anew"));
    }

    #[test]
    fn a_dump_tells_the_time_itself() {
        let bytes = dump();
        let (file, mut code) = growing(true);
        for (time, piece) in bytes.chunks(23).enumerate() {
            append(&file, piece);
            code.read(1000 + time as u64);
        }
        assert_eq!((name(&code, 0x110, 150), name(&code, 0x110, 250)), (Some("first"), Some("second")));
        assert!(!code.tenant(0x110, 250).uncertain);
        assert_eq!(name(&code, 0x51f, 350), Some("second"));
    }

    #[test]
    fn tenants_without_end_are_survived() {
        let (file, mut code) = growing(false);
        for round in 0..200 {
            append(&file, format!("100 20 function_{round}\n").as_bytes());
            code.read(round + 1);
        }
        assert_eq!(code.tenants.len(), MAX_TENANTS);
        assert_eq!(name(&code, 0x100, 1000), Some("function_199"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "([0-9a-fx]{0,17} [0-9a-f]{0,17} ?.{0,9}\n?){0,9}", address: u64, time: u64) {
            let (file, mut code) = growing(false);
            append(&file, text.as_bytes());
            code.read(5);
            name(&code, address, time);
        }

        #[test]
        fn any_dump_is_survived(at in 0usize..300, byte: u8, cut in 0usize..300, address: u64) {
            let mut bytes = dump();
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(cut);
            let (file, mut code) = growing(true);
            append(&file, &bytes);
            code.read(5);
            name(&code, address, 250);
        }
    }
}
