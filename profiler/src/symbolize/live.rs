//! Symbols of what is running on this machine: files and the kernel through blazesym, the vDSO out of our own
//! memory, JIT code through perf maps.

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use blazesym::{
    MaybeDefault,
    symbolize::{
        Input, Symbolized,
        source::{Elf, Kernel, Source},
    },
};
use rustc_hash::FxHashMap;

use crate::{
    kernel::own::OwnCode,
    model::{
        function::{Detail, Function, Symbolizer},
        stack::{Frame, Module, ModuleId, ModuleKind},
    },
    process::ProcessTable,
    symbolize::{
        debuginfod::Debuginfod,
        extents,
        sources::{self, DEBUG_FOLDERS, Names},
    },
};

/// Files whose symbol tables are kept between two refreshes of the live view.
const MAX_CACHED_FILES: usize = 16;

/// Files whose sources of names are known at once.
const MAX_SOURCES: usize = 1024;

/// Names kept between two refreshes of the live view: about 10 MB.
const MAX_CACHED_NAMES: usize = 65_536;

/// What stays in memory between calls: names, and the symbol tables of a few files. Debug information never does.
pub struct SymbolCache {
    names: blazesym::symbolize::Symbolizer,
    cached_files: usize,
    /// Where names of files come from, and whether servers were asked.
    sources: FxHashMap<ModuleId, (Rc<[sources::Source]>, bool)>,
    /// Servers that are asked for debug information, when the run is over.
    pub servers: Option<Debuginfod>,
    /// Reading the kernel's symbols takes about 50 ms, keeping them about 8 MB: they are read once.
    kernel: blazesym::symbolize::Symbolizer,
    found: FxHashMap<Frame, Option<Rc<[Function]>>>,
    /// What of the kernel is the profiler's.
    pub own_code: OwnCode,
}

impl Default for SymbolCache {
    fn default() -> Self {
        SymbolCache {
            names: names_only(),
            cached_files: 0,
            sources: FxHashMap::default(),
            servers: None,
            kernel: names_only(),
            found: FxHashMap::default(),
            own_code: OwnCode::default(),
        }
    }
}

/// Symbolizes with the files that a process table holds open.
pub struct LiveSymbolizer<'a> {
    cache: &'a mut SymbolCache,
    processes: &'a mut ProcessTable,
}

impl<'a> LiveSymbolizer<'a> {
    /// Joins a cache and the files it is about.
    pub fn new(cache: &'a mut SymbolCache, processes: &'a mut ProcessTable) -> Self {
        LiveSymbolizer { cache, processes }
    }

    fn uncached(
        &mut self,
        id: ModuleId,
        module: &Module,
        addresses: &[u64],
        detail: Detail,
    ) -> Vec<Option<Vec<Function>>> {
        match &module.kind {
            ModuleKind::Kernel => self.kernel(addresses),
            ModuleKind::Unmapped
            | ModuleKind::NotTaken
            | ModuleKind::Waker
            | ModuleKind::Syscall
            | ModuleKind::Managed(_) => {
                vec![None; addresses.len()]
            }
            ModuleKind::Jit(pid) => self.jit(module, *pid, addresses),
            ModuleKind::File | ModuleKind::Vdso => {
                let Some(file) = self.processes.file(id).cloned() else { return vec![None; addresses.len()] };
                let mut found = self.in_file(id, module, &file, addresses, detail);
                let unnamed = |found: &[Option<_>]| -> Vec<usize> {
                    (0..addresses.len()).filter(|&index| found[index].is_none()).collect()
                };
                let missing = unnamed(&found);
                if !missing.is_empty() {
                    let wanted: Vec<u64> = missing.iter().map(|&index| addresses[index]).collect();
                    let extents = extents::find(&file, &wanted);
                    // Some lie just before what they belong to, which may have a name.
                    let starts: Vec<u64> = extents.iter().map(|extent| extent.start).collect();
                    let names = self.in_file(id, module, &file, &starts, detail);
                    for (index, (extent, name)) in missing.into_iter().zip(extents.into_iter().zip(names)) {
                        found[index] = Some(match name {
                            _ if extent.is_signal_frame => vec![Function::signal_frame()],
                            Some(name) if extent.start > addresses[index] => name,
                            _ => vec![Function::unnamed(module, extent.start)],
                        });
                    }
                }
                found
            }
        }
    }

