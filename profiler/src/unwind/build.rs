//! From a file to its table.

use std::fs::File;

use object::{ReadCache, ReadRef};

use crate::unwind::{
    eh_frame,
    image::Image,
    outcome::{BuildError, Stats},
    rules::RuleTable,
    table::Table,
};

impl Table {
    /// Builds the table of an open file. Reads no more of it than headers and unwind information, and does not
    /// map it: a file that shrinks meanwhile is an error here, not a signal.
    pub fn read(file: &File, rules: &mut RuleTable) -> Result<Table, BuildError> {
        Self::build(&ReadCache::new(file), rules)
    }

    /// Builds the table of an ELF file, or of an image of one in memory (the vDSO).
    pub fn build<'a, R: ReadRef<'a>>(data: R, rules: &mut RuleTable) -> Result<Table, BuildError> {
        let image = Image::parse(data)?;
        let mut stats = Stats::default();
        let refused = rules.refused();
        let packer = eh_frame::fill(&image, rules, &mut stats)?;
        stats.refused = rules.refused() - refused;
        packer.finish(image.machine, image.base, stats)
    }
}
