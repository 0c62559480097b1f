//! The table in force, and what became of newer ones.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hiveway_core::{
    Model,
    drain_grace::{DRAIN_GRACE, DrainGrace},
    model::Id,
    table::Reserved,
};

use tokio::sync::watch;

use super::shared::{Change, Refused};
use crate::source::{Live, LoadError, Loaded, Source, Stamp, load, stamps};

/// The table in force.
#[derive(Debug)]
pub(super) struct Table {
    source: Source,
    input: Input,
    /// This node, by id or host name.
    pub(super) node: String,
    /// What the node is made to look like: the table as it was loaded, and tasks that have just left it.
    pub(super) model: Arc<Model>,
    /// Tasks of `model` that have just left it.
    pub(super) departing: BTreeSet<Id>,
    pub(super) loaded: Loaded,
    pub(super) read_at: Instant,
    pub(super) changed_at: Instant,
    /// How long reading it took.
    took: Duration,
    /// When what is in force now was known, until the maps show it.
    known_at: Option<Instant>,
    pub(super) refused: Option<Refused>,
    /// What a live source says of itself.
    pub(super) live: Option<Arc<Live>>,
    grace: DrainGrace,
    /// Zero of the clock that `grace` sees.
    opened: Instant,
}

/// How tables come.
#[derive(Debug)]
enum Input {
    Files {
        reserved: Reserved,
        /// Of the files when they were last read.
        stamps: Vec<Stamp>,
    },
    Live {
        tables: watch::Receiver<Arc<Live>>,
        /// The node is whoever the engine says.
        follows: bool,
    },
}

