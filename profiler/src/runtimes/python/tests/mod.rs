use proptest::prelude::*;

use super::*;
use crate::runtimes::{
    memory::fake::{FakeMemory, Noise},
    python::{
        layout::{DEBUG_WORDS, Layout},
        objects::Types,
    },
};

mod live;

const VERSIONS: [(u8, u8); 5] = [(3, 8), (3, 9), (3, 10), (3, 11), (3, 12)];
const TYPES: Types = Types { code: 0x1000, text: 0x2000 };

fn put_text(memory: &mut FakeMemory, at: u64, state: u64, start: u64, length: u64, bytes: &[u8]) {
    memory.put_words(at, &[1, TYPES.text, length, 77, state]);
    memory.put(at + start, bytes);
}

/// A code object of 3.12 in line 7, with a name, in some file.
fn put_code(memory: &mut FakeMemory, at: u64, name: &str) {
    let ascii = 1 << 2 | 1 << 5 | 1 << 6;
    put_text(memory, at + 0x1000, ascii, 40, name.len() as u64, name.as_bytes());
    put_text(memory, at + 0x2000, ascii, 40, 6, b"job.py");
    memory.put_words(at + 0x3000, &[1, 0x3000, 3, 0]);
    memory.put(at + 0x3000 + 32, &[0x80 | 11 << 3 | 3, 0, 0]); // four units of the next line
    memory.put_words(at, &[0; 20]);
    memory.put_words(at + 8, &[TYPES.code]);
    memory.put(at + 68, &7i32.to_ne_bytes());
    memory.put_words(at + 112, &[at + 0x2000, 0, at + 0x1000, at + 0x3000]);
}

fn loops(version: (u8, u8)) -> Loops {
    let build = CpythonBuild {
        version,
        runtime: 0x100,
        code_type: 0,
        text_type: 0,
        loops: std::iter::once(0x10..0x20).collect(),
    };
    Loops { module: ModuleId(0), build: Rc::new(build) }
}

fn python<M: ForeignMemory>(memory: M, version: (u8, u8)) -> Python<M> {
    let interpreter = Interpreter { layout: Layout::known(version).unwrap(), types: TYPES, runtime: 0x100 };
    Python::new(memory, interpreter, loops(version))
}

#[test]
fn code_that_is_replaced_gets_its_new_name() {
    let mut memory = FakeMemory::default();
    put_code(&mut memory, 0x1_0000, "old_name");
    put_code(&mut memory, 0x2_0000, "new");
    let mut python = python(memory, (3, 12));
    let old = python.function(0x1_0000, 0).unwrap();
    assert_eq!((old.name.as_str(), old.file.as_deref()), ("old_name", Some("job.py")));
    assert_eq!((old.line, old.start), (Some(8), Some(Start { line: 7, column: 1 })));
    assert_eq!(python.function(0x1_0000, 100).unwrap().line, Some(7), "past the table: where it begins");

    let name = python.memory.u64(0x2_0000 + 128).unwrap();
    python.memory.put_words(0x1_0000 + 128, &[name]);
    python.new_round();
    assert_eq!(python.function(0x1_0000, 0).unwrap().name, "new");
    python.memory.put_words(0x1_0000 + 8, &[TYPES.text]);
    python.new_round();
    assert_eq!(python.function(0x1_0000, 0), None, "no code any more");
}

#[test]
fn what_ran_last_has_its_name_when_the_program_has_ended() {
    let mut memory = FakeMemory::default();
    put_code(&mut memory, 0x1_0000, "last");
    let mut python = python(memory, (3, 12));
    let last = python.function(0x1_0000, 0);
    assert!(last.is_some());
    python.memory.ended = true;
    for _ in 0..3 {
        python.new_round();
        assert_eq!(python.function(0x1_0000, 0), last);
        assert_eq!(python.function(0x2_0000, 0), None, "never seen");
    }
}

#[test]
fn strings_of_each_width() {
    let mut memory = FakeMemory::default();
    let (compact, ascii, moved) = (1 << 5, 1 << 6, 14);
    put_text(&mut memory, 0x100, 0xab00_0000 | 1 << 2 | compact | ascii, 40, 2, b"ab"); // its upper bits are not set by anybody
    put_text(&mut memory, 0x200, 1 << 2 | compact, 56, 2, &[b'a', 0xfc]);
    put_text(&mut memory, 0x300, 2 << 2 | compact, 56, 1, &[0x66, 0x5d]);
    put_text(&mut memory, 0x400, 4 << 2 | compact, 56, 1, &[0x00, 0xf4, 0x01, 0x00]);
    put_text(&mut memory, 0x500, (1 << 2 | compact | ascii) << moved, 40, 2, b"xy");
    put_text(&mut memory, 0x600, 1 << 2, 40, 2, b"ab"); // not compact
    put_text(&mut memory, 0x700, 1 << 2 | compact | ascii, 40, u64::MAX, b"ab");
    let layout = Layout::known((3, 12)).unwrap();
    let objects = Objects { memory: &memory, layout: &layout, types: TYPES };
    let text = |at| objects.text(at);
    let read = [0x100, 0x200, 0x300, 0x400, 0x500].map(|at| text(at).unwrap_or_default());
    assert_eq!(read, ["ab", "aü", "嵦", "🐀", "xy"]);
    assert_eq!([0x600, 0x700, 0x800].map(text), [None, None, None]);
}

