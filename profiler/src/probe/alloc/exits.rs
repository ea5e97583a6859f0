//! Where a function returns. One that may throw must not have its return address replaced, since no exception passes that;
//! so breakpoints go on its return instructions, wherever it gets to by jumps, tail calls into other functions included.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

/// Instructions looked at, at most: an allocator's operator new and what it jumps to has some hundreds.
const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes that one instruction can have.
const MAX_LENGTH: usize = 15;

/// How a function ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exits {
    /// At these return instructions.
    At(BTreeSet<u64>),
    /// Never without having called, or become, one of the functions given.
    InOthers,
    /// Not known: it jumps to where only the running program knows.
    Unknown,
}

/// What a loaded file's code is followed with. Addresses are the file's virtual ones.
pub struct Code<'a> {
    /// Bytes from an address on, up to the end of what holds it.
    pub bytes: &'a dyn Fn(u64) -> &'a [u8],
    /// Places that the dynamic linker fills with addresses: what is going to be there, if that is in the same file.
    pub slots: &'a BTreeMap<u64, Slot>,
    /// Functions that never return.
    pub noreturn: &'a BTreeSet<u64>,
}

/// A place that the dynamic linker fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The function, if it is in the same file.
    pub address: Option<u64>,
    /// It never returns.
    pub noreturn: bool,
}

/// Follows the function at `start`; `others` are the functions whose callers need not be followed.
pub fn find(start: u64, code: &Code<'_>, others: &BTreeSet<u64>) -> Exits {
    match follow(start, code, others) {
        Some(returns) if returns.is_empty() => Exits::InOthers,
        // It calls one of them on some ways only, such as when memory is short.
        Some(_) => follow(start, code, &BTreeSet::new()).map_or(Exits::Unknown, Exits::At),
        None => Exits::Unknown,
    }
}

/// The return instructions that are reached without a call of `others`.
fn follow(start: u64, code: &Code<'_>, others: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
    if cfg!(not(target_arch = "x86_64")) {
        return None;
    }
    let (mut todo, mut seen, mut returns) = (vec![start], BTreeSet::new(), BTreeSet::new());
    while let Some(mut at) = todo.pop() {
        loop {
            if at != start && others.contains(&at) || !seen.insert(at) {
                break;
            }
            let instruction = decode(code, at)?;
            if seen.len() > MAX_INSTRUCTIONS {
                return None;
            }
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::Return => {
                    returns.insert(at);
                    break;
                }
                FlowControl::ConditionalBranch => todo.push(instruction.near_branch_target()),
                FlowControl::UnconditionalBranch => {
                    todo.push(instruction.near_branch_target());
                    break;
                }
                FlowControl::IndirectBranch => {
                    todo.push(slot(code, &instruction)?.address?);
                    break;
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    let called = callee(code, &instruction);
                    let address = called.address.unwrap_or(0);
                    if called.noreturn || code.noreturn.contains(&address) || others.contains(&address) {
                        break;
                    }
                }
                FlowControl::Exception => break, // ud2
                FlowControl::Interrupt | FlowControl::XbeginXabortXend => return None,
            }
            at = instruction.next_ip();
        }
    }
    Some(returns)
}

fn decode(code: &Code<'_>, at: u64) -> Option<Instruction> {
    let bytes = (code.bytes)(at);
    let mut decoder = Decoder::with_ip(64, &bytes[..bytes.len().min(MAX_LENGTH)], at, DecoderOptions::NONE);
    let instruction = decoder.can_decode().then(|| decoder.decode())?;
    (!instruction.is_invalid()).then_some(instruction)
}

/// What a call calls, as far as it can be told.
fn callee(code: &Code<'_>, call: &Instruction) -> Slot {
    if call.flow_control() == FlowControl::IndirectCall {
        return slot(code, call).unwrap_or_default();
    }
    let target = call.near_branch_target();
    // The procedure linkage table: perhaps endbr64, then a jump to where a slot says.
    let mut at = target;
    for _ in 0..2 {
        let Some(instruction) = decode(code, at) else { break };
        if instruction.flow_control() == FlowControl::IndirectBranch {
            return slot(code, &instruction).unwrap_or_default();
        }
        at = instruction.next_ip();
    }
    Slot { address: Some(target), noreturn: false }
}

