//! What V8's heap holds, by a sample of its pages, read from outside while the program runs on.
//!
//! Every object begins with a pointer to its map, and objects lie one behind the other: where a word of a page points to a map,
//! an object begins, and it reaches to the next such word. Pages are taken at equal distances out of all the memory that may
//! hold some; those of young objects, most of which are garbage soon, are left out.

use std::{ops::Range, rc::Rc};

use rustc_hash::FxHashMap;

use crate::{
    model::{
        function::Function,
        memory::{HeapClass, HeapKind, HeapSample},
        text,
    },
    process::anonymous::{AnonymousMemory, PAGE},
    runtimes::{
        memory::ForeignMemory,
        v8::{
            V8,
            heap::{Heap, is_pointer, is_string, small_integer},
            metadata::{HEAP_TAG, ObjectsLayout},
        },
    },
};

/// Bytes of a page of V8's heap, at a multiple of which it begins.
const PIECE: u64 = 256 * 1024;
/// Pieces that are read: 96 MB.
const PIECES: usize = 384;
/// Pieces whose beginnings are looked at: 16 GB.
const MOST_PIECES: usize = 65_536;
/// In a piece of so many words that look like pointers to maps and are none, there is no map.
const MOST_MISSES: u32 = 64;
/// Classes that are kept: so many with most bytes, and as many with most objects.
const KEPT: usize = 24;
/// Classes that are given a name at most, those with most objects first.
const NAMED: usize = 400;
/// Properties that stand for a class without a name.
const PROPERTIES: usize = 4;
/// Maps that one goes along to the constructor at most.
const TRANSITIONS: usize = 64;

/// What tells objects from each other before they have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    /// Functions of this SharedFunctionInfo.
    Closure(u64),
    /// Contexts of this ScopeInfo.
    Context(u64),
    /// Objects with this map.
    Map(u64),
}

/// Objects and bytes in the pieces that were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    objects: u64,
    bytes: u64,
    /// Sum of the squares of the objects in each piece: how unevenly they lie.
    squares: u64,
}

/// Which words are pointers to maps, as far as that was asked.
#[derive(Debug, Default)]
struct Maps {
    known: FxHashMap<u64, Option<u16>>,
    /// By piece that was pointed to: maps, and other objects.
    found: FxHashMap<u64, (u32, u32)>,
}

impl Maps {
    /// The instance type of a map's objects, if this is a pointer to a map.
    fn type_of<M: ForeignMemory>(
        &mut self,
        heap: &Heap<'_, M>,
        objects: &ObjectsLayout,
        word: u64,
    ) -> Option<u16> {
        if !is_pointer(word) {
            return None;
        }
        if let Some(known) = self.known.get(&word) {
            return *known;
        }
        let (maps, others) = self.found.entry(word & !(PIECE - 1)).or_default();
        if *maps == 0 && *others >= MOST_MISSES {
            return None;
        }
        let kind = if heap.type_of(word) == Some(objects.map) { heap.type_of_map(word) } else { None };
        *(if kind.is_some() { maps } else { others }) += 1;
        self.known.insert(word, kind);
        kind
    }
}

/// Whether a piece may be a page with objects that are not young, by its first words: flags, which are never all zero, and up to
/// V8 11 the page's size before them (V8's memory-chunk-layout.h).
fn is_old_page([first, second]: [u64; 2]) -> bool {
    /// FROM_PAGE and TO_PAGE: the two halves of the young generation.
    const YOUNG: u64 = 1 << 3 | 1 << 4;
    let is_size = first >= PIECE && first.is_multiple_of(PAGE);
    let flags = if is_size { second } else { first };
    (1..1 << 32).contains(&first) && flags & YOUNG == 0
}

/// Pages that are present, those that follow each other together.
fn runs(present: &[bool]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    present.chunk_by(|a, b| a == b).filter_map(move |run| {
        at += run.len();
        run[0].then_some(at - run.len()..at)
    })
}

