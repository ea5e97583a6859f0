extern crate std;

use std::{collections::BTreeMap, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::runtime::{CHAINS, Chain};

#[derive(Clone, Default)]
struct Fake(BTreeMap<u64, u8>);

impl Fake {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.0.extend((address..).zip(bytes.iter().copied()));
    }

    fn put_words(&mut self, address: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.put(address + 8 * i as u64, &word.to_le_bytes());
        }
    }
}

impl Memory for Fake {
    fn read_u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        for (byte, at) in bytes.iter_mut().zip(address..) {
            *byte = *self.0.get(&at)?;
        }
        Some(u64::from_le_bytes(bytes))
    }
}

const LOW: u64 = 0x10_0000;
const STACK: u64 = 0x7f00_0000;
const METHOD: u64 = 0x8000;
const CONSTANT: u64 = 0x9000;

const OFFSETS: HotSpotOffsets = HotSpotOffsets {
    heaps: [
        CodeHeap { low: LOW, high: LOW + 0x1_0000, segments: 0x5000, segment_shift: 7, _reserved: 0 },
        CodeHeap { low: 0, high: 0, segments: 0, segment_shift: 0, _reserved: 0 },
        CodeHeap { low: 0, high: 0, segments: 0, segment_shift: 0, _reserved: 0 },
        CodeHeap { low: 0, high: 0, segments: 0, segment_shift: 0, _reserved: 0 },
    ],
    interpreter: LOW + 0x8000,
    interpreter_end: LOW + 0x9000,
    call_stub_return: LOW + 0x4048,
    block: 16,
    frame_size: 28,
    complete: 20,
    complete_bits: 32,
    code: 32,
    code_is_offset: 0,
    constant: 8,
    _reserved: 0,
};

/// First instruction of the method, whose frame has 6 words and is complete 12 bytes on; somewhere in it; in the stub.
const CODE: u64 = LOW + 0x1100;
const COMPILED: u64 = CODE + 0x80;
const STUB: u64 = LOW + 0x4040;
const INTERPRETED: u64 = LOW + 0x8100;
const OUTSIDE: u64 = 0x40_0000;

/// A method's code in the segments from 0x1000 on, a stub of no frame size in those from 0x4000 on.
fn memory() -> Fake {
    let mut memory = Fake::default();
    memory.put(0x5000, &[FREE; 512]);
    memory.put(0x5000 + 0x20, &(0..0x20).collect::<Vec<u8>>());
    memory.put(0x5000 + 0x80, &[0, 1, 2, 3]);
    let piece = LOW + 0x1000 + 16;
    memory.put_words(piece, &[0, 0, 12 << 32, 6 << 32, CODE]);
    memory.put_words(LOW + 0x4000 + 16, &[0; 5]);
    memory.put(CODE, &[0x90; 0x200]);
    memory.put(STUB - 8, &[0x90; 0x40]);
    memory.put(INTERPRETED - 8, &[0x90; 0x40]);
    memory.put_words(STACK, &[0; 64]);
    memory.put_words(METHOD, &[0, CONSTANT]);
    memory
}

fn step(memory: &Fake, ip: u64, sp: u64, fp: u64, exact: u64) -> (Option<Step>, Registers, Option<Entry>) {
    let mut registers = Registers { ip, sp, fp, lr: 0 };
    let mut told = None;
    let at = if exact == 1 { At::Instruction } else { At::CallOfOther };
    let step = OFFSETS.step_or_search(&mut registers, at, memory, |_, words| told = Some(entry(words)));
    (step, registers, told)
}

fn at(ip: u64, sp: u64, fp: u64) -> Registers {
    Registers { ip, sp, fp, lr: ip }
}

#[test]
fn code_of_others_is_left_alone() {
    let (outcome, registers, _) = step(&memory(), OUTSIDE, STACK, STACK + 8, 1);
    assert_eq!((outcome, registers), (None, Registers { lr: 0, ..at(OUTSIDE, STACK, STACK + 8) }));
}

#[test]
fn a_compiled_frame_has_the_size_that_its_code_tells() {
    let mut memory = memory();
    memory.put_words(STACK + 32, &[0x1234, OUTSIDE]);
    for exact in [0, 1] {
        let (outcome, registers, _) = step(&memory, COMPILED, STACK, 7, exact);
        assert_eq!((outcome, registers), (Some(Step::Continue), at(OUTSIDE, STACK + 48, 0x1234)));
    }
    // A return address behind the last byte of the code is still its own.
    memory.put(0x5000 + 0x23, &[FREE]);
    let (outcome, ..) = step(&memory, LOW + 0x1180, STACK, 7, 0);
    assert_eq!(outcome, Some(Step::Continue));
}

