//! Medians, what was aimed at, and the JSON.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::{Options, Sample};
use crate::{
    figures::{Aim, Chart, Figures, Group, Table},
    stats::median,
};

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = median(self.changes_ms.iter().copied());
        let (tasks, full) = (self.tasks, self.full_ms);
        let programming = median(self.programming_ms.iter().copied());
        write!(
            f,
            "{tasks} tasks: {full:.1} ms in full, {change:.2} ms a change, {programming:.2} of them for the maps, "
        )?;
        write!(f, "{:.1} MiB", self.resident_mib)
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
    full_programming_ms: f64,
    full_cpu_ms: f64,
    change_ms: f64,
    change_worst_ms: f64,
    programming_ms: f64,
    programming_worst_ms: f64,
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
            let programming = || of().flat_map(|sample| sample.programming_ms.iter().copied());
            Medians {
                tasks,
                services: of().map(|sample| sample.services).next().unwrap_or(0),
                full_ms: median(of().map(|sample| sample.full_ms)),
                full_programming_ms: median(of().map(|sample| sample.full_programming_ms)),
                full_cpu_ms: median(of().map(|sample| sample.full_cpu_ms)),
                change_ms: median(changes()),
                change_worst_ms: changes().fold(0.0, f64::max),
                programming_ms: median(programming()),
                programming_worst_ms: programming().fold(0.0, f64::max),
                change_cpu_ms: median(of().map(|sample| sample.change_cpu_ms)),
                idle_cpu: median(of().map(|sample| sample.idle_cpu)),
                resident_mib: median(of().map(|sample| sample.resident_mib)),
                peak_mib: of().map(|sample| sample.peak_mib).fold(0.0, f64::max),
                map_bytes_per_task: median(of().map(|sample| sample.map_bytes_per_task)),
            }
        })
    }

    fn aims(&self) -> Vec<Aim> {
        let of = |tasks| self.medians().find(|medians| medians.tasks == tasks);
        let mut aims = Vec::new();
        if let Some(medians) = of(10_000) {
            aims.push(Aim::at_most("a single change at 10,000 tasks in the maps, ms", medians.programming_ms, 5.0));
        }
        if let Some(medians) = of(50_000) {
            aims.push(Aim::at_most("10,000 services with 5 tasks in full, ms", medians.full_ms, 1000.0));
            aims.push(Aim::at_most("the agent's resident memory there, MiB", medians.resident_mib, 64.0));
        }
        aims
    }

    fn table(&self) -> Table {
        let head = [
            "tasks",
            "services",
            "full ms",
            "for maps",
            "CPU ms",
            "change ms",
            "worst",
            "for maps",
            "worst",
            "CPU ms",
            "idle CPU %",
            "RSS MiB",
            "peak",
            "map B/task",
        ];
        let mut table = Table::new("", &head);
        for m in self.medians() {
            let one = |value: f64| format!("{value:.1}");
            let two = |value: f64| format!("{value:.2}");
            table.row(
                m.tasks.to_string(),
                [
                    m.services.to_string(),
                    one(m.full_ms),
                    one(m.full_programming_ms),
                    format!("{:.0}", m.full_cpu_ms),
                    two(m.change_ms),
                    two(m.change_worst_ms),
                    two(m.programming_ms),
                    two(m.programming_worst_ms),
                    one(m.change_cpu_ms),
                    one(100.0 * m.idle_cpu),
                    one(m.resident_mib),
                    one(m.peak_mib),
                    format!("{:.0}", m.map_bytes_per_task),
                ],
            );
        }
        table
    }

    fn chart(&self) -> Chart {
        let bars =
            |figure: fn(&Medians) -> f64| self.medians().map(|m| (format!("{} tasks", m.tasks), figure(&m))).collect();
        Chart {
            title: "A change of one task, until the maps show it".into(),
            unit: "ms; less is better".into(),
            groups: vec![
                Group { title: "From knowing the table".into(), bars: bars(|m| m.programming_ms) },
                Group {
                    title: "From the file's new name, reading it whole included".into(),
                    bars: bars(|m| m.change_ms),
                },
            ],
        }
    }

    fn figures(&self) -> Figures {
        let (rounds, changes) = (self.options.rounds, self.options.changes);
        Figures {
            bench: "churn".into(),
            how: format!("Medians of {rounds} rounds with {changes} changes each."),
            measurements: self.samples.len(),
            tables: vec![self.table()],
            charts: vec![self.chart()],
            aims: self.aims(),
            ..Figures::default()
        }
    }

    /// Writes samples, medians and circumstances; returns where.
    pub(super) fn write(&self, path: Option<&Path>) -> Result<PathBuf> {
        let more = json!({
            "agent": hiveway_tests::agent::hiveway()?,
            "medians": self.medians().collect::<Vec<_>>(), "samples": self.samples,
        });
        self.figures().write(more, path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.figures())
    }
}
