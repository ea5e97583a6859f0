//! Source maps (ECMA-426): where the text that V8 runs was written, before it was compiled from TypeScript or bundled.
//!
//! A script names its map in its last line: as a file beside it, or as the map itself. Nothing is fetched.

use std::{
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, de::IgnoredAny};
use sourcemap::{DecodedMap, Token};

use crate::{model::function::Start, process::open, text};

/// Larger maps are not read, bytes.
const LARGEST: u64 = 16 << 20;
/// Nor are such with more places, files or names: in memory each takes far more than in the text.
const MOST_PLACES: usize = 1 << 20;
const MOST_FILES: usize = 16_384;
const MOST_NAMES: usize = 262_144;
/// Bytes of a place in memory.
const PLACE: usize = 32;
/// So many places at one and the same are no map: each look-up would go through them.
const SAME_PLACE: usize = 64;
/// How the line begins that names a map.
const MARKS: [&str; 2] = ["//# sourceMappingURL=", "//@ sourceMappingURL="];
/// Lines at the end of a script among which it is looked for.
const LAST_LINES: usize = 4;
/// Longer names of files, and of functions, are none, bytes.
const LONGEST_PATH: usize = 1024;
const LONGEST_NAME: usize = 512;

/// The map of one script.
#[derive(Debug)]
pub struct SourceMap {
    map: sourcemap::SourceMap,
    /// Where what it names is.
    folder: PathBuf,
    /// About what it takes, bytes.
    pub bytes: usize,
}

/// How much is in the text of a map.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Size {
    #[serde(default)]
    source_root: Option<String>,
    #[serde(default)]
    sources: Vec<IgnoredAny>,
    #[serde(default)]
    names: Vec<IgnoredAny>,
    #[serde(default)]
    mappings: String,
    #[serde(default)]
    sections: Option<IgnoredAny>,
    #[serde(default)]
    range_mappings: Option<IgnoredAny>,
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// File: a path, or what a bundler calls it.
    pub file: String,
    /// Number of the file in its map.
    source: u32,
    /// Line and column.
    pub at: Start,
}

/// What a script (UTF-16 units) says about its map.
pub fn url(text: &[u16]) -> Option<String> {
    let lines = text.rsplit(|unit| *unit == u16::from(b'\n')).take(LAST_LINES);
    let marked = |line: &[u16]| {
        MARKS.iter().find_map(|mark| {
            let rest = line.get(..mark.len()).filter(|begin| begin.iter().copied().eq(mark.encode_utf16()));
            rest.map(|_| String::from_utf16_lossy(&line[mark.len()..]).trim_end().to_owned())
        })
    };
    lines.into_iter().find_map(marked)
}

impl SourceMap {
    /// Reads the map that a script at a path names by `url`, in the root of its process, if it takes no more than `room`, bytes.
    pub fn of(script: &Path, url: &str, root: &Path, room: usize) -> Option<SourceMap> {
        let folder = script.parent().filter(|_| script.is_absolute())?;
        if url.starts_with("data:") {
            let (_, text) = url.split_once(";base64,").filter(|(_, text)| text.len() / 4 * 3 <= room)?;
            return SourceMap::parse(&BASE64.decode(text).ok()?, folder, room);
        }
        let path = match url.strip_prefix("file://") {
            Some(path) => PathBuf::from(path),
            None if url.contains("://") => return None,
            None => folder.join(url),
        };
        let file = open::in_root(root, &path).ok()?;
        // Files of the kernel's own are of no size, and some lose what is read of them.
        let size = file.metadata().ok()?.len();
        if !(1..=LARGEST.min(room as u64)).contains(&size) {
            return None;
        }
        let mut text = Vec::new();
        file.take(size).read_to_end(&mut text).ok()?;
        SourceMap::parse(&text, path.parent()?, room)
    }

    /// Reads a map in a folder. Maps that are made of others, and those of other programs than V8, are not known.
    pub fn parse(text: &[u8], folder: &Path, room: usize) -> Option<SourceMap> {
        if text.len() as u64 > LARGEST {
            return None;
        }
        // Before anything is made of it: how much that would be.
        let size: Size = serde_json::from_slice(text).ok()?;
        let places = size.mappings.matches([',', ';']).count() + 1;
        let bytes = places * PLACE + text.len();
        let root = size.source_root.map_or(0, |root| root.len());
        let is_small = places <= MOST_PLACES
            && size.sources.len() <= MOST_FILES
            && size.names.len() <= MOST_NAMES
            && root <= LONGEST_PATH
            && bytes <= room;
        let is_plain = size.sections.is_none() && size.range_mappings.is_none();
        if !is_small || !is_plain {
            return None;
        }
        let DecodedMap::Regular(mut map) = sourcemap::decode_slice(text).ok()? else { return None };
        let places: Vec<(u32, u32)> = map.tokens().map(|token| token.get_dst()).collect();
        if places.chunk_by(|a, b| a == b).any(|same| same.len() > SAME_PLACE) {
            return None;
        }
        // The text of the files, which nobody asks for.
        (0..map.get_source_count()).for_each(|source| map.set_source_contents(source, None));
        Some(SourceMap { map, folder: folder.to_owned(), bytes })
    }

