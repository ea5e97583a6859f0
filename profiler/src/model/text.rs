//! Names that the profiled processes choose, without what would steer a terminal or break a format.

#![expect(clippy::disallowed_methods, reason = "this is the place for them")]

use std::borrow::Cow;

/// What is not text, or would be more than text on a terminal, in XML or in a line.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

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

    proptest! {
        #[test]
        fn nothing_that_steers_is_left(bytes: Vec<u8>) {
            let text = clean(&bytes);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(clean(text.as_bytes()), text, "once is enough");
        }
    }
}
