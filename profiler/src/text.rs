//! Foreign text: names, paths and symbols that the profiled processes choose. They are bytes until they pass here, once;
//! from then on no output, whatever its format, can be broken or steered by them.
//!
//! A lint (`disallowed_methods` in clippy.toml) refuses the other ways from bytes to text.

#![expect(clippy::disallowed_methods, reason = "this is the place for them")]

use std::{borrow::Cow, fs::File, io, io::Read as _, path::Path};

pub use crate::model::text::{clean, clean_text};

/// Texts of /proc are not larger: net/tcp of a server with 400,000 connections has 60 MB.
const MAX_TEXT_BYTES: u64 = 64 * 1024 * 1024;

/// Most texts of /proc are not: two reads for them, where a buffer that grows takes seven.
const USUAL_TEXT_BYTES: usize = 4096;

/// A path as text.
pub fn path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    clean(path.as_os_str().as_bytes())
}

/// Bytes to take apart: lines and control characters are still there. What is taken out as a name has to be cleaned.
pub fn to_parse(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A text of /proc or /sys to take apart, up to 64 MiB of it. Its names may be no text: that hides nothing else.
pub fn read_to_parse(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(USUAL_TEXT_BYTES);
    File::open(path)?.take(MAX_TEXT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_text_hides_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"Name:\t\xff\xfe\nVmRSS:\t7 kB\n").unwrap();
        assert!(read_to_parse(file.path()).unwrap().lines().any(|line| line == "VmRSS:\t7 kB"));
    }
}
