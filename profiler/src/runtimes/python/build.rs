//! Which files hold a CPython, and which one.

use std::{fs::File, ops::Range};

use crate::runtimes::{
    exported::Exported,
    python::{layout::Version, loops},
};

const RUNTIME: &str = "_PyRuntime";
const LOOP: &str = "_PyEval_EvalFrameDefault";
const VERSION: &str = "Py_Version";
const CODE_TYPE: &str = "PyCode_Type";
const TEXT_TYPE: &str = "PyUnicode_Type";

/// The oldest version whose frames are named.
const OLDEST: Version = (3, 8);
/// The newest.
const NEWEST: Version = (3, 14);

/// A build of CPython. Addresses are those in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpythonBuild {
    /// Its version.
    pub version: Version,
    /// The runtime's state.
    pub runtime: u64,
    /// Type of code objects.
    pub code_type: u64,
    /// Type of strings.
    pub text_type: u64,
    /// The interpreter's loop: it may be in several parts.
    pub loops: Vec<Range<u64>>,
}

impl CpythonBuild {
    /// Whether an address in the file is in the interpreter's loop.
    pub fn is_loop(&self, address: u64) -> bool {
        self.loops.iter().any(|part| part.contains(&address))
    }
}

/// Whether a file of this name may hold a CPython: an interpreter, its library, or what is built on it.
pub fn may_hold_python(name: &str) -> bool {
    ["python", "libpython", "uwsgi"].iter().any(|known| name.starts_with(known))
}

/// The CPython in a file of this name; `None` if there is none in it. The error says why its frames cannot be named.
pub fn build_of(file: &File, name: &str) -> Option<Result<CpythonBuild, String>> {
    let wanted = [RUNTIME, LOOP, VERSION, CODE_TYPE, TEXT_TYPE];
    let exported = Exported::read(file, |name| wanted.iter().any(|wanted| wanted.as_bytes() == name))?;
    let address = |name: &str| exported.get(name).map(|symbol| symbol.address);
    let runtime = address(RUNTIME)?;
    let told = exported.get(VERSION).map(|symbol| symbol.int() as u32);
    let told = told.map(|word| ((word >> 24) as u8, (word >> 16) as u8));
    let Some(version) = told.or_else(|| version_in(name)) else {
        return Some(Err(format!("the version of CPython in {name} is not known")));
    };
    if !(OLDEST..=NEWEST).contains(&version) {
        let ((major, minor), (old, oldest), (new, newest)) = (version, OLDEST, NEWEST);
        return Some(Err(format!(
            "functions of CPython {major}.{minor} cannot be named (those of {old}.{oldest} to {new}.{newest} can)"
        )));
    }
    let symbols = (address(CODE_TYPE), address(TEXT_TYPE), exported.get(LOOP));
    let (Some(code_type), Some(text_type), Some(eval)) = symbols else {
        return Some(Err(format!("the CPython in {name} does not export what naming its functions takes")));
    };
    let named = eval.address..eval.address.saturating_add(eval.size);
    let mut loops = loops::other_parts(file, LOOP, &named);
    loops.push(named);
    Some(Ok(CpythonBuild { version, runtime, code_type, text_type, loops }))
}

/// Major and minor version in a name such as `libpython3.8.so.1.0`, `python3.12`.
fn version_in(name: &str) -> Option<Version> {
    let (_, rest) = name.split_once("python")?;
    let (major, rest) = rest.split_once('.')?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_versions() {
        assert_eq!(version_in("libpython3.8.so.1.0"), Some((3, 8)));
        assert_eq!(version_in("python3.12"), Some((3, 12)));
        assert_eq!(version_in("libpython3.7m.so.1.0"), Some((3, 7)));
        assert_eq!(["python3", "python", "libpython3.so", "uwsgi"].map(version_in), [None; 4]);
        assert!(may_hold_python("libpython3.8.so.1.0") && !may_hold_python("libc.so.6"));
    }

    #[test]
    fn files_without_python_are_left_alone() {
        let file = File::open("/proc/self/exe").unwrap();
        assert_eq!(build_of(&file, "python3.11"), None);
    }
}
