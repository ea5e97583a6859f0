use proptest::prelude::*;

use super::*;
use crate::runtimes::memory::fake::Noise;

mod live;

/// A layout as that of V8 11.3, 10.2 or 13.6.
pub fn layout(version: metadata::Version) -> Layout {
    Layout::new(version, |name| {
        Some(match name {
            "SmiShiftSize" => 31,
            "type_Map__MAP_TYPE" => 255,
            "type_JSFunction__JS_FUNCTION_TYPE" => 2066,
            "type_FixedArray__FIXED_ARRAY_TYPE" => 175,
            "type_FreeSpace__FREE_SPACE_TYPE" => 251,
            "FirstContextType" => 205,
            "LastContextType" => 214,
            "class_Map__constructor_or_back_pointer__Object" => 32,
            "class_Map__instance_descriptors__DescriptorArray" => 40,
            "class_Map__bit_field3__int" => 16,
            "bit_field3_number_of_own_descriptors_mask" => 1_047_552,
            "bit_field3_number_of_own_descriptors_shift" => 10,
            "class_Map__instance_type__uint16_t" => 12,
            "type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE" => 262,
            "type_Script__SCRIPT_TYPE" => 167,
            "type_ScopeInfo__SCOPE_INFO_TYPE" => 261,
            "type_Code__CODE_TYPE" => 245,
            "type_BytecodeArray__BYTECODE_ARRAY_TYPE" => 191,
            "type_InterpreterData__INTERPRETER_DATA_TYPE" => 159,
            "class_JSFunction__shared__SharedFunctionInfo" => 24,
            "class_SharedFunctionInfo__name_or_scope_info__Object" => 16,
            "class_SharedFunctionInfo__script_or_debug_info__HeapObject" => 32,
            "class_Script__source__Object" => 8,
            "class_Script__name__Object" => 16,
            "scopeinfo_idx_ncontextlocals" => 2,
            "scopeinfo_idx_first_vars" => 3,
            "class_BytecodeArray__data__uintptr_t" => 54,
            "CodeKindFieldMask" => 15,
            "CodeKindBaseline" => 11,
            "class_Code__source_position_table__ByteArray" if version[0] >= 11 => 24,
            "class_Code__instruction_size__int" if version[0] < 11 => 40,
            "class_Code__instruction_start__uintptr_t" if version[0] < 11 => 128,
            _ => return None,
        })
    })
    .unwrap()
}

proptest! {
    #[test]
    fn nothing_in_memory_does_harm(seed: u64, version in 10u32..15, address: u64, shared: u64, compiled: bool, innermost: bool) {
        let mut v8 = V8::new(Noise(seed), "/nowhere".into(), Rc::new(layout([version, 2, 0])));
        for round in 0..3u64 {
            v8.new_round();
            let frame = JsFrame {
                address: address >> 17, compiled, innermost, shared: (shared >> 17 & !3 | 1) + 8 * round,
                bytecode_offset: 60, bytecode: 5,
            };
            let _named = v8.name_frame(&frame);
        }
    }
}