/// The first table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirstTable {
    #[error("table {0}: {1}")]
    Load(Source, LoadError),
    #[error("table {0}: its source has ended")]
    Ended(Source),
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
        Ok(Self::new(source, Input::Files { reserved, stamps }, node, loaded))
    }

    /// Waits for the first one of a live source. An empty `node` is whoever the engine says.
    pub(super) async fn follow(
        source: Source,
        mut tables: watch::Receiver<Arc<Live>>,
        node: String,
    ) -> Result<Self, FirstTable> {
        let follows = node.is_empty();
        let mut said = None;
        loop {
            let live = tables.borrow_and_update().clone();
            let node = if follows { live.node.clone() } else { Some(node.clone()) };
            if let (Some(table), Some(node)) = (&live.table, node) {
                let loaded = Loaded::from((**table).clone());
                loaded.model.find_node(&node)?;
                let mut table = Self::new(source, Input::Live { tables, follows }, node, loaded);
                table.note(live);
                return Ok(table);
            }
            let why = live.waits_for_what();
            if why.is_some() && why != said {
                tracing::warn!("waiting for a table from {source}: {}", why.as_deref().unwrap_or_default());
                said = why;
            }
            if tables.changed().await.is_err() {
                return Err(FirstTable::Ended(source));
            }
        }
    }

    fn new(source: Source, input: Input, node: String, loaded: Loaded) -> Self {
        let now = Instant::now();
        let mut grace = DrainGrace::new(DRAIN_GRACE);
        let model = grace.apply(&loaded.model, Duration::ZERO);
        Self {
            source,
            input,
            node,
            model,
            departing: BTreeSet::new(),
            loaded,
            read_at: now,
            changed_at: now,
            took: Duration::ZERO,
            known_at: Some(now),
            refused: None,
            live: None,
            grace,
            opened: now,
        }
    }

    /// Reads the source again. Returns whether another table is in force now; a table that cannot be used is refused
    /// whole and the last good one stays, but for tasks whose grace has ended.
    pub(super) fn reload(&mut self) -> bool {
        let now = Instant::now();
        let loaded = match self.read() {
            Ok(mut loaded) => {
                if !Arc::ptr_eq(&loaded.model, &self.loaded.model) {
                    Arc::make_mut(&mut loaded.model).share(&self.loaded.model);
                }
                loaded
            }
            Err(problems) => {
                self.refuse(now, problems);
                return self.let_go();
            }
        };
        if let Err(error) = loaded.model.find_node(&self.node) {
            self.refuse(now, vec![format!("--node: {error}")]);
            return self.let_go();
        }
        if self.refused.take().is_some() {
            tracing::info!("table {}: valid again", self.source);
        }
        self.read_at = self.live.as_ref().and_then(|live| live.lost.as_ref()).map_or(now, |lost| lost.since);
        self.took = now.elapsed();
        let read_at = Instant::now();
        if loaded.model != self.loaded.model {
            self.changed_at = now;
        }
        self.loaded = loaded;
        let changed = self.let_go();
        if changed {
            self.known_at = Some(read_at);
        }
        changed
    }

    fn read(&mut self) -> Result<Loaded, Vec<String>> {
        match &mut self.input {
            Input::Files { reserved, stamps } => {
                *stamps = self::stamps(&self.source);
                load(&self.source, *reserved, Some(&self.loaded.model)).map_err(problems)
            }
            Input::Live { tables, follows } => {
                let live = tables.borrow_and_update().clone();
                if let Some(node) = live.node.as_ref().filter(|_| *follows) {
                    self.node.clone_from(node);
                }
                let table = live.table.as_ref().map(|table| Loaded::from((**table).clone()));
                self.note(live);
                Ok(table.unwrap_or_else(|| self.loaded.clone()))
            }
        }
    }

    /// Says what has become of the source.
    fn note(&mut self, live: Arc<Live>) {
        let why = |live: &Live| live.expelled.clone().or_else(|| live.lost.as_ref().map(|lost| lost.why.clone()));
        let (before, now) = (self.live.as_deref().and_then(why), why(&live));
        match &now {
            Some(why) if live.expelled.is_some() && before != now => tracing::warn!("the table is emptied: {why}"),
            Some(why) if before != now => tracing::warn!("table {}: {why}; the last one stays in force", self.source),
            None if self.live.as_ref().is_none_or(|last| before.is_some() || last.from != live.from) => {
                tracing::info!("table {} comes from {}", self.source, live.from);
            }
            _ => {}
        }
        self.live = Some(live);
    }

    /// Lets go of tasks whose grace has ended. Returns whether that changes the table in force.
    pub(super) fn let_go(&mut self) -> bool {
        let now = Instant::now();
        let model = self.grace.apply(&self.loaded.model, self.opened.elapsed());
        let departing: BTreeSet<Id> = self.grace.departing().cloned().collect();
        // A task that was draining looks the same within its grace.
        let changed = model != self.model || departing != self.departing;
        if changed {
            (self.model, self.departing, self.known_at) = (model, departing, Some(now));
        }
        changed
    }

    /// The maps show what is in force now: how long that took, if it is the first time.
    pub(super) fn shown(&mut self) -> Option<Change> {
        let known_at = self.known_at.take()?;
        Some(Change { reading: self.took, programming: known_at.elapsed() })
    }

    /// When [`Table::let_go`] will have something to do.
    pub(super) fn grace_ends(&self) -> Option<Instant> {
        self.grace.deadline().map(|deadline| self.opened + deadline)
    }

    /// Makes sure that the table in force is still the source's, reading it again if in doubt. Returns whether another
    /// table is in force now.
    pub(super) fn confirm(&mut self) -> bool {
        if let Input::Files { stamps: before, .. } = &self.input {
            let now = stamps(&self.source);
            if self.refused.is_none() && now == *before && now.iter().all(Option::is_some) {
                self.read_at = Instant::now();
                return self.let_go();
            }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TABLE: &str = "version: 1
nodes: [{id: n1, hostname: n1, address: 192.0.2.1}]
networks: [{id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]
tasks:
  - {id: a, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.3}}
";
    const ANOTHER: &str =
        "  - {id: b, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.4}}\n";

    /// A table that a task has just left.
    fn departing_b(file: &Path) -> Table {
        std::fs::write(file, format!("{TABLE}{ANOTHER}")).unwrap();
        let mut table = Table::open(Source::File(file.to_owned()), Reserved::default(), "n1".into()).unwrap();
        std::fs::write(file, TABLE).unwrap();
        assert!(table.reload() && table.model.tasks.contains_key("b"), "within its grace");
        table
    }

    #[test]
    fn a_task_that_was_draining_leaves_no_less_than_others() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("table");
        let draining = ANOTHER.replace("desired_state: running", "desired_state: shutdown");
        std::fs::write(&file, format!("{TABLE}{draining}")).unwrap();
        let mut table = Table::open(Source::File(file.clone()), Reserved::default(), "n1".into()).unwrap();
        assert!(table.departing.is_empty());
        let before = table.model.clone();
        std::fs::write(&file, TABLE).unwrap();
        assert!(table.reload(), "it has left");
        assert_eq!((table.departing.len(), &table.model), (1, &before), "what it was stays");
        assert!(!Arc::ptr_eq(&table.model, &before), "who compares pointers sees that it has left");
    }

    #[test]
    fn a_task_whose_grace_ends_is_let_go_of_whatever_becomes_of_the_table() {
        let scratch = tempfile::tempdir().unwrap();
        let (same, bad, other) =
            (scratch.path().join("same"), scratch.path().join("bad"), scratch.path().join("other"));
        let mut tables = [departing_b(&same), departing_b(&bad), departing_b(&other)];
        std::fs::write(&bad, "version: 7\n").unwrap();
        std::fs::write(&other, TABLE.replace("n1", "n9")).unwrap();
        for table in &mut tables {
            assert!(!table.confirm() && table.model.tasks.contains_key("b"), "not yet");
        }
        std::thread::sleep(DRAIN_GRACE);
        for table in &mut tables {
            assert!(table.confirm() && !table.model.tasks.contains_key("b"), "{:?}", table.refused);
            assert!(table.model.tasks.contains_key("a"));
        }
        assert!(tables[0].refused.is_none() && tables[1].refused.is_some() && tables[2].refused.is_some());
    }
}
