//! How much stack the kernel programs take: all functions in a chain of calls have 512 bytes together, and a program that
//! needs more is refused by kernels whose verifier rounds each of them up. Only they tell, so it is found out here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// What a chain of calls may take, bytes: MAX_BPF_STACK, include/linux/filter.h.
const MOST: u32 = 512;
/// Each function's share is a multiple of this: check_max_stack_depth, kernel/bpf/verifier.c.
const UNIT: u32 = 32;

/// A function of the object.
#[derive(Default)]
struct Function {
    /// Bytes of stack that it uses itself.
    depth: u32,
    calls: BTreeSet<String>,
}

/// Refuses an object that some kernel would refuse, as `llvm-objdump -dr --no-show-raw-insn` tells of it.
pub fn check(disassembly: &str) -> Result<()> {
    let functions = functions(disassembly);
    let called: BTreeSet<&String> = functions.values().flat_map(|of| &of.calls).collect();
    for name in functions.keys().filter(|name| !called.contains(name)) {
        let (depth, chain) = deepest(name, &functions, &mut Vec::new());
        if depth > MOST {
            bail!("{} take {depth} bytes of stack, and have {MOST}", chain.join(" > "));
        }
    }
    Ok(())
}

fn functions(disassembly: &str) -> BTreeMap<String, Function> {
    let mut functions: BTreeMap<String, Function> = BTreeMap::new();
    let mut name = String::new();
    let mut copied = None; // the register that has just got the frame pointer
    for line in disassembly.lines() {
        if let Some((_, of)) = line.split_once(" <").filter(|_| line.ends_with(">:")) {
            if !of.starts_with("LBB") {
                name = of.trim_end_matches(">:").to_owned();
                functions.entry(name.clone()).or_default();
            }
            continue;
        }
        let Some(function) = functions.get_mut(&name) else { continue };
        if let Some((_, symbol)) = line.split_once("R_BPF_64_32") {
            function.calls.insert(symbol.trim().to_owned());
        }
        // "17: *(u64 *)(r10 - 0x18) = r2", or "r3 = r10" and "r3 += -0x18".
        let code = line.split_once(":\t").map_or("", |(_, code)| code);
        for (at, _) in code.match_indices("r10 - ") {
            function.depth = function.depth.max(number(&code[at + 6..]));
        }
        if let Some((register, offset)) = code.split_once(" += -")
            && copied == Some(register)
        {
            function.depth = function.depth.max(number(offset));
        }
        copied = code.strip_suffix(" = r10");
    }
    functions
}

/// A number at the beginning of a text, decimal or hexadecimal; zero for none.
fn number(text: &str) -> u32 {
    let word = text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).unwrap_or(0),
        None => word.parse().unwrap_or(0),
    }
}

/// The most that a function and those that it calls take, and which these are. There is no recursion: `above` makes sure.
fn deepest<'a>(
    name: &'a str,
    functions: &'a BTreeMap<String, Function>,
    above: &mut Vec<&'a str>,
) -> (u32, Vec<String>) {
    let Some(function) = functions.get(name).filter(|_| !above.contains(&name)) else {
        return (0, Vec::new());
    };
    above.push(name);
    let below =
        function.calls.iter().map(|called| deepest(called, functions, above)).max().unwrap_or_default();
    above.pop();
    let (mut depth, mut chain) = below;
    depth += function.depth.max(1).next_multiple_of(UNIT);
    chain.insert(0, name.to_owned());
    (depth, chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that takes 232 bytes, and calls one that takes `bytes`, which calls one that takes none.
    fn object(bytes: u32) -> String {
        format!(
            "0000000000000000 <program>:
       0:\t*(u64 *)(r10 - 0xe8) = r1
       1:\tcall -1
\t\t0000000000000008:  R_BPF_64_32\tstep
0000000000000010 <LBB0_1>:
       2:\texit
0000000000000018 <step>:
       3:\tr3 = r10
       4:\tr3 += -{bytes}
       5:\tcall -1
\t\t0000000000000028:  R_BPF_64_32\tleaf
0000000000000030 <leaf>:
       6:\tr0 = 0
"
        )
    }

    #[test]
    fn each_function_takes_a_multiple_of_32_bytes() {
        // 256 + 224 + 32.
        check(&object(224)).unwrap();
        let refused = check(&object(225)).unwrap_err().to_string();
        assert_eq!(refused, "program > step > leaf take 544 bytes of stack, and have 512");
    }
}
