//! The unwind table of a file, and how it is packed into pages.

use std::{iter::Peekable, vec::IntoIter};

use profiler_common::unwind::{
    self, BUCKET_SHIFT, BUCKETS_PER_PAGE, MAX_BUCKET_ROWS, PAGE_WORDS, Page, ROWS_PER_PAGE, RULE_NO_INFO,
};
use rustc_hash::FxHashMap;

use crate::unwind::{
    image::Machine,
    outcome::{BuildError, Stats},
};

/// Most rows of one table: 32 MiB of them.
const MAX_ROWS: u32 = 1 << 23;

/// The unwind table of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Processor of its code.
    pub machine: Machine,
    /// First virtual address covered; a multiple of a bucket's size.
    pub base: u64,
    /// Buckets covered.
    pub buckets: u32,
    /// Pages of buckets, before the pages of rows.
    pub bucket_pages: u32,
    /// All pages.
    pub pages: Vec<Page>,
    /// Rows, without padding.
    pub rows: u64,
    /// What was met.
    pub stats: Stats,
}

impl Table {
    /// One past the last virtual address covered.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(u64::from(self.buckets) << BUCKET_SHIFT)
    }

    /// Id of the rule at a virtual address; `None` outside the table.
    pub fn find(&self, vaddr: u64) -> Option<u32> {
        let bucket = unwind::bucket_of(vaddr, self.base);
        if bucket >= self.buckets.into() {
            return None;
        }
        let (page, slot) = unwind::bucket_page(bucket as u32);
        let (lo, count) = unwind::decode_bucket(*self.pages.get(page as usize)?.get(slot as usize)?);
        let (page, slot) = unwind::row_page(lo);
        let page = self.pages.get((self.bucket_pages + page) as usize)?;
        Some(unwind::search_rows(page, slot, count, unwind::bucket_offset(vaddr)))
    }

    /// Size of all pages.
    pub fn bytes(&self) -> usize {
        size_of_val(self.pages.as_slice())
    }
}

/// Packs rules that come in the order of addresses into pages.
#[derive(Debug)]
pub(super) struct Packer {
    pages: Vec<Page>,
    bucket_pages: u32,
    buckets: u32,
    /// Bucket being filled.
    bucket: u32,
    /// Its rows.
    current: Vec<(u8, u32)>,
    /// Rule in force.
    rule: u32,
    /// Index of the next row.
    next_row: u32,
    rows: u64,
    /// A row that begins at offset 0, for each rule: serves every bucket that has no other rule.
    whole: FxHashMap<u32, u32>,
    /// What precedes the rules that are set, wherever it has one.
    over: Peekable<IntoIter<(u32, u32)>>,
    /// The rule of it.
    over_rule: u32,
    /// The rule below it.
    below: u32,
}

impl Packer {
    /// For code from the base to `end`, relative to it. Where `over` has a rule, that applies and no other; it has addresses and
    /// the rules from there on, by address.
    pub(super) fn new(end: u32, over: Vec<(u32, u32)>) -> Packer {
        let buckets = (end as u64).div_ceil(unwind::BUCKET_BYTES) as u32;
        let bucket_pages = buckets.div_ceil(BUCKETS_PER_PAGE);
        Packer {
            pages: vec![[0; PAGE_WORDS]; bucket_pages as usize],
            bucket_pages,
            buckets,
            bucket: 0,
            current: vec![(0, RULE_NO_INFO)],
            rule: RULE_NO_INFO,
            next_row: 0,
            rows: 0,
            whole: FxHashMap::default(),
            over: over.into_iter().peekable(),
            over_rule: RULE_NO_INFO,
            below: RULE_NO_INFO,
        }
    }

    /// From `address` (relative to the base) on, `rule` applies. Addresses never go back.
    pub(super) fn set(&mut self, address: u32, rule: u32) -> Result<(), BuildError> {
        self.advance_over(address)?;
        self.below = rule;
        if self.over_rule == RULE_NO_INFO { self.put(address, rule) } else { Ok(()) }
    }

    /// Sets what goes over all else, up to an address.
    fn advance_over(&mut self, address: u32) -> Result<(), BuildError> {
        while let Some((at, rule)) = self.over.next_if(|next| next.0 <= address) {
            self.over_rule = rule;
            self.put(at, if rule == RULE_NO_INFO { self.below } else { rule })?;
        }
        Ok(())
    }

    fn put(&mut self, address: u32, rule: u32) -> Result<(), BuildError> {
        if rule == self.rule || address >> BUCKET_SHIFT >= self.buckets {
            return Ok(());
        }
        self.advance(address >> BUCKET_SHIFT)?;
        let offset = address as u8;
        if let Some(last) = self.current.last_mut()
            && last.0 == offset
        {
            last.1 = rule;
            if let [.., before, _] = self.current.as_slice()
                && before.1 == rule
            {
                self.current.pop();
            }
        } else {
            self.current.push((offset, rule));
        }
        debug_assert!(self.current.is_sorted_by(|a, b| a.0 < b.0));
        self.rule = rule;
        Ok(())
    }

