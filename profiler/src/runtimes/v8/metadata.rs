//! Where things are in V8's heap: out of the constants that V8 exports for debuggers (`v8dbg_*`, in every build since
//! node 4, also in stripped ones), and by version where there is none.

/// Version of V8: major, minor, build.
pub type Version = [u32; 3];

/// Low bits of a pointer to an object of the heap.
pub const HEAP_TAG: u64 = 1;

/// Offsets are those of fields from the (untagged) start of their object, in bytes, unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Version of V8.
    pub version: Version,
    /// Map: instance type.
    pub map_type: u64,
    /// Instance types.
    pub types: Types,
    /// JSFunction: SharedFunctionInfo.
    pub function_shared: u64,
    /// SharedFunctionInfo: name or ScopeInfo.
    pub name_or_scope_info: u64,
    /// SharedFunctionInfo: Script.
    pub script: u64,
    /// SharedFunctionInfo: bytecode, or what leads to it.
    pub function_data: u64,
    /// Of functions that have not been compiled: instance types of what is in the place of bytecode, and where in it the
    /// first position in the source is (four bytes).
    pub uncompiled: ([u16; 4], u64),
    /// Script: source text.
    pub script_source: u64,
    /// Script: name.
    pub script_name: u64,
    /// ScopeInfo.
    pub scope: ScopeLayout,
    /// BytecodeArray: first instruction.
    pub bytecode_data: u64,
    /// BytecodeArray: source positions.
    pub bytecode_positions: u64,
    /// Code.
    pub code: CodeLayout,
    /// Deoptimization data of optimised code.
    pub deopt: DeoptLayout,
    /// What it takes to tell the objects of a heap; `None` where the build does not say.
    pub objects: Option<ObjectsLayout>,
}

/// What tells objects of a heap from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectsLayout {
    /// Instance type of maps.
    pub map: u16,
    /// Instance type of functions.
    pub function: u16,
    /// Instance type of arrays of words.
    pub elements: u16,
    /// Instance type of memory that is free; where it is not told (V8 13.6), that counts as the runtime's own.
    pub free: Option<u16>,
    /// First and last instance type of contexts.
    pub contexts: (u16, u16),
    /// Map: constructor, or the map that it was made from.
    pub constructor: u64,
    /// Map: descriptors of properties.
    pub descriptors: u64,
    /// Map: bits with the number of properties (four bytes), their mask and shift.
    pub own_descriptors: (u64, u32, u32),
    /// Array of descriptors: the first one, three words each, the name first.
    pub first_descriptor: u64,
    /// Context: ScopeInfo.
    pub context_scope: u64,
}

/// Instance types: what kind of object a map belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Types {
    /// SharedFunctionInfo.
    pub shared: u16,
    /// Script.
    pub script: u16,
    /// ScopeInfo.
    pub scope_info: u16,
    /// Code.
    pub code: u16,
    /// BytecodeArray.
    pub bytecode: u16,
    /// InterpreterData, which leads to bytecode.
    pub interpreter_data: u16,
}

/// A ScopeInfo is an array of words after its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeLayout {
    /// Index of the number of context locals.
    pub locals: usize,
    /// Index of the first variable.
    pub first_variable: usize,
    /// Index of the function's first position in the source, where it is fixed; else it is searched for.
    pub start: Option<usize>,
}

/// A Code object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    /// Whether the instructions are in the object itself (up to V8 10), `start` bytes after its begin; later `start` is
    /// where their address is.
    pub in_object: bool,
    /// First instruction.
    pub start: u64,
    /// Size of the instructions, bytes (four bytes).
    pub size: u64,
    /// Flags (four bytes), the kind in the low bits.
    pub flags: u64,
    /// Mask of the kind.
    pub kind_mask: u32,
    /// The kind of baseline code. What is above is optimised.
    pub baseline: u32,
    /// Source positions.
    pub positions: u64,
    /// Deoptimization data.
    pub deopt: u64,
}

/// Indices in the array of deoptimization data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeoptLayout {
    /// Literals, among which are the SharedFunctionInfos of inlined functions.
    pub literals: usize,
    /// SharedFunctionInfo of the function itself.
    pub shared: usize,
    /// Whether that is in a wrapper.
    pub shared_is_wrapped: bool,
    /// Positions at which functions were inlined.
    pub inlining: usize,
}

