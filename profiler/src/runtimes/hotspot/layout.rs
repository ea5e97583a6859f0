//! Where things are in a HotSpot: it tells itself, in a table for debuggers that its library exports (`gHotSpotVMStructs`,
//! `gHotSpotVMTypes`), stripped or not.

use rustc_hash::FxHashMap;

use crate::runtimes::{exported::Exported, hotspot::packing::Packing, memory::ForeignMemory};

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
    /// In a piece of memory: its first address, and one past the last that it can ever have.
    pub low: u64,
    /// See `low`.
    pub high: u64,
    /// Address of the address of the interpreter's code; where its first byte is told in that, and its length.
    pub interpreter: u64,
    /// See `interpreter`.
    pub interpreter_begin: u64,
    /// See `interpreter`.
    pub interpreter_length: u64,
    /// Address of the address that Java returns to when it was called from C++.
    pub call_stub_return: u64,
    /// Size of what is before a piece of code.
    pub block: u64,
    /// In a piece of code: what it is called.
    pub name: u64,
    /// In a piece of code: words of its frame.
    pub frame_size: u64,
    /// In a piece of code: from where in it on the frame is complete, and the bits of that; none if it is not told.
    pub complete: u64,
    /// See `complete`.
    pub complete_bits: u64,
    /// In a piece of code: its first instruction.
    pub code: Code,
    /// In a compiled method: the method, and the number of its compilation.
    pub method: u64,
    /// See `method`.
    pub compilation: u64,
    /// Where it tells what was put into it, if that is known of this build.
    pub tables: Option<Tables>,
    /// How numbers are packed.
    pub packing: Packing,
    /// In a method: what is constant of it.
    pub constant: u64,
    /// In that: its constants, and the number of its name among them.
    pub constants: u64,
    /// See `constants`.
    pub name_index: u64,
    /// In that: flags, and the size of the bytecode, which comes after it.
    pub flags: u64,
    /// See `flags`.
    pub code_size: u64,
    /// Size of what is constant, without the bytecode.
    pub constant_size: u64,
    /// In constants: the number of the source file's name among them.
    pub source_file: u64,
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

/// How a piece of code tells where its first instruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// By the address, at this offset.
    Address(u64),
    /// By how far it is from the piece's begin, 32 bits at this offset.
    Offset(u64),
}

impl Code {
    /// The first instruction of a piece.
    pub fn begin<M: ForeignMemory>(self, memory: &M, piece: u64) -> Option<u64> {
        match self {
            Code::Address(at) => memory.u64(piece.wrapping_add(at)),
            Code::Offset(at) => Some(piece.wrapping_add(memory.u32(piece.wrapping_add(at))?.into())),
        }
    }
}

/// Where a piece of compiled code tells what was put into it. Offsets in the piece, of offsets of 32 bits where nothing else is
/// said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// In the piece itself: methods, scopes, places, and what is behind them (up to Java 22).
    InCode {
        /// Of an address.
        scopes: u64,
        /// From the piece on.
        places: u64,
        /// From the piece on.
        behind: u64,
        /// From the piece on.
        methods: u64,
    },
    /// In two pieces of memory of their own (Java 25).
    Apart {
        /// Of the address of one, and of its size.
        constant: u64,
        /// See `constant`.
        constant_size: u64,
        /// In that.
        places: u64,
        /// In that, after the places.
        scopes: u64,
        /// Of the address of the other, and of its size.
        mutable: u64,
        /// See `mutable`.
        mutable_size: u64,
        /// Size of what is in it before the methods.
        relocations: u64,
    },
}

impl Default for Code {
    fn default() -> Code {
        Code::Address(0)
    }
}

/// What the table tells of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// Its offset, or its address if there is only one of it.
    pub place: u64,
    /// Its type.
    pub of_type: String,
}

impl Layout {
    /// Reads the table of the library whose file is mapped `bias` above its own addresses.
    pub fn read<M: ForeignMemory>(memory: &M, exported: &Exported, bias: u64) -> Result<Layout, String> {
        let value = |name: &str| {
            let symbol =
                exported.get(&format!("gHotSpotVM{name}")).ok_or_else(|| format!("it has no {name}"))?;
            memory.u64(symbol.address.wrapping_add(bias)).ok_or_else(|| format!("{name} cannot be read"))
        };
        let mut fields: FxHashMap<String, Field> = FxHashMap::default();
        let [type_name, field_name, of_type, is_static, offset, address] =
            ["TypeName", "FieldName", "TypeString", "IsStatic", "Offset", "Address"]
                .map(|of| value(&format!("StructEntry{of}Offset")));
        let (type_name, field_name, of_type) = (type_name?, field_name?, of_type?);
        let (is_static, offset, address) = (is_static?, offset?, address?);
        for entry in entries(value("Structs")?, value("StructEntryArrayStride")?)? {
            let word = |at: u64| memory.u64(entry.wrapping_add(at));
            let Some(class) = word(type_name).and_then(|name| text(memory, name)) else { break };
            let Some(field) = word(field_name).and_then(|name| text(memory, name)) else { break };
            let fixed = memory.u32(entry.wrapping_add(is_static)).unwrap_or(0) != 0;
            if let Some(place) = word(if fixed { address } else { offset }) {
                let of_type = word(of_type).and_then(|name| text(memory, name)).unwrap_or_default();
                fields.insert(format!("{class}.{field}"), Field { place, of_type });
            }
        }
        let mut sizes: FxHashMap<String, u64> = FxHashMap::default();
        let (type_name, size) = (value("TypeEntryTypeNameOffset")?, value("TypeEntrySizeOffset")?);
        for entry in entries(value("Types")?, value("TypeEntryArrayStride")?)? {
            let word = |at: u64| memory.u64(entry.wrapping_add(at));
            let Some(class) = word(type_name).and_then(|name| text(memory, name)) else { break };
            sizes.extend(word(size).map(|size| (class, size)));
        }
        Self::of(|name| fields.get(name).cloned(), |name| sizes.get(name).copied())
    }