/// Counts the objects of a piece, given as its words.
fn count<M: ForeignMemory>(
    words: &[u64],
    heap: &Heap<'_, M>,
    objects: &ObjectsLayout,
    maps: &mut Maps,
    classes: &mut FxHashMap<Class, Counted>,
) -> Counted {
    let mut all = Counted::default();
    let mut add = |(at, kind): (usize, u16), end: usize| {
        let word = |offset: u64| words.get(at + (offset / 8) as usize).copied().unwrap_or(0);
        if Some(kind) == objects.free {
            return;
        }
        let class = if kind == objects.function {
            Class::Closure(word(heap.layout.function_shared))
        } else if (objects.contexts.0..=objects.contexts.1).contains(&kind) {
            Class::Context(word(objects.context_scope))
        } else {
            Class::Map(words[at])
        };
        // A large array goes on in pieces without any object; the last object of a piece ends somewhere.
        let mut bytes = 8 * (end - at) as u64;
        if kind == objects.elements
            && let Some(length) = small_integer(word(8))
        {
            bytes = if end == words.len() { 16 + 8 * length.max(0) as u64 } else { bytes };
        } else if end == words.len() {
            bytes = bytes.min(64);
        }
        for of in [&mut all, classes.entry(class).or_default()] {
            of.objects += 1;
            of.bytes = of.bytes.saturating_add(bytes);
        }
    };
    let mut last = None;
    for (at, &word) in words.iter().enumerate() {
        if let Some(kind) = maps.type_of(heap, objects, word)
            && let Some(before) = last.replace((at, kind))
        {
            add(before, at);
        }
    }
    if let Some(before) = last {
        add(before, words.len());
    }
    all
}

