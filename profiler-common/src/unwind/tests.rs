//! Tests of the search and the step, of both architectures.

extern crate std;

use std::{collections::HashMap, vec::Vec};

use proptest::prelude::*;

use super::*;

struct Words(HashMap<u64, u64>);

impl Memory for Words {
    fn read_u64(&self, address: u64) -> Option<u64> {
        self.0.get(&address).copied()
    }
}

fn words(pairs: &[(u64, u64)]) -> Words {
    Words(pairs.iter().copied().collect())
}

fn rule(cfa: (CfaKind, i32), fp: (FpKind, i32), ra: (RaKind, i32), flags: u8) -> Rule {
    Rule {
        cfa_kind: cfa.0 as u8,
        fp_kind: fp.0 as u8,
        ra_kind: ra.0 as u8,
        flags,
        cfa_offset: cfa.1,
        fp_offset: fp.1,
        ra_offset: ra.1,
    }
}

fn registers(ip: u64, sp: u64, fp: u64, lr: u64) -> Registers {
    Registers { ip, sp, fp, lr }
}

#[test]
fn a_zeroed_rule_is_no_information() {
    assert_eq!(Rule::default(), Rule::NO_INFO);
    let mut at = registers(1, 2, 3, 4);
    let memory = words(&[]);
    for (rule, expected) in [
        (Rule::NO_INFO, Step::Stop(StopReason::NoRow)),
        (Rule::END, Step::End),
        (Rule::UNSUPPORTED, Step::Stop(StopReason::Unsupported)),
        (Rule { cfa_kind: 200, ..Rule::END }, Step::Stop(StopReason::Unsupported)),
    ] {
        assert_eq!(step::<X86_64, _>(&mut at, &rule, &memory), expected);
        assert_eq!(at, registers(1, 2, 3, 4));
    }
}

#[test]
fn usual_frames_are_left() {
    let memory = words(&[(0x1010, 0x2000), (0x1018, 77)]);
    // push rbp; mov rbp, rsp
    let framed = rule((CfaKind::FpOffset, 16), (FpKind::AtCfa, -16), (RaKind::AtCfa, -8), 0);
    let mut at = registers(5, 0x1000, 0x1010, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &framed, &memory), Step::Continue);
    assert_eq!(at, registers(77, 0x1020, 0x2000, 77));

    let frameless = rule((CfaKind::SpOffset, 32), (FpKind::Same, 0), (RaKind::AtCfa, -8), 0);
    let mut at = registers(5, 0x1000, 99, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &frameless, &memory), Step::Continue);
    assert_eq!(at, registers(77, 0x1020, 99, 77));

    let lost = rule((CfaKind::SpOffset, 32), (FpKind::Undefined, 0), (RaKind::AtCfa, -8), 0);
    let mut at = registers(5, 0x1000, 99, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &lost, &memory), Step::Continue);
    assert_eq!(at.fp, 0);

    let mut at = registers(5, 0x5000, 0x5000, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &framed, &memory), Step::Stop(StopReason::Unreadable));
    let mut at = registers(5, 0x1020, 0x1010, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &framed, &memory), Step::Stop(StopReason::NoProgress));
    assert_eq!(at, registers(5, 0x1020, 0x1010, 0));
}

#[test]
fn realigned_stacks_and_addends_are_followed() {
    let memory = words(&[(0xff8, 0x1020), (0x1018, 77), (0x1000, 5)]);
    let drap = rule((CfaKind::DerefFp, -8), (FpKind::AtFp, 0), (RaKind::AtCfa, -8), 0);
    let mut at = registers(5, 0xf00, 0x1000, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &drap, &memory), Step::Continue);
    assert_eq!(at, registers(77, 0x1020, 5, 77));

    let memory = words(&[(0xff8, 0x1018), (0x1018, 77)]);
    let addend = rule((CfaKind::DerefSp, 0xf8), (FpKind::Same, 0), (RaKind::AtCfa, -8), 1 << 4);
    let mut at = registers(5, 0xf00, 0x1000, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &addend, &memory), Step::Continue);
    assert_eq!(at, registers(77, 0x1020, 0x1000, 77));
}

#[test]
fn linkage_tables_push_a_word_half_way() {
    let memory = words(&[(0x1000, 1), (0x1008, 2)]);
    let plt = rule((CfaKind::Plt, 11), (FpKind::Same, 0), (RaKind::AtCfa, -8), 0);
    let mut at = registers(0x4000a, 0x1000, 0, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &plt, &memory), Step::Continue);
    assert_eq!((at.ip, at.sp), (1, 0x1008));
    let mut at = registers(0x4000b, 0x1000, 0, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &plt, &memory), Step::Continue);
    assert_eq!((at.ip, at.sp), (2, 0x1010));
}