    /// The layout that fields and sizes of these names tell.
    pub fn of(
        field: impl Fn(&str) -> Option<Field>,
        size: impl Fn(&str) -> Option<u64>,
    ) -> Result<Layout, String> {
        let all = |names: &[&str]| {
            let known = names.iter().find_map(|name| field(name)).map(|field| field.place);
            known.ok_or_else(|| format!("it does not tell where {} is", names[0]))
        };
        let near = |names: &[&str]| all(names).and_then(|offset| in_range(offset, names[0]));
        let of_size = |name: &str| {
            let known = size(name).ok_or_else(|| format!("it does not tell how large {name} is"))?;
            in_range(known, name)
        };
        let complete = field("CodeBlob._frame_complete_offset").unwrap_or_default();
        let complete_bits = match complete.of_type.as_str() {
            "int16_t" => 16,
            "int" => 32,
            _ => 0,
        };
        let code = match near(&["CodeBlob._code_begin"]) {
            Ok(offset) => Code::Address(offset),
            Err(_) => Code::Offset(near(&["CodeBlob._code_offset"])?),
        };
        let known = |name: &str| near(&[name]).ok();
        let in_code = known("CompiledMethod._scopes_data_begin")
            .zip(known("nmethod._scopes_pcs_offset"))
            .zip(known("nmethod._dependencies_offset"))
            .zip(known("nmethod._metadata_offset"))
            .map(|(((scopes, places), behind), methods)| Tables::InCode { scopes, places, behind, methods });
        let apart = || {
            Some(Tables::Apart {
                constant: known("nmethod._immutable_data")?,
                constant_size: known("nmethod._immutable_data_size")?,
                places: known("nmethod._scopes_pcs_offset")?,
                scopes: known("nmethod._scopes_data_offset")?,
                mutable: known("CodeBlob._mutable_data")?,
                mutable_size: known("CodeBlob._mutable_data_size")?,
                relocations: known("CodeBlob._relocation_size")?,
            })
        };
        Ok(Layout {
            heaps: all(&["CodeCache._heaps"])?,
            list_length: near(&["GrowableArrayBase._len", "GenericGrowableArray._len"])?,
            list_data: near(&["GrowableArray<int>._data"])?,
            memory: near(&["CodeHeap._memory"])?,
            segments: near(&["CodeHeap._segmap"])?,
            log2_segment: near(&["CodeHeap._log2_segment_size"])?,
            low: near(&["VirtualSpace._low_boundary"])?,
            high: near(&["VirtualSpace._high_boundary"])?,
            interpreter: all(&["AbstractInterpreter._code"])?,
            interpreter_begin: near(&["StubQueue._stub_buffer"])?,
            interpreter_length: near(&["StubQueue._buffer_limit"])?,
            call_stub_return: all(&["StubRoutines._call_stub_return_address"])?,
            block: of_size("HeapBlock")?,
            name: near(&["CodeBlob._name"])?,
            frame_size: near(&["CodeBlob._frame_size"])?,
            complete: in_range(complete.place, "CodeBlob._frame_complete_offset")?,
            complete_bits,
            code,
            method: near(&["nmethod._method", "CompiledMethod._method"])?,
            compilation: near(&["nmethod._compile_id"])?,
            tables: in_code.or_else(apart),
            // Both changed between 17 and 21.
            packing: Packing::ALL[usize::from(field("ConstMethod._flags._flags").is_some())],
            constant: near(&["Method._constMethod"])?,
            constants: near(&["ConstMethod._constants"])?,
            name_index: near(&["ConstMethod._name_index"])?,
            flags: near(&["ConstMethod._flags", "ConstMethod._flags._flags"])?,
            code_size: near(&["ConstMethod._code_size"])?,
            constant_size: of_size("ConstMethod")?,
            source_file: near(&["ConstantPool._source_file_name_index"])?,
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
