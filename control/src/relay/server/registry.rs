//! The last report of each node, kept across restarts of this agent.
//!
//! A broken stream changes nothing: the node's data plane goes on without its agent. A node that deregisters, or the
//! manager calling the node down or removed, ends a report. The report of a node that is down counts while its agent is
//! connected: the managers have lost its engine, not its data plane, which still forwards what clients send to it.
//!
//! Whatever a report changes makes a new table, and a round on every node. A worker that reports something else all the
//! time sets nobody else's pace: after a burst its last word is taken in a few times a second ([`Registry::late`]).

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use hiveway_core::{
    Model,
    docker_api::Loaded,
    merge::{Report, Reports},
    model::{Dataplane, Node, NodeState},
};
use tokio::{
    sync::{Notify, watch},
    time::sleep_until,
};

use super::{PathReports, saved};
use crate::{
    behind::{Behind, Patience, telling},
    burst::{Allowance, Burst},
    state_dir::{RELAY_REPORTS, StateDir},
};

/// Changes of a node's report: those of a large service that comes up there are a burst.
const CHANGES: Allowance = Allowance { burst: 40, every: Duration::from_millis(200) };

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    report: Report,
    /// The session that it came from, while that is there.
    session: Option<u64>,
    /// Its node is down.
    down: bool,
}

type Entries = BTreeMap<String, Entry>;

/// How often a node has changed its report lately.
#[derive(Debug, Default)]
struct Changes {
    burst: Burst,
    /// Its last word, while that is not taken in, and the session that it came from.
    waiting: Option<(Report, Option<u64>)>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Entries,
    changes: BTreeMap<String, Changes>,
}

/// The reports of all nodes.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    effective: watch::Sender<Arc<Reports>>,
    /// Where reports survive a restart, once there is a place for them.
    file: OnceLock<Behind<Arc<Reports>>>,
    /// Something waits that did not before.
    waits: Notify,
    /// What agents say of paths. Apart from their reports: it changes no table, and is not saved.
    pub paths: PathReports,
}

impl Registry {
    /// With what was saved at a path, if anything; announces to `effective` what counts.
    pub fn open(saved: Option<&Path>, effective: watch::Sender<Arc<Reports>>) -> Self {
        let saved = saved.map(saved::read).unwrap_or_default();
        let entry = |(node, report)| (node, Entry { report, session: None, down: false });
        let inner = Inner { entries: saved.into_iter().map(entry).collect(), ..Inner::default() };
        let (inner, waits, paths) = (Mutex::new(inner), Notify::new(), PathReports::default());
        let registry = Self { inner, effective, file: OnceLock::new(), waits, paths };
        registry.announce(&registry.inner().entries);
        registry
    }

