//! Tables of processes with a bound: who has ended gives place to who lives.

use std::collections::BTreeMap;

/// Whether there is room for `pid` in a table of at most `most` processes. Where it is full, the one that has ended and is
/// worth least goes: `ended` tells its worth, and nothing of those that live. It is handed to `left`.
pub fn make_room<T>(
    processes: &mut BTreeMap<u32, T>,
    most: usize,
    pid: u32,
    ended: impl Fn(u32, &T) -> Option<u64>,
    left: impl FnOnce(u32, T),
) -> bool {
    if processes.len() < most || processes.contains_key(&pid) {
        return true;
    }
    let worth = processes.iter().filter_map(|(&pid, of)| Some((ended(pid, of)?, pid)));
    let Some((_, least)) = worth.min() else { return false };
    if let Some(of) = processes.remove(&least) {
        left(least, of);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_and_is_worth_least_goes() {
        let mut processes = BTreeMap::from([(1, Some(7)), (2, Some(3)), (3, None)]);
        let mut gone = Vec::new();
        let mut room = |processes: &mut BTreeMap<u32, Option<u64>>, pid| {
            make_room(processes, 3, pid, |_, of| *of, |pid, of| gone.push((pid, of)))
        };
        assert!(room(&mut processes, 3), "it has its place");
        assert!(room(&mut processes, 4));
        processes.insert(4, None);
        assert!(room(&mut processes, 5));
        processes.insert(5, None);
        assert!(!room(&mut processes, 6), "all live");
        assert_eq!(gone, [(2, Some(3)), (1, Some(7))]);
    }
}
