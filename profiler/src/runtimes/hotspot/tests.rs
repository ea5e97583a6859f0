use proptest::prelude::*;

use super::*;
use crate::runtimes::memory::fake::{FakeMemory, Noise};

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
        block: 16,
        name: 8,
        method: 0x30,
        constant: 8,
        constants: 8,
        name_index: 0x20,
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

/// A heap at 0x10000 of segments of 128 bytes; in its third a method's code that has 300 segments, after it a stub.
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
    memory.put(0x5000, &[FREE, FREE]);
    memory.put(0x5002, &back.collect::<Vec<u8>>());
    memory.put(0x5002 + 300, &[0, FREE]);
    let code = 0x1_0000 + 2 * 128 + 16;
    memory.put_words(code, &[0, 0x6000, 0, 0, 0, 0, 0x7000]);
    memory.put(0x6000, b"nmethod\0\0\0\0\0\0\0\0\0");
    memory.put_words(0x7000, &[0, 0x7100]);
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
    memory
}

fn java<M: ForeignMemory>(memory: M) -> Java<M> {
    let heaps = heaps(&memory, &layout()).unwrap_or_default();
    Java {
        memory,
        layout: layout(),
        heaps,
        pieces: FxHashMap::default(),
        seen: FxHashMap::default(),
        now: Round::default(),
    }
}

#[test]
fn code_has_the_name_of_its_method() {
    let mut java = java(memory());
    let mut name = |address: u64| java.function(address).map(|name| name.to_string());
    let method = Some("shop.Orders.total".to_owned());
    assert_eq!([0x1_0000 + 2 * 128 + 40, 0x1_0000 + 301 * 128].map(&mut name), [method.clone(), method]);
    assert_eq!(name(0x1_0000 + 302 * 128 + 20).as_deref(), Some("(interpreter)"));
    assert_eq!([0x1_0000, 0x1_0000 + 303 * 128, 0x2_0000].map(&mut name), [const { None }; 3]);
}

#[test]
fn code_that_is_replaced_gets_its_new_name() {
    let mut java = java(memory());
    let at = 0x1_0000 + 2 * 128 + 40;
    assert!(java.function(at).is_some());
    put_symbol(&mut java.memory, 0x7500, "price");
    assert_eq!(&*java.function(at).unwrap(), "shop.Orders.total", "nothing else is asked in the same round");
    java.memory.put_words(0x1_0000 + 2 * 128 + 16 + 0x30, &[0x8000]);
    java.memory.put_words(0x8000, &[0, 0x7100]);
    java.new_round();
    assert_eq!(&*java.function(at).unwrap(), "shop.Orders.price");
    java.memory.ended = true;
    java.new_round();
    assert_eq!(&*java.function(at).unwrap(), "shop.Orders.price", "what was known of it last");
}

#[test]
fn what_it_does_not_tell_is_said() {
    let field = |name: &str| (name != "CodeBlob._name").then_some(8);
    assert_eq!(Layout::of(field, |_| Some(16)).unwrap_err(), "it does not tell where CodeBlob._name is");
    assert!(Layout::of(|_| Some(8), |_| Some(16)).is_ok());
    assert!(Layout::of(|_| Some(1 << 40), |_| Some(16)).is_err());
}

proptest! {
    #[test]
    fn nothing_in_memory_does_harm(seed: u64, address: u64) {
        let mut java = java(Noise(seed));
        java.heaps = vec![Heap { low: 0, high: u64::MAX, segments: seed >> 3, log2_segment: 7 }];
        for round in 0..3u64 {
            java.now.next(&java.memory);
            java.function((address >> 17) + 8 * round);
        }
    }
}
