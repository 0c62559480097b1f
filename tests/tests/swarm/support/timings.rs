//! How long things took, over all stories.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

/// What took how long, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Timings(BTreeMap<String, Vec<u64>>);

impl Timings {
    /// Adds a sample.
    pub(crate) fn note(&mut self, what: &str, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.0.entry(what.to_owned()).or_default().push(millis);
    }

    /// A line per kind, for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.rows()
            .map(|(what, n, min, median, max)| format!("{what}: median {median} ms, {min} to {max} ms ({n})"))
            .collect()
    }

    /// A list, for programs.
    pub(crate) fn json(&self) -> Value {
        let row = |(what, samples, min, median, max)| json!({"what": what, "samples": samples, "min_ms": min, "median_ms": median, "max_ms": max});
        self.rows().map(row).collect()
    }

    fn rows(&self) -> impl Iterator<Item = (&str, usize, u64, u64, u64)> {
        self.0.iter().filter_map(|(what, samples)| {
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            let (min, max) = (*sorted.first()?, *sorted.last()?);
            Some((what.as_str(), sorted.len(), min, *sorted.get(sorted.len() / 2)?, max))
        })
    }
}
