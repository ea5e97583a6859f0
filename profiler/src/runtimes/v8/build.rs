//! Which files hold a V8, and what it is like.

use std::{fs::File, rc::Rc};

use crate::runtimes::{exported::Exported, v8::metadata::Layout};

const VERSION: [&str; 3] =
    ["_ZN2v88internal7Version6major_E", "_ZN2v88internal7Version6minor_E", "_ZN2v88internal7Version6build_E"];

/// Whether a file of this name may hold a V8: Node.js, its library, or what is built on them.
pub fn may_hold_v8(name: &str) -> bool {
    ["node", "nodejs", "libnode.so"].iter().any(|known| name == *known || name.starts_with(known))
}

/// The layout of the V8 in a file; `None` if there is none in it. The error says why it cannot be read.
pub fn layout_of(file: &File) -> Option<Result<Rc<Layout>, String>> {
    let constant =
        |name: &[u8]| name.starts_with(b"v8dbg_") || VERSION.iter().any(|wanted| wanted.as_bytes() == name);
    let exported = Exported::read(file, constant)?;
    if exported.is_empty() {
        return None;
    }
    let [major, minor, build] =
        VERSION.map(|name| exported.get(name).map_or(0, |symbol| symbol.int() as u32));
    let layout =
        Layout::new([major, minor, build], |name| Some(exported.get(&format!("v8dbg_{name}"))?.int()));
    Some(layout.map(Rc::new))
}
