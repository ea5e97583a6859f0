//! Names and places as tables show them: short enough to read, and still the reader's own. Everything is in full in JSON
//! and in the formats for other tools.

use std::borrow::Cow;

/// Columns of a place at most.
pub const PLACE: usize = 60;

/// A function's name without template arguments, parameters and return type; any other name as it is.
pub fn short(name: &str) -> Cow<'_, str> {
    if !name.contains(['<', '(']) {
        return Cow::Borrowed(name);
    }
    match Shortening::of(name) {
        Some(short) if !short.is_empty() => Cow::Owned(short),
        _ => Cow::Borrowed(name),
    }
}

struct Shortening<'a> {
    rest: &'a str,
    short: String,
    /// Where the function's own name begins in it: after the return type, should parameters follow.
    name_at: usize,
    has_parameters: bool,
}

impl Shortening<'_> {
    /// `None` if brackets do not match: then it is no name of these languages.
    fn of(name: &str) -> Option<String> {
        let mut of = Shortening { rest: name, short: String::new(), name_at: 0, has_parameters: false };
        while let Some(next) = of.rest.chars().next() {
            match next {
                '<' | '>' if of.short.ends_with("operator") => of.operator(),
                '<' => of.angle()?,
                '(' => of.parenthesis()?,
                ' ' if of.has_parameters => break, // " const", " [clone .cold]"
                ' ' if of.rest.starts_with(" <") && is_operator(&of.short) => of.rest = &of.rest[1..],
                _ => {
                    of.rest = &of.rest[next.len_utf8()..];
                    of.short.push(next);
                    if next == ' ' && !of.short.ends_with("operator ") {
                        of.name_at = of.short.len();
                    }
                }
            }
        }
        let from = if of.has_parameters { of.name_at } else { 0 };
        Some(of.short.get(from..)?.trim_start_matches(['*', '&']).to_owned())
    }

    /// `operator<`, `operator->`, …
    fn operator(&mut self) {
        let symbols = self.rest.find(|c| !"<>=-".contains(c)).unwrap_or(self.rest.len());
        // A third `<` begins template arguments.
        let symbols = symbols.min(if self.rest.starts_with("<=>") { 3 } else { 2 });
        self.short.push_str(&self.rest[..symbols]);
        self.rest = &self.rest[symbols..];
    }

    /// Arguments of templates and generics are left out. What stands for a name is shortened: `<Vec<T> as Iterator>`,
    /// `<module>`.
    fn angle(&mut self) -> Option<()> {
        let end = closing(self.rest, '<', '>')?;
        let inner = &self.rest[1..end];
        self.rest = &self.rest[end + 1..];
        if is_name(&self.short) {
            return Some(());
        }
        if self.short.ends_with("::") && !inner.starts_with("impl ") {
            self.short.truncate(self.short.len() - 2);
            return Some(());
        }
        self.short.push('<');
        if inner.contains(" as ") || inner.starts_with("impl ") {
            let bare = without_arguments(inner)?;
            let words = bare.split(' ').map(|word| word.rsplit("::").next().unwrap_or(word));
            self.short.push_str(&words.collect::<Vec<_>>().join(" "));
        } else {
            self.short.push_str(inner);
        }
        self.short.push('>');
        Some(())
    }

    /// Parameters are left out. What stands for a name is kept: `(anonymous namespace)`, `(*T)`, `name (builtin)`.
    fn parenthesis(&mut self) -> Option<()> {
        let end = closing(self.rest, '(', ')')?;
        let (inside, after) = self.rest.split_at(end + 1);
        if self.short.ends_with("operator") && end == 1 {
            self.short.push_str(inside);
        } else if is_name(&self.short) {
            // Those of a function around this one, or of a lambda, are not its own.
            self.has_parameters = after.is_empty() || after.starts_with([' ', '[']);
        } else {
            self.short.push_str(inside);
        }
        self.rest = after;
        Some(())
    }
}

/// Whether what was read so far is a name, which arguments may follow.
fn is_name(short: &str) -> bool {
    short.ends_with(|c: char| c.is_alphanumeric() || "_}]>".contains(c)) || is_operator(short)
}

fn is_operator(short: &str) -> bool {
    let symbols = |c: char| c.is_ascii_punctuation() && c != '_';
    short.len() > "operator".len() && short.trim_end_matches(symbols).ends_with("operator")
}

/// A type's name without its arguments.
fn without_arguments(name: &str) -> Option<String> {
    let mut rest = name;
    let mut bare = String::new();
    while let Some(open) = rest.find('<') {
        bare.push_str(&rest[..open]);
        rest = &rest[open + closing(&rest[open..], '<', '>')? + 1..];
    }
    bare.push_str(rest);
    Some(bare)
}

/// Where the bracket is closed that `text` begins with.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0usize;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close && !matches!(before, '-' | '=') {
            depth -= 1; // it begins with one that opens
            if depth == 0 {
                return Some(at);
            }
        }
        before = c;
    }
    None
}

