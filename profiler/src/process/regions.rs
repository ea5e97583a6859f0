//! Regions of memory that code without a file was seen in.

use std::collections::BTreeMap;

/// Regions of memory, none close to another.
#[derive(Debug, Default)]
pub struct Regions(BTreeMap<u64, u64>);

impl Regions {
    /// Pages between two mappings that are still one region: guards, data, and what is being written just now.
    const GAP_BYTES: u64 = 4 << 20;
    const AT_MOST: usize = 1024;

    /// Adds a range; what is close to it becomes one with it.
    pub fn add(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end.max(start));
        while let Some((&first, &last)) = self.0.range(..=end.saturating_add(Self::GAP_BYTES)).next_back()
            && last.saturating_add(Self::GAP_BYTES) >= start
        {
            self.0.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        if self.0.len() < Self::AT_MOST {
            self.0.insert(start, end);
        }
    }

    /// Where the region of an address starts.
    pub fn find(&self, address: u64) -> Option<u64> {
        let (&start, &end) = self.0.range(..=address).next_back()?;
        (address < end).then_some(start)
    }
}
