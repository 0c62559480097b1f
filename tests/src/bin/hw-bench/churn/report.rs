//! Medians, what was aimed at, and the JSON.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;

use super::{Options, Sample};
use crate::{report::said, stats::median};

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = median(self.changes_ms.iter().copied());
        let (tasks, full) = (self.tasks, self.full_ms);
        write!(f, "{tasks} tasks: {full:.1} ms in full, {change:.2} ms a change, {:.1} MiB", self.resident_mib)
    }
}

/// Everything that was measured in a run.
pub(super) struct Report {
    options: Options,
    samples: Vec<Sample>,
}

/// Medians of a size.
#[derive(Clone, Copy, Debug, Serialize)]
struct Medians {
    tasks: u32,
    services: u32,
    full_ms: f64,
    full_cpu_ms: f64,
    change_ms: f64,
    change_worst_ms: f64,
    change_cpu_ms: f64,
    idle_cpu: f64,
    resident_mib: f64,
    peak_mib: f64,
    map_bytes_per_task: f64,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), samples: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    fn medians(&self) -> impl Iterator<Item = Medians> {
        self.options.tasks.iter().map(|&tasks| {
            let of = || self.samples.iter().filter(move |sample| sample.tasks == tasks);
            let changes = || of().flat_map(|sample| sample.changes_ms.iter().copied());
            Medians {
                tasks,
                services: of().map(|sample| sample.services).next().unwrap_or(0),
                full_ms: median(of().map(|sample| sample.full_ms)),
                full_cpu_ms: median(of().map(|sample| sample.full_cpu_ms)),
                change_ms: median(changes()),
                change_worst_ms: changes().fold(0.0, f64::max),
                change_cpu_ms: median(of().map(|sample| sample.change_cpu_ms)),
                idle_cpu: median(of().map(|sample| sample.idle_cpu)),
                resident_mib: median(of().map(|sample| sample.resident_mib)),
                peak_mib: of().map(|sample| sample.peak_mib).fold(0.0, f64::max),
                map_bytes_per_task: median(of().map(|sample| sample.map_bytes_per_task)),
            }
        })
    }

    /// (what, value, what it must be less than).
    fn aims(&self) -> Vec<(String, f64, f64)> {
        let of = |tasks| self.medians().find(|medians| medians.tasks == tasks);
        let mut aims = Vec::new();
        if let Some(medians) = of(10_000) {
            aims.push(("a single change at 10,000 tasks, ms".to_owned(), medians.change_ms, 5.0));
        }
        if let Some(medians) = of(50_000) {
            aims.push(("10,000 services with 5 tasks in full, ms".to_owned(), medians.full_ms, 1000.0));
            aims.push(("the agent's resident memory there, MiB".to_owned(), medians.resident_mib, 64.0));
        }
        aims
    }

    /// Writes samples, medians and circumstances; returns where.
    pub(super) fn write(&self, path: Option<&Path>) -> Result<PathBuf> {
        let now = said("date", &["-u", "+%Y%m%dT%H%M%SZ"]);
        let path = crate::outcome::destination("churn", &now, path)?;
        let aims = self.aims().into_iter().map(|(what, is, aim)| json!({"what": what, "is": is, "aim": aim}));
        let text = serde_json::to_string_pretty(&json!({
            "bench": "churn", "time": now, "kernel": said("uname", &["-r"]),
            "commit": said("git", &["rev-parse", "--short", "HEAD"]),
            "agent": hiveway_tests::agent::hiveway()?, "rounds": self.options.rounds,
            "aims": aims.collect::<Vec<_>>(), "medians": self.medians().collect::<Vec<_>>(), "samples": self.samples,
        }))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rounds, changes) = (self.options.rounds, self.options.changes);
        writeln!(f, "\nMedians of {rounds} rounds with {changes} changes each\n")?;
        let head = [
            "services",
            "full ms",
            "CPU ms",
            "change ms",
            "worst",
            "CPU ms",
            "idle CPU %",
            "RSS MiB",
            "peak",
            "map B/task",
        ];
        writeln!(f, "{:>7}{}", "tasks", head.map(|column| format!("{column:>11}")).concat())?;
        for m in self.medians() {
            write!(f, "{:>7}{:>11}{:>11.1}{:>11.0}", m.tasks, m.services, m.full_ms, m.full_cpu_ms)?;
            write!(f, "{:>11.2}{:>11.2}{:>11.1}", m.change_ms, m.change_worst_ms, m.change_cpu_ms)?;
            write!(f, "{:>11.1}{:>11.1}{:>11.1}", 100.0 * m.idle_cpu, m.resident_mib, m.peak_mib)?;
            writeln!(f, "{:>11.0}", m.map_bytes_per_task)?;
        }
        writeln!(f)?;
        for (what, is, aim) in self.aims() {
            writeln!(f, "{what}: {is:.2}, aim {aim:.0}: {}", if is < aim { "met" } else { "MISSED" })?;
        }
        Ok(())
    }
}
