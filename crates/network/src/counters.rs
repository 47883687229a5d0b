//! Counters by name.

use std::collections::BTreeMap;

use backend::Counter;

/// Counters by name; a name is made by its first use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// Counts one.
    pub(crate) fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts several.
    pub(crate) fn add(&mut self, name: &'static str, by: u64) {
        *self.0.entry(name).or_default() += by;
    }

    /// All of them, each name with `prefix` before it.
    pub(crate) fn list(&self, prefix: &str) -> Vec<Counter> {
        let all = self.0.iter();
        all.map(|(name, count)| Counter { name: format!("{prefix}{name}"), count: *count })
            .collect()
    }

    /// One of them.
    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}
