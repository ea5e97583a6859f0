//! What kind of work the CPU time went to: garbage collection, JSON, crypto, … by the names of functions.

use serde::Serialize;

use crate::{
    detect::words::own,
    model::{
        function::Function,
        module::ModuleKind,
        report::{NamedFrame, Names, Profile, ProfileStack},
        stack::StackId,
    },
};

/// A kind of work, and how functions that do it are called: a name that has one of these at the start of a word. Those of
/// the kernel count in the kernel only.
struct Kind {
    name: &'static str,
    kernel: bool,
    words: &'static [&'static str],
}

/// The order decides where a function fits two.
const KINDS: [Kind; 10] = [
    Kind {
        name: "page faults",
        kernel: true,
        words: &[
            "asm_exc_page_fault",
            "exc_page_fault",
            "do_user_addr_fault",
            "handle_mm_fault",
            "do_page_fault",
            "do_mem_abort",
        ],
    },
    Kind {
        name: "kernel network",
        kernel: true,
        words: &[
            "tcp_",
            "udp_",
            "inet_",
            "sock_",
            "unix_stream_",
            "ip_",
            "__ip_",
            "skb_",
            "net_rx",
            "napi_",
            "nf_",
            "__sys_send",
            "__sys_recv",
        ],
    },
    Kind {
        name: "kernel disk",
        kernel: true,
        words: &[
            "ext4_",
            "xfs_",
            "btrfs_",
            "blk_",
            "submit_bio",
            "vfs_fsync",
            "iomap_",
            "filemap_",
            "nvme_",
            "jbd2_",
            "ovl_",
        ],
    },
    Kind {
        name: "garbage collection",
        kernel: false,
        words: &[
            "Scaveng",
            "MarkCompact",
            "Marking",
            "MarkingVisitor",
            "Sweeper",
            "IncrementalMarking",
            "Heap::CollectGarbage",
            "gc_collect",
            "deduce_unreachable",
            "visit_reachable",
            "G1",
            "GCTask",
            "PSParallel",
            "PSScavenge",
            "ZMark",
            "ZRelocate",
            "Shenandoah",
            "runtime.gc",
            "runtime.scanobject",
            "runtime.greyobject",
            "SerialHeap",
            "DefNew",
            "TenuredGeneration",
        ],
    },
    Kind {
        name: "JSON",
        kernel: false,
        words: &["Json", "JSON", "json", "serde_json", "simdjson", "yyjson", "rapidjson", "encoding/json"],
    },
    Kind {
        name: "crypto",
        kernel: false,
        words: &[
            "EVP_",
            "SSL_",
            "ossl_",
            "aes",
            "AES",
            "sha1",
            "sha256",
            "sha512",
            "SHA",
            "gcm_",
            "chacha20",
            "ChaCha20",
            "RSA_",
            "BN_",
            "bn_",
            "ecp_",
            "EC_",
            "PBKDF2",
            "pbkdf2",
            "scrypt",
            "bcrypt",
            "argon2",
            "blowfish",
            "crypto/",
            "rustls",
            "curve25519",
        ],
    },
    Kind {
        name: "compression",
        kernel: false,
        words: &[
            "deflate",
            "inflate",
            "longest_match",
            "compress",
            "ZSTD",
            "LZ4",
            "Brotli",
            "brotli",
            "crc32",
            "adler32",
            "BZ2_",
            "lzma",
            "gzip",
        ],
    },
    Kind {
        name: REGULAR_EXPRESSIONS,
        kernel: false,
        words: &[
            "RegExp",
            "Irregexp",
            "irregexp",
            "regex",
            "regexec",
            "pcre",
            "re_search",
            "sre_",
            "SRE",
            "hs_scan",
            "_sre",
        ],
    },
    Kind {
        name: "compilation",
        kernel: false,
        words: &[
            "Compiler",
            "CompilationJob",
            "TurboFan",
            "turboshaft",
            "TFPipeline",
            "OptimizedCompilation",
            "Maglev",
            "maglev",
            "Sparkplug",
            "Liftoff",
            "C2Compiler",
            "CompileBroker",
            "PhaseIdealLoop",
            "PhaseChaitin",
            "llvm",
            "LLVM",
            "Parser::Parse",
            "BytecodeGenerator",
            "_PyCompile",
            "_PyPegen",
        ],
    },
    Kind {
        name: "memory copy",
        kernel: false,
        words: &[
            "memcpy",
            "memmove",
            "memset",
            "__memcpy",
            "__memmove",
            "__memset",
            "copy_user",
            "runtime.memmove",
        ],
    },
];

/// The kind of work that matches them.
pub const REGULAR_EXPRESSIONS: &str = "regular expressions";

/// The CPU time of one kind of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What it is.
    pub name: &'static str,
    /// Samples in it.
    pub samples: u64,
}

