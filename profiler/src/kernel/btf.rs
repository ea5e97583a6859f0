//! Offsets of members in the running kernel's structures, read from its BTF. Rust kernel programs carry no
//! relocations, so userspace looks the offsets up and passes them in.
//!
//! Only what that takes: types in order, structs and their members, names of functions. Format:
//! <https://www.kernel.org/doc/html/latest/bpf/btf.html>.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result, bail};
use profiler_common::offsets::{Group, Offset};

/// Where the kernel publishes its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;

/// The kernel's structures and functions by name, as far as they were asked for.
#[derive(Debug)]
pub struct Btf<'a> {
    structs: HashMap<&'a str, Struct<'a>>,
    functions: HashMap<&'a str, u32>,
}

#[derive(Debug)]
struct Struct<'a> {
    size: u32,
    members: HashMap<&'a str, u32>,
}

impl<'a> Btf<'a> {
    /// Reads the structures and functions called `names` out of BTF `data`.
    pub fn parse(data: &'a [u8], names: &[&str]) -> Result<Btf<'a>> {
        if u16::from_ne_bytes(array(data, 0)?) != MAGIC {
            bail!("not BTF of this machine's byte order");
        }
        let header_len = word(data, 4)? as usize;
        let section = |at: usize| -> Result<&'a [u8]> {
            let (offset, len) = (word(data, at)? as usize, word(data, at + 4)? as usize);
            let start = header_len.checked_add(offset).context("BTF section out of range")?;
            let end = start.checked_add(len).context("BTF section out of range")?;
            data.get(start..end).context("BTF section out of range")
        };
        let (types, strings) = (section(8)?, section(16)?);
        let string = |offset: u32| -> &'a str {
            let tail = strings.get(offset as usize..).unwrap_or_default();
            let end = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
            std::str::from_utf8(&tail[..end]).unwrap_or_default()
        };

        let (mut structs, mut functions) = (HashMap::new(), HashMap::new());
        let mut at = 0;
        // Where each type is, by its number; the first is void.
        let mut positions = vec![usize::MAX];
        let mut wanted = Vec::new();
        while at < types.len() {
            let id = positions.len() as u32;
            positions.push(at);
            let (name, info, size) = (word(types, at)?, word(types, at + 4)?, word(types, at + 8)?);
            let (kind, members) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT && names.contains(&string(name)) {
                wanted.push((string(name), size, at));
            }
            if kind == KIND_FUNC && names.contains(&string(name)) {
                functions.entry(string(name)).or_insert(id);
            }
            at += 12;
            at += trailing_bytes(kind, members)?;
        }
        let numbers = Types { types, positions: &positions, string: &string };
        for (name, size, at) in wanted {
            let mut members = HashMap::new();
            numbers.members(at, 0, MAX_NESTED, &mut members)?;
            structs.entry(name).or_insert(Struct { size, members });
        }
        Ok(Btf { structs, functions })
    }

    /// Offset of a member, in bytes.
    pub fn offset(&self, name: &str, member: &str) -> Result<u32> {
        let found = self.structs.get(name).with_context(|| format!("kernel has no struct {name}"))?;
        found
            .members
            .get(member)
            .copied()
            .with_context(|| format!("kernel's struct {name} has no member {member}"))
    }

    /// The value of a kernel global: along the first path that the kernel has.
    fn value(&self, offset: &Offset) -> Result<u32> {
        let along = |path: &&[(&str, &str)]| -> Result<u32> {
            path.iter().try_fold(0, |sum, &(name, member)| {
                Ok(sum + if member.is_empty() { self.size(name)? } else { self.offset(name, member)? })
            })
        };
        let mut values = offset.paths.iter().map(along);
        let first = values.next().context("an offset has no path")?;
        first.or_else(|error| values.find_map(Result::ok).ok_or(error))
    }

    /// Id of a function among all types.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.functions.get(name).copied()
    }

    /// Size of a struct, in bytes.
    pub fn size(&self, name: &str) -> Result<u32> {
        Ok(self.structs.get(name).with_context(|| format!("kernel has no struct {name}"))?.size)
    }
}

/// Structs and unions without a name inside of others are followed so far.
const MAX_NESTED: u32 = 8;

/// All types.
struct Types<'t, 'a> {
    types: &'a [u8],
    positions: &'t [usize],
    string: &'t dyn Fn(u32) -> &'a str,
}

