use proptest::prelude::*;

use super::{
    layout::{Field, Tables},
    packing::Packing,
    *,
};
use crate::{
    model::stack::{Frame, ModuleId},
    runtimes::{
        memory::fake::{FakeMemory, Noise},
        runtime::UserFrame,
    },
};

/// Every field in its own place.
fn layout() -> Layout {
    Layout {
        heaps: 0x10,
        list_length: 0,
        list_data: 8,
        memory: 0x20,
        segments: 0x60,
        log2_segment: 0x18,
        low: 0x10,
        high: 0x18,
        interpreter: 0x18,
        interpreter_begin: 8,
        interpreter_length: 20,
        call_stub_return: 0x28,
        block: 16,
        name: 8,
        frame_size: 0x14,
        complete: 0x10,
        complete_bits: 32,
        code: Code::Address(0x18),
        method: 0x30,
        compilation: 0x38,
        tables: None,
        packing: Packing::default(),
        constant: 8,
        constants: 8,
        name_index: 0x20,
        flags: 0x28,
        code_size: 0x2a,
        constant_size: 0x30,
        source_file: 0x34,
        holder: 0x18,
        constants_size: 0x40,
        class_name: 0x18,
        symbol_length: 0,
        symbol_text: 6,
    }
}

fn put_symbol(memory: &mut FakeMemory, at: u64, text: &str) {
    memory.put(at, &(text.len() as u16).to_ne_bytes());
    memory.put(at + 6, text.as_bytes());
}

const METHOD: u64 = 0x7000;
const INTERPRETER: u64 = 0x1_0000 + 302 * 128 + 20;

/// A heap at 0x10000 of segments of 128 bytes; in its third a method's code that has 300 segments, after it the
/// interpreter and the stub that calls Java.
fn memory() -> FakeMemory {
    let mut memory = FakeMemory::default();
    memory.put_words(0x10, &[0x100]);
    memory.put(0x100, &1u32.to_ne_bytes());
    memory.put_words(0x108, &[0x200]);
    memory.put_words(0x200, &[0x300]);
    memory.put(0x300 + 0x18, &7u32.to_ne_bytes());
    memory.put_words(0x300 + 0x30, &[0x1_0000, 0x2_0000]);
    memory.put_words(0x300 + 0x70, &[0x5000]);
    // The farthest that a byte can tell is 254 segments.
    let back = (0..300u64).map(|segment| if segment < 255 { segment as u8 } else { (segment - 254) as u8 });
    memory.put(0x5000, &[0xff, 0xff]);
    memory.put(0x5002, &back.collect::<Vec<u8>>());
    memory.put(0x5002 + 300, &[0, 0, 0xff, 0, 0, 0, 0, 0]);
    memory.put_words(0x18, &[0x400]);
    memory.put_words(0x408, &[INTERPRETER]);
    memory.put(0x414, &64u32.to_ne_bytes());
    memory.put_words(0x28, &[0x1_0000 + 303 * 128 + 40]);
    let code = 0x1_0000 + 2 * 128 + 16;
    memory.put_words(code, &[0, 0x6000, 0, 0, 0, 0, METHOD]);
    memory.put(0x6000, b"nmethod\0\0\0\0\0\0\0\0\0");
    memory.put_words(METHOD, &[0, 0x7100]);
    memory.put_words(0x7100, &[0, 0x7200]);
    memory.put(0x7120, &3u16.to_ne_bytes());
    memory.put_words(0x7218, &[0x7300]);
    memory.put_words(0x7318, &[0x7400]);
    memory.put_words(0x7200 + 0x40 + 24, &[0x7500]);
    put_symbol(&mut memory, 0x7400, "shop/Orders");
    put_symbol(&mut memory, 0x7500, "total");
    let stub = 0x1_0000 + 302 * 128 + 16;
    memory.put_words(stub, &[0, 0x6100, 0, 0, 0, 0, 0]);
    memory.put(0x6100, b"Interpreter\0\0\0\0\0");
    memory.put_words(stub + 128, &[0, 0x6200, 0, 0, 0, 0, 0]);
    memory.put(0x6200, &[0; 96]);
    memory.put(0x6200, b"StubRoutines (1)");
    memory
}

fn java() -> Java<FakeMemory> {
    Java::new(memory(), layout()).unwrap()
}

