//! Every agent's side: links to all managers, tables from one of them.

mod choice;
mod connect;
mod deregister;
mod link;
mod trust;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hiveway_core::{docker_api::Loaded, merge::Report, model::Dataplane};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep_until,
};

pub use deregister::{Contacts, deregister};
pub use trust::Trust;

use crate::{
    certs::Credentials,
    relay::PathNews,
    source::{Live, Lost},
};
use choice::{Links, State, Verdict};
use link::{Event, Link};

/// How long a chosen manager may take for its first table.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to stay away from a manager whose tables are old or do not come, while there are others.
const AVOID: Duration = Duration::from_secs(30);

/// Where a manager's agent listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Manager {
    /// HOST:PORT.
    pub address: String,
    /// Which node must be there, where it is known.
    pub node: Option<String>,
}

/// What a client works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Certificates.
    pub credentials: watch::Receiver<Arc<Credentials>>,
    /// All managers.
    pub managers: watch::Receiver<Vec<Manager>>,
    /// Which nodes are believed there.
    pub trust: watch::Receiver<Trust>,
    /// What to report; `None` while there is nothing to say yet.
    pub report: watch::Receiver<Option<Report>>,
    /// What is known of the paths to other nodes, sent with the report.
    pub paths: watch::Receiver<Arc<PathNews>>,
    /// Where this node's tunnels end, said also while there is nothing to report.
    pub place: watch::Receiver<Option<Ipv4Addr>>,
    /// Whether tables are wanted (managers have their own).
    pub wanted: watch::Receiver<bool>,
    /// Where tables go.
    pub relayed: watch::Sender<Arc<Live>>,
    /// For `status`.
    pub views: Arc<Views>,
}

/// A link as `status` shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LinkView {
    /// HOST:PORT.
    pub address: String,
    /// Node id of the manager, once known.
    pub node: Option<String>,
    /// `connecting`, `connected`, `refused`, `unreachable`, `distrusted` or `self`.
    pub state: &'static str,
    /// Why it is not connected.
    pub why: Option<String>,
    /// Its agent's version.
    pub version: Option<String>,
    /// What it speaks.
    pub protocol: Option<u32>,
    /// The table comes from here.
    pub tables: bool,
}

/// All links, for `status`.
#[derive(Debug, Default)]
pub struct Views(Mutex<BTreeMap<Manager, LinkView>>);