    /// Where what is at a place of the script was written; `None` for what the compiler added.
    pub fn original(&self, at: Start) -> Option<Original> {
        let token = self.token(at)?;
        let at =
            Start { line: token.get_src_line().checked_add(1)?, column: token.get_src_col().checked_add(1)? };
        Some(Original { file: self.path(token.get_source()?)?, source: token.get_src_id(), at })
    }

    /// The line of what is at a place of the script, if it was written in the same file.
    pub fn line(&self, at: Start, same: &Original) -> Option<u32> {
        self.token(at).filter(|token| token.get_src_id() == same.source)?.get_src_line().checked_add(1)
    }

    fn token(&self, at: Start) -> Option<Token<'_>> {
        let (line, column) = (at.line.checked_sub(1)?, at.column.checked_sub(1)?);
        let token = self.map.lookup_token(line, column)?;
        (token.get_dst_line() == line && token.has_source()).then_some(token)
    }

    /// What a function was called that the script calls `name` and whose parameters begin at a place, right after its name.
    pub fn name(&self, name: &str, parameters: Start) -> Option<&str> {
        let length = u32::try_from(name.encode_utf16().count()).ok()?;
        let (line, column) = (parameters.line.checked_sub(1)?, parameters.column.checked_sub(1 + length)?);
        let token = self.map.lookup_token(line, column)?;
        (token.get_dst() == (line, column))
            .then(|| token.get_name())
            .flatten()
            .filter(|name| (1..=LONGEST_NAME).contains(&name.len()))
    }

    /// What a map calls a file, as a path where it is one.
    fn path(&self, source: &str) -> Option<String> {
        if source.len() > 2 * LONGEST_PATH {
            return None;
        }
        let source = source.strip_prefix("file://").unwrap_or(source);
        let path = match source.split_once("://") {
            // `webpack://NAME/./src/x.ts`
            Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, path)| path).to_owned(),
            None => below(&self.folder, Path::new(source)),
        };
        (!path.is_empty() && path.len() <= LONGEST_PATH).then_some(path)
    }
}

