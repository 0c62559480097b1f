//! Who is connected, for `status`; that it is one session per node; and at which pace a node is served, however many
//! calls it makes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex as Turns, Notify},
    time::{self, sleep_until},
};

/// The least time between two messages from a node.
const READING: Duration = Duration::from_millis(20);
/// The least time between two tables for a node.
const SPACING: Duration = Duration::from_millis(50);
/// A node that has not called for this long is not remembered.
const FORGOTTEN: Duration = Duration::from_secs(60);

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
    /// By node, with when it has called last.
    paces: BTreeMap<String, (Instant, Arc<Pace>)>,
}

/// When a node's next message is read and its next table is made: of all its calls together, which take turns.
#[derive(Debug)]
pub(super) struct Pace {
    read_after: Turns<time::Instant>,
    made_after: Turns<time::Instant>,
}

impl Pace {
    fn new() -> Self {
        let now = time::Instant::now();
        Self { read_after: Turns::new(now), made_after: Turns::new(now) }
    }

    /// Returns when one more message may be read.
    pub(super) async fn read(&self) {
        let mut after = self.read_after.lock().await;
        sleep_until(*after).await;
        *after = time::Instant::now() + READING;
    }

    /// Makes a table when it is time for one more.
    pub(super) async fn make<T>(&self, table: impl Future<Output = T>) -> T {
        let mut after = self.made_after.lock().await;
        sleep_until(*after).await;
        // Also if nobody waits for the end.
        *after = time::Instant::now() + SPACING;
        let made = table.await;
        *after = time::Instant::now() + SPACING;
        made
    }
}

/// A session's entry; gone when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    sessions: Arc<Sessions>,
    pub(super) id: u64,
    /// Another session of the same node has begun.
    pub(super) superseded: Arc<Notify>,
    pub(super) pace: Arc<Pace>,
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
        let now = Instant::now();
        inner.paces.retain(|_, (called, _)| now.duration_since(*called) < FORGOTTEN);
        let (called, pace) = inner.paces.entry(node.to_owned()).or_insert_with(|| (now, Arc::new(Pace::new())));
        *called = now;
        let pace = pace.clone();
        inner.last += 1;
        let id = inner.last;
        let view = SessionView {
            node: node.to_owned(),
            address,
            since: now,
            version: String::new(),
            protocol: 0,
            tables: false,
            sent: 0,
            reported: None,
        };
        let superseded = Arc::new(Notify::new());
        inner.all.insert(id, (view, superseded.clone()));
        Entry { sessions: self.clone(), id, superseded, pace }
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
