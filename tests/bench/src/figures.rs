//! What every bench writes: tables, bars of a chart and aims, in one shape, with the machine that they were measured
//! on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{machine::Machine, report::said};

/// A table as it is shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<String>,
    /// Each begins with what it is about.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, head: &[&str]) -> Self {
        Self { title: title.into(), head: head.iter().map(|&column| column.to_owned()).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, about: impl Into<String>, cells: impl IntoIterator<Item = String>) {
        self.rows.push(std::iter::once(about.into()).chain(cells).collect());
    }
}

/// Bars in groups, one colour for each name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) groups: Vec<Group>,
}

/// What is compared directly.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) title: String,
    /// (name, value)
    pub(crate) bars: Vec<(String, f64)>,
}

/// Something to reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Aim {
    pub(crate) what: String,
    /// A median, which decides.
    pub(crate) is: f64,
    /// The lower quartile beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) low: Option<f64>,
    /// Without one the figure is only noted.
    pub(crate) aim: Option<f64>,
    pub(crate) met: bool,
}

impl Aim {
    pub(crate) fn at_least(what: impl Into<String>, is: f64, aim: f64) -> Self {
        Self { what: what.into(), is, low: None, aim: Some(aim), met: is >= aim }
    }

    pub(crate) fn at_most(what: impl Into<String>, is: f64, aim: f64) -> Self {
        Self { met: is <= aim, ..Self::at_least(what, is, aim) }
    }

    /// A figure that stands among the aims, and has none yet.
    pub(crate) fn none(what: impl Into<String>, is: f64) -> Self {
        Self { what: what.into(), is, low: None, aim: None, met: true }
    }

    pub(crate) fn with_low(self, low: f64) -> Self {
        Self { low: Some(low), ..self }
    }

    /// Measured, low, aim, whether it is met: as a report shows them.
    pub(crate) fn cells(&self) -> [String; 4] {
        let number = |number: f64| format!("{number:.2}");
        let optional = |is: Option<f64>| is.map_or_else(String::new, number);
        let verdict = match (self.aim, self.met) {
            (None, _) => "none set",
            (_, true) => "met",
            (_, false) => "**missed**",
        };
        [number(self.is), optional(self.low), optional(self.aim), verdict.to_owned()]
    }
}

/// All of them, as a table.
pub(crate) fn aims(aims: &[Aim]) -> Table {
    let mut table = Table::new("Aims", &["aim", "measured", "low", "aim is", ""]);
    for aim in aims {
        table.row(aim.what.clone(), aim.cells());
    }
    table
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\n{}", self.how)?;
        for table in &self.tables {
            writeln!(f, "\n{table}")?;
        }
        if self.disturbed > 0 {
            let (disturbed, all) = (self.disturbed, self.measurements);
            writeln!(
                f,
                "{disturbed} of {all} measurements were disturbed by others on this machine: not to be trusted\n"
            )?;
        }
        if self.aims.is_empty() { Ok(()) } else { writeln!(f, "{}", aims(&self.aims)) }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.title.is_empty() {
            writeln!(f, "{}", self.title)?;
        }
        let rows = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| rows().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        for row in rows() {
            for (column, cell) in row.iter().enumerate() {
                let width = width(column).unwrap_or(0);
                if column == 0 { write!(f, "{cell:<width$}")? } else { write!(f, "  {cell:>width$}")? }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Everything of a run that is shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) bench: String,
    /// How it was measured, in a line.
    pub(crate) how: String,
    #[serde(default)]
    pub(crate) time: String,
    #[serde(default)]
    pub(crate) commit: String,
    #[serde(default)]
    pub(crate) machine: Machine,
    /// Of how many measurements, and how many of them somebody disturbed.
    pub(crate) measurements: usize,
    pub(crate) disturbed: usize,
    pub(crate) tables: Vec<Table>,
    pub(crate) charts: Vec<Chart>,
    pub(crate) aims: Vec<Aim>,
}

impl Figures {
    /// Writes them, with `more` (samples, options) beside; returns where.
    pub(crate) fn write(mut self, more: Value, path: Option<&Path>) -> Result<PathBuf> {
        self.time = said("date", &["-u", "+%Y%m%dT%H%M%SZ"]);
        self.commit = said("git", &["rev-parse", "--short", "HEAD"]);
        self.machine = Machine::this();
        let path = crate::outcome::destination(&self.bench, &self.time, path)?;
        let mut all = json!(self);
        if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
            all.extend(more);
        }
        fs::write(&path, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} has no figures of a bench", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_met_missed_or_not_set() {
        let cells = |aim: Aim| aim.cells().join("|");
        assert_eq!(cells(Aim::at_least("share", 0.88, 0.88)), "0.88||0.88|met");
        assert_eq!(cells(Aim::at_most("ns", 46.0, 45.0).with_low(44.0)), "46.00|44.00|45.00|**missed**");
        assert_eq!(cells(Aim::none("share", 0.5)), "0.50|||none set");
        // As runs before wrote it.
        let old: Aim = serde_json::from_str(r#"{"what": "ns", "is": 46.0, "aim": 45.0, "met": false}"#).unwrap();
        assert_eq!(cells(old), "46.00||45.00|**missed**");
    }
}
