//! The heaviest call paths: a tree of functions, from the outside in, without its thin branches.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::report::Profile;

/// Branches with a smaller share of all samples are left out of what is told, 0 to 1.
pub const CUT: f64 = 0.05;

/// A part of a call tree that samples go along without dividing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path<'a> {
    /// How many parts lie outside of this one.
    pub depth: usize,
    /// Its functions, the outermost first.
    pub functions: Vec<&'a str>,
    /// Samples that go through it.
    pub samples: u64,
}

#[derive(Default)]
struct Node<'a> {
    samples: u64,
    children: BTreeMap<&'a str, Node<'a>>,
}

/// Of a function's samples, as many must go on to the same callee for both to be one part.
const UNDIVIDED: f64 = 0.95;

/// The tree of a profile, the heaviest first, without branches of less than `cut` (0 to 1) of all samples.
pub fn paths(profile: &Profile, cut: f64) -> Vec<Path<'_>> {
    let mut root = Node::default();
    for stack in &profile.stacks {
        root.samples += stack.weight;
        let mut node = &mut root;
        for (function, ..) in profile.functions(stack).rev() {
            node = node.children.entry(&function.name).or_default();
            node.samples += stack.weight;
        }
    }
    let least = (profile.total as f64 * cut).max(1.0) as u64;
    let mut found = Vec::new();
    add(&root, 0, least, &mut found);
    found
}

fn add<'a>(node: &Node<'a>, depth: usize, least: u64, found: &mut Vec<Path<'a>>) {
    for (name, mut node) in heaviest(node, least) {
        let samples = node.samples;
        let mut functions = vec![name];
        while let Some((name, next)) = heaviest(node, least).into_iter().next()
            && next.samples as f64 >= UNDIVIDED * samples as f64
        {
            functions.push(name);
            node = next;
        }
        found.push(Path { depth, functions, samples });
        add(node, depth + 1, least, found);
    }
}

fn heaviest<'n, 'a>(node: &'n Node<'a>, least: u64) -> Vec<(&'a str, &'n Node<'a>)> {
    let mut children: Vec<_> = node
        .children
        .iter()
        .filter(|(_, child)| child.samples >= least)
        .map(|(&name, child)| (name, child))
        .collect();
    children.sort_by_key(|(name, child)| (std::cmp::Reverse(child.samples), *name));
    children
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::fixtures::profile;

    #[test]
    fn paths_divide_where_samples_do() {
        let profile = profile(&[("main;run;parse;next", 60), ("main;run;send", 36), ("main;run;rare", 4)]);
        let found: Vec<_> = paths(&profile, 0.05)
            .into_iter()
            .map(|path| (path.depth, path.functions.join(">"), path.samples))
            .collect();
        assert_eq!(
            found,
            [(0, "main>run".into(), 100), (1, "parse>next".into(), 60), (1, "send".into(), 36)]
        );
        assert!(paths(&crate::model::report::fixtures::profile(&[]), 0.05).is_empty());
    }
}