/// What is in the slot that an indirect branch reads.
fn slot(code: &Code<'_>, branch: &Instruction) -> Option<Slot> {
    let by_slot = branch.op0_kind() == OpKind::Memory && branch.memory_base() == Register::RIP;
    by_slot.then(|| code.slots.get(&branch.ip_rel_memory_address()).copied())?
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exits(code: &[u8], slots: &[(u64, Slot)], others: &[u64]) -> Exits {
        let bytes = |at: u64| code.get(at as usize..).unwrap_or_default();
        let slots = slots.iter().copied().collect();
        let code = Code { bytes: &bytes, slots: &slots, noreturn: &[40].into() };
        find(0, &code, &others.iter().copied().collect())
    }

    fn at(addresses: &[u64]) -> Exits {
        Exits::At(addresses.iter().copied().collect())
    }

    fn to(address: u64) -> Slot {
        Slot { address: Some(address), noreturn: false }
    }

    #[test]
    fn every_way_is_followed() {
        // 0: test %rdi,%rdi; 3: je 6; 5: ret; 6: push %rbx; 7: pop %rbx; 8: ret
        assert_eq!(exits(&[0x48, 0x85, 0xff, 0x74, 1, 0xc3, 0x53, 0x5b, 0xc3], &[], &[]), at(&[5, 8]));
        // 0: jmp 4; 4: ret
        assert_eq!(exits(&[0xeb, 2, 0, 0, 0xc3], &[], &[]), at(&[4]));
        // 0: jmp 0, for ever
        assert_eq!(exits(&[0xeb, 0xfe], &[], &[]), Exits::InOthers);
    }

    #[test]
    fn slots_lead_to_other_functions() {
        // 0: jmp *0x94(%rip), the slot at 0x9a; 6: ret
        let code = [0xff, 0x25, 0x94, 0, 0, 0, 0xc3];
        assert_eq!(exits(&code, &[(0x9a, to(6))], &[]), at(&[6]));
        assert_eq!(exits(&code, &[(0x9a, to(6))], &[6]), Exits::InOthers);
        assert_eq!(exits(&code, &[(0x9a, Slot::default())], &[]), Exits::Unknown, "in another file");
        assert_eq!(exits(&code, &[], &[]), Exits::Unknown);
        // 0: jmp *%rax
        assert_eq!(exits(&[0xff, 0xe0], &[], &[]), Exits::Unknown);
    }

    #[test]
    fn what_always_calls_another_ends_in_it() {
        // 0: call 16; 5: ret; 16: ret
        let mut code = vec![0xe8, 11, 0, 0, 0, 0xc3];
        code.resize(16, 0x90);
        code.push(0xc3);
        assert_eq!(exits(&code, &[], &[16]), Exits::InOthers);
        assert_eq!(exits(&code, &[], &[]), at(&[5]));
        // 0: je 8; 2: call 16; 7: ret; 8: ret
        let mut some = vec![0x74, 6, 0xe8, 9, 0, 0, 0, 0xc3, 0xc3];
        some.resize(16, 0x90);
        some.push(0xc3);
        assert_eq!(exits(&some, &[], &[16]), at(&[7, 8]), "not always");
        // 16: jmp *(%rip), the slot at 22
        code.splice(16.., [0xff, 0x25, 0, 0, 0, 0]);
        assert_eq!(exits(&code, &[(22, to(30))], &[30]), Exits::InOthers, "by the linkage table");
        assert_eq!(exits(&code, &[(22, Slot { address: None, noreturn: true })], &[]), Exits::InOthers);
    }

    #[test]
    fn what_follows_a_call_that_never_returns_is_not_reached() {
        // 0: je 7; 2: call 40; 7: ret
        assert_eq!(exits(&[0x74, 5, 0xe8, 33, 0, 0, 0, 0xc3], &[], &[]), at(&[7]));
        assert_eq!(exits(&[0xe8, 35, 0, 0, 0, 0x06], &[], &[]), Exits::InOthers);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(code in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Exits::At(places) = exits(&code, &[], &[]) {
                prop_assert!(places.iter().all(|&place| place < code.len() as u64));
            }
        }
    }
}
