//! One stack out of two: native frames, and Python's. Each call of the interpreter's loop is a native frame, and runs a
//! group of Python frames: one up to 3.10, then as many as have called each other without C code in between.

/// A Python frame, as far as its place in the stack goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Calls of the interpreter's loop that begin with it: it is the outermost of its group. More than one: those
    /// further out run no frame any more.
    pub begins: u32,
}

/// How sure it is that a list reaches the outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The native frames do.
    pub native: bool,
    /// Python's do.
    pub python: bool,
}

/// A frame of the merged stack, by its place in one of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// A native frame.
    Native(usize),
    /// A Python frame.
    Python(usize),
}

/// The merged stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Its frames, innermost first. Native frames of the interpreter's loop are replaced by what they ran.
    pub frames: Vec<Merged>,
    /// The lists contradict each other: Python's frames are innermost, whatever is between them.
    pub unplaced: bool,
}

/// Merges the lists, both innermost first. `is_loop` tells of each native frame whether it is the interpreter's loop.
pub fn merge(is_loop: &[bool], python: &[Placed], whole: Whole) -> Stack {
    let loops: Vec<usize> = (0..is_loop.len()).filter(|&index| is_loop[index]).collect();
    let groups = groups(python, loops.len() + 1);
    // The loop that a group belongs to is the one `shift` places further out.
    let shift = match (loops.len(), groups.len()) {
        (loops, groups) if loops == groups => 0,
        // The innermost call of the loop has no frame yet, or none any more.
        (loops, groups) if loops == groups + 1 && whole.native && whole.python => 1,
        // The lists are cut off: they agree at their inner end.
        (loops, groups) if loops > groups && !whole.python => 0,
        (loops, groups) if loops < groups && !whole.native => 0,
        _ => return unplaced(is_loop.len(), python.len()),
    };

    let mut frames = Vec::with_capacity(is_loop.len() + python.len());
    let mut next_loop = 0usize;
    for (index, is_loop) in is_loop.iter().enumerate() {
        if !is_loop {
            frames.push(Merged::Native(index));
            continue;
        }
        match next_loop.checked_sub(shift).and_then(|group| groups.get(group)) {
            Some(group) if !group.is_empty() => frames.extend(group.clone().map(Merged::Python)),
            _ => frames.push(Merged::Native(index)),
        }
        next_loop += 1;
    }
    for group in groups.iter().skip(next_loop - shift.min(next_loop)) {
        frames.extend(group.clone().map(Merged::Python));
    }
    Stack { frames, unplaced: false }
}

/// Groups of frames, innermost first. Not more empty ones than there can be a use for.
fn groups(python: &[Placed], most_empty: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let mut start = 0;
    for (index, placed) in python.iter().enumerate() {
        if placed.begins > 0 {
            groups.push(start..index + 1);
            start = index + 1;
            let empty = most_empty.min(placed.begins as usize - 1);
            groups.extend(std::iter::repeat_n(start..start, empty));
        }
    }
    if start < python.len() {
        groups.push(start..python.len());
    }
    groups
}

fn unplaced(native: usize, python: usize) -> Stack {
    let frames = (0..python).map(Merged::Python).chain((0..native).map(Merged::Native));
    Stack { frames: frames.collect(), unplaced: true }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WHOLE: Whole = Whole { native: true, python: true };

    fn placed(begins: &[u32]) -> Vec<Placed> {
        begins.iter().map(|&begins| Placed { begins }).collect()
    }

    /// `e`: the loop; other letters: native code. Digits in the result: Python frames.
    fn merged(native: &str, begins: &[u32], whole: Whole) -> (String, bool) {
        let is_loop: Vec<bool> = native.chars().map(|c| c == 'e').collect();
        let stack = merge(&is_loop, &placed(begins), whole);
        let letters: Vec<char> = native.chars().collect();
        let text = stack.frames.iter().map(|frame| match *frame {
            Merged::Native(index) => letters[index],
            Merged::Python(index) => char::from(b'0' + index as u8),
        });
        (text.collect(), stack.unplaced)
    }

    #[test]
    fn groups_replace_the_calls_that_ran_them() {
        let placed = |text: &str| (text.to_owned(), false);
        assert_eq!(merged("caeben", &[1, 0, 1], WHOLE), placed("ca0b12n"));
        assert_eq!(merged("een", &[1, 1], WHOLE), placed("01n"));
        assert_eq!(merged("abn", &[], WHOLE), placed("abn"), "no Python");
        assert_eq!(
            merged("ebeben", &[1, 2], WHOLE),
            placed("0b1ben"),
            "a call between its last frame and its end"
        );
        assert_eq!(merged("ebeben", &[1, 0, 1], WHOLE), placed("eb0b12n"), "a call before its first frame");
    }

    #[test]
    fn lists_that_are_cut_off_agree_at_their_inner_end() {
        let cut_python = Whole { native: true, python: false };
        assert_eq!(merged("aeben", &[0, 1, 0, 0], cut_python).0, "a01b23n");
        assert_eq!(merged("aeben", &[0, 0], cut_python).0, "a01ben");
        let cut_native = Whole { native: false, python: true };
        assert_eq!(merged("aeb", &[1, 1, 0, 1], cut_native).0, "a0b123");
        assert_eq!(merged("ab", &[0, 1], cut_native).0, "ab01");
    }

    #[test]
    fn lists_that_contradict_each_other_are_told() {
        assert_eq!(merged("aen", &[1, 1], WHOLE), ("01aen".to_owned(), true));
        assert_eq!(merged("eeen", &[1], WHOLE), ("0eeen".to_owned(), true));
    }

    proptest! {
        /// A true call tree, as the interpreter would run it.
        #[test]
        fn what_was_called_comes_back_in_its_order(calls in prop::collection::vec((0usize..3, 1usize..4), 0..8)) {
            let (mut is_loop, mut python, mut truth) = (vec![], vec![], vec![]);
            for (native, group) in calls {
                for _ in 0..native {
                    truth.push(Merged::Native(is_loop.len()));
                    is_loop.push(false);
                }
                is_loop.push(true);
                for i in 0..group {
                    truth.push(Merged::Python(python.len()));
                    python.push(Placed { begins: u32::from(i + 1 == group) });
                }
            }
            truth.push(Merged::Native(is_loop.len()));
            is_loop.push(false);
            let stack = merge(&is_loop, &python, WHOLE);
            prop_assert_eq!((stack.frames, stack.unplaced), (truth, false));
        }

        /// Whatever is said of them: no Python frame is lost or doubled, no order changes.
        #[test]
        fn all_python_frames_stay_in_order(
            is_loop in prop::collection::vec(any::<bool>(), 0..20),
            begins in prop::collection::vec(prop_oneof![0u32..3, Just(u32::MAX)], 0..20),
            native: bool,
            whole: bool,
        ) {
            let stack = merge(&is_loop, &placed(&begins), Whole { native, python: whole });
            let python: Vec<usize> = stack.frames.iter().filter_map(|frame| match frame {
                Merged::Python(index) => Some(*index),
                Merged::Native(_) => None,
            }).collect();
            prop_assert_eq!(python, (0..begins.len()).collect::<Vec<_>>());
            let natives: Vec<usize> = stack.frames.iter().filter_map(|frame| match frame {
                Merged::Native(index) => Some(*index),
                Merged::Python(_) => None,
            }).collect();
            prop_assert!(natives.is_sorted());
            // Only frames of the loop are replaced.
            for (index, is_loop) in is_loop.iter().enumerate() {
                prop_assert!(*is_loop || natives.contains(&index));
            }
        }
    }
}