    /// The sources of a file's names. Servers are asked when all is to be known.
    fn sources(
        &mut self,
        id: ModuleId,
        module: &Module,
        file: &Rc<File>,
        detail: Detail,
    ) -> Rc<[sources::Source]> {
        let cache = &mut *self.cache;
        let servers = if detail == Detail::Full { cache.servers.as_mut() } else { None };
        if let Some((sources, asked)) = cache.sources.get(&id)
            && (*asked || servers.is_none())
        {
            return Rc::clone(sources);
        }
        if cache.sources.len() >= MAX_SOURCES {
            // What is known by the number of an open file must not outlive it.
            cache.sources.clear();
            cache.names = names_only();
            cache.cached_files = 0;
        }
        let asked = servers.is_some();
        let found: Rc<[sources::Source]> = sources::find(file, module, servers).into();
        if cache.sources.insert(id, (Rc::clone(&found), asked)).is_some() {
            cache.names = names_only();
            cache.cached_files = 0;
        }
        found
    }

    /// Names of functions in a file, each out of the first source that knows it.
    fn in_file(
        &mut self,
        id: ModuleId,
        module: &Module,
        file: &Rc<File>,
        addresses: &[u64],
        detail: Detail,
    ) -> Vec<Option<Vec<Function>>> {
        let sources = self.sources(id, module, file, detail);
        let mut found = vec![None; addresses.len()];
        for source in &*sources {
            let missing: Vec<usize> = (0..addresses.len()).filter(|&index| found[index].is_none()).collect();
            if missing.is_empty() {
                break;
            }
            let wanted: Vec<u64> = missing.iter().map(|&index| addresses[index]).collect();
            let names = match &source.names {
                Names::Go(table) => {
                    wanted.iter().map(|&address| Some(vec![table.function(address)?])).collect()
                }
                // A symbolizer of its own, so that one file's debug information is gone before the next's.
                Names::Elf { file, debug: true, shared } if detail == Detail::Full => {
                    let folder = shared.as_ref().map(|(folder, _)| folder.path());
                    from_elf(&full(folder), &path_of(file), &wanted, Detail::Full)
                }
                Names::Elf { file, .. } => self.only_names(file, &wanted),
            };
            for (index, functions) in missing.into_iter().zip(names) {
                found[index] = functions;
            }
        }
        found
    }

    fn only_names(&mut self, file: &File, addresses: &[u64]) -> Vec<Option<Vec<Function>>> {
        let path = path_of(file);
        if self.cache.cached_files >= MAX_CACHED_FILES {
            self.cache.names = names_only();
            self.cache.cached_files = 0;
        }
        self.cache.cached_files += 1;
        from_elf(&self.cache.names, &path, addresses, Detail::Names)
    }

    fn kernel(&self, addresses: &[u64]) -> Vec<Option<Vec<Function>>> {
        let kernel = Kernel {
            kallsyms: MaybeDefault::Some(PathBuf::from("/proc/kallsyms")),
            vmlinux: MaybeDefault::None,
            ..Kernel::default()
        };
        let mut found = collect(
            self.cache.kernel.symbolize(&Source::Kernel(kernel), Input::AbsAddr(addresses)),
            addresses.len(),
        );
        for (address, functions) in addresses.iter().zip(&mut found) {
            if self.cache.own_code.contains(*address) {
                *functions = Some(vec![Function::profiler_itself()]);
            }
        }
        found
    }

    /// What nobody names is one piece per region of memory.
    fn jit(&mut self, module: &Module, pid: u32, addresses: &[u64]) -> Vec<Option<Vec<Function>>> {
        self.processes.read_jit_now(pid);
        let named = |address: u64| {
            let name = self.processes.jit_name(pid, module, address)?.to_owned();
            Some(vec![Function { name, ..Function::default() }])
        };
        let region = |address: u64| {
            let start = self.processes.jit_region(pid, address)?;
            Some(vec![Function::unnamed(module, start)])
        };
        addresses.iter().map(|&address| named(address).or_else(|| region(address))).collect()
    }
}

