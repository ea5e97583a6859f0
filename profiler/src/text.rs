//! Foreign text: names, paths and symbols that the profiled processes choose. They are bytes until they pass here, once;
//! from then on no output, whatever its format, can be broken or steered by them.
//!
//! A lint (`disallowed_methods` in clippy.toml) refuses the other ways from bytes to text.

#![expect(clippy::disallowed_methods, reason = "this is the place for them")]

use std::{borrow::Cow, fs::File, io, io::Read as _, path::Path};

/// What is not text, or would be more than text on a terminal, in XML or in a line.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Texts of /proc are not larger: net/tcp of a server with 400,000 connections has 60 MB.
const MAX_TEXT_BYTES: u64 = 64 * 1024 * 1024;

/// A name, path or symbol as text without control characters.
pub fn clean(bytes: &[u8]) -> String {
    clean_text(&String::from_utf8_lossy(bytes)).into_owned()
}

/// The same of what is text already.
pub fn clean_text(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_harmless(c) { c } else { REPLACEMENT }).collect())
}

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
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_TEXT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Control characters steer terminals (C0, C1) and end lines; some format characters reorder what is around them; the
/// last two code points of the first plane are not allowed in XML.
fn is_harmless(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_text_afterwards() {
        assert_eq!(clean(b"main"), "main");
        assert_eq!(clean("größe <T>; \"x\"".as_bytes()), "größe <T>; \"x\"");
        assert_eq!(clean(b"\x1b[31mred\n7\x7f"), "\u{fffd}[31mred\u{fffd}7\u{fffd}");
        assert_eq!(clean(b"\xff\xfeok"), "\u{fffd}\u{fffd}ok");
        assert_eq!(
            clean("\u{9b}31m\u{202e}gnp.exe\u{2028}".as_bytes()),
            "\u{fffd}31m\u{fffd}gnp.exe\u{fffd}"
        );
    }

    #[test]
    fn a_name_that_is_no_text_hides_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"Name:\t\xff\xfe\nVmRSS:\t7 kB\n").unwrap();
        assert!(read_to_parse(file.path()).unwrap().lines().any(|line| line == "VmRSS:\t7 kB"));
    }

    proptest! {
        #[test]
        fn nothing_that_steers_is_left(bytes: Vec<u8>) {
            let text = clean(&bytes);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(clean(text.as_bytes()), text, "once is enough");
        }
    }
}