/// What the innermost function at an address is called.
fn name(java: &mut Java<FakeMemory>, address: u64) -> Option<String> {
    Some(java.compiled(address, address)?[0].name.clone())
}

#[test]
fn code_has_the_name_of_its_method() {
    let mut java = java();
    let mut name = |address: u64| name(&mut java, address);
    let method = Some("shop.Orders.total".to_owned());
    assert_eq!([0x1_0000 + 2 * 128 + 40, 0x1_0000 + 301 * 128].map(&mut name), [method.clone(), method]);
    assert_eq!(name(INTERPRETER).as_deref(), Some("(interpreter)"));
    assert_eq!(name(0x1_0000 + 303 * 128 + 40).as_deref(), Some("(StubRoutines (1))"));
    assert_eq!([0x1_0000, 0x1_0000 + 304 * 128, 0x2_0000].map(&mut name), [const { None }; 3]);
}

#[test]
fn code_that_is_replaced_gets_its_new_name() {
    let mut java = java();
    let at = 0x1_0000 + 2 * 128 + 40;
    assert!(name(&mut java, at).is_some());
    put_symbol(&mut java.memory, 0x7500, "price");
    assert_eq!(name(&mut java, at).unwrap(), "shop.Orders.total", "nothing else is asked in the same round");
    java.memory.put_words(0x1_0000 + 2 * 128 + 16 + 0x30, &[0x8000]);
    java.memory.put_words(0x8000, &[0, 0x7100]);
    java.new_round();
    assert_eq!(name(&mut java, at).unwrap(), "shop.Orders.price");
    java.memory.ended = true;
    java.new_round();
    assert_eq!(name(&mut java, at).unwrap(), "shop.Orders.price", "what was known of it last");
}

#[test]
fn what_it_does_not_tell_is_said() {
    let int = |place: u64| Some(Field { place, of_type: "int".to_owned() });
    let field = |name: &str| if name == "CodeBlob._name" { None } else { int(8) };
    assert_eq!(Layout::of(field, |_| Some(16)).unwrap_err(), "it does not tell where CodeBlob._name is");
    assert!(Layout::of(|_| int(8), |_| Some(16)).is_ok());
    assert!(Layout::of(|_| int(1 << 40), |_| Some(16)).is_err());
    let newer = |name: &str| match name {
        "CodeBlob._code_begin" => None,
        "CodeBlob._code_offset" => int(36),
        "CodeBlob._frame_complete_offset" => Some(Field { place: 54, of_type: "int16_t".to_owned() }),
        _ => int(8),
    };
    let newer = Layout::of(newer, |_| Some(16)).unwrap();
    assert_eq!((newer.code, newer.complete, newer.complete_bits), (Code::Offset(36), 54, 16));
}

#[test]
fn a_runtime_that_is_not_there_yet_is_waited_for_and_a_strange_one_refused() {
    let attached = |change: &dyn Fn(&mut FakeMemory)| {
        let mut memory = memory();
        change(&mut memory);
        Java::new(memory, layout()).map(|java| java.places)
    };
    let places = attached(&|_| {}).unwrap();
    assert_eq!((places.interpreter, places.interpreter_end), (INTERPRETER, INTERPRETER + 64));
    assert_eq!((places.heaps[0].low, places.heaps[0].high, places.heaps[1].high), (0x1_0000, 0x2_0000, 0));
    assert_eq!(attached(&|memory| memory.put_words(0x18, &[0])), Err(NotAttached::NotYet));
    assert_eq!(attached(&|memory| memory.put(0x100, &[0])), Err(NotAttached::NotYet));
    for refused in
        [attached(&|memory| memory.put(0x6100, b"nmethod\0")), attached(&|memory| memory.put(0x100, &[9]))]
    {
        assert!(matches!(refused, Err(NotAttached::Refused(_))));
    }
}

