//! `status` before the first table.

use std::{sync::Arc, time::Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::status::{Engine, Item, Unreachable};
use crate::{
    engine::EngineView,
    relay::{RelayParts, RelayStatus},
    source::Live,
};

/// What is known while a live source has not said anything that can be used.
#[derive(Clone, Debug)]
pub struct Starting {
    /// Table source.
    pub source: String,
    /// When the agent started.
    pub started: Instant,
    /// What the source says.
    pub table: watch::Receiver<Arc<Live>>,
    /// What this node's engine says.
    pub engine: watch::Receiver<Arc<EngineView>>,
    /// How the relay does.
    pub relay: Option<Arc<RelayParts>>,
}

impl Starting {
    /// What is waited for, and why it has not come.
    pub fn why(&self) -> String {
        let live = self.table.borrow();
        let why = live.waits_for_what().unwrap_or_else(|| "it has not said anything yet".into());
        format!("a table from {}: {why}", self.source)
    }

    /// What is said to questions that mean nothing yet.
    pub(super) fn no_answer(&self) -> String {
        format!("it waits for {}", self.why())
    }

    pub(super) fn status(&self) -> Status {
        let live = self.table.borrow().clone();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: false,
            healthy: false,
            table: Table {
                source: self.source.clone(),
                from: live.from.clone(),
                unreachable: live.lost.as_ref().map(Unreachable::of),
                expelled: live.expelled.clone(),
            },
            relay: self.relay.as_ref().map(|board| board.status()),
            engine: Engine::new(&self.engine.borrow()),
            waiting: vec![Item { item: "first table".into(), why: self.why(), attempts: 0, retry_in_seconds: None }],
        }
    }
}

/// Those keys of `hiveway status --json` that mean something by then.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    pid: u32,
    uptime_seconds: u64,
    ready: bool,
    healthy: bool,
    table: Table,
    relay: Option<RelayStatus>,
    engine: Engine,
    waiting: Vec<Item>,
}

#[derive(Clone, Debug, Serialize)]
struct Table {
    source: String,
    from: String,
    unreachable: Option<Unreachable>,
    expelled: Option<String>,
}