#[test]
fn a_frame_is_known_while_it_is_made_and_taken_away() {
    // Whose frame pointer was in the register is 7; what was pushed is 0x1234.
    let whole = (STACK + 48, 0x1234);
    let (bare, pushed, unsaved) = ((STACK + 8, 7), (STACK + 16, 0x1234), (STACK + 48, 7));
    type Case<'a> = (&'a str, u64, &'a [u8], (u64, u64));
    let cases: [Case<'_>; 11] = [
        ("touches the stack's end", 0, &[0x89, 0x84, 0x24, 0, 0xc0, 0xfe, 0xff], bare),
        ("push rbp", 0, &[0x55], bare),
        ("mov rbp, rsp", 1, &[0x48, 0x8b, 0xec], pushed),
        ("sub rsp, 0x20, after the push", 1, &[0x48, 0x83, 0xec, 0x20], pushed),
        ("sub rsp, 0x28, instead of it", 0, &[0x48, 0x83, 0xec, 0x28], bare),
        ("mov [rsp + 0x20], rbp", 4, &[0x48, 0x89, 0x6c, 0x24, 0x20], unsaved),
        ("is the code valid?", 8, &[0x41, 0x81, 0x7f, 0x20, 1, 0, 0, 0], whole),
        ("pop rbp", 0x80, &[0x5d], pushed),
        ("cmp rsp, [r15 + 0x338]", 0x81, &[0x49, 0x3b, 0xa7, 0x38, 3, 0, 0], bare),
        ("ja ...; ret", 0x88, &[0x0f, 0x87, 1, 0, 0, 0, 0xc3], bare),
        ("ret", 0x8e, &[0xc3], bare),
    ];
    for (what, offset, bytes, (sp, fp)) in cases {
        let mut memory = memory();
        memory.put(CODE - 8, &[0x90; 8]);
        if fp != 7 && offset == 1 {
            memory.put(CODE, &[0x55]);
        }
        memory.put(CODE + offset, bytes);
        memory.put_words(sp - 8, &[COMPILED]);
        if fp != 7 {
            memory.put_words(sp - 16, &[fp]);
        }
        let (outcome, registers, _) = step(&memory, CODE + offset, STACK, 7, 1);
        assert_eq!((outcome, registers), (Some(Step::Continue), at(COMPILED, sp, fp)), "{what}");
    }
}

#[test]
fn an_interpreted_frame_tells_its_method_and_its_callers_stack() {
    let mut memory = memory();
    let fp = STACK + 0x60;
    memory.put_words(fp - 64, &[CONSTANT + 60, 0, 0, 0, 0, METHOD, 0, fp + 0x40, 0x1234, OUTSIDE]);
    for exact in [0, 1] {
        let (outcome, registers, told) = step(&memory, INTERPRETED, STACK, fp, exact);
        assert_eq!((outcome, registers), (Some(Step::Continue), at(OUTSIDE, fp + 0x40, 0x1234)));
        let told = told.unwrap();
        assert_eq!((told.kind, told.value, told.payload), (EntryKind::HotSpot as u8, METHOD, CONSTANT + 60));
    }
    // A native method has no position.
    memory.put_words(fp - 64, &[0]);
    assert!(step(&memory, INTERPRETED, STACK, fp, 1).2.is_some());
}

#[test]
fn an_interpreted_frame_that_is_being_made_is_not_believed() {
    let mut memory = memory();
    let fp = STACK + 0x60;
    // The position is in another method; the caller is on top of the stack.
    memory.put_words(fp - 64, &[0x77, 0, 0, 0, 0, METHOD, 0, fp + 0x40, 0x1234, OUTSIDE]);
    memory.put_words(STACK, &[COMPILED]);
    let (outcome, registers, told) = step(&memory, INTERPRETED, STACK, fp, 1);
    assert_eq!((outcome, registers), (Some(Step::Continue), at(COMPILED, STACK + 8, fp)));
    assert!(told.is_none());
}

#[test]
fn stubs_keep_a_frame_pointer_or_have_no_frame() {
    let mut memory = memory();
    let fp = STACK + 0x60;
    memory.put_words(fp, &[STACK + 0x100, OUTSIDE]);
    let (outcome, registers, _) = step(&memory, STUB, STACK, fp, 0);
    assert_eq!((outcome, registers), (Some(Step::Continue), at(OUTSIDE, fp + 16, STACK + 0x100)));
    memory.put_words(STACK, &[COMPILED]);
    let (_, registers, _) = step(&memory, STUB, STACK, fp, 1);
    assert_eq!(registers, at(COMPILED, STACK + 8, fp));
    // Its frame pointer is good, and the caller's anything.
    memory.put_words(STACK, &[0]);
    memory.put_words(fp, &[3, COMPILED]);
    for exact in [0, 1] {
        assert_eq!(step(&memory, STUB, STACK, fp, exact).1, at(COMPILED, fp + 16, 3));
    }
}

#[test]
fn one_stub_calls_java_and_others_are_where_a_virtual_thread_goes_on() {
    let mut memory = memory();
    let fp = STACK + 0x60;
    memory.put_words(fp, &[STACK + 0x100, OUTSIDE]);
    let step = |ip: u64, how: At| {
        OFFSETS.step_or_search(&mut Registers { ip, sp: STACK, fp, lr: 0 }, how, &memory, |_, _| {})
    };
    assert_eq!(step(OFFSETS.call_stub_return, At::CallOfCode), Some(Step::Continue));
    assert_eq!(step(STUB, At::CallOfCode), Some(Step::Stop(StopReason::NoRow)));
    assert_eq!(step(STUB, At::CallOfOther), Some(Step::Continue));
}