#[test]
fn what_was_inlined_is_told_with_its_lines() {
    let mut memory = memory();
    let code = 0x1_0000 + 2 * 128 + 16;
    // Its first instruction; scopes, places and methods are in memory beside it.
    let far = |address: u64| (address.wrapping_sub(code)) as u32;
    memory.put_words(code + 0x18, &[code + 0x100]);
    memory.put_words(code + 0x80, &[0x3_9000]);
    for (at, address) in [(0x88, 0x3_9100u64), (0x8c, 0x3_9120), (0x90, 0x3_8ff0)] {
        memory.put(code + at, &far(address).to_ne_bytes());
    }
    // total (1) at 3 calls price (2) at 6. Zero is no scope's place.
    memory.put(0x3_9000, &[0xff, 0, 1, 4, 1, 2, 7]);
    memory.put(0x3_9007, &[0; 0xf9]);
    memory.put(0x3_9100, &[0x20u32, 1, 0, 0, 0x40, 4, 0, 0].map(u32::to_ne_bytes).concat());
    memory.put_words(0x3_8ff0, &[METHOD, 0xb000]);
    // price: 8 bytes of bytecode, and behind them the lines: 40 from 0 on, 42 from 5 on.
    memory.put_words(0xb000, &[0, 0xb100]);
    memory.put_words(0xb108, &[0x7200]);
    memory.put(0xb120, &4u16.to_ne_bytes());
    memory.put(0xb128, &[1, 0, 8, 0]);
    memory.put(0xb138, &[0xff, 0, 80, 5 << 3 | 2, 0]);
    memory.put(0xb13d, &[0; 4096]);
    memory.put_words(0x7200 + 0x40 + 32, &[0x7600]);
    put_symbol(&mut memory, 0x7600, "price");
    memory.put(0x7234, &5u16.to_ne_bytes());
    memory.put_words(0x7200 + 0x40 + 40, &[0x7700]);
    put_symbol(&mut memory, 0x7700, "Orders.java");
    let tables = Tables::InCode { scopes: 0x80, places: 0x88, behind: 0x8c, methods: 0x90 };
    let mut java = Java::new(memory, Layout { tables: Some(tables), ..layout() }).unwrap();
    let mut told = |next: u64| {
        let functions = java.compiled(next - 1, next).unwrap();
        let told = functions.into_iter().map(|of| (of.name, of.file.unwrap_or_default(), of.line));
        told.collect::<Vec<_>>()
    };
    let file = || "shop/Orders.java".to_owned();
    let total = ("shop.Orders.total".to_owned(), file(), None);
    let price = ("shop.Orders.price".to_owned(), file(), Some(42));
    assert_eq!(told(code + 0x100 + 0x40), [price, total.clone()]);
    assert_eq!(told(code + 0x100 + 0x20), vec![total.clone()]);
    assert_eq!(told(code + 0x100 + 0x41), vec![total], "it tells nothing of what comes after");
}

#[test]
fn an_interpreted_frame_is_named_by_its_method() {
    let mut java = java();
    let jit = Frame { module: ModuleId(0), address: INTERPRETER };
    let frames = [1, 2].map(|_| UserFrame { address: INTERPRETER, frame: jit, made_at_run_time: true });
    let mut method = Entry { frame: 1, kind: EntryKind::HotSpot as u8, value: METHOD, payload: 0 };
    let mut name = |entries: &[Entry]| {
        let mut naming = Naming::default();
        java.name(&UserStack { frames: &frames, entries, complete: true }, &mut naming);
        let named = |frame| Some(naming.replaced.get(&frame)?.frames[0][0].name.clone());
        ([named(0), named(1)], naming.unnamed)
    };
    let interpreter = Some("(interpreter)".to_owned());
    assert_eq!(name(&[method]), ([interpreter.clone(), Some("shop.Orders.total".to_owned())], 0));
    method.value = 0x9000;
    assert_eq!(name(&[method]), ([interpreter, None], 1), "it is no method any more");
}

proptest! {
    #[test]
    fn nothing_in_memory_does_harm(seed: u64, address: u64) {
        let heap = CodeHeap { low: 0, high: u64::MAX, segments: seed >> 3, segment_shift: 7, _reserved: 0 };
        let mut java = Java {
            memory: Noise(seed),
            layout: layout(),
            places: HotSpotOffsets { heaps: [heap; MAX_HEAPS], ..HotSpotOffsets::default() },
            pieces: FxHashMap::default(),
            bytes: 0,
            methods: FxHashMap::default(),
            seen: FxHashMap::default(),
            now: Round::default(),
        };
        for round in 0..3u64 {
            java.now.next(&java.memory);
            let at = (address >> 17) + 8 * round;
            java.compiled(at, at);
            java.interpreted(at, seed);
        }
        let _any = Java::new(Noise(seed), layout()).is_ok();
    }
}
