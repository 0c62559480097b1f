//! Who is connected, for `status`; and that it is one session per node.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// A connected agent.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Node id.
    pub node: String,
    /// Where it connects from.
    pub address: SocketAddr,
    /// Since when.
    pub since: Instant,
    /// Its agent's version; empty before the first message.
    pub version: String,
    /// What it speaks.
    pub protocol: u32,
    /// It takes tables from here.
    pub tables: bool,
    /// Tables sent.
    pub sent: u64,
    /// Its last report.
    pub reported: Option<Instant>,
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    all: BTreeMap<u64, (SessionView, Arc<Notify>)>,
}

/// A session's entry; gone when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    sessions: Arc<Sessions>,
    pub(super) id: u64,
    /// Another session of the same node has begun.
    pub(super) superseded: Arc<Notify>,
}

impl Sessions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is connected now, by node.
    pub fn list(&self) -> Vec<SessionView> {
        let mut all: Vec<_> = self.inner().all.values().map(|(view, _)| view.clone()).collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// Begins a session. Older ones of the node are over: an agent has one, and if there are two the old one is dead.
    pub(super) fn begin(self: &Arc<Self>, node: &str, address: SocketAddr) -> Entry {
        let mut inner = self.inner();
        inner.all.values().filter(|(view, _)| view.node == node).for_each(|(_, superseded)| superseded.notify_one());
        inner.last += 1;
        let id = inner.last;
        let view = SessionView {
            node: node.to_owned(),
            address,
            since: Instant::now(),
            version: String::new(),
            protocol: 0,
            tables: false,
            sent: 0,
            reported: None,
        };
        let superseded = Arc::new(Notify::new());
        inner.all.insert(id, (view, superseded.clone()));
        Entry { sessions: self.clone(), id, superseded }
    }
}

impl Entry {
    pub(super) fn update(&self, change: impl FnOnce(&mut SessionView)) {
        if let Some((view, _)) = self.sessions.inner().all.get_mut(&self.id) {
            change(view);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.sessions.inner().all.remove(&self.id);
    }
}
