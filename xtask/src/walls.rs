//! `cargo xtask walls`: which files may import which. The table [`WALLS`] is what ARCHITECTURE.md says in words; besides, no
//! file of the profiler imports one that imports it, and a long file says why it is long.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

/// Lines that a file may have without a reason.
const MAX_LINES: usize = 600;
/// How the line begins that gives one.
const REASON: &str = "//! Longer than 600 lines because ";

/// What does not hold yet: a part of a problem's text, and what is to be done. One that is no longer needed is a problem.
const NOT_YET: [(&str, &str); 0] = [];

/// The crates. End-to-end tests may be as long as they like.
const FOLDERS: [&str; 4] = ["profiler/src", "profiler-common/src", "profiler-ebpf/src", "xtask/src"];
/// The folder that the walls stand in.
const CRATE: &str = "profiler/src";
/// The folder whose files may import each other: a parent has what its commands share.
const TOOLS: &str = "xtask/src";

/// A rule about imports, by the first folder or file of the crate.
struct Wall {
    /// Who imports; empty for everybody.
    from: &'static [&'static str],
    /// Who imports and is left out.
    except: &'static [&'static str],
    /// What they may not import; empty for everything but themselves.
    not: &'static [&'static str],
    /// The rule in words.
    why: &'static str,
}

/// The walls.
const WALLS: [Wall; 6] = [
    Wall {
        from: &["model"],
        except: &[],
        not: &[],
        why: "values know nothing but each other: no input or output, no clock, no rule",
    },
    Wall {
        from: &["detect"],
        except: &[],
        not: &["probe", "kernel", "output", "session", "collector"],
        why: "a rule judges what was measured, whoever measured it and however it is told",
    },
    Wall {
        from: &["output"],
        except: &[],
        not: &["probe", "kernel", "session", "collector", "resolve"],
        why: "a format reads a run and names no probe",
    },
    Wall {
        from: &["probe"],
        except: &[],
        not: &["detect", "output", "session", "collector"],
        why: "a probe keeps evidence: it names no rule and no format",
    },
    Wall {
        from: &["kernel"],
        except: &[],
        not: &["probe", "output", "detect", "session", "collector", "resolve"],
        why: "loading and attaching are the same for every probe",
    },
    Wall {
        from: &[],
        except: &["cli", "main", "commands"],
        not: &["cli"],
        why: "the command line ends in cli.rs; below are plain settings",
    },
];

/// Checks the sources below `root`.
pub fn run(root: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        read(&root.join(folder), folder, &mut files)?;
    }
    let mut problems = too_long(&files);
    let mut between = 0;
    for folder in FOLDERS {
        let sources = files.iter().filter_map(|(path, text)| {
            Some((path.strip_prefix(folder)?.strip_prefix('/')?.to_owned(), text.clone()))
        });
        let imports = imports(&sources.collect());
        if folder == CRATE {
            problems.extend(broken_walls(&imports));
        }
        if folder != TOOLS {
            problems.extend(circles(&imports));
        }
        between += count(&imports);
    }
    let problems = without_known(problems, &NOT_YET);
    if problems.is_empty() {
        println!("{} files, {} imports between them: every wall stands", files.len(), between);
        return Ok(());
    }
    for problem in &problems {
        println!("{problem}");
    }
    bail!("{} walls are broken", problems.len())
}

/// Problems that are not known, and those that are known and are not there any more.
fn without_known(problems: Vec<String>, known: &[(&str, &str)]) -> Vec<String> {
    let is = |problem: &str, part: &str| problem.starts_with(part);
    let gone = known.iter().filter(|(part, _)| !problems.iter().any(|problem| is(problem, part)));
    let mut left: Vec<String> =
        gone.map(|(part, _)| format!("`{part}…` holds by now: take it out of NOT_YET")).collect();
    left.extend(problems.into_iter().filter(|problem| !known.iter().any(|(part, _)| is(problem, part))));
    left
}

fn count(imports: &Imports) -> usize {
    imports.values().map(BTreeSet::len).sum()
}