/// The kinds of work there are samples of, most first. Each sample counts once: for the kind that its innermost function of
/// any kind belongs to.
pub fn groups(profile: &Profile) -> Vec<Group> {
    let mut groups: Vec<Group> = KINDS.iter().map(|kind| Group { name: kind.name, samples: 0 }).collect();
    for stack in &profile.stacks {
        if let Some(kind) = kind_of(profile, stack) {
            groups[kind].samples += stack.weight;
        }
    }
    groups.retain(|group| group.samples > 0);
    groups.sort_by_key(|group| std::cmp::Reverse(group.samples));
    groups
}

/// Samples of one kind of work.
pub fn samples_of(profile: &Profile, name: &str) -> u64 {
    groups(profile).iter().filter(|group| group.name == name).map(|group| group.samples).sum()
}

/// Samples of which any function is of one kind of work, however deep it is called.
pub fn samples_within(profile: &Profile, name: &str) -> u64 {
    profile.stacks.iter().filter(|of| is_within(&profile.names, &of.frames, name)).map(|of| of.weight).sum()
}

/// Whether any function of a stack is of one kind of work.
pub fn is_within(names: &Names, frames: &[usize], name: &str) -> bool {
    let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else { return false };
    at_work(names, frames).any(|(function, frame, _)| {
        kind.kernel == names.is_kernel(frame) && kind.words.iter().any(|word| has_word(&function.name, word))
    })
}

/// The functions of a stack, innermost first, that work for the program's own innermost one: what called that, as the layers of a
/// server do, is another's work. Native libraries call the program back for parts of theirs, and count for all of it.
fn at_work<'a>(
    names: &'a Names,
    frames: &'a [usize],
) -> impl Iterator<Item = (&'a Function, &'a NamedFrame, bool)> {
    let own = own(names, frames);
    names.functions(frames).take_while(move |(function, frame, _)| {
        let is_managed = matches!(names.module_of(frame).kind, ModuleKind::Jit(_) | ModuleKind::Managed(_));
        !is_managed || !own.is_some_and(|own| std::ptr::eq(own, *function))
    })
}

/// The kind of work of the program that more than half of some samples are within, if there is one: the first of those there are.
pub fn mostly(names: &Names, samples: &[(StackId, u64)]) -> Option<&'static str> {
    let all: u64 = samples.iter().map(|(_, n)| n).sum();
    let kinds = KINDS.iter().filter(|kind| !kind.kernel).map(|kind| kind.name);
    kinds.into_iter().find(|kind| {
        let within = samples.iter().filter(|(stack, _)| is_within(names, names.stack(*stack), kind));
        2 * within.map(|(_, n)| n).sum::<u64>() > all
    })
}

fn kind_of(profile: &Profile, stack: &ProfileStack) -> Option<usize> {
    at_work(&profile.names, &stack.frames).find_map(|(function, frame, _)| {
        let kernel = profile.names.is_kernel(frame);
        KINDS.iter().position(|kind| {
            kind.kernel == kernel && kind.words.iter().any(|word| has_word(&function.name, word))
        })
    })
}

/// Whether a word of a name starts like this: `_` and `:` end words, and so does a change to upper case.
fn has_word(name: &str, word: &str) -> bool {
    name.match_indices(word).any(|(at, _)| {
        let before = name[..at].chars().next_back();
        let first = word.chars().next();
        match (before, first) {
            (None, _) => true,
            (Some(before), Some(first)) => {
                !before.is_alphanumeric() || (before.is_lowercase() && first.is_uppercase())
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{module::Language, report::fixtures::profile};

    #[test]
    fn a_sample_belongs_to_its_innermost_kind() {
        let profile = profile(&[
            ("main;JsonParser::Parse;v8::internal::Scavenger::Process", 3),
            ("main;JsonParser::Parse;hash", 2),
            ("main;phrases", 7),
            ("main;inflate_fast;__memmove_avx", 1),
        ]);
        let found: Vec<_> = groups(&profile).into_iter().map(|group| (group.name, group.samples)).collect();
        assert_eq!(found, [("garbage collection", 3), ("JSON", 2), ("memory copy", 1)]);
        assert_eq!(samples_of(&profile, "JSON"), 2);
    }

    #[test]
    fn words_begin_where_names_do() {
        assert!(
            has_word("ngx_aes_x", "aes")
                && has_word("v8::internal::JsonParser", "Json")
                && has_word("parseJson", "Json")
        );
        assert!(!has_word("phrases", "aes") && !has_word("reinflate", "inflate"));
    }

    #[test]
    fn the_layers_of_a_server_are_not_what_a_handler_does() {
        let kinds = |stack: &str| {
            let mut profile = profile(&[(stack, 3)]);
            let names = std::rc::Rc::make_mut(&mut profile.names);
            let files = names.modules.iter_mut().filter(|of| of.kind == ModuleKind::File);
            files.for_each(|of| of.kind = ModuleKind::Managed(Language::JavaScript));
            groups(&profile).into_iter().map(|group| group.name).collect::<Vec<_>>()
        };
        assert_eq!(kinds("main;jsonParser;next;findDuplicates"), [""; 0]);
    }
}
