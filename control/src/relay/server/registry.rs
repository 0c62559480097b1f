//! The last report of each node, kept across restarts of this agent.
//!
//! A broken stream changes nothing: the node's data plane goes on without its agent. A goodbye, or the manager calling
//! the node down or removed, ends a report. The report of a node that is down counts while its agent is connected: the
//! managers have lost its engine, not its data plane, which still forwards what clients send to it.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hiveway_core::{
    Model,
    engine::Loaded,
    merge::{Report, Reports},
    model::{Dataplane, Node, NodeState},
};
use tokio::sync::watch;

use super::{Heard, saved};
use crate::behind::{Behind, Patience};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    report: Report,
    /// The session that it came from, while that is there.
    session: Option<u64>,
    /// Its node is down.
    down: bool,
}

/// The reports of all nodes.
#[derive(Debug)]
pub struct Registry {
    entries: Mutex<BTreeMap<String, Entry>>,
    effective: watch::Sender<Arc<Reports>>,
    /// Where reports survive a restart; `None`: nowhere.
    file: Option<Behind<Arc<Reports>>>,
    /// What agents say of paths. Apart from their reports: it changes no table, and is not saved.
    pub paths: Heard,
}

impl Registry {
    /// With what was saved, if anything; announces to `effective` what counts.
    pub fn open(file: Option<PathBuf>, effective: watch::Sender<Arc<Reports>>) -> Self {
        let saved = file.as_deref().map(saved::read).unwrap_or_default();
        let entry = |(node, report)| (node, Entry { report, session: None, down: false });
        let entries: BTreeMap<_, _> = saved.into_iter().map(entry).collect();
        let file = file.and_then(|file| {
            Behind::start("relay-reports", Patience::default(), move |reports: &Arc<Reports>| write(&file, reports))
                .inspect_err(|error| tracing::warn!("relay: reports will not survive a restart: {error}"))
                .ok()
        });
        let registry = Self { entries: Mutex::new(entries), effective, file, paths: Heard::default() };
        registry.announce(&registry.entries());
        registry
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node's agent says now, in this session.
    pub(super) fn report(&self, node: &str, session: u64, mut report: Report) {
        let mut entries = self.entries();
        report.since = since(&entries, node, report.vtep);
        let down = entries.get(node).is_some_and(|entry| entry.down);
        let entry = Entry { report, session: Some(session), down };
        // Most say only something new about paths.
        let known = entries.get(node) == Some(&entry);
        if !known {
            entries.insert(node.to_owned(), entry);
            self.announce(&entries);
        }
    }

    /// The node's agent says where its tunnels end, and has nothing to report yet. What an agent there has reported before
    /// stays: its data plane goes on.
    pub(super) fn place(&self, node: &str, session: u64, place: Report) {
        let mut entries = self.entries();
        let preparing = Entry { report: Report { preparing: true, ..place.clone() }, session: None, down: false };
        let known = entries.get(node).is_some_and(|entry| entry.report.vtep == place.vtep);
        let since = since(&entries, node, place.vtep);
        let entry = entries.entry(node.to_owned()).or_insert(preparing);
        (entry.report.vtep, entry.report.since, entry.session) = (place.vtep, since, Some(session));
        if !known {
            self.announce(&entries);
        }
    }

    /// Hiveway has been taken down on the node.
    pub(super) fn goodbye(&self, node: &str) {
        self.paths.forget(node);
        let mut entries = self.entries();
        entries.remove(node);
        self.announce(&entries);
    }

    /// The session has ended. Changes nothing, unless the node is down.
    pub(super) fn closed(&self, node: &str, session: u64) {
        self.paths.closed(node, session);
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(node).filter(|entry| entry.session == Some(session)) {
            entry.session = None;
            if entry.down {
                entries.remove(node);
                self.announce(&entries);
            }
        }
    }

    /// The manager's table says this now (a whole one: nodes that are not in it have been removed).
    pub(super) fn table(&self, table: &Loaded) {
        self.paths.retain(|node| table.model.nodes.contains_key(node) || table.unplaced.contains(node));
        let mut entries = self.entries();
        entries.retain(|node, entry| {
            let Some(node) = table.model.nodes.get(node.as_str()) else { return table.unplaced.contains(node) };
            entry.down = node.state == NodeState::Down;
            !entry.down || entry.session.is_some()
        });
        self.announce(&entries);
    }

    /// This node is a worker and a manager's agent says this: what is taken over if the node is promoted.
    pub fn mirror(&self, model: &Model) {
        let running = model.nodes.values().filter(|node| node.dataplane == Dataplane::Hiveway);
        let mut entries = self.entries();
        let entry = |node: &Node| {
            let vtep = Some(node.vtep);
            let since = since(&entries, node.id.as_str(), vtep);
            let report = Report { vtep, since, vxlan_port: node.vxlan_port, ..Report::default() };
            (node.id.to_string(), Entry { report, session: None, down: false })
        };
        let running = running.map(entry).collect();
        *entries = running;
        self.announce(&entries);
    }

    /// Called with the lock held, so that what is announced and saved last is the latest.
    fn announce(&self, entries: &BTreeMap<String, Entry>) {
        let reports: Reports = entries.iter().map(|(node, entry)| (node.clone(), entry.report.clone())).collect();
        let reports = Arc::new(reports);
        let changed = self.effective.send_if_modified(|before| {
            let changed = *before != reports;
            if changed {
                *before = reports.clone();
            }
            changed
        });
        if let Some(file) = self.file.as_ref().filter(|_| changed) {
            file.put(reports);
        }
    }
}

/// A number for a node's claim of its tunnel address: its own if it has claimed the same before, else the next one.
fn since(entries: &BTreeMap<String, Entry>, node: &str, vtep: Option<Ipv4Addr>) -> u64 {
    match entries.get(node).filter(|entry| entry.report.vtep == vtep) {
        Some(entry) => entry.report.since,
        None => entries.values().map(|entry| entry.report.since).max().unwrap_or(0).saturating_add(1),
    }
}

fn write(file: &Path, reports: &Reports) -> Result<(), String> {
    saved::write(file, reports).map_err(|error| {
        let why = format!("{}: {error}", file.display());
        tracing::warn!("relay: reports will not survive a restart: {why}");
        why
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_numbered_and_stay_so_over_a_restart() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("reports.json");
        let open = || Registry::open(Some(file.clone()), watch::channel(Arc::default()).0);
        let at = |last: u8| Report { vtep: Some([10, 0, 0, last].into()), ..Report::default() };
        let numbers =
            |registry: &Registry| registry.entries().values().map(|entry| entry.report.since).collect::<Vec<_>>();
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
}