/// A path as seen from a folder, by its words alone.
fn below(folder: &Path, path: &Path) -> String {
    let mut whole = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                whole.pop();
            }
            part => whole.push(part),
        }
    }
    text::path(&whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(line: u32, column: u32) -> Start {
        Start { line, column }
    }

    /// Of `function t(n){…}`: the name at column 10, the parameters at 11; on line 2 what the compiler added.
    fn map(source: &str) -> SourceMap {
        let mut builder = sourcemap::SourceMapBuilder::new(None);
        builder.add(0, 0, 40, 2, Some(source), None, false);
        builder.add(0, 9, 40, 11, Some(source), Some("renderReport"), false);
        builder.add(0, 10, 40, 23, Some(source), None, false);
        builder.add(1, 0, 0, 0, None, None, false);
        let mut text = Vec::new();
        builder.into_sourcemap().to_writer(&mut text).unwrap();
        SourceMap::parse(&text, Path::new("/srv/dist"), usize::MAX).unwrap()
    }

    #[test]
    fn places_and_names_are_those_of_the_source() {
        let map = map("../src/report.ts");
        let expected =
            |column| Some(Original { file: "/srv/src/report.ts".into(), source: 0, at: at(41, column) });
        assert_eq!(map.original(at(1, 11)), expected(24));
        assert_eq!(map.original(at(1, 30)), expected(24), "what follows");
        assert_eq!(map.original(at(1, 3)), expected(3));
        assert_eq!(map.original(at(2, 1)), None, "the compiler's own");
        assert_eq!(map.original(at(3, 1)), None, "another line");
        assert_eq!(map.original(Start::default()), None);
        assert_eq!(map.name("t", at(1, 11)), Some("renderReport"));
        assert_eq!(map.name("tt", at(1, 11)), None, "its name is elsewhere");
        assert_eq!(map.name("t", at(1, 1)), None);
    }

    #[test]
    fn what_bundlers_call_files_is_made_short() {
        let file = |source: &str| map(source).original(at(1, 11)).map(|of| of.file);
        assert_eq!(file("webpack://api/./src/x.ts").as_deref(), Some("./src/x.ts"));
        assert_eq!(file("webpack:///./node_modules/a/b.js").as_deref(), Some("./node_modules/a/b.js"));
        assert_eq!(file("file:///srv/src/x.ts").as_deref(), Some("/srv/src/x.ts"));
        assert_eq!(file("/abs/x.ts").as_deref(), Some("/abs/x.ts"));
        assert_eq!(file("../../../../../x.ts").as_deref(), Some("/x.ts"));
        assert_eq!(file(&"x".repeat(LONGEST_PATH)), None);
    }

    #[test]
    fn a_script_says_in_its_last_lines_where_its_map_is() {
        let of = |text: &str| url(&text.encode_utf16().collect::<Vec<_>>());
        assert_eq!(of("f();\n//# sourceMappingURL=a.js.map\n").as_deref(), Some("a.js.map"));
        assert_eq!(of("f();\r\n//@ sourceMappingURL=a.js.map\r\n\r\n").as_deref(), Some("a.js.map"));
        assert_eq!(of("//# sourceMappingURL=a.js.map\nf();\n\n\n\n"), None, "too far up");
        assert_eq!(of("x = '//# sourceMappingURL=a.js.map'"), None, "in a line");
        assert_eq!(of(""), None);
    }

    #[test]
    fn maps_are_read_beside_the_script_or_out_of_it_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("srv");
        std::fs::create_dir(&folder).unwrap();
        let text = "{\"version\":3,\"sources\":[\"x.ts\"],\"names\":[],\"mappings\":\"AAKA\"}";
        std::fs::write(folder.join("a.js.map"), text).unwrap();
        let inline = format!("data:application/json;base64,{}", BASE64.encode(text));
        let of = |script: &str, url: &str| {
            SourceMap::of(Path::new(script), url, root.path(), usize::MAX)?
                .original(at(1, 1))
                .map(|of| (of.file, of.at.line))
        };
        let right = Some(("/srv/x.ts".to_owned(), 6));
        assert_eq!(of("/srv/a.js", "a.js.map"), right);
        assert_eq!(of("/srv/a.js", "file:///srv/a.js.map"), right);
        assert_eq!(of("/srv/a.js", &inline), right);
        assert_eq!(of("/srv/a.js", "https://else.test/a.js.map"), None);
        assert_eq!(of("/srv/a.js", "none.map"), None);
        assert_eq!(of("evalmachine.<anonymous>", "a.js.map"), None);
    }

    #[test]
    fn maps_that_are_small_as_text_only_are_refused() {
        let parse = |text: String| SourceMap::parse(text.as_bytes(), Path::new("/"), 1 << 20).is_some();
        let of = |root: &str, sources: usize, mappings: &str| {
            let sources = vec!["\"\""; sources].join(",");
            format!(
                "{{\"version\":3,\"sourceRoot\":\"{root}\",\"sources\":[{sources}],\"names\":[],\"mappings\":\"{mappings}\"}}"
            )
        };
        assert!(parse(of("src", 2, "AAAA;AACA")));
        assert!(!parse(of(&"r".repeat(2000), 2, "AAAA")), "a root for each file");
        assert!(!parse(of("src", MOST_FILES + 1, "AAAA")));
        assert!(!parse(of("src", 1, &"A,".repeat(40_000))), "more than there is room for");
        assert!(!parse(of("src", 1, &"AAAA,".repeat(100))), "all at one place");
        let sections = "{\"version\":3,\"sections\":[{\"offset\":{\"line\":0,\"column\":0},\"map\":{\"version\":3,\"sources\":[\"a\"],\"names\":[],\"mappings\":\"AAAA\"}}]}";
        assert!(!parse(sections.to_owned()));
        assert!(
            SourceMap::of(Path::new("/a.js"), "file:///proc/self/status", Path::new("/"), 1 << 20).is_none()
        );
    }

    proptest! {
        #[test]
        fn any_map_is_survived(mappings in "[A-Za-z0-9+/,;]{0,60}", noise: Vec<u8>, line: u32, column: u32) {
            let text = format!("{{\"version\":3,\"sources\":[\"a\",null],\"names\":[\"n\"],\"mappings\":\"{mappings}\"}}");
            for text in [text.as_bytes(), &noise] {
                if let Some(map) = SourceMap::parse(text, Path::new("/"), 1 << 20) {
                    map.original(at(line, column));
                    map.original(at(line % 4, column % 64));
                    map.name("x", at(line % 4, column % 64));
                }
            }
        }
    }
}
