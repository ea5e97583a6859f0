//! The rules that all tables share. Compilers lay out frames in few ways, so thousands of files need only some
//! thousand rules between them.

use profiler_common::unwind::{MAX_RULES, RULE_END, RULE_NO_INFO, RULE_UNSUPPORTED, Rule};
use rustc_hash::FxHashMap;

/// Rules by id, and ids by rule. Ids are given in order and never taken back, so what was copied to the kernel
/// stays valid.
#[derive(Clone, Debug)]
pub struct RuleTable {
    rules: Vec<Rule>,
    ids: FxHashMap<Rule, u32>,
    refused: u64,
}

impl Default for RuleTable {
    fn default() -> Self {
        Self::new()
    }
}

impl RuleTable {
    /// Only the rules with fixed ids.
    pub fn new() -> RuleTable {
        let mut table = RuleTable { rules: Vec::new(), ids: FxHashMap::default(), refused: 0 };
        for (rule, id) in
            [(Rule::NO_INFO, RULE_NO_INFO), (Rule::END, RULE_END), (Rule::UNSUPPORTED, RULE_UNSUPPORTED)]
        {
            let given = table.intern(rule);
            debug_assert_eq!(given, id);
        }
        table
    }

    /// Id of a rule. Once the table is full, new rules get the id of [`Rule::UNSUPPORTED`].
    pub fn intern(&mut self, rule: Rule) -> u32 {
        if let Some(&id) = self.ids.get(&rule) {
            return id;
        }
        let id = self.rules.len() as u32;
        if id >= MAX_RULES {
            self.refused += 1;
            return RULE_UNSUPPORTED;
        }
        self.rules.push(rule);
        self.ids.insert(rule, id);
        id
    }

    /// Rule of an id.
    pub fn get(&self, id: u32) -> Option<&Rule> {
        self.rules.get(id as usize)
    }

    /// Every rule, in the order of ids.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How often a rule found no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rules_share_an_id_and_a_full_table_says_so() {
        let mut table = RuleTable::new();
        let rule = |offset| Rule { cfa_kind: 3, cfa_offset: offset, ..Rule::default() };
        assert_eq!(table.intern(Rule::END), RULE_END);
        assert_eq!(table.intern(rule(8)), 3);
        assert_eq!(table.intern(rule(16)), 4);
        assert_eq!(table.intern(rule(8)), 3);
        for offset in 0..MAX_RULES as i32 + 10 {
            table.intern(rule(offset));
        }
        assert_eq!(table.rules().len(), MAX_RULES as usize);
        assert_eq!(table.refused(), 13);
        assert_eq!(table.intern(rule(-1)), RULE_UNSUPPORTED);
        assert_eq!(table.get(4), Some(&rule(16)));
        assert_eq!(table.get(MAX_RULES), None);
    }
}