/// Folders that packages of others lie in. What is before them tells nobody anything.
const PACKAGES: [&str; 10] = [
    "/node_modules/",
    "/share/nodejs/",
    "/lib/nodejs/",
    "/site-packages/",
    "/dist-packages/",
    "/registry/src/",
    "/git/checkouts/",
    "/pkg/mod/",
    "/rustc/",
    "/rustlib/src/rust/",
];

/// Those of them in which a folder follows that is named by a hash.
const HASHED: [&str; 2] = ["/registry/src/", "/rustc/"];

/// Whether a file belongs to a package that others have written.
pub fn is_of_package(file: &str) -> bool {
    PACKAGES.iter().any(|folder| file.contains(folder))
}

/// A place in source code, in `columns` at most: of packages from their name on; of long paths the end, which is the
/// project's own part.
pub fn place(location: &str, columns: usize) -> String {
    let package = PACKAGES.iter().filter_map(|folder| {
        let inside = &location[location.rfind(folder)? + folder.len()..];
        let hashed = HASHED.contains(folder);
        Some(if hashed { inside.split_once('/').map_or(inside, |(_, after)| after) } else { inside })
    });
    let path = package.min_by_key(|inside| inside.len()).unwrap_or(location);
    if path.chars().count() <= columns {
        return path.to_owned();
    }
    let mut end = path;
    while let Some((_, after)) = end.split_once('/') {
        if after.chars().count() + 2 <= columns {
            return format!("…/{after}");
        }
        end = after;
    }
    let skip = (end.chars().count() + 1).saturating_sub(columns);
    format!("…{}", end.chars().skip(skip).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_and_parameters_are_left_out() {
        let names = [
            ("v8::internal::Parser::Parse(int, void (*)(int)) const", "v8::internal::Parser::Parse"),
            ("a::{lambda(int)#1}::_FUN(int)", "a::{lambda#1}::_FUN"),
            ("compress(int, char const*)", "compress"),
            (
                "std::vector<std::pair<int, char>, std::allocator<int> >::push_back(int&&)",
                "std::vector::push_back",
            ),
            ("void std::__sort<int*, bool (*)(int, int)>(int*, int*)", "std::__sort"),
            ("(anonymous namespace)::parse<int>(char*)", "(anonymous namespace)::parse"),
            ("unsigned long (anonymous namespace)::parse<int>(char*)", "(anonymous namespace)::parse"),
            ("std::ostream& std::operator<< <char>(std::ostream&, char)", "std::operator<<"),
            ("app::Less::operator()(int, int) const [clone .isra.0]", "app::Less::operator()"),
            ("app::Ptr<int>::operator->() const", "app::Ptr::operator->"),
            ("core::ptr::drop_in_place::<alloc::vec::Vec<u8>>", "core::ptr::drop_in_place"),
            ("core::ptr::drop_in_place<alloc::vec::Vec<u8>>", "core::ptr::drop_in_place"),
            (
                "<alloc::vec::Vec<T> as core::iter::FromIterator<T>>::from_iter",
                "<Vec as FromIterator>::from_iter",
            ),
            ("core::slice::<impl [T]>::sort", "core::slice::<impl [T]>::sort"),
            ("app::serve::{closure#0}", "app::serve::{closure#0}"),
            ("outer(int)::inner::call(int)", "outer::inner::call"),
            ("shop.Orders.<init>", "shop.Orders.<init>"),
        ];
        for (name, expected) in names {
            assert_eq!(short(name), expected, "{name}");
        }
        let kept = [
            "main",
            "<module>",
            "work.<locals>.<genexpr>",
            "a::work (app.rs:7)",
            "sort (builtin)",
            "(anonymous)",
            "main.(*Server).Handle",
            "get size",
            "<signal handler called>",
            "JS:~mine app.js:1",
            "Busy.<init>",
            "::)",
            "a<b",
            "",
        ];
        assert_eq!(kept.map(|name| short(name).into_owned()), kept);
    }

    #[test]
    fn places_keep_the_projects_own_part() {
        let long = "/home/ci/workspace/build-1234567890/checkout/services/report/src/routes/render.js:120";
        let places = [
            ("src/main.rs:7", "src/main.rs:7"),
            (long, "…/checkout/services/report/src/routes/render.js:120"),
            (
                "/srv/app/node_modules/.pnpm/a@1/node_modules/express/lib/router.js:9",
                "express/lib/router.js:9",
            ),
            (
                "/root/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/serde-1.0.1/src/de.rs:4",
                "serde-1.0.1/src/de.rs:4",
            ),
            ("/rustc/0123abcd/library/core/src/cmp.rs:1", "library/core/src/cmp.rs:1"),
            ("/usr/lib/python3/dist-packages/flask/app.py:3", "flask/app.py:3"),
        ];
        for (location, expected) in places {
            assert_eq!(place(location, PLACE), expected);
        }
        assert_eq!(place("averylongfilenamewithoutanyfolder.js:1", 10), "…lder.js:1");
    }

    proptest! {
        #[test]
        fn any_name_is_survived(name in "[a-z:<>() &*{}\\-=é]{0,40}", location in "[a-z/é.:]{0,90}", columns in 2usize..70) {
            prop_assert!(short(&name).len() <= name.len());
            prop_assert!(place(&location, columns).chars().count() <= columns);
        }
    }
}