impl Symbolizer for LiveSymbolizer<'_> {
    fn functions(
        &mut self,
        id: ModuleId,
        module: &Module,
        addresses: &[u64],
        detail: Detail,
    ) -> Vec<Option<Vec<Function>>> {
        if detail == Detail::Full {
            return self.uncached(id, module, addresses, detail);
        }
        let frame = |address: u64| Frame { module: id, address };
        let missing: Vec<u64> = addresses
            .iter()
            .copied()
            .filter(|&address| !self.cache.found.contains_key(&frame(address)))
            .collect();
        if !missing.is_empty() {
            if self.cache.found.len() + missing.len() > MAX_CACHED_NAMES {
                self.cache.found.clear();
                return self.uncached(id, module, addresses, detail);
            }
            let names = self.uncached(id, module, &missing, detail);
            for (&address, functions) in missing.iter().zip(names) {
                self.cache.found.insert(frame(address), functions.map(Into::into));
            }
        }
        let found = addresses
            .iter()
            .map(|&address| self.cache.found.get(&frame(address))?.as_deref().map(<[Function]>::to_vec))
            .collect();
        if matches!(module.kind, ModuleKind::Jit(_)) {
            // Code without a name may get one any moment.
            for address in missing {
                let unnamed = |found: &Option<Rc<[Function]>>| {
                    found.iter().flat_map(|found| &**found).all(|function| function.is_unnamed(module))
                };
                if self.cache.found.get(&frame(address)).is_some_and(unnamed) {
                    self.cache.found.remove(&frame(address));
                }
            }
        }
        found
    }
}

fn names_only() -> blazesym::symbolize::Symbolizer {
    blazesym::symbolize::Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_code_info(false)
        .enable_inlined_fns(false)
        .build()
}

/// With debug information; `folder` is one more in which debug files are found.
fn full(folder: Option<&Path>) -> blazesym::symbolize::Symbolizer {
    blazesym::symbolize::Symbolizer::builder()
        .set_debug_dirs(Some(DEBUG_FOLDERS.iter().map(Path::new).chain(folder)))
        .enable_auto_reload(false)
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .build()
}

/// A path to a file that is open here, whatever has become of its name.
fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn from_elf(
    symbolizer: &blazesym::symbolize::Symbolizer,
    path: &Path,
    addresses: &[u64],
    detail: Detail,
) -> Vec<Option<Vec<Function>>> {
    let mut elf = Elf::new(path);
    elf.debug_syms = detail == Detail::Full;
    collect(symbolizer.symbolize(&Source::Elf(elf), Input::VirtOffset(addresses)), addresses.len())
}

fn collect(result: blazesym::Result<Vec<Symbolized<'_>>>, len: usize) -> Vec<Option<Vec<Function>>> {
    let Ok(symbols) = result else { return vec![None; len] };
    symbols
        .into_iter()
        .map(|symbolized| {
            let symbol = symbolized.into_sym()?;
            let location = |code: Option<&blazesym::symbolize::CodeInfo<'_>>| {
                let file = code.map(|code| crate::text::path(&code.to_path()));
                (file, code.and_then(|code| code.line))
            };
            // blazesym lists the outer function first, then the inlined ones from the outside in. Each one's
            // location is where it stands at this address.
            let mut functions = Vec::with_capacity(1 + symbol.inlined.len());
            let (file, line) = location(symbol.code_info.as_deref());
            functions.push(Function { name: symbol.name.into_owned(), file, line, start: None });
            for inlined in &*symbol.inlined {
                let (file, line) = location(inlined.code_info.as_ref());
                functions.push(Function { name: inlined.name.clone().into_owned(), file, line, start: None });
            }
            functions.reverse();
            Some(functions)
        })
        .collect()
}
