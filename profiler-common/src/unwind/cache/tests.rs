//! A step by a cached rule against the step by the rule itself.

extern crate std;

use proptest::prelude::*;

use super::{
    super::{Memory, Step, X86_64, step},
    *,
};

const STACK: u64 = 0x7fff_0000_0000;

/// A stack of words from `STACK` on, and nothing behind it.
struct Stack(std::vec::Vec<u64>);

impl Memory for Stack {
    fn read_u64(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(STACK)?;
        if offset & 7 != 0 {
            return Some(1); // something
        }
        self.0.get((offset / 8) as usize).copied()
    }
}

impl Stack {
    fn read(&self, address: u64, words: &mut [u64; WINDOW_WORDS], bytes: u64) -> bool {
        (0..bytes / 8).all(|i| match self.read_u64(address + 8 * i) {
            Some(word) => {
                words[i as usize] = word;
                true
            }
            None => false,
        })
    }
}

fn rules() -> impl Strategy<Value = Rule> {
    let offset = prop_oneof![(-40i32..600).prop_map(|words| words * 8), any::<i32>()];
    let saved = prop_oneof![(-300i32..10).prop_map(|words| words * 8), any::<i32>()];
    let returns = prop_oneof![9 => Just(-8i32), 1 => any::<i32>()];
    (1u8..6, 0u8..3, offset, saved, returns).prop_map(
        |(cfa_kind, fp_kind, cfa_offset, fp_offset, ra_offset)| Rule {
            cfa_kind,
            fp_kind,
            ra_kind: 0,
            flags: 0,
            cfa_offset,
            fp_offset,
            ra_offset,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_cached_rule_goes_where_the_rule_goes(
        rule in rules(),
        at in (0u64..300, 0u64..300, 0u64..8),
        words in proptest::collection::vec(prop_oneof![Just(0u64), 1u64..1 << 47], 400),
        begins in 0u64..300,
    ) {
        let stack = Stack(words);
        let (sp, fp, off) = at;
        let address = 0x5555_0000_1234;
        let mut by_rule = Registers { ip: address, sp: STACK + 8 * sp + off / 7, fp: STACK + 8 * fp, lr: 0 };
        let mut by_cache = by_rule;
        let expected = step::<X86_64, _>(&mut by_rule, &rule, &stack);
        if let Some(known) = CachedRule::new(&rule, address, 7) {
            prop_assert!(known.is_of(address, 7));
            prop_assert!(!known.is_of(address + 1, 7) && !known.is_of(address, 8));
            if known.ends() {
                prop_assert_eq!(expected, Step::End);
            } else {
                let places = known.places(&by_cache);
                // What was read for another frame may or may not do.
                let mut window = Window::default();
                window.fill(STACK + 8 * begins, |at, words, bytes| stack.read(at, words, bytes));
                if !window.has(&places) {
                    window.fill(places.lowest(), |at, words, bytes| stack.read(at, words, bytes));
                }
                if known.step(&mut by_cache, &places, &window) {
                    prop_assert_eq!(expected, Step::Continue);
                    prop_assert_eq!(by_cache, by_rule);
                } else {
                    let unusual = expected != Step::Continue || places.cfa & 7 != 0 || !window.has(&places);
                    prop_assert!(unusual, "could have gone on");
                }
            }
        }
    }

    #[test]
    fn halves_of_two_entries_are_no_addresss_rule(a in rules(), b in rules(), at in (0u64..1 << 40, 0u64..1 << 40)) {
        let (a, b) = (CachedRule::new(&a, at.0, 7), CachedRule::new(&b, at.1, 7));
        if let (Some(a), Some(b)) = (a, b) && a.word != b.word {
            let torn = CachedRule { tag: a.tag, word: b.word };
            prop_assert!(!torn.is_of(at.0, 7) && !torn.is_of(at.1, 7));
        }
    }
}

#[test]
fn what_lies_before_the_end_of_a_page_is_read() {
    // The stack ends in the middle of a window, at the end of a page.
    let stack = Stack(std::vec![9; 512]);
    let mut window = Window::default();
    assert!(window.fill(STACK + 8 * 500, |at, words, bytes| stack.read(at, words, bytes)));
    assert_eq!((window.start, window.bytes, window.words[11]), (STACK + 8 * 500, 96, 9));
    assert!(!window.fill(STACK + 8 * 512, |at, words, bytes| stack.read(at, words, bytes)));
    assert_eq!(window.bytes, 0);
}