fn read(folder: &Path, name: &str, files: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{name}/{file}");
        if path.is_dir() {
            read(&path, &name, files)?;
        } else if file.ends_with(".rs") {
            files.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Files that are too long and do not say why.
fn too_long(files: &BTreeMap<String, String>) -> Vec<String> {
    let long = files.iter().filter(|(_, text)| {
        let reason =
            text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.starts_with(REASON));
        text.lines().count() > MAX_LINES && !reason
    });
    long.map(|(path, text)| {
        format!("{path}: {} lines, and no line `{REASON}…` at its top says why", text.lines().count())
    })
    .collect()
}

/// Files, by their paths in the crate, and the files each imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// What each file imports outside of its tests.
fn imports(files: &BTreeMap<String, String>) -> Imports {
    let modules: BTreeMap<Vec<String>, &str> =
        files.keys().map(|path| (module_of(path), path.as_str())).collect();
    let tests: BTreeSet<Vec<String>> = files
        .iter()
        .flat_map(|(path, text)| {
            let of = module_of(path);
            test_modules(text).into_iter().map(move |name| [of.clone(), vec![name]].concat())
        })
        .collect();
    let is_test = |module: &[String]| tests.iter().any(|test| module.starts_with(test));
    let mut imports = Imports::new();
    for (path, text) in files {
        let of = module_of(path);
        if is_test(&of) {
            continue;
        }
        let text = without_tests(&without_comments(text));
        let mut found = BTreeSet::new();
        for target in paths(&text, &of, &modules) {
            let module = (0..=target.len()).rev().find_map(|len| modules.get(&target[..len]));
            found.extend(module.filter(|file| **file != path).map(|file| (*file).to_owned()));
        }
        imports.insert(path.clone(), found);
    }
    imports
}

/// The module that a file is: `a/mod.rs` and `a.rs` are both `a`; `lib.rs` is the crate.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Names of modules that are there in tests only.
fn test_modules(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let after = lines.windows(2).filter(|pair| is_for_tests(pair[0])).map(|pair| pair[1]);
    after.filter_map(declared).map(str::to_owned).collect()
}

/// Whether what follows a line is there in tests only.
fn is_for_tests(line: &str) -> bool {
    line == "#[cfg(test)]" || line.starts_with("#[cfg(all(test,")
}

/// The module that a line declares to be in a file of its own.
fn declared(line: &str) -> Option<&str> {
    let at = line.find("mod ")?;
    let public = line[..at].trim();
    (public.is_empty() || public.starts_with("pub")).then_some(())?;
    line[at + 4..].strip_suffix(';')
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The text without inline modules that are there in tests only.
fn without_tests(text: &str) -> String {
    let mut kept = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let block = is_for_tests(line.trim())
            && lines.peek().is_some_and(|next| next.contains("mod ") && next.trim_end().ends_with('{'));
        if block {
            let indent = line.len() - line.trim_start().len();
            for inner in lines.by_ref() {
                if inner.trim_end() == format!("{}}}", " ".repeat(indent)) {
                    break;
                }
            }
        } else {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// Every path that a text refers to, from the root of the crate on.
fn paths(text: &str, of: &[String], modules: &BTreeMap<Vec<String>, &str>) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        let before = rest[..at].chars().next_back();
        let word_len = rest[at..].find(|c: char| !is_word(c)).unwrap_or(rest.len() - at);
        let word = &rest[at..at + word_len];
        let tail = &rest[at + word_len..];
        // A path begins at a word that no other path, field or number ends with.
        let begins = !matches!(before, Some(':' | '.' | '\'')) && !before.is_some_and(|c| c.is_ascii_digit());
        let child = [of, &[word.to_owned()]].concat();
        let base = match word {
            "crate" => Some(Vec::new()),
            "self" => Some(of.to_vec()),
            "super" => Some(of[..of.len().saturating_sub(1)].to_vec()),
            _ if modules.contains_key(&child) => Some(child),
            _ => None,
        };
        match base {
            Some(base) if begins && tail.starts_with("::") => {
                let mut tree = &tail[2..];
                leaves(&mut tree, base, &mut found);
                rest = tree;
            }
            _ => rest = tail,
        }
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Reads the rest of a path, or a tree of paths, that begins with `base`.
fn leaves(text: &mut &str, mut base: Vec<String>, found: &mut Vec<Vec<String>>) {
    loop {
        *text = text.trim_start();
        if let Some(inner) = text.strip_prefix('{') {
            *text = inner;
            loop {
                *text = text.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                if text.is_empty() {
                    return;
                }
                if let Some(after) = text.strip_prefix('}') {
                    *text = after;
                    return;
                }
                let before = text.len();
                leaves(text, base.clone(), found);
                // ` as name`
                if let Some(after) = text.trim_start().strip_prefix("as ") {
                    *text = after.trim_start().trim_start_matches(is_word);
                }
                if text.len() == before {
                    return; // no tree of imports after all
                }
            }
        }
        let len = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
        let word = &text[..len];
        *text = &text[len..];
        match word {
            "" | "self" => {}
            "super" => {
                base.pop();
            }
            _ => base.push(word.to_owned()),
        }
        match text.strip_prefix("::") {
            Some(more) if len > 0 => *text = more,
            _ => {
                found.push(base);
                return;
            }
        }
    }
}

/// The first folder or file of the crate that a file belongs to.
fn room(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

fn broken_walls(imports: &Imports) -> Vec<String> {
    let mut broken = Vec::new();
    for (from, to) in imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
        for wall in &WALLS {
            let applies = (wall.from.is_empty() || wall.from.contains(&room(from)))
                && !wall.except.contains(&room(from));
            let inside = wall.from.contains(&room(to));
            let forbidden = if wall.not.is_empty() { !inside } else { wall.not.contains(&room(to)) };
            if applies && forbidden {
                broken.push(format!("{from} imports {to}: {}", wall.why));
            }
        }
    }
    broken
}

/// Files that import each other, directly or by way of others.
fn circles(imports: &Imports) -> Vec<String> {
    let reaches = |from: &str| {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut next: Vec<&str> = imports.get(from).into_iter().flatten().map(String::as_str).collect();
        while let Some(file) = next.pop() {
            if seen.insert(file) {
                next.extend(imports.get(file).into_iter().flatten().map(String::as_str));
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|file| (file.as_str(), reaches(file))).collect();
    let mut circles = BTreeSet::new();
    for (file, from_here) in &reached {
        let circle: Vec<&str> = from_here
            .iter()
            .copied()
            .filter(|other| reached.get(other).is_some_and(|back| back.contains(file)))
            .collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().map(|circle| format!("{} import each other in a circle", circle.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> Imports {
        imports(&files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
    }

    fn of<'a>(imports: &'a Imports, file: &str) -> Vec<&'a str> {
        imports[file].iter().map(String::as_str).collect()
    }

    #[test]
    fn imports_are_found_however_they_are_written() {
        let imports = crate_of(&[
            ("lib.rs", "pub mod a;\npub mod b;\npub mod c;\n"),
            ("a.rs", "use crate::{b::{self as other, X}, c::d::{Y, Z as Q}};\n"),
            ("b.rs", "// crate::a::X is a comment\nfn f() { crate::c::d::g(); let a: u8 = 1; }\n"),
            ("c/mod.rs", "pub mod d;\npub use d::Y;\n"),
            ("c/d.rs", "use super::super::a;\nuse std::fmt;\nfn f() { x.crate_; m::a::g() }\n"),
        ]);
        assert_eq!(of(&imports, "a.rs"), ["b.rs", "c/d.rs"]);
        assert_eq!(of(&imports, "b.rs"), ["c/d.rs"]);
        assert_eq!(of(&imports, "c/mod.rs"), ["c/d.rs"]);
        assert_eq!(of(&imports, "c/d.rs"), ["a.rs"]);
        assert!(of(&imports, "lib.rs").is_empty(), "to declare a module is no import");
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let imports = crate_of(&[
            ("a.rs", "#[cfg(test)]\nmod tests {\n    use crate::b::X;\n}\n\nuse crate::c::Y;\n"),
            ("b.rs", "#[cfg(test)]\npub(crate) mod fixtures;\n#[cfg(test)]\nmod tests;\n"),
            ("b/fixtures.rs", "use crate::a::Z;\n"),
            ("b/tests.rs", "use crate::a::Z;\n"),
            ("c.rs", ""),
        ]);
        assert_eq!(of(&imports, "a.rs"), ["c.rs"]);
        assert!(!imports.contains_key("b/tests.rs") && !imports.contains_key("b/fixtures.rs"));
    }

    #[test]
    fn a_circle_is_found_through_others() {
        let imports = crate_of(&[
            ("a.rs", "use crate::b::X;\n"),
            ("b.rs", "use crate::c::X;\n"),
            ("c.rs", "use crate::a::X;\n"),
            ("d.rs", "use crate::a::X;\n"),
        ]);
        assert_eq!(circles(&imports), ["a.rs, b.rs, c.rs import each other in a circle"]);
    }

    #[test]
    fn walls_keep_rooms_apart() {
        let broken = |from: &str, text: &str| {
            let others = ["probe/mod.rs", "cli.rs", "model/loss.rs", "process/mod.rs"].map(|file| (file, ""));
            broken_walls(&crate_of(&[&others[..], &[(from, text)]].concat()))
        };
        assert_eq!(broken("model/stack.rs", "use crate::model::loss::X;"), [] as [String; 0]);
        assert_eq!(broken("model/stack.rs", "use crate::process::X;").len(), 1);
        assert_eq!(broken("detect/groups.rs", "use crate::probe::X;").len(), 1);
        assert_eq!(broken("output/json.rs", "use crate::{probe::X, model::loss::Y};").len(), 1);
        assert_eq!(broken("kernel/load.rs", "use crate::probe;\n").len(), 1);
        assert_eq!(broken("probe/mod.rs", "use crate::model::loss::X;"), [] as [String; 0]);
        assert_eq!(broken("session.rs", "use crate::cli::X;").len(), 1);
        assert_eq!(broken("commands/replay.rs", "use crate::cli::X;"), [] as [String; 0]);
    }

    #[test]
    fn what_is_known_not_to_hold_is_no_news_until_it_does() {
        let problems = |problems: &[&str]| {
            let problems = problems.iter().map(|problem| (*problem).to_owned()).collect();
            without_known(problems, &[("a.rs: ", "split it")])
        };
        assert_eq!(problems(&["a.rs: 700 lines", "b.rs: 700 lines"]), ["b.rs: 700 lines"]);
        assert!(problems(&[])[0].contains("holds by now"));
    }

    #[test]
    fn a_long_file_says_why() {
        let lines = "x\n".repeat(MAX_LINES + 1);
        let of = |text: String| too_long(&BTreeMap::from([("a.rs".to_owned(), text)])).len();
        assert_eq!((of(lines.clone()), of("x\n".repeat(MAX_LINES))), (1, 0));
        assert_eq!(of(format!("//! A file.\n//!\n{REASON}it is a table.\n{lines}")), 0);
    }
}