    /// Completes buckets up to the given one.
    fn advance(&mut self, bucket: u32) -> Result<(), BuildError> {
        while self.bucket < bucket {
            self.flush()?;
            self.bucket += 1;
            self.current.clear();
            self.current.push((0, self.rule));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        let count = self.current.len() as u32;
        debug_assert!(count <= MAX_BUCKET_ROWS);
        let first_rule = self.current.first().map_or(RULE_NO_INFO, |row| row.1);
        let lo = match self.whole.get(&first_rule) {
            Some(&lo) if count == 1 => lo,
            _ => {
                let lo = self.append()?;
                self.whole.insert(first_rule, lo);
                lo
            }
        };
        let (page, slot) = unwind::bucket_page(self.bucket);
        if let Some(word) = self.pages.get_mut(page as usize).and_then(|page| page.get_mut(slot as usize)) {
            *word = unwind::encode_bucket(lo, count);
        }
        Ok(())
    }

    /// Writes the current bucket's rows and returns the index of the first.
    fn append(&mut self) -> Result<u32, BuildError> {
        let count = self.current.len() as u32;
        if unwind::row_page(self.next_row).1 + count > ROWS_PER_PAGE {
            self.next_row = self.next_row.next_multiple_of(ROWS_PER_PAGE);
        }
        if self.next_row + count > MAX_ROWS {
            return Err(BuildError::TooLarge("number of rows"));
        }
        let lo = self.next_row;
        let (page, slot) = unwind::row_page(lo);
        let page = (self.bucket_pages + page) as usize;
        while self.pages.len() <= page {
            self.pages.push([0; PAGE_WORDS]);
        }
        let words = &mut self.pages[page];
        for (slot, &(offset, rule)) in (slot..).zip(&self.current) {
            words[slot as usize / 2] |= u64::from(unwind::encode_row(offset, rule)) << (slot % 2 * 32);
        }
        self.next_row += count;
        self.rows += u64::from(count);
        Ok(lo)
    }

    /// All of it.
    pub(super) fn finish(mut self, machine: Machine, base: u64, stats: Stats) -> Result<Table, BuildError> {
        self.advance_over(u32::MAX)?;
        self.advance(self.buckets)?;
        self.pages.shrink_to_fit();
        Ok(Table {
            machine,
            base,
            buckets: self.buckets,
            bucket_pages: self.bucket_pages,
            pages: self.pages,
            rows: self.rows,
            stats,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(end: u32, changes: &[(u32, u32)]) -> Table {
        pack_below(end, changes, &[])
    }

    fn pack_below(end: u32, changes: &[(u32, u32)], over: &[(u32, u32)]) -> Table {
        let mut packer = Packer::new(end, over.to_vec());
        for &(address, rule) in changes {
            packer.set(address, rule).unwrap();
        }
        packer.finish(Machine::X86_64, 0x1000, Stats::default()).unwrap()
    }

    #[test]
    fn buckets_of_one_rule_share_a_row() {
        let table = pack(0x10000, &[(0x10, 5), (0x8000, 6), (0x8010, 0)]);
        // Two in the first bucket, one for those of rule 5 alone, two in the bucket of the changes. What follows
        // shares the first row of the first bucket.
        assert_eq!(table.rows, 2 + 1 + 2);
        assert_eq!(table.find(0x1000), Some(0));
        assert_eq!(table.find(0x1010), Some(5));
        assert_eq!(table.find(0x8fff), Some(5));
        assert_eq!(table.find(0x9000), Some(6));
        assert_eq!(table.find(0x9010), Some(0));
        assert_eq!(table.find(0x10fff), Some(0));
        assert_eq!(table.find(0x11000), None);
        assert_eq!(table.find(0xfff), None);
        assert_eq!(table.end(), 0x11000);
    }

    #[test]
    fn rows_without_effect_are_not_kept() {
        let table = pack(0x100, &[(0, 5), (0x10, 5), (0x20, 6), (0x20, 5)]);
        assert_eq!(table.rows, 1);
        assert_eq!(table.find(0x1020), Some(5));
    }

    proptest! {
        #[test]
        fn every_address_has_the_rule_set_last(
            changes in proptest::collection::btree_map(0u32..0x10000, 0u32..50, 0..3000),
            over in proptest::collection::btree_map(0u32..0x10000, 0u32..4, 0..300),
            end in 1u32..0x10000,
        ) {
            let changes: Vec<(u32, u32)> = changes.into_iter().filter(|&(address, _)| address < end).collect();
            let over: Vec<(u32, u32)> = over.into_iter().filter(|&(address, _)| address < end).collect();
            let table = pack_below(end, &changes, &over);
            let (mut rule, mut over_rule) = (0, 0);
            let (mut next, mut next_over) = (changes.iter().peekable(), over.iter().peekable());
            for address in 0..end {
                while let Some(&(_, changed)) = next.next_if(|change| change.0 <= address) {
                    rule = changed;
                }
                while let Some(&(_, changed)) = next_over.next_if(|change| change.0 <= address) {
                    over_rule = changed;
                }
                let applies = if over_rule == 0 { rule } else { over_rule };
                prop_assert_eq!(table.find(0x1000 + u64::from(address)), Some(applies));
            }
        }
    }
}