#[test]
fn what_an_interpreter_tells_of_itself_is_checked() {
    let mut words = [8u64; DEBUG_WORDS];
    words[0] = u64::from_ne_bytes(*b"xdebugpy");
    (words[1], words[2]) = (0x030d_00f0, 0);
    assert!(Layout::told((3, 13), &words).is_ok());
    assert!(Layout::told((3, 14), &words).is_err(), "another version");
    let refused = |index: usize, word: u64| {
        let mut words = words;
        words[index] = word;
        Layout::told((3, 13), &words).is_err()
    };
    assert!(refused(0, 1) && refused(2, 1) && refused(33, 80) && refused(43, u64::MAX));
}

/// The beginning of what 3.14.10 says.
#[rustfmt::skip]
const TOLD_BY_3_14: [u64; 81] = [
    8_750_607_829_840_520_312, 0x030e_0af0, 0, 316_616, 784, 808, 225_864, 7280, 7272, 7344, 7360, 7408, 7688, 7672, 7680, 16,
    7784, 0, 7800, 7792, 7992, 0, 832, 0, 8, 16, 72, 152, 160, 232, 32, 88, 8, 0, 56, 80, 74, 64, 0, 216, 112, 120, 128, 136, 68,
    52, 96, 104, 208, 0, 16, 8, 416, 24, 88, 168, 40, 32, 16, 40, 24, 16, 200, 24, 40, 32, 48, 32, 40, 24, 16, 32, 16, 24, 40, 16,
    32, 64, 32, 16, 40,
];

#[test]
fn the_newest_interpreter_tells_where_things_are() {
    let mut words = [0; DEBUG_WORDS];
    words[..TOLD_BY_3_14.len()].copy_from_slice(&TOLD_BY_3_14);
    let layout = Layout::told((3, 14), &words).unwrap();
    let frames = &layout.frames;
    assert_eq!((layout.interpreters, layout.next_interpreter, layout.first_thread), (808, 7272, 7344));
    assert_eq!((layout.next_thread, layout.thread_pointer, frames.frame), (8, 152, 72));
    assert_eq!((frames.caller, frames.code, frames.position, frames.boundary), (8, 0, 56, 74));
    assert_eq!((frames.instructions, layout.file, layout.name), (208, 112, 128));
    assert_eq!((layout.first_line, layout.lines, layout.ascii, layout.wide), (68, 136, 40, 56));
}

/// The merged stack as `Runtimes::name` puts it together: letters are native frames, digits are Python's.
fn put_together(merged: &[Merged], natives: usize) -> String {
    let mut name = |index: usize| Function { name: index.to_string(), ..Function::default() };
    let replaced: FxHashMap<usize, Replacement> =
        replacements(merged, natives, &mut name).into_iter().collect();
    let mut text = String::new();
    for index in 0..natives {
        let letter = char::from(b'a' + index as u8);
        let Some(by) = replaced.get(&index) else {
            text.push(letter);
            continue;
        };
        text.extend((by.native == Native::Inner).then_some(letter));
        text.extend(by.frames.iter().map(|functions| functions[0].name.as_str()));
        text.extend((by.native == Native::Outer).then_some(letter));
    }
    text
}

#[test]
fn merged_stacks_are_put_together() {
    use Merged::{Native as N, Python as P};
    assert_eq!(put_together(&[N(0), P(0), P(1), N(2)], 3), "a01c");
    assert_eq!(put_together(&[P(0), P(1), N(2)], 3), "01c", "two loops in place of one another");
    assert_eq!(put_together(&[P(0), N(0), N(1)], 2), "0ab");
    assert_eq!(put_together(&[N(0), N(1), P(0), P(1)], 2), "ab01");
    assert_eq!(put_together(&[N(0), P(0), N(2), P(1)], 4), "a0c1");
}

proptest! {
    #[test]
    fn nothing_in_memory_does_harm(seed: u64, version in 0usize..5, code: u64, position: u32) {
        let mut python = python(Noise(seed), VERSIONS[version]);
        for _ in 0..3 {
            python.new_round();
            let _named = python.function(code >> 17, position);
        }
        let layout = Layout::known(VERSIONS[version]).unwrap();
        let _frame = attach::read_frame(&Noise(seed), &layout.frames, code);
    }

    #[test]
    fn whatever_an_interpreter_tells_is_survived(seed: u64, words: Vec<u64>, version in 8u8..15, bias: u64) {
        let _attached = attach::attach(&Noise(seed), &loops((3, version)).build, bias);
        let mut told = [0; DEBUG_WORDS];
        told.iter_mut().zip(words).for_each(|(told, word)| *told = word);
        (told[0], told[1]) = (u64::from_ne_bytes(*b"xdebugpy"), u64::from(version) << 16 | 3 << 24);
        let _layout = Layout::told((3, version), &told);
    }
}
