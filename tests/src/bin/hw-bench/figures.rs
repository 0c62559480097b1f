//! What every bench writes: tables, bars of a chart and aims, in one shape, with the machine that they were measured on.

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
    pub(crate) is: f64,
    pub(crate) aim: f64,
    pub(crate) met: bool,
}

impl Aim {
    pub(crate) fn at_least(what: impl Into<String>, is: f64, aim: f64) -> Self {
        Self { what: what.into(), is, aim, met: is >= aim }
    }

    pub(crate) fn at_most(what: impl Into<String>, is: f64, aim: f64) -> Self {
        Self { what: what.into(), is, aim, met: is <= aim }
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, is, aim, met } = self;
        write!(f, "{what}: {is:.2}, aim {aim:.2}: {}", if *met { "met" } else { "MISSED" })
    }
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
        self.aims.iter().try_for_each(|aim| writeln!(f, "{aim}"))
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