impl<'a> Types<'_, 'a> {
    /// Collects the members of the struct or union at `at`, which itself is `base` bytes from the beginning. Those of
    /// members without a name are its own, as in C.
    fn members(&self, at: usize, base: u32, nested: u32, into: &mut HashMap<&'a str, u32>) -> Result<()> {
        let info = word(self.types, at + 4)?;
        if !matches!((info >> 24) & 0x1f, KIND_STRUCT | KIND_UNION) {
            return Ok(());
        }
        for i in 0..(info & 0xffff) as usize {
            let at = at + 12 + 12 * i;
            let (name, of, bits) =
                (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let bits = if info >> 31 == 1 { bits & 0xff_ffff } else { bits };
            let offset = base.checked_add(bits / 8).context("BTF member out of range")?;
            match (self.string)(name) {
                "" if nested > 0 => {
                    let position = self.positions.get(of as usize).context("BTF type out of range")?;
                    if *position != usize::MAX {
                        self.members(*position, offset, nested - 1, into)?;
                    }
                }
                name => _ = into.entry(name).or_insert(offset),
            }
        }
        Ok(())
    }
}

/// Values of the globals of `groups`, from BTF `data`.
pub fn look_up(data: &[u8], groups: &[&Group]) -> Result<Vec<(&'static str, u32)>> {
    let paths = groups.iter().flat_map(|group| group.offsets).flat_map(|offset| offset.paths);
    let names: Vec<&str> = paths.flat_map(|path| path.iter()).map(|&(name, _)| name).collect();
    let btf = Btf::parse(data, &names)?;
    let mut values = Vec::new();
    for group in groups {
        let found: Result<Vec<_>> =
            group.offsets.iter().map(|offset| Ok((offset.global, btf.value(offset)?))).collect();
        match found {
            Ok(found) => values.extend(found),
            Err(_) if group.optional => {}
            Err(error) => return Err(error),
        }
    }
    Ok(values)
}

/// Whether the running kernel publishes BTF.
pub fn is_available() -> bool {
    Path::new(VMLINUX).exists()
}

/// Bytes after a type's three words.
fn trailing_bytes(kind: u32, vlen: usize) -> Result<usize> {
    Ok(match kind {
        2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0, // ptr, fwd, typedef, cv-restrict, func, float, type tag
        1 | 14 | 17 => 4,                            // int, var, decl tag
        3 => 12,                                     // array
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * vlen, // members, section variables, 64-bit enumerators
        6 | 13 => 8 * vlen,                          // enumerators, parameters
        other => bail!("BTF type of unknown kind {other}"),
    })
}

fn array<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N]> {
    data.get(at..).and_then(|tail| tail.first_chunk()).copied().context("BTF ends too early")
}

fn word(data: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_ne_bytes(array(data, at)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BTF with one int, `struct pair { int a; int b; }` and a function of that name.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0pair\0a\0b\0";
        let types: Vec<u32> =
            vec![1, 1 << 24, 4, 0x20, 5, 4 << 24 | 2, 8, 10, 1, 0, 12, 1, 32, 5, 12 << 24, 0];
        let mut data = vec![];
        data.extend(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        for word in [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32] {
            data.extend(word.to_ne_bytes());
        }
        types.iter().for_each(|word| data.extend(word.to_ne_bytes()));
        data.extend(strings);
        data
    }

    #[test]
    fn members_have_byte_offsets() {
        let data = sample();
        let btf = Btf::parse(&data, &["pair"]).unwrap();
        assert_eq!(btf.offset("pair", "a").unwrap(), 0);
        assert_eq!(btf.offset("pair", "b").unwrap(), 4);
        assert_eq!(btf.size("pair").unwrap(), 8);
        assert_eq!((btf.function_id("pair"), btf.function_id("int")), (Some(3), None));
        assert!(btf.offset("pair", "c").is_err());
        assert!(btf.offset("other", "a").is_err());
    }

    #[test]
    fn globals_are_looked_up_by_group() {
        let at = |global, paths| Offset { global, paths };
        let there = [
            at("SECOND", &[&[("pair", "renamed")], &[("pair", "b")]]),
            at("SUM", &[&[("pair", "b"), ("pair", "b")]]),
            at("SIZE", &[&[("pair", "")]]),
        ];
        let half = [at("FIRST", &[&[("pair", "a")]]), at("MISSING", &[&[("pair", "c")]])];
        let (there, half): (&'static [Offset], &'static [Offset]) =
            (Box::leak(Box::new(there)), Box::leak(Box::new(half)));
        let group = |offsets, optional| Group { offsets, optional };
        let found = look_up(&sample(), &[&group(there, false), &group(half, true)]).unwrap();
        assert_eq!(found, [("SECOND", 4), ("SUM", 8), ("SIZE", 8)]);
        let error = look_up(&sample(), &[&group(half, false)]).unwrap_err();
        assert_eq!(error.to_string(), "kernel's struct pair has no member c");
    }

    proptest! {
        #[test]
        fn damaged_btf_never_panics(at in 0usize..90, byte: u8, cut in 0usize..120) {
            let mut data = sample();
            let len = data.len();
            data[at.min(len - 1)] = byte;
            data.truncate(cut.min(len));
            let _any_result = Btf::parse(&data, &["pair"]);
        }
    }
}
