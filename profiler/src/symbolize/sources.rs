//! Where the names of a file's functions come from: the file, and what lies elsewhere because the file was stripped.
//!
//! ```text
//! has debug information      the file
//! otherwise, in this order   its debug file (by build id or link, or from a server), the file, its mini debug information,
//!                            Go's table
//! ```
//!
//! An address has the name of the first that knows it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use lzma_rust2::XzReader;
use tempfile::TempDir;

use crate::{
    model::stack::Module,
    process::{elf::ElfInfo, go::GoTable, open},
    symbolize::{debuginfod::Debuginfod, facts::Facts},
};

/// Where distributions put debug files.
pub const DEBUG_FOLDERS: [&str; 2] = ["/usr/lib/debug", "/usr/local/lib/debug"];

/// Mini debug information is never larger, bytes.
const LARGEST_MINI: u64 = 256 << 20;
/// Memory that unpacking it may take, KiB.
const UNPACKING_KB: u32 = 64 * 1024;

/// One of the places.
#[derive(Debug)]
pub struct Source {
    /// What it is.
    pub origin: Origin,
    /// What to ask.
    pub names: Names,
}

/// What names are asked of.
#[derive(Debug)]
pub enum Names {
    /// An ELF file.
    Elf {
        /// The file.
        file: Rc<File>,
        /// Whether it has debug information.
        debug: bool,
        /// A folder with the file that its debug information shares parts with, if that came from a server.
        shared: Option<(TempDir, File)>,
    },
    /// Go's table.
    Go(GoTable<'static>),
}

/// Where names come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file itself: it has a symbol table.
    Symbols,
    /// The file itself, in which only exported functions have names.
    Exported,
    /// A debug file on this machine.
    DebugFile(PathBuf),
    /// A debug file from a server.
    Server,
    /// Symbols in the file, compressed.
    Mini,
    /// Go's table.
    Go,
}

/// The sources of a file's names, best first. Servers are asked last, if at all.
pub fn find(file: &Rc<File>, module: &Module, mut servers: Option<&mut Debuginfod>) -> Vec<Source> {
    let facts = Facts::read(file);
    let elf = |origin: Origin, file: Rc<File>, debug: bool| Source {
        origin,
        names: Names::Elf { file, debug, shared: None },
    };
    let mut sources = Vec::new();
    if !facts.debug {
        let debug_file = debug_file(file, module, facts.link.as_ref());
        if let Some((file, origin)) = debug_file {
            let debug = Facts::read(&file).debug;
            sources.push(elf(origin, Rc::new(file), debug));
        } else if let Some(servers) = &mut servers
            && let Some(file) = servers.fetch(&module.build_id, module.name())
        {
            let facts = Facts::read(&file);
            let shared = facts.shared.and_then(|id| {
                let file = servers.fetch(&id, &format!("{} (shared parts)", module.name()))?;
                Some((by_build_id(&file, &id).ok()?, file))
            });
            let names = Names::Elf { file: Rc::new(file), debug: facts.debug, shared };
            sources.push(Source { origin: Origin::Server, names });
        }
    }
    let itself = if facts.symbols { Origin::Symbols } else { Origin::Exported };
    sources.push(elf(itself, Rc::clone(file), facts.debug));
    if !facts.symbols {
        let mini = facts.mini.as_deref().and_then(unpacked);
        sources.extend(mini.map(|file| elf(Origin::Mini, Rc::new(file), false)));
        let go = facts.go.and_then(GoTable::read);
        sources.extend(go.map(|table| Source { origin: Origin::Go, names: Names::Go(table) }));
    }
    sources
}

/// A folder in which a file is found by its build id.
fn by_build_id(file: &File, build_id: &[u8]) -> io::Result<TempDir> {
    let id: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (begin, rest) = id.split_at_checked(2).ok_or(io::ErrorKind::InvalidInput)?;
    let folder = TempDir::with_prefix("profiler-")?;
    let inside = folder.path().join(".build-id").join(begin);
    std::fs::create_dir_all(&inside)?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    std::os::unix::fs::symlink(path, inside.join(format!("{rest}.debug")))?;
    Ok(folder)
}

/// The file on this machine that the debug information of a file was moved to.
fn debug_file(file: &File, module: &Module, link: Option<&(Vec<u8>, u32)>) -> Option<(File, Origin)> {
    let id: String = module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let by_id =
        |folder: &&str| id.get(..2).map(|begin| format!("{folder}/.build-id/{begin}/{}.debug", &id[2..]));
    let by_id = DEBUG_FOLDERS.iter().filter_map(by_id).map(PathBuf::from);
    let linked = link.map_or_else(Vec::new, |(name, _)| by_link(file, module, name));
    by_id.chain(linked).find_map(|path| {
        let candidate = open::regular(&path).ok()?;
        let elf = ElfInfo::read(&candidate)?;
        let same = if module.build_id.is_empty() || elf.build_id.is_empty() {
            link.is_some_and(|(_, expected)| checksum(&candidate).is_ok_and(|sum| sum == *expected))
        } else {
            elf.build_id == module.build_id
        };
        same.then_some((candidate, Origin::DebugFile(path)))
    })
}