impl Views {
    /// As they are now.
    pub fn list(&self) -> Vec<LinkView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Keeps the links until it is dropped.
pub async fn run(parts: Parts) {
    let (events, mut happened) = mpsc::channel(64);
    let (chosen, _) = watch::channel(None);
    let mut client =
        Client { parts, events, chosen, tasks: BTreeMap::new(), links: Links::new(), asked: None, refused: None };
    let (mut managers, mut wanted) = (client.parts.managers.clone(), client.parts.wanted.clone());
    loop {
        let listed = managers.borrow_and_update().clone();
        client.connect_to(listed);
        wanted.borrow_and_update();
        let look_again = client.decide();
        tokio::select! {
            Some((manager, event)) = happened.recv() => client.take_in(manager, event),
            Ok(()) = managers.changed() => {}
            Ok(()) = wanted.changed() => {}
            () = until(look_again) => client.lose_patience(),
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

struct Client {
    parts: Parts,
    events: mpsc::Sender<(Manager, Event)>,
    /// Whose tables are wanted.
    chosen: watch::Sender<Option<Manager>>,
    tasks: BTreeMap<Manager, Task>,
    links: Links,
    /// When the chosen one was asked, while it has not answered.
    asked: Option<Instant>,
    /// When this node was first refused.
    refused: Option<Instant>,
}

/// A link's task, ended with it.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Has links to these managers and no others.
    fn connect_to(&mut self, managers: Vec<Manager>) {
        let gone: Vec<_> = self.tasks.keys().filter(|known| !managers.contains(known)).cloned().collect();
        for manager in gone {
            self.tasks.remove(&manager);
            self.links.remove(&manager);
            self.view(|views| drop(views.remove(&manager)));
        }
        for manager in managers {
            if self.tasks.contains_key(&manager) {
                continue;
            }
            let link = Link {
                manager: manager.clone(),
                credentials: self.parts.credentials.clone(),
                trust: self.parts.trust.clone(),
                report: self.parts.report.clone(),
                paths: self.parts.paths.clone(),
                place: self.parts.place.clone(),
                provider: self.chosen.subscribe(),
                events: self.events.clone(),
            };
            self.tasks.insert(manager.clone(), Task(tokio::spawn(link.run())));
            self.set(manager, State::Connecting);
        }
    }

    fn take_in(&mut self, manager: Manager, event: Event) {
        if !self.tasks.contains_key(&manager) {
            return;
        }
        match event {
            Event::Up { node, welcome } => {
                tracing::info!("relay: connected to manager {node} at {}", manager.address);
                self.set(manager.clone(), State::Up { avoid: None });
                self.view(|views| {
                    if let Some(view) = views.get_mut(&manager) {
                        view.node = Some(node);
                        view.version = Some(crate::relay::convert::text(&welcome.version).to_owned());
                        view.protocol = Some(welcome.protocol);
                    }
                });
            }
            Event::Table(table) => self.table(manager, *table),
            Event::Leaving { node } => self.leaving(&node),
            Event::Down(why) => {
                if !matches!(self.links.get(&manager), Some(State::Down { why: before }) if *before == why) {
                    tracing::info!("relay: manager at {}: {why}", manager.address);
                }
                self.set(manager, State::Down { why });
            }
            Event::Refused(why) => {
                if !matches!(self.links.get(&manager), Some(State::Refused { why: before }) if *before == why) {
                    tracing::warn!("relay: manager at {} refuses this node: {why}", manager.address);
                }
                self.set(manager, State::Refused { why });
            }
            Event::Distrusted(why) => {
                if !matches!(self.links.get(&manager), Some(State::Distrusted { why: before }) if *before == why) {
                    tracing::warn!("relay: manager at {} is not believed: {why}", manager.address);
                }
                self.set(manager, State::Distrusted { why });
            }
            Event::Myself => self.set(manager, State::Myself),
            Event::Renewing => self.set(manager, State::Connecting),
        }
    }

    fn table(&mut self, manager: Manager, table: link::Table) {
        if self.chosen.borrow().as_ref() != Some(&manager) {
            return;
        }
        self.asked = None;
        let mut live = Live::current(Arc::new(table.loaded), format!("relay {}", manager.address));
        let mut avoid = None;
        if let Some((age, why)) = table.stale {
            let now = Instant::now();
            avoid = Some(now + AVOID);
            let since = now.checked_sub(age).unwrap_or(now);
            live.lost =
                Some(Lost { since, why: format!("the manager at {} has lost its own source: {why}", manager.address) });
        }
        self.links.insert(manager, State::Up { avoid });
        self.parts.relayed.send_replace(Arc::new(live));
    }

    /// A manager's node goes on without Hiveway. If it was the only one with tables, no other table will say so.
    fn leaving(&self, node: &str) {
        tracing::info!("relay: Hiveway is being taken down on manager {node}");
        let has = |loaded: &Loaded| loaded.model.nodes.get(node).is_some_and(|n| n.dataplane == Dataplane::Hiveway);
        self.change(
            |live| live.table.as_deref().is_some_and(has),
            |live| {
                let table = live.table.as_mut().map(Arc::make_mut);
                if let Some(node) = table.and_then(|table| table.model.nodes.get_mut(node)) {
                    node.dataplane = Dataplane::None;
                }
            },
        );
    }

    /// The chosen one does not answer.
    fn lose_patience(&mut self) {
        let overdue = self.asked.is_some_and(|asked| asked.elapsed() >= PATIENCE);
        let chosen = self.chosen.borrow().clone();
        if let Some(manager) = chosen.filter(|_| overdue) {
            self.links.insert(manager, State::Up { avoid: Some(Instant::now() + AVOID) });
            self.asked = Some(Instant::now());
        }
    }

    /// Chooses whom to ask, and says what that means for the table. Returns when to look again.
    fn decide(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let current = self.chosen.borrow().clone();
        let wanted = *self.parts.wanted.borrow();
        let me = self.parts.credentials.borrow().me.node.clone();
        let choice = choice::provider(&self.links, current.as_ref(), &me, now).filter(|_| wanted);
        if choice != current {
            self.asked = choice.is_some().then_some(now);
            self.chosen.send_replace(choice.clone());
            self.view(|views| {
                for (manager, view) in views.iter_mut() {
                    view.tables = Some(manager) == choice.as_ref();
                }
            });
        }
        if !wanted {
            // The node is a manager: what others said before is no table of now.
            self.refused = None;
            self.change(|live| live.lost.is_none(), |live| live.lose("this node is a manager"));
            return None;
        }
        let any = self.links.values().any(|state| matches!(state, State::Refused { .. }));
        self.refused = if any { self.refused.or(Some(now)) } else { None };
        match choice::verdict(&self.links, self.refused, now) {
            Verdict::Wait(time) => return Some(time),
            Verdict::Refused(why) => {
                self.change(|live| live.expelled.as_ref() != Some(&why), |live| live.expel(why.clone()))
            }
            Verdict::Fine if choice.is_none() && !self.links.values().any(|s| matches!(s, State::Connecting)) => {
                let why = self.unreachable();
                self.change(
                    |live| live.lost.as_ref().map(|lost| &lost.why) != Some(&why),
                    |live| live.lose(why.clone()),
                );
            }
            Verdict::Fine => {}
        }
        self.asked.map(|asked| asked + PATIENCE)
    }

    fn unreachable(&self) -> String {
        let reason = |(manager, state): (&Manager, &State)| match state {
            State::Down { why } | State::Distrusted { why } => Some(format!("{}: {why}", manager.address)),
            _ => None,
        };
        let reasons: Vec<_> = self.links.iter().filter_map(reason).collect();
        match reasons.is_empty() {
            true => "the engine knows no manager".into(),
            false => format!("no manager's agent can be reached: {}", reasons.join("; ")),
        }
    }

    fn change(&self, differs: impl Fn(&Live) -> bool, change: impl FnOnce(&mut Live)) {
        if differs(&self.parts.relayed.borrow()) {
            self.parts.relayed.send_modify(|live| change(Arc::make_mut(live)));
        }
    }

    fn set(&mut self, manager: Manager, state: State) {
        let (name, why) = match &state {
            State::Connecting => ("connecting", None),
            State::Up { .. } => ("connected", None),
            State::Refused { why } => ("refused", Some(why.clone())),
            State::Down { why } => ("unreachable", Some(why.clone())),
            State::Distrusted { why } => ("distrusted", Some(why.clone())),
            State::Myself => ("self", None),
        };
        self.view(|views| {
            let view = views.entry(manager.clone()).or_insert_with(|| LinkView {
                address: manager.address.clone(),
                node: manager.node.clone(),
                state: name,
                why: None,
                version: None,
                protocol: None,
                tables: false,
            });
            (view.state, view.why) = (name, why);
        });
        self.links.insert(manager, state);
    }

    fn view(&self, change: impl FnOnce(&mut BTreeMap<Manager, LinkView>)) {
        change(&mut self.parts.views.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
