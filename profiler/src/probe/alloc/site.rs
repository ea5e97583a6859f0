//! Where in a function to put a breakpoint. The kernel runs some instructions itself (emulates them), which is seven
//! times cheaper than having the processor run a copy of the others and trapping again after it. Which instruction comes
//! first differs from build to build of an allocator: so it is disassembled.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    Register,
};

/// A place for a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// From the function's first byte.
    pub offset: u64,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
}

/// Instructions looked at: beyond, no allocator's arguments are where they were.
const AT_MOST: usize = 16;

/// The registers of the first four arguments.
const ARGUMENTS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];

/// The place in a function of these bytes where its first `arguments` arguments still are in their registers and that
/// every call passes exactly once; with `returns` also the stack pointer is still where the return address lies, which a
/// breakpoint on the return needs. The first emulated instruction if there is one, else the function's first.
pub fn find(code: &[u8], arguments: usize, returns: bool) -> Site {
    let first = Site { offset: 0, emulated: false };
    if cfg!(not(target_arch = "x86_64")) {
        return first; // elsewhere nothing is known to be cheaper
    }
    let mut factory = InstructionInfoFactory::new();
    for instruction in &mut decoder(code).into_iter().take(AT_MOST) {
        if instruction.is_invalid() {
            return first;
        }
        if is_emulated(&instruction) {
            let site = Site { offset: instruction.ip(), emulated: true };
            return if is_jumped_to(code, site.offset) { first } else { site };
        }
        if instruction.flow_control() != FlowControl::Next {
            return first;
        }
        let info = factory.info(&instruction);
        let lost = info.used_registers().iter().any(|used| {
            let written = !matches!(
                used.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None
            );
            let register = used.register().full_register();
            written
                && (ARGUMENTS[..arguments.min(ARGUMENTS.len())].contains(&register)
                    || (returns && register == Register::RSP))
        });
        if lost {
            return first;
        }
    }
    first
}

fn decoder(code: &[u8]) -> Decoder<'_> {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
}

/// What arch/x86/kernel/uprobes.c emulates: pushes of registers (5.2), relative jumps, conditional ones too, relative
/// calls, and the no-operations of one byte.
fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.code() {
        Code::Push_r64 | Code::Nopd => true,
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Call_rel32_64 => !is_prefixed(instruction),
        _ => {
            instruction.mnemonic() != Mnemonic::Jmp
                && instruction.is_jcc_short_or_near()
                && !is_prefixed(instruction)
        }
    }
}

/// Branches with a prefix (`bnd`, branch hints) are left alone: kernels differ in what they make of them.
fn is_prefixed(instruction: &Instruction) -> bool {
    let plain = if instruction.is_jmp_short() || instruction.is_jcc_short() {
        2
    } else if instruction.is_jcc_near() {
        6
    } else {
        5
    };
    instruction.len() != plain
}

/// Whether a branch in the function leads to where a call has passed already: up to the place itself. A call would pass
/// the place more than once.
fn is_jumped_to(code: &[u8], offset: u64) -> bool {
    decoder(code).into_iter().take_while(|instruction| !instruction.is_invalid()).any(|instruction| {
        let branches = matches!(
            instruction.flow_control(),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
        );
        branches && instruction.near_branch_target() <= offset && instruction.ip() > 0
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn site(offset: u64, emulated: bool) -> Site {
        Site { offset, emulated }
    }

    #[test]
    fn the_first_emulated_instruction_is_taken() {
        // push %r12; push %rbp (glibc 2.36's malloc)
        assert_eq!(find(&[0x41, 0x54, 0x55, 0xc3], 1, true), site(0, true));
        // test %rdi,%rdi; je +0x10; push %rbp (its free)
        assert_eq!(find(&[0x48, 0x85, 0xff, 0x74, 0x10, 0x55, 0xc3], 1, false), site(3, true));
        // endbr64; push %rbp
        assert_eq!(find(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3], 1, true), site(4, true));
        // cmpb $0,…(%rip); je near (its memalign)
        let memalign = [0x80, 0x3d, 0x71, 0x0e, 0x14, 0, 0, 0x0f, 0x84, 1, 0, 0, 0, 0x90, 0xc3];
        assert_eq!(find(&memalign, 2, true), site(7, true));
        // nop; ret
        assert_eq!(find(&[0x90, 0xc3], 1, true), site(0, true));
    }

    #[test]
    fn arguments_must_be_there_still() {
        // mov %rsi,%rdi; push %rbx: the second argument is intact, the first is not.
        let code = [0x48, 0x89, 0xf7, 0x53, 0xc3];
        assert_eq!(find(&code, 0, true), site(3, true));
        assert_eq!(find(&code, 1, true), site(0, false));
        // xor %edx,%edx writes all of rdx; push %rbx
        let code = [0x31, 0xd2, 0x53, 0xc3];
        assert_eq!(find(&code, 2, true), site(2, true));
        assert_eq!(find(&code, 3, true), site(0, false));
    }

    #[test]
    fn a_return_needs_the_stack_pointer() {
        // sub $8,%rsp; push %rbx
        let code = [0x48, 0x83, 0xec, 8, 0x53, 0xc3];
        assert_eq!(find(&code, 1, true), site(0, false));
        assert_eq!(find(&code, 1, false), site(4, true));
    }

    #[test]
    fn a_loop_to_the_place_is_passed_more_than_once() {
        // test %rdi,%rdi; push %rbx; pop %rbx; jne back to the push
        assert_eq!(find(&[0x48, 0x85, 0xff, 0x53, 0x5b, 0x75, 0xfc, 0xc3], 1, false), site(0, false));
        // …; jne to the ret instead
        assert_eq!(find(&[0x48, 0x85, 0xff, 0x53, 0x5b, 0x75, 0, 0xc3], 1, false), site(3, true));
    }

    #[test]
    fn functions_that_end_early_have_their_first_instruction() {
        assert_eq!(find(&[0xc3, 0x55], 1, true), site(0, false));
        assert_eq!(find(&[], 1, true), site(0, false));
        // bnd jmp: not touched
        assert_eq!(find(&[0xf2, 0xe9, 0, 0, 0, 0], 1, true), site(0, false));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(code in prop::collection::vec(any::<u8>(), 0..64), arguments in 0usize..5, returns: bool) {
            let found = find(&code, arguments, returns);
            prop_assert!(found.offset == 0 || found.offset < code.len() as u64);
        }
    }
}