    /// From now on reports are kept in the state directory.
    pub fn keep_in(&self, state: StateDir) {
        const LOST: &str = "relay: reports will not survive a restart";
        let write = move |reports: &Arc<Reports>, occasion| {
            let written = state.write_behind(RELAY_REPORTS, occasion, || saved::encode(reports));
            written.map_err(|error| error.to_string())
        };
        match Behind::start("relay-reports", Patience::default(), telling(LOST, write)) {
            Ok(file) => {
                // No report comes in between.
                let _inner = self.inner();
                self.file.get_or_init(|| file).put(self.effective.borrow().clone());
            }
            Err(error) => tracing::warn!("{LOST}: {error}"),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node's agent says now, in this session.
    pub(super) fn report(&self, node: &str, session: u64, report: Report) {
        self.said(&mut self.inner(), (node, session), report, Instant::now());
    }

    /// The node's agent says where its tunnels end, and has nothing to report yet. What an agent there has reported
    /// before stays: its data plane goes on.
    pub(super) fn place(&self, node: &str, session: u64, place: Report) {
        let mut inner = self.inner();
        let waiting = inner.changes.get(node).and_then(|changes| changes.waiting.as_ref()).map(|(report, _)| report);
        let before = waiting.or_else(|| inner.entries.get(node).map(|entry| &entry.report));
        let report = match before {
            Some(before) => Report { vtep: place.vtep, ..before.clone() },
            None => Report { preparing: true, ..place },
        };
        self.said(&mut inner, (node, session), report, Instant::now());
    }

    /// Takes in what a node says, now or in its time.
    fn said(&self, inner: &mut Inner, (node, session): (&str, u64), mut report: Report, now: Instant) {
        report.since = since(&inner.entries, node, report.vtep);
        let entry = inner.entries.get_mut(node);
        if let Some(entry) = entry {
            entry.session = Some(session);
            // Most say only something new about paths.
            if entry.report == report {
                inner.changes.entry(node.to_owned()).or_default().waiting = None;
                return;
            }
        }
        let changes = inner.changes.entry(node.to_owned()).or_default();
        changes.waiting = Some((report, Some(session)));
        if inner.take_in(node, now) {
            self.announce(&inner.entries);
        } else {
            self.waits.notify_one();
        }
    }

    /// Takes in what waits for its time, for ever.
    pub(super) async fn late(&self) {
        loop {
            let next = self.take_in_all(Instant::now());
            let due = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.waits.notified() => {}
            }
        }
    }

    /// Takes in whatever may be taken in now. Returns when it is time for more.
    fn take_in_all(&self, now: Instant) -> Option<Instant> {
        let mut inner = self.inner();
        let waiting = inner.changes.iter().filter(|(_, changes)| changes.waiting.is_some());
        let nodes: Vec<String> = waiting.map(|(node, _)| node.clone()).collect();
        let mut changed = false;
        for node in nodes {
            changed |= inner.take_in(&node, now);
        }
        inner.changes.retain(|_, changes| changes.waiting.is_some() || !changes.burst.is_whole(now));
        if changed {
            self.announce(&inner.entries);
        }
        let waiting = inner.changes.values().filter(|changes| changes.waiting.is_some());
        waiting.filter_map(|changes| changes.burst.due(CHANGES, now)).min()
    }

    /// Hiveway has been taken down on the node.
    pub(super) fn deregister(&self, node: &str) {
        self.paths.forget(node);
        let mut inner = self.inner();
        inner.forget(node);
        self.announce(&inner.entries);
    }

    /// The session has ended. Changes nothing, unless the node is down.
    pub(super) fn closed(&self, node: &str, session: u64) {
        self.paths.closed(node, session);
        let mut inner = self.inner();
        let waiting = inner.changes.get_mut(node).and_then(|changes| changes.waiting.as_mut());
        if let Some((_, from)) = waiting.filter(|(_, from)| *from == Some(session)) {
            *from = None;
        }
        if let Some(entry) = inner.entries.get_mut(node).filter(|entry| entry.session == Some(session)) {
            entry.session = None;
            if entry.down {
                inner.forget(node);
                self.announce(&inner.entries);
            }
        }
    }

    /// The manager's table says this now (a whole one: nodes that are not in it have been removed).
    pub(super) fn table(&self, table: &Loaded) {
        let known = |node: &str| table.model.nodes.contains_key(node) || table.unplaced.contains(node);
        self.paths.retain(known);
        let mut inner = self.inner();
        inner.entries.retain(|node, entry| {
            let Some(node) = table.model.nodes.get(node.as_str()) else { return table.unplaced.contains(node) };
            entry.down = node.state == NodeState::Down;
            !entry.down || entry.session.is_some()
        });
        let Inner { entries, changes } = &mut *inner;
        for (node, changes) in changes {
            let connected = changes.waiting.as_ref().is_some_and(|(_, session)| session.is_some());
            if !known(node) || !(connected || entries.contains_key(node)) {
                changes.waiting = None;
            }
        }
        self.announce(&inner.entries);
    }

    /// This node is a worker and a manager's agent says this: what is taken over if the node is promoted.
    pub fn mirror(&self, model: &Model) {
        let running = model.nodes.values().filter(|node| node.dataplane == Dataplane::Hiveway);
        let mut inner = self.inner();
        let entry = |node: &Node| {
            let vtep = Some(node.vtep);
            let since = since(&inner.entries, node.id.as_str(), vtep);
            let report = Report { vtep, since, vxlan_port: node.vxlan_port, ..Report::default() };
            (node.id.to_string(), Entry { report, session: None, down: false })
        };
        let running = running.map(entry).collect();
        *inner = Inner { entries: running, ..Inner::default() };
        self.announce(&inner.entries);
    }

    /// Called with the lock held, so that what is announced and saved last is the latest.
    fn announce(&self, entries: &Entries) {
        let reports: Reports = entries.iter().map(|(node, entry)| (node.clone(), entry.report.clone())).collect();
        let reports = Arc::new(reports);
        let changed = self.effective.send_if_modified(|before| {
            let changed = *before != reports;
            if changed {
                *before = reports.clone();
            }
            changed
        });
        if let Some(file) = self.file.get().filter(|_| changed) {
            file.put(reports);
        }
    }
}

impl Inner {
    /// Takes in what waits of a node, if it is time. Returns whether it was.
    fn take_in(&mut self, node: &str, now: Instant) -> bool {
        let Some(changes) = self.changes.get_mut(node) else { return false };
        if changes.waiting.is_none() || !changes.burst.take(CHANGES, now) {
            return false;
        }
        let Some((mut report, session)) = changes.waiting.take() else { return false };
        report.since = since(&self.entries, node, report.vtep);
        let down = self.entries.get(node).is_some_and(|entry| entry.down);
        self.entries.insert(node.to_owned(), Entry { report, session, down });
        true
    }