#[test]
fn a_signal_handler_may_run_on_a_stack_above() {
    let memory = words(&[(0x9000 + 160, 0x1000), (0x9000 + 168, 77), (0x9000 + 120, 0x1234)]);
    let signal = rule((CfaKind::DerefSp, 160), (FpKind::AtSp, 120), (RaKind::AtSp, 168), Rule::SIGNAL_FRAME);
    assert!(signal.caller_is_exact());
    let mut at = registers(5, 0x9000, 0, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &signal, &memory), Step::Continue);
    assert_eq!(at, registers(77, 0x1000, 0x1234, 77));
}

#[test]
fn an_aarch64_signal_frame_restores_the_link_register() {
    // siginfo (128 bytes), then ucontext: x29 at 544, x30, sp, pc.
    let memory = words(&[(0x9220, 0x1234), (0x9228, 0xab00_0000_0000_0042), (0x9230, 0x1000), (0x9238, 77)]);
    let signal = rule((CfaKind::DerefSp, 560), (FpKind::AtSp, 544), (RaKind::AtSp, 568), Rule::SIGNAL_FRAME);
    let mut at = registers(5, 0x9000, 0, 0);
    assert_eq!(step::<Aarch64, _>(&mut at, &signal, &memory), Step::Continue);
    assert_eq!(at, registers(77, 0x1000, 0x1234, 0x42));
}

#[test]
fn a_leaf_returns_by_the_link_register_once() {
    let leaf = rule((CfaKind::SpOffset, 0), (FpKind::Same, 0), (RaKind::Register, 0), 0);
    let memory = words(&[]);
    let mut at = registers(5, 0x1000, 0x2000, 0xff12_0000_0000_0077);
    assert_eq!(step::<X86_64, _>(&mut at, &leaf, &memory), Step::Stop(StopReason::Unsupported));
    assert_eq!(step::<Aarch64, _>(&mut at, &leaf, &memory), Step::Continue);
    assert_eq!((at.ip, at.sp), (0x12_0000_0000_0077 & ((1 << 48) - 1), 0x1000));
    assert_eq!(step::<Aarch64, _>(&mut at, &leaf, &memory), Step::Stop(StopReason::NoProgress));
}

#[test]
fn a_zero_return_address_is_the_end() {
    let rule = rule((CfaKind::SpOffset, 8), (FpKind::Same, 0), (RaKind::AtCfa, -8), 0);
    let mut at = registers(5, 0x1000, 0, 0);
    assert_eq!(step::<X86_64, _>(&mut at, &rule, &words(&[(0x1000, 0)])), Step::End);
}

#[test]
fn frame_pointers_must_look_like_some() {
    let memory = words(&[
        (0x1010, 0),
        (0x1018, 77),
        (0x2000, 0x1000),
        (0x2008, 1),
        (0x3000, 0),
        (0x3008, 0),
        (0x5000, 3),
        (0x5008, 77),
    ]);
    let go = |sp, fp| {
        let mut at = registers(5, sp, fp, 0);
        (step_frame_pointer::<X86_64, _>(&mut at, &memory, false, |address| address == 76), at)
    };
    assert_eq!(go(0x1000, 0x1010), (Step::Continue, registers(77, 0x1020, 0, 77)));
    assert_eq!(go(0x1000, 0x1011).0, Step::Stop(StopReason::NoProgress));
    assert_eq!(go(0x1018, 0x1010).0, Step::Stop(StopReason::NoProgress));
    assert_eq!(go(0, 0).0, Step::Stop(StopReason::NoProgress));
    let outermost = step_frame_pointer::<X86_64, _>(&mut registers(5, 0x1000, 0, 0), &memory, true, |_| true);
    assert_eq!(outermost, Step::End);
    assert_eq!(go(0x1000, 0x2000).0, Step::Stop(StopReason::NoProgress), "the chain goes back");
    let other = Step::Continue;
    assert_eq!(
        go(0x1000, 0x5000),
        (other, registers(77, 0x5010, 3, 77)),
        "the caller keeps something else there"
    );
    assert_eq!(go(0x1000, 0x3000).0, Step::End);
    assert_eq!(go(0x1000, 0x4000).0, Step::Stop(StopReason::Unreadable));
}

#[test]
fn words_and_rows_come_back_as_they_went() {
    assert_eq!(decode_bucket(encode_bucket(u32::MAX, 256)), (u32::MAX, 256));
    assert_eq!(decode_row(encode_row(255, 65_535)), (255, 65_535));
    assert_eq!(bucket_page(513), (1, 1));
    assert_eq!(row_page(1025), (1, 1));
    assert_eq!(bucket_of(0x1fff, 0x1000), 15);
    assert!(bucket_of(0xfff, 0x1000) > u64::from(u32::MAX));
    assert_eq!(bucket_offset(0x12345), 0x45);
}

fn put(page: &mut Page, slot: u32, row: u32) {
    let shift = (slot & 1) * 32;
    let word = &mut page[(slot / 2) as usize];
    *word = *word & !(0xffff_ffff << shift) | u64::from(row) << shift;
}