#[test]
fn a_stub_that_keeps_no_frame_pointer_is_left_by_the_first_return_address() {
    let mut memory = memory();
    memory.put_words(STACK, &[1, COMPILED + 8, 2, COMPILED, 3]);
    memory.put(COMPILED - 5, &[0xe8]);
    for (exact, fp) in [(0, 7), (1, 7), (1, STACK + 0x40)] {
        let (outcome, registers, _) = step(&memory, STUB, STACK, fp, exact);
        assert_eq!((outcome, registers), (Some(Step::Continue), at(COMPILED, STACK + 32, fp)));
    }
    memory.put(COMPILED - 5, &[0x90]);
    assert_eq!(step(&memory, STUB, STACK, 7, 1).0, Some(Step::Stop(StopReason::NoRow)));
    memory.put(COMPILED - 3, &[0x41, 0xff, 0xd2]);
    assert_eq!(step(&memory, STUB, STACK, 7, 1).1.ip, COMPILED, "call r10");
}

#[test]
fn code_that_is_free_is_no_piece() {
    let (outcome, ..) = step(&memory(), LOW + 0x2080, STACK, STACK + 8, 0);
    assert_eq!(outcome, Some(Step::Stop(StopReason::NoRow)));
    let mut memory = memory();
    memory.put(0x5000 + 0x20, &[1; 0x20]); // in a circle, or too far
    assert!(matches!(step(&memory, COMPILED, STACK, STACK, 0).0, Some(Step::Stop(StopReason::NoRow))));
}

#[test]
fn an_offset_of_sixteen_bits_leads_to_the_code() {
    // As in Java 25: complete in the upper half of a word, code by an offset.
    let offsets = HotSpotOffsets { complete: 54, complete_bits: 16, code: 36, code_is_offset: 1, ..OFFSETS };
    let mut memory = memory();
    let piece = LOW + 0x1000 + 16;
    memory.put_words(piece, &[0; 8]);
    memory.put(piece + 36, &0xf0u32.to_le_bytes());
    memory.put(piece + 54, &12u16.to_le_bytes());
    assert_eq!(offsets.complete(piece, &memory), Some(CODE + 12));
    memory.put(piece + 54, &[0xff, 0xff]);
    assert_eq!(offsets.complete(piece, &memory), None);
}

#[test]
fn fingerprints_tell_methods_apart() {
    let mix = |value: u64| value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7);
    let print = |method: u64, position: u64| {
        let mut print = Fingerprint::default();
        add_to_fingerprint(&mut print, STACK, &[position, 0, 0, 0, 0, method, 0, 0, STACK + 64, 0], mix);
        add_to_fingerprint(&mut print, STACK + 64, &[1, 0, 0, 0, 0, METHOD, 0, 0, 0, 0], mix);
        print
    };
    let first = print(METHOD, 5);
    assert_eq!(first.chains[0], Chain { first: STACK, frames: 2, kind: InterpretedIn::HotSpot as u32 });
    assert_ne!(first.hash, print(METHOD + 8, 5).hash);
    assert_ne!(first.hash, print(METHOD, 6).hash);
    assert!(first.is_only(InterpretedIn::HotSpot) && !first.is_only(InterpretedIn::V8));
    // Another runtime's frame does not go on with the chain, whatever its frame pointer.
    let mut mixed = first;
    mixed.add(InterpretedIn::V8, first.next, 0, |hash| hash);
    assert_eq!(mixed.count, 2);
    assert!(CHAINS > mixed.count && !mixed.is_only(InterpretedIn::HotSpot));
}

/// Memory in which every word is some function of its address.
struct Noise(u64);

impl Memory for Noise {
    fn read_u64(&self, address: u64) -> Option<u64> {
        let word = (address ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (word & 0xf != 0).then_some(if word & 0x30 == 0 {
            address.wrapping_add(word >> 50)
        } else {
            word >> 8
        })
    }
}

proptest! {
    #[test]
    fn no_memory_does_harm(seed: u64, words: [u64; 8], which in 0usize..3, shift: u32, fields: [u32; 6]) {
        let [low, high, segments, ip, sp, fp, interpreter, interpreter_end] = words;
        let [block, frame_size, complete, complete_bits, code, constant] = fields;
        let heap = CodeHeap { low, high, segments, segment_shift: shift, _reserved: 0 };
        let offsets = HotSpotOffsets {
            heaps: [heap; MAX_HEAPS], interpreter, interpreter_end, call_stub_return: ip, block, frame_size, complete, complete_bits, code,
            code_is_offset: shift & 1, constant, _reserved: 0,
        };
        let mut registers = Registers { ip, sp, fp, lr: 0 };
        for _ in 0..8 {
            let before = registers;
            let how = [At::Instruction, At::CallOfCode, At::CallOfOther][which];
            match offsets.step_or_search(&mut registers, how, &Noise(seed), |_, _| {}) {
                Some(Step::Continue) => prop_assert!(registers.sp > before.sp || registers.ip != 0),
                _ => break,
            }
        }
    }
}