    /// Of a node that has no Hiveway any more. How often it has changed its mind is remembered.
    fn forget(&mut self, node: &str) {
        self.entries.remove(node);
        if let Some(changes) = self.changes.get_mut(node) {
            changes.waiting = None;
        }
    }
}

/// A number for a node's claim of its tunnel address: its own if it has claimed the same before, else the next one.
fn since(entries: &Entries, node: &str, vtep: Option<Ipv4Addr>) -> u64 {
    match entries.get(node).filter(|entry| entry.report.vtep == vtep) {
        Some(entry) => entry.report.since,
        None => entries.values().map(|entry| entry.report.since).max().unwrap_or(0).saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_numbered_and_stay_so_over_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || {
            let saved = scratch.path().join(RELAY_REPORTS);
            let registry = Registry::open(Some(&saved), watch::channel(Arc::default()).0);
            registry.keep_in(StateDir::open(scratch.path()).unwrap());
            registry
        };
        let at = |last: u8| Report { vtep: Some([10, 0, 0, last].into()), ..Report::default() };
        let numbers =
            |registry: &Registry| registry.inner().entries.values().map(|entry| entry.report.since).collect::<Vec<_>>();
        let registry = open();
        registry.report("a", 1, at(2));
        registry.report("b", 2, at(3));
        registry.report("a", 3, Report { version: "2".into(), ..at(2) });
        assert_eq!(numbers(&registry), [1, 2]);
        registry.report("a", 3, at(4));
        registry.report("a", 3, at(2));
        assert_eq!(numbers(&registry), [4, 2], "who has given it up is not first any more");
        drop(registry);
        let registry = open();
        registry.report("a", 1, at(2));
        registry.place("c", 2, at(2));
        registry.place("b", 3, at(3));
        assert_eq!(numbers(&registry), [4, 2, 5]);
    }

    /// A task that fails its check, or none.
    fn sick(number: u32) -> Report {
        let unhealthy = if number == 0 { Default::default() } else { [format!("t{number}")].into() };
        Report { unhealthy, ..Report::default() }
    }

    #[test]
    fn after_a_burst_a_nodes_last_word_is_taken_in_in_its_time() {
        let (effective, seen) = watch::channel(Arc::default());
        let registry = Registry::open(None, effective);
        let (start, burst) = (Instant::now(), CHANGES.burst);
        let said = |node: &str| seen.borrow().get(node).map(|report: &Report| report.unhealthy.clone());
        let report = |node, session, number, now| {
            registry.said(&mut registry.inner(), (node, session), sick(number), now);
        };
        for number in 1..=burst {
            report("w", 1, number, start);
            assert_eq!(said("w"), Some(sick(number).unhealthy), "a burst is taken in as it comes");
        }
        for number in burst + 1..burst + 50 {
            report("w", 1, number, start);
        }
        assert_eq!(said("w"), Some(sick(burst).unhealthy), "then it waits");
        report("other", 2, 1, start);
        assert_eq!(said("other"), Some(sick(1).unhealthy), "and keeps nobody else waiting");
        // Its session ends meanwhile: what it has said last counts all the same.
        registry.closed("w", 1);
        let due = registry.take_in_all(start).expect("more to take in");
        assert!(due <= start + CHANGES.every * 2, "{:?}", due - start);
        assert_eq!(registry.take_in_all(due), None, "there is no more");
        assert_eq!(said("w"), Some(sick(burst + 49).unhealthy), "the last word");

        // What it takes back meanwhile has never been.
        report("w", 3, 1, due);
        report("w", 3, burst + 49, due);
        assert_eq!(registry.take_in_all(due + CHANGES.every), None);
        assert_eq!(said("w"), Some(sick(burst + 49).unhealthy));
        // That a node deregisters counts at once, whatever waits.
        report("w", 3, 1, due);
        registry.deregister("w");
        assert_eq!((registry.take_in_all(due + CHANGES.every * 2), said("w")), (None, None));
    }

    #[test]
    fn a_removed_node_has_no_last_word() {
        let (effective, seen) = watch::channel(Arc::default());
        let registry = Registry::open(None, effective);
        (1..=CHANGES.burst + 1).for_each(|number| registry.report("w", 1, sick(number)));
        registry.table(&Loaded::default());
        registry.take_in_all(Instant::now() + CHANGES.every);
        assert!(seen.borrow().is_empty(), "{:?}", seen.borrow());
    }
}
