//! The table in force, and what became of newer ones.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hiveway_core::{
    Model,
    linger::{DEFAULT_LINGER, Linger},
    table::Reserved,
};

use super::shared::Refused;
use crate::source::{LoadError, Loaded, Source, Stamp, load, stamps};

/// The table in force.
#[derive(Debug)]
pub(super) struct Table {
    source: Source,
    reserved: Reserved,
    node: String,
    /// What the node is made to look like: the table as it was loaded, and tasks that have just left it.
    pub(super) model: Arc<Model>,
    pub(super) loaded: Loaded,
    pub(super) read_at: Instant,
    pub(super) changed_at: Instant,
    pub(super) refused: Option<Refused>,
    /// Of the files when they were last read.
    stamps: Vec<Stamp>,
    linger: Linger,
    /// Zero of the clock that `linger` sees.
    opened: Instant,
}

/// The first table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirstTable {
    #[error("table {0}: {1}")]
    Load(Source, LoadError),
    #[error("--node: {0}")]
    Node(#[from] hiveway_core::model::NodeLookup),
}

impl Table {
    /// Reads the first one.
    pub(super) fn open(source: Source, reserved: Reserved, node: String) -> Result<Self, FirstTable> {
        let stamps = stamps(&source);
        let loaded = load(&source, reserved, None).map_err(|error| FirstTable::Load(source.clone(), error))?;
        loaded.model.find_node(&node)?;
        for warning in &loaded.warnings {
            tracing::warn!("table: {warning}");
        }
        let now = Instant::now();
        let mut linger = Linger::new(DEFAULT_LINGER);
        let model = Arc::new(linger.apply(&loaded.model, Duration::ZERO));
        Ok(Self {
            source,
            reserved,
            node,
            model,
            loaded,
            read_at: now,
            changed_at: now,
            refused: None,
            stamps,
            linger,
            opened: now,
        })
    }

    /// Reads the source again. Returns whether another table is in force now; a table that cannot be used is refused
    /// whole and the last good one stays.
    pub(super) fn reload(&mut self) -> bool {
        let now = Instant::now();
        self.stamps = stamps(&self.source);
        let loaded = match load(&self.source, self.reserved, Some(&self.loaded.model)) {
            Ok(loaded) => loaded,
            Err(error) => {
                self.refuse(now, problems(error));
                return false;
            }
        };
        if let Err(error) = loaded.model.find_node(&self.node) {
            self.refuse(now, vec![format!("--node: {error}")]);
            return false;
        }
        if self.refused.take().is_some() {
            tracing::info!("table {}: valid again", self.source);
        }
        self.read_at = now;
        if loaded.model != self.loaded.model {
            self.changed_at = now;
        }
        self.loaded = loaded;
        self.let_go()
    }

    /// Lets go of tasks that have lingered long enough. Returns whether that changes the table in force.
    pub(super) fn let_go(&mut self) -> bool {
        let model = self.linger.apply(&self.loaded.model, self.opened.elapsed());
        let changed = model != *self.model;
        if changed {
            self.model = Arc::new(model);
        }
        changed
    }

    /// When [`Table::let_go`] will have something to do.
    pub(super) fn lingers_until(&self) -> Option<Instant> {
        self.linger.deadline().map(|deadline| self.opened + deadline)
    }

    /// Makes sure that the table in force is still the source's, reading it again if in doubt. Returns whether another
    /// table is in force now.
    pub(super) fn confirm(&mut self) -> bool {
        let now = stamps(&self.source);
        if self.refused.is_none() && now == self.stamps && now.iter().all(Option::is_some) {
            self.read_at = Instant::now();
            return false;
        }
        self.reload()
    }

    fn refuse(&mut self, at: Instant, problems: Vec<String>) {
        if self.refused.as_ref().is_none_or(|before| before.problems != problems) {
            for problem in &problems {
                tracing::error!("table {} refused, the last good one stays in force: {problem}", self.source);
            }
        }
        let at = self.refused.as_ref().map_or(at, |before| before.at);
        self.refused = Some(Refused { at, problems });
    }
}

fn problems(error: LoadError) -> Vec<String> {
    match error {
        LoadError::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    }
}
