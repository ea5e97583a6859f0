//! Source maps (ECMA-426): where the text that V8 runs was written, before it was compiled from TypeScript or bundled.
//!
//! A script names its map in its last line: as a file beside it, or as the map itself. Nothing is fetched.

use std::{
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use sourcemap::DecodedMap;

use crate::{model::function::Start, process::open, text};

/// Larger maps are not read, bytes.
const LARGEST: u64 = 16 << 20;
/// How the line begins that names a map.
const MARKS: [&str; 2] = ["//# sourceMappingURL=", "//@ sourceMappingURL="];
/// Lines at the end of a script among which it is looked for.
const LAST_LINES: usize = 4;
/// Longer names of files are none, bytes.
const LONGEST_PATH: usize = 1024;

/// The map of one script.
#[derive(Debug)]
pub struct SourceMap {
    map: DecodedMap,
    /// Where what it names is.
    folder: PathBuf,
    /// Size of its text, bytes.
    pub bytes: usize,
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// File: a path, or what a bundler calls it.
    pub file: String,
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
    /// Reads the map that a script at a path names by `url`, in the root of its process.
    pub fn of(script: &Path, url: &str, root: &Path) -> Option<SourceMap> {
        let folder = script.parent().filter(|_| script.is_absolute())?;
        if url.starts_with("data:") {
            return SourceMap::new(sourcemap::decode_data_url(url).ok()?, folder, url.len());
        }
        let path = match url.strip_prefix("file://") {
            Some(path) => PathBuf::from(path),
            None if url.contains("://") => return None,
            None => folder.join(url),
        };
        let file = open::in_root(root, &path).ok()?;
        let mut text = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut text).ok()?;
        SourceMap::parse(&text, path.parent()?)
    }

    /// Reads a map in a folder.
    pub fn parse(text: &[u8], folder: &Path) -> Option<SourceMap> {
        if text.len() as u64 > LARGEST {
            return None;
        }
        SourceMap::new(sourcemap::decode_slice(text).ok()?, folder, text.len())
    }

    fn new(mut map: DecodedMap, folder: &Path, bytes: usize) -> Option<SourceMap> {
        if let DecodedMap::Regular(map) = &mut map {
            // The text of the files, which nobody asks for.
            (0..map.get_source_count()).for_each(|source| map.set_source_contents(source, None));
        }
        Some(SourceMap { map, folder: folder.to_owned(), bytes })
    }

    /// Where what is at a place of the script was written; `None` for what the compiler added.
    pub fn original(&self, at: Start) -> Option<Original> {
        let (line, column) = (at.line.checked_sub(1)?, at.column.checked_sub(1)?);
        let token = self.map.lookup_token(line, column)?;
        if token.get_dst_line() != line || !token.has_source() {
            return None;
        }
        let at =
            Start { line: token.get_src_line().checked_add(1)?, column: token.get_src_col().checked_add(1)? };
        Some(Original { file: self.path(token.get_source()?)?, at })
    }

    /// What a function was called that the script calls `name` and whose parameters begin at a place, right after its name.
    pub fn name(&self, name: &str, parameters: Start) -> Option<&str> {
        let length = u32::try_from(name.encode_utf16().count()).ok()?;
        let (line, column) = (parameters.line.checked_sub(1)?, parameters.column.checked_sub(1 + length)?);
        let token = self.map.lookup_token(line, column)?;
        (token.get_dst() == (line, column))
            .then(|| token.get_name())
            .flatten()
            .filter(|name| !name.is_empty())
    }

    /// What a map calls a file, as a path where it is one.
    fn path(&self, source: &str) -> Option<String> {
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
        SourceMap::parse(&text, Path::new("/srv/dist")).unwrap()
    }

    #[test]
    fn places_and_names_are_those_of_the_source() {
        let map = map("../src/report.ts");
        let expected = |column| Some(Original { file: "/srv/src/report.ts".into(), at: at(41, column) });
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
        let inline = format!(
            "data:application/json;base64,{}",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
        );
        let of = |script: &str, url: &str| {
            SourceMap::of(Path::new(script), url, root.path())?
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

    proptest! {
        #[test]
        fn any_map_is_survived(mappings in "[A-Za-z0-9+/,;]{0,60}", noise: Vec<u8>, line: u32, column: u32) {
            let text = format!("{{\"version\":3,\"sources\":[\"a\",null],\"names\":[\"n\"],\"mappings\":\"{mappings}\"}}");
            for text in [text.as_bytes(), &noise] {
                if let Some(map) = SourceMap::parse(text, Path::new("/")) {
                    map.original(at(line, column));
                    map.original(at(line % 4, column % 64));
                    map.name("x", at(line % 4, column % 64));
                }
            }
        }
    }
}