/// Where debuggers look for a file of this name: beside the program, and in the folders for debug files.
fn by_link(file: &File, module: &Module, name: &[u8]) -> Vec<PathBuf> {
    let name = PathBuf::from(OsString::from_vec(name.to_vec()));
    // The name must not lead elsewhere.
    let Some(name) = name.file_name() else { return Vec::new() };
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
    let places = [Some(PathBuf::from(&module.path)), real];
    let mut found: Vec<PathBuf> = Vec::new();
    for place in places.into_iter().flatten().filter(|place| place.is_absolute()) {
        let Some(folder) = place.parent() else { continue };
        let below = folder.strip_prefix("/").unwrap_or(folder);
        let near = [folder.join(name), folder.join(".debug").join(name)];
        let kept = DEBUG_FOLDERS.map(|debug| Path::new(debug).join(below).join(name));
        found.extend(near.into_iter().chain(kept));
    }
    found.dedup();
    found
}

/// CRC-32 of a file.
fn checksum(file: &File) -> io::Result<u32> {
    use std::os::unix::fs::FileExt as _;
    let mut sum = flate2::Crc::new();
    let mut bytes = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut bytes, at)?;
        if read == 0 {
            return Ok(sum.sum());
        }
        sum.update(&bytes[..read]);
        at += read as u64;
    }
}

/// What was compressed, as a file in memory.
fn unpacked(packed: &[u8]) -> Option<File> {
    // SAFETY: the name ends in NUL, and the descriptor is new.
    let fd = unsafe { libc::memfd_create(c"profiler-symbols".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: nothing else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let plain = XzReader::new_mem_limit(packed, true, UNPACKING_KB);
    io::copy(&mut plain.take(LARGEST_MINI), &mut file).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::model::stack::ModuleKind;

    const PROGRAM: &str = "__attribute__((noinline)) static int work(int n) { return n * 3; }\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n";

    /// A folder with a program and its debug file, made by the tools of this machine; `None` if they are not there.
    fn built(commands: &[&str]) -> Option<TempDir> {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("p.c"), PROGRAM).unwrap();
        let shell = |command: &str| {
            let run = Command::new("sh").args(["-c", command]).current_dir(folder.path()).output();
            run.is_ok_and(|run| run.status.success())
        };
        let made = shell("gcc -g -O1 -Wl,--build-id=sha1 p.c -o whole && cp whole p")
            && commands.iter().all(|command| shell(command));
        made.then_some(folder)
    }

    fn sources_of(program: &Path) -> Vec<Source> {
        let file = File::open(program).unwrap();
        let build_id = ElfInfo::read(&file).unwrap().build_id;
        let path = program.to_str().unwrap().to_owned();
        find(&Rc::new(file), &Module { kind: ModuleKind::File, path, inode: 1, build_id }, None)
    }

    fn origins(program: &Path) -> Vec<Origin> {
        sources_of(program).into_iter().map(|source| source.origin).collect()
    }

    #[test]
    fn a_debug_file_is_found_by_its_link_and_must_be_the_right_one() {
        let separate =
            "objcopy --only-keep-debug p p.debug && strip p && objcopy --add-gnu-debuglink=p.debug p";
        let Some(folder) = built(&[separate]) else {
            eprintln!("skipped: no gcc and objcopy");
            return;
        };
        let (program, debug) = (folder.path().join("p"), folder.path().join("p.debug"));
        assert_eq!(origins(&program), [Origin::DebugFile(debug.clone()), Origin::Exported]);
        assert_eq!(origins(&folder.path().join("whole")), [Origin::Symbols]);
        let hidden = folder.path().join(".debug");
        std::fs::create_dir(&hidden).unwrap();
        std::fs::rename(&debug, hidden.join("p.debug")).unwrap();
        assert_eq!(origins(&program), [Origin::DebugFile(hidden.join("p.debug")), Origin::Exported]);
        // Another build's, with another build id.
        std::fs::copy("/proc/self/exe", hidden.join("p.debug")).unwrap();
        assert_eq!(origins(&program), [Origin::Exported]);
    }

    #[test]
    fn mini_debug_information_is_unpacked() {
        let pack = "nm p --format=posix --defined-only | awk '{print $1}' > keep && \
                    objcopy -S --remove-section .comment --keep-symbols=keep p mini && xz mini && strip p && \
                    objcopy --add-section .gnu_debugdata=mini.xz p";
        let Some(folder) = built(&[pack]) else {
            eprintln!("skipped: no gcc, objcopy and xz");
            return;
        };
        let sources = sources_of(&folder.path().join("p"));
        assert_eq!(
            sources.iter().map(|source| &source.origin).collect::<Vec<_>>(),
            [&Origin::Exported, &Origin::Mini]
        );
        let Names::Elf { file, .. } = &sources[1].names else { panic!("no file") };
        assert!(Facts::read(file).symbols);
    }

    #[test]
    fn what_is_no_archive_is_nothing() {
        assert!(unpacked(b"\xfd7zXZ\0 and then something else").is_none());
    }
}