/// Types of what stands for a function's bytecode before it is compiled.
const UNCOMPILED: [&str; 4] = [
    "type_UncompiledDataWithoutPreparseData__UNCOMPILED_DATA_WITHOUT_PREPARSE_DATA_TYPE",
    "type_UncompiledDataWithPreparseData__UNCOMPILED_DATA_WITH_PREPARSE_DATA_TYPE",
    "type_UncompiledDataWithoutPreparseDataWithJob__UNCOMPILED_DATA_WITHOUT_PREPARSE_DATA_WITH_JOB_TYPE",
    "type_UncompiledDataWithPreparseDataAndJob__UNCOMPILED_DATA_WITH_PREPARSE_DATA_AND_JOB_TYPE",
];

impl Layout {
    /// Whether the position table of optimised code has an entry at every call. Since V8 14 it has not: the entry before a
    /// return address can be another inlined function's.
    pub fn knows_inlined_callers(&self) -> bool {
        self.version < [14, 0, 0]
    }

    /// Makes the layout of a build. `constant` returns the value of V8's constant of that name (without `v8dbg_`). The
    /// error says in words why this build cannot be read.
    pub fn new(version: Version, constant: impl Fn(&str) -> Option<i32>) -> Result<Layout, String> {
        let first = |names: &[&str]| names.iter().find_map(|name| constant(name));
        let offset = |names: &[&str]| {
            let value = first(names).and_then(|value| u64::try_from(value).ok());
            value.filter(|value| *value < 4096)
        };
        let needed = |names: &[&str]| {
            offset(names).ok_or_else(|| format!("V8 {} does not tell {}", dotted(version), names[0]))
        };
        if version < [10, 0, 0] {
            return Err(format!("V8 {} is older than what can be read (10.2, Node.js 18)", dotted(version)));
        }
        if first(&["SmiShiftSize"]) != Some(31) || first(&["HeapObjectTag"]).unwrap_or(1) != 1 {
            return Err("V8 is built with compressed pointers, which cannot be read".to_owned());
        }
        let type_of = |name: &str| needed(&[name]).map(|value| value as u16);
        let in_object = version < [11, 0, 0];
        let size_told = offset(&["class_Code__instruction_size__int"]);
        let positions = if in_object {
            size_told.and_then(|size| size.checked_sub(16))
        } else {
            offset(&[
                "class_Code__source_position_table__ByteArray",
                "class_Code__source_position_table__Tagged_ByteArray_",
            ])
        };
        let start =
            offset(&["class_Code__instruction_start__uintptr_t", "class_Code__instruction_start__Address"])
                .or(positions.map(|positions| positions + 16))
                .ok_or_else(|| format!("V8 {} does not tell where instructions are", dotted(version)))?;
        let flags = offset(&["class_Code__flags__uint32_t"]).unwrap_or(start + 8);
        let positions = match positions {
            Some(positions) => positions,
            None => start.checked_sub(24).ok_or("V8 does not tell where source positions are")?,
        };
        let deopt = offset(&["class_Code__deoptimization_data__FixedArray"]);
        let wrapped = constant("DeoptimizationDataWrappedSharedFunctionInfoIndex");
        let index = |value: Option<i32>, otherwise: usize| {
            value
                .and_then(|value| usize::try_from(value).ok())
                .filter(|value| *value < 64)
                .unwrap_or(otherwise)
        };
        Ok(Layout {
            version,
            map_type: needed(&["class_Map__instance_type__uint16_t"])?,
            types: Types {
                shared: type_of("type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE")?,
                script: type_of("type_Script__SCRIPT_TYPE")?,
                scope_info: type_of("type_ScopeInfo__SCOPE_INFO_TYPE")?,
                code: type_of("type_Code__CODE_TYPE")?,
                bytecode: type_of("type_BytecodeArray__BYTECODE_ARRAY_TYPE")?,
                interpreter_data: type_of("type_InterpreterData__INTERPRETER_DATA_TYPE")?,
            },
            function_shared: needed(&["class_JSFunction__shared__SharedFunctionInfo"])?,
            name_or_scope_info: needed(&[
                "class_SharedFunctionInfo__name_or_scope_info__Object",
                "class_SharedFunctionInfo__name_or_scope_info__Tagged_Object_",
                "class_SharedFunctionInfo__name_or_scope_info__Tagged_NameOrScopeInfoT_",
            ])?,
            script: needed(&[
                "class_SharedFunctionInfo__script_or_debug_info__HeapObject",
                "class_SharedFunctionInfo__script__Tagged_HeapObject_",
            ])?,
            function_data: offset(&["class_SharedFunctionInfo__function_data__Object"]).unwrap_or(8),
            uncompiled: (
                UNCOMPILED.map(|name| constant(name).map_or(u16::MAX, |value| value as u16)),
                offset(&["class_UncompiledData__start_position__int32_t"]).unwrap_or(16),
            ),
            script_source: needed(&["class_Script__source__Object"])?,
            script_name: needed(&["class_Script__name__Object"])?,
            scope: ScopeLayout {
                locals: needed(&["scopeinfo_idx_ncontextlocals"])? as usize,
                first_variable: needed(&["scopeinfo_idx_first_vars"])? as usize,
                start: (version >= [12, 8, 44]).then_some(3),
            },
            bytecode_data: needed(&["class_BytecodeArray__data__uintptr_t"])?,
            // Behind constants and handlers at first, then before them: V8's bytecode-array.tq.
            bytecode_positions: if version < [12, 0, 0] { 32 } else { 24 },
            code: CodeLayout {
                in_object,
                start,
                size: size_told.unwrap_or(flags + 8),
                flags,
                kind_mask: needed(&["CodeKindFieldMask"])? as u32,
                baseline: needed(&["CodeKindBaseline"])? as u32,
                positions,
                deopt: deopt.or(positions.checked_sub(8)).ok_or("V8 does not tell where its frames are")?,
            },
            deopt: DeoptLayout {
                literals: index(constant("DeoptimizationDataLiteralArrayIndex"), 2),
                shared: index(wrapped.or(constant("DeoptimizationDataSharedFunctionInfoIndex")), 6),
                shared_is_wrapped: wrapped.is_some(),
                inlining: index(constant("DeoptimizationDataInliningPositionsIndex"), 7),
            },
            objects: ObjectsLayout::new(&constant),
        })
    }
}

