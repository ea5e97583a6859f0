//! Rows of what has ended: the heaviest are kept by themselves, and the others are added up. What lives is bounded by the
//! kernel's maps; what has ended is not, on a machine that starts programs all day.

/// Rows of what has ended that a table keeps by themselves. When there are twice as many, the lightest half goes.
pub const KEPT: usize = 4_096;

/// Of `rows`, each a key and its weight: the keys of the lightest, if there are more than twice as many as are `kept`; the
/// heaviest of those stay. Of equal weight, later keys stay.
pub fn too_light<K: Ord, W: Ord>(rows: impl Iterator<Item = (K, W)>, kept: usize) -> Vec<K> {
    let rows: Vec<(K, W)> = rows.collect();
    if rows.len() <= 2 * kept { Vec::new() } else { lightest(rows.into_iter(), kept) }
}

/// All but the heaviest.
pub fn lightest<K: Ord, W: Ord>(rows: impl Iterator<Item = (K, W)>, kept: usize) -> Vec<K> {
    let mut rows: Vec<(W, K)> = rows.map(|(key, weight)| (weight, key)).collect();
    let light = rows.len().saturating_sub(kept);
    if light == 0 {
        return Vec::new();
    }
    rows.select_nth_unstable(light);
    rows.into_iter().take(light).map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_stay() {
        let rows = |n: u64| (0..n).map(|key| (key, key % 100));
        assert!(
            too_light(rows(2 * KEPT as u64), KEPT).is_empty(),
            "nothing goes before there are twice as many"
        );
        let n = 2 * KEPT as u64 + 1;
        let gone = too_light(rows(n), KEPT);
        assert_eq!(gone.len(), n as usize - KEPT);
        let least_kept = rows(n).filter(|(key, _)| !gone.contains(key)).map(|(_, weight)| weight).min();
        assert!(gone.iter().all(|key| Some(key % 100) <= least_kept));
    }
}