impl<M: ForeignMemory> V8<M> {
    /// Takes a sample of the heap; `None` where the build does not say what it takes, or where there is no heap.
    pub fn sample(&mut self, memory: &AnonymousMemory, time_ns: u64) -> Option<HeapSample> {
        let layout = Rc::clone(&self.layout);
        let objects = layout.objects?;
        let (pieces, of_so_many) = self.pages(memory);
        let looked_at = pieces.len().min(PIECES);
        let mut maps = Maps::default();
        let mut classes: FxHashMap<Class, Counted> = FxHashMap::default();
        let mut bytes = Vec::with_capacity(looked_at);
        // Where the first one is differs from look to look: what lies at equal distances may be alike.
        let begin = time_ns as usize % pieces.len().max(1);
        let mut piece = vec![0; PIECE as usize];
        for n in 0..looked_at {
            let start = pieces[(begin + n * pieces.len() / looked_at) % pieces.len()];
            piece.fill(0);
            let present = memory.present(start, PIECE);
            for pages in runs(&present) {
                let bytes = pages.start * PAGE as usize..pages.end * PAGE as usize;
                let _gone = self.memory.read(start + bytes.start as u64, &mut piece[bytes]);
            }
            let words: Vec<u64> =
                piece.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
            let mut of_piece = FxHashMap::default();
            let heap = Heap { memory: &self.memory, layout: &layout };
            let counted = count(&words, &heap, &objects, &mut maps, &mut of_piece);
            for (class, counted) in of_piece {
                let sum = classes.entry(class).or_default();
                sum.objects += counted.objects;
                sum.bytes = sum.bytes.saturating_add(counted.bytes);
                sum.squares += counted.objects.pow(2);
            }
            bytes.push(counted.bytes as f64);
        }
        if classes.is_empty() {
            return None;
        }
        let n = bytes.len() as f64;
        let scale = of_so_many * pieces.len() as f64 / n;
        let mean = bytes.iter().sum::<f64>() / n;
        let variance = bytes.iter().map(|of| (of - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Some(HeapSample {
            time_ns,
            bytes: scale * bytes.iter().sum::<f64>(),
            bytes_err: scale * (variance * n * (1.0 - 1.0 / scale).max(0.0)).sqrt(),
            classes: self.named(classes, &maps, &objects, (scale, n)),
        })
    }

    /// What may be pages of the heap with objects that are not young, and how many each stands for.
    fn pages(&self, memory: &AnonymousMemory) -> (Vec<u64>, f64) {
        let every = memory.pieces(PIECE).count() / MOST_PIECES + 1;
        let is_page = |start: &u64| {
            memory.present(*start, PAGE) == [true] && self.memory.words(*start).is_some_and(is_old_page)
        };
        (memory.pieces(PIECE).step_by(every).filter(is_page).collect(), every as f64)
    }

    /// The most frequent and the largest classes, each with its name; those with the same name are one.
    fn named(
        &mut self,
        classes: FxHashMap<Class, Counted>,
        maps: &Maps,
        objects: &ObjectsLayout,
        (scale, pieces): (f64, f64),
    ) -> Vec<HeapClass> {
        let mut most: Vec<(Class, Counted)> = classes.into_iter().collect();
        most.sort_unstable_by_key(|(_, counted)| std::cmp::Reverse((counted.objects, counted.bytes)));
        let mut named: FxHashMap<(HeapKind, String, Option<Function>), Counted> = FxHashMap::default();
        for (class, counted) in most.into_iter().take(NAMED) {
            let name = match class {
                Class::Closure(shared) => self.closure(shared),
                Class::Context(scope) => {
                    let heap = Heap { memory: &self.memory, layout: &self.layout };
                    let name = heap.scope_name(scope).unwrap_or_else(|| "(anonymous)".to_owned());
                    (HeapKind::Variables, name, None)
                }
                Class::Map(map) => {
                    let kind = maps.known.get(&map).copied().flatten().unwrap_or(0);
                    self.object(map, kind, objects)
                }
            };
            let name = (name.0, text::clean_text(&name.1).into_owned(), name.2.map(Function::cleaned));
            let sum = named.entry(name).or_default();
            sum.objects += counted.objects;
            sum.bytes = sum.bytes.saturating_add(counted.bytes);
            // Several maps of one class lie in the same pieces: this is the most that it can be.
            sum.squares +=
                counted.squares + 2 * ((sum.squares as f64 * counted.squares as f64).sqrt() as u64);
        }
        let error = |of: &Counted| {
            let mean = of.objects as f64 / pieces;
            let squares = (of.squares as f64 - pieces * mean * mean).max(of.objects as f64);
            // Where every page was looked at, there is no error.
            scale * (squares * (1.0 - 1.0 / scale).max(0.0)).sqrt()
        };
        let mut all: Vec<HeapClass> = named
            .into_iter()
            .map(|((kind, name, function), counted)| HeapClass {
                kind,
                name,
                function,
                count: scale * counted.objects as f64,
                count_err: error(&counted),
                bytes: scale * counted.bytes as f64,
            })
            .collect();
        all.sort_by(|a, b| b.count.total_cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        let mut rest = all.split_off(all.len().min(KEPT));
        rest.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        all.extend(rest.into_iter().take(KEPT));
        all.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        all
    }

    fn closure(&mut self, shared: u64) -> (HeapKind, String, Option<Function>) {
        let Some(function) = self.function(shared) else {
            return (HeapKind::Internal, String::new(), None);
        };
        let function = function.at(None);
        (HeapKind::Closures, function.name.clone(), Some(function))
    }

    /// What objects with a map are.
    fn object(
        &mut self,
        map: u64,
        kind: u16,
        objects: &ObjectsLayout,
    ) -> (HeapKind, String, Option<Function>) {
        if is_string(kind) {
            return (HeapKind::Strings, String::new(), None);
        }
        if kind == objects.elements {
            return (HeapKind::Elements, String::new(), None);
        }
        let internal = || (HeapKind::Internal, String::new(), None);
        let layout = Rc::clone(&self.layout);
        let heap = Heap { memory: &self.memory, layout: &layout };
        let mut made_by = heap.field(map, objects.constructor);
        for _ in 0..TRANSITIONS {
            match made_by {
                Some(before) if heap.type_of(before) == Some(objects.map) => {
                    made_by = heap.field(before, objects.constructor);
                }
                _ => break,
            }
        }
        let shared = made_by.and_then(|constructor| heap.field(constructor, layout.function_shared));
        let properties = heap.properties(map, objects, PROPERTIES);
        let Some(constructor) = shared.and_then(|shared| self.function(shared)) else { return internal() };
        let function = constructor.at(None);
        let own = function.file.as_ref().is_some_and(|file| !file.starts_with("node:"));
        let class = function.name.trim_end_matches(" (builtin)").to_owned();
        let name = match (class.as_str(), properties) {
            ("Object", Some(properties)) => properties,
            ("FastBuffer", _) => "Buffer".to_owned(),
            _ => class,
        };
        (HeapKind::Objects, name, own.then_some(function))
    }
}

impl<M: ForeignMemory> Heap<'_, M> {
    /// The first properties of objects with a map: `{a, b, …}`.
    fn properties(&self, map: u64, objects: &ObjectsLayout, most: usize) -> Option<String> {
        let (bits, mask, shift) = objects.own_descriptors;
        let number = (self.memory.u32((map - HEAP_TAG).checked_add(bits)?)? & mask) >> shift;
        let descriptors = self.field(map, objects.descriptors).filter(|of| is_pointer(*of))?;
        let name = |index: u64| self.name(self.field(descriptors, objects.first_descriptor + 24 * index)?);
        let mut names: Vec<String> = (0..u64::from(number).min(most as u64)).filter_map(name).collect();
        if names.is_empty() {
            return None;
        }
        if number as usize > most {
            names.push("…".to_owned());
        }
        Some(format!("{{{}}}", names.join(", ")))
    }

    /// The name of a scope's function.
    fn scope_name(&self, scope: u64) -> Option<String> {
        if self.type_of(scope)? != self.layout.types.scope_info {
            return None;
        }
        self.scope_info(scope)?.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::runtimes::memory::fake::Noise;

    #[test]
    fn pages_of_young_objects_are_left_out() {
        // As seen in V8 11.3 (size, flags) and in 12.4 and 13.6 (flags).
        for old in
            [[0x40000, 0x6], [0x61000, 0x26], [0x4, 0x7f10_0004_0000], [0x8204, 0x3511_ddf0], [0x104, 0]]
        {
            assert!(is_old_page(old), "{old:x?}");
        }
        for other in
            [[0x40000, 0x12], [0x40000, 0xa], [0x800a, 1], [0x4_0012, 1], [0, 0], [0x7f10_0004_0000, 4]]
        {
            assert!(!is_old_page(other), "{other:x?}");
        }
    }

    #[test]
    fn pages_that_are_there_are_read_together() {
        let present = [false, true, true, false, true];
        assert_eq!(runs(&present).collect::<Vec<_>>(), [1..3, 4..5]);
        assert_eq!(runs(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn any_memory_is_survived(seed: u64, words in prop::collection::vec(any::<u64>(), 0..2000)) {
            let layout = crate::runtimes::v8::tests::layout([11, 3, 244]);
            let memory = Noise(seed);
            let heap = Heap { memory: &memory, layout: &layout };
            let objects = layout.objects.unwrap();
            let mut maps = Maps::default();
            let mut classes = FxHashMap::default();
            let all = count(&words, &heap, &objects, &mut maps, &mut classes);
            prop_assert_eq!(all.objects, classes.values().map(|of: &Counted| of.objects).sum::<u64>());
            let bytes = classes.values().fold(0u64, |sum, of| sum.saturating_add(of.bytes));
            prop_assert_eq!(all.bytes, bytes);
        }
    }
}