impl ObjectsLayout {
    fn new(constant: &impl Fn(&str) -> Option<i32>) -> Option<ObjectsLayout> {
        let first = |names: &[&str]| names.iter().find_map(|name| constant(name));
        let number = |names: &[&str]| u64::try_from(first(names)?).ok().filter(|value| *value < 1 << 16);
        let kind = |name: &str| Some(number(&[name])? as u16);
        Some(ObjectsLayout {
            map: kind("type_Map__MAP_TYPE")?,
            function: kind("type_JSFunction__JS_FUNCTION_TYPE")?,
            elements: kind("type_FixedArray__FIXED_ARRAY_TYPE")?,
            free: kind("type_FreeSpace__FREE_SPACE_TYPE"),
            contexts: (kind("FirstContextType")?, kind("LastContextType")?),
            constructor: number(&[
                "class_Map__constructor_or_back_pointer__Object",
                "class_Map__constructor_or_back_pointer__Tagged_Object_",
                "class_Map__constructor_or_back_pointer_or_native_context__Object",
                "class_Map__constructor_or_back_pointer_or_native_context__Tagged_Object_",
            ])?,
            descriptors: number(&[
                "class_Map__instance_descriptors__DescriptorArray",
                "class_Map__instance_descriptors__Tagged_DescriptorArray_",
                "class_Map__instance_descriptors_offset",
            ])?,
            own_descriptors: (
                number(&["class_Map__bit_field3__int", "class_Map__bit_field3__uint32_t"])?,
                first(&["bit_field3_number_of_own_descriptors_mask"])? as u32,
                first(&["bit_field3_number_of_own_descriptors_shift"])? as u32 & 31,
            ),
            first_descriptor: number(&["class_DescriptorArray__header_size__uintptr_t"]).unwrap_or(24),
            context_scope: 16 + 8 * number(&["context_idx_scope_info"]).unwrap_or(0),
        })
    }
}

fn dotted([major, minor, build]: Version) -> String {
    format!("{major}.{minor}.{build}")
}
