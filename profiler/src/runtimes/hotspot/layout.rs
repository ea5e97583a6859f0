//! Where things are in a HotSpot: it tells itself, in a table for debuggers that its library exports (`gHotSpotVMStructs`,
//! `gHotSpotVMTypes`), stripped or not.

use rustc_hash::FxHashMap;

use crate::runtimes::{exported::Exported, memory::ForeignMemory};

/// Entries of a table that are looked at.
const MOST_ENTRIES: u64 = 20_000;
/// Bytes of an entry, and of a name.
const LARGEST_ENTRY: u64 = 256;
const LONGEST_NAME: usize = 96;

/// Exported names that are needed.
pub const WANTED: &[u8] = b"gHotSpotVM";

/// Offsets in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Address of the address of the list of heaps for code.
    pub heaps: u64,
    /// In the list: its length, and the address of its elements.
    pub list_length: u64,
    /// See `list_length`.
    pub list_data: u64,
    /// In a heap for code: its memory, its map of segments, and the logarithm of a segment's size.
    pub memory: u64,
    /// See `memory`.
    pub segments: u64,
    /// See `memory`.
    pub log2_segment: u64,
    /// In a piece of memory: its first address, and one past the last.
    pub low: u64,
    /// See `low`.
    pub high: u64,
    /// Size of what is before a piece of code.
    pub block: u64,
    /// In a piece of code: what it is called.
    pub name: u64,
    /// In a compiled method: the method.
    pub method: u64,
    /// In a method: what is constant of it.
    pub constant: u64,
    /// In that: its constants, and the number of its name among them.
    pub constants: u64,
    /// See `constants`.
    pub name_index: u64,
    /// In constants: whose they are; and their size without the constants.
    pub holder: u64,
    /// See `holder`.
    pub constants_size: u64,
    /// In a class: its name.
    pub class_name: u64,
    /// In a symbol: its length, and its text.
    pub symbol_length: u64,
    /// See `symbol_length`.
    pub symbol_text: u64,
}

impl Layout {
    /// Reads the table of the library whose file is mapped `bias` above its own addresses.
    pub fn read<M: ForeignMemory>(memory: &M, exported: &Exported, bias: u64) -> Result<Layout, String> {
        let value = |name: &str| {
            let symbol =
                exported.get(&format!("gHotSpotVM{name}")).ok_or_else(|| format!("it has no {name}"))?;
            memory.u64(symbol.address.wrapping_add(bias)).ok_or_else(|| format!("{name} cannot be read"))
        };
        let mut fields: FxHashMap<String, u64> = FxHashMap::default();
        let [type_name, field_name, is_static, offset, address] =
            ["TypeName", "FieldName", "IsStatic", "Offset", "Address"]
                .map(|of| value(&format!("StructEntry{of}Offset")));
        let (type_name, field_name) = (type_name?, field_name?);
        let (is_static, offset, address) = (is_static?, offset?, address?);
        for entry in entries(value("Structs")?, value("StructEntryArrayStride")?)? {
            let word = |at: u64| memory.u64(entry.wrapping_add(at));
            let Some(class) = word(type_name).and_then(|name| text(memory, name)) else { break };
            let Some(field) = word(field_name).and_then(|name| text(memory, name)) else { break };
            let fixed = memory.u32(entry.wrapping_add(is_static)).unwrap_or(0) != 0;
            if let Some(place) = word(if fixed { address } else { offset }) {
                fields.insert(format!("{class}.{field}"), place);
            }
        }
        let mut sizes: FxHashMap<String, u64> = FxHashMap::default();
        let (type_name, size) = (value("TypeEntryTypeNameOffset")?, value("TypeEntrySizeOffset")?);
        for entry in entries(value("Types")?, value("TypeEntryArrayStride")?)? {
            let word = |at: u64| memory.u64(entry.wrapping_add(at));
            let Some(class) = word(type_name).and_then(|name| text(memory, name)) else { break };
            sizes.extend(word(size).map(|size| (class, size)));
        }
        Self::of(|name| fields.get(name).copied(), |name| sizes.get(name).copied())
    }

    /// The layout that fields and sizes of these names tell.
    pub fn of(
        field: impl Fn(&str) -> Option<u64>,
        size: impl Fn(&str) -> Option<u64>,
    ) -> Result<Layout, String> {
        let all = |names: &[&str]| {
            let known = names.iter().find_map(|name| field(name));
            known.ok_or_else(|| format!("it does not tell where {} is", names[0]))
        };
        let near = |names: &[&str]| all(names).and_then(|offset| in_range(offset, names[0]));
        let of_size = |name: &str| {
            let known = size(name).ok_or_else(|| format!("it does not tell how large {name} is"))?;
            in_range(known, name)
        };
        Ok(Layout {
            heaps: all(&["CodeCache._heaps"])?,
            list_length: near(&["GrowableArrayBase._len", "GenericGrowableArray._len"])?,
            list_data: near(&["GrowableArray<int>._data"])?,
            memory: near(&["CodeHeap._memory"])?,
            segments: near(&["CodeHeap._segmap"])?,
            log2_segment: near(&["CodeHeap._log2_segment_size"])?,
            low: near(&["VirtualSpace._low"])?,
            high: near(&["VirtualSpace._high"])?,
            block: of_size("HeapBlock")?,
            name: near(&["CodeBlob._name"])?,
            method: near(&["nmethod._method", "CompiledMethod._method"])?,
            constant: near(&["Method._constMethod"])?,
            constants: near(&["ConstMethod._constants"])?,
            name_index: near(&["ConstMethod._name_index"])?,
            holder: near(&["ConstantPool._pool_holder"])?,
            constants_size: of_size("ConstantPool")?,
            class_name: near(&["Klass._name"])?,
            symbol_length: near(&["Symbol._length"])?,
            symbol_text: near(&["Symbol._body", "Symbol._body[0]"])?,
        })
    }
}

fn in_range(offset: u64, name: &str) -> Result<u64, String> {
    if offset < 1 << 16 { Ok(offset) } else { Err(format!("what it tells of {name} is out of range")) }
}

fn entries(first: u64, stride: u64) -> Result<impl Iterator<Item = u64>, String> {
    if first == 0 || stride == 0 || stride > LARGEST_ENTRY {
        return Err("its table of structures cannot be read".to_owned());
    }
    Ok((0..MOST_ENTRIES).map(move |index| first.wrapping_add(index * stride)))
}

/// A C string; `None` at the end of the table.
pub fn text<M: ForeignMemory>(memory: &M, address: u64) -> Option<String> {
    let bytes =
        [LONGEST_NAME, 16, 4].iter().find_map(|&len| memory.bytes(address, len)).filter(|_| address != 0)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    (end > 0).then(|| crate::text::clean(&bytes[..end]))
}