proptest! {
    #[test]
    fn search_agrees_with_looking_at_every_row(
        offsets in proptest::collection::btree_set(1u8.., 0..256),
        at in 0u32..1024,
        noise: u64,
    ) {
        let mut offsets: Vec<u8> = offsets.into_iter().collect();
        offsets.insert(0, 0);
        let slot = at.min(1024 - offsets.len() as u32);
        // What is around a bucket's rows must not matter.
        let mut page: Page = core::array::from_fn(|index| noise.rotate_left(index as u32));
        for (index, &offset) in offsets.iter().enumerate() {
            put(&mut page, slot + index as u32, encode_row(offset, 1000 + index as u32));
        }
        for wanted in 0..=255u8 {
            let index = offsets.iter().rposition(|&offset| offset <= wanted).unwrap();
            let found = search_rows(&page, slot, offsets.len() as u32, wanted);
            prop_assert_eq!(found, 1000 + index as u32);
        }
    }

    #[test]
    fn nothing_makes_the_search_panic(slot: u32, count: u32, offset: u8, word: u64) {
        search_rows(&[word; PAGE_WORDS], slot, count, offset);
    }

    #[test]
    fn nothing_makes_a_step_panic(kinds: [u8; 4], offsets: [i32; 3], values: [u64; 4], word: Option<u64>) {
        struct Constant(Option<u64>);
        impl Memory for Constant {
            fn read_u64(&self, _address: u64) -> Option<u64> {
                self.0
            }
        }
        let rule = Rule {
            cfa_kind: kinds[0] % 9,
            fp_kind: kinds[1] % 6,
            ra_kind: kinds[2] % 5,
            flags: kinds[3],
            cfa_offset: offsets[0],
            fp_offset: offsets[1],
            ra_offset: offsets[2],
        };
        let before = registers(values[0], values[1], values[2], values[3]);
        let mut at = before;
        let outcome = step::<X86_64, _>(&mut at, &rule, &Constant(word));
        prop_assert!(outcome == Step::Continue || at == before);
        prop_assert!(outcome != Step::Continue || at.sp > before.sp || rule.caller_is_exact());
        at = before;
        let outcome = step::<Aarch64, _>(&mut at, &rule, &Constant(word));
        prop_assert!(outcome == Step::Continue || at == before);
        at = before;
        let outcome = step_frame_pointer::<X86_64, _>(&mut at, &Constant(word), values[3] & 1 == 0, |address| address & 1 == 0);
        prop_assert!(outcome == Step::Continue || at == before);
    }

    /// A stack of frames of every kind is built upwards from the innermost, then followed.
    #[test]
    fn a_simulated_stack_is_followed_to_its_end(
        frames in proptest::collection::vec((2u64..64, any::<bool>(), any::<bool>()), 1..100),
    ) {
        let mut memory = HashMap::new();
        let mut sp = 0x7000_0000u64;
        // Each frame: its size in words, whether it saves the frame pointer, whether it uses it. The
        // values of fp that the frames see are made first, outermost last.
        let mut rules = Vec::new();
        let mut expected = Vec::new();
        let first_sp = sp;
        let mut fps = std::vec![0u64; frames.len() + 1];
        let mut bottoms = Vec::new();
        for &(words, _, _) in &frames {
            bottoms.push(sp);
            sp += words * 8;
        }
        let top = sp;
        for index in (0..frames.len()).rev() {
            let cfa = bottoms.get(index + 1).copied().unwrap_or(top);
            // A frame that uses fp has it point at the saved one.
            fps[index] = if frames[index].1 { cfa - 16 } else { fps[index + 1] };
        }
        for (index, &(words, saves, uses)) in frames.iter().enumerate() {
            let cfa = bottoms[index] + words * 8;
            let ra = 0x40_0000 + index as u64 + 1;
            memory.insert(cfa - 8, ra);
            let fp = if saves {
                memory.insert(cfa - 16, fps[index + 1]);
                (FpKind::AtCfa, -16)
            } else {
                (FpKind::Same, 0)
            };
            let cfa_rule = if saves && uses {
                (CfaKind::FpOffset, 16)
            } else {
                (CfaKind::SpOffset, words as i32 * 8)
            };
            rules.push(rule(cfa_rule, fp, (RaKind::AtCfa, -8), 0));
            expected.push(registers(ra, cfa, fps[index + 1], ra));
        }
        rules.push(Rule::END);
        let memory = Words(memory);
        let mut at = registers(0x40_0000, first_sp, fps[0], 0);
        for (rule, expected) in rules.iter().zip(&expected) {
            prop_assert_eq!(step::<X86_64, _>(&mut at, rule, &memory), Step::Continue);
            prop_assert_eq!(at, *expected);
        }
        prop_assert_eq!(step::<X86_64, _>(&mut at, &Rule::END, &memory), Step::End);
    }
}
