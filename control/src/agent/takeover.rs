//! Beside a Docker engine: its sandboxes are looked into and their interfaces get programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use hiveway_core::{
    Desired, Model, Settings, mesh_left_to_engine,
    model::Carrier,
    observed::{Namespace, Sandbox},
    plan::Item,
    sandbox::sandboxes,
};
use serde::Serialize;

use super::{apply::RoundLog, join_grace::WAITS, observe::Observation, reconcile::Agent, shared::OpenItem};
use crate::{
    netlink::Spaces,
    offloads::{self, OffloadError},
};

/// What is taken over from a Docker engine on this node, for display.
#[derive(Clone, Debug, Serialize)]
pub struct Takeover {
    /// Names of the networks that an engine carries and that a task here is on, the ingress network apart.
    pub networks: Vec<String>,
    /// Tasks here on such networks.
    pub tasks: usize,
    /// Their interfaces on those networks, and how many of them were found.
    pub interfaces: usize,
    /// Of them, those that were found and got programs.
    pub found: usize,
    /// Tasks that serve published ports and whose interface on the gateway bridge was found.
    pub mesh_tasks: usize,
    /// The routing mesh of the engine's ingress network is ours; null: there is no such network.
    pub mesh: Option<bool>,
    /// Why not.
    pub mesh_why: Option<String>,
}

/// How long a running task may be without an interface on the gateway bridge before others are told: the engine makes
/// it before the task runs.
const GATEWAY_PATIENCE: Duration = Duration::from_secs(1);

/// Logs why the routing mesh is the engine's if it was not, or for another reason, and that it is ours again.
pub(super) fn tell_of_mesh(before: Option<&Takeover>, now: Option<&Takeover>) {
    let why = |takeover: Option<&Takeover>| takeover.and_then(|takeover| takeover.mesh_why.clone());
    match (why(before), why(now)) {
        (_, Some(why)) if why == WAITS => {}
        (before, Some(why)) if before.as_ref() != Some(&why) => {
            tracing::warn!("published ports are left to the engine: {why}");
        }
        (Some(before), None) if before != WAITS => {
            tracing::info!("published ports are not left to the engine any more")
        }
        _ => {}
    }
}

impl Agent {
    /// Finds the interfaces that the engine has made.
    pub(super) fn look_into_sandboxes(&mut self, desired: &Desired, seen: &Observation, round: &mut RoundLog) {
        let namespaces = &seen.observed.namespaces;
        let all = sandboxes(desired, &seen.settings, seen.links(), namespaces, &self.local.sandboxes);
        let waiting = all.waiting.into_iter();
        round.waiting.extend(waiting.map(|blocked| OpenItem {
            item: blocked.item.to_string(),
            why: blocked.why,
            attempts: 0,
            retry: None,
        }));
        (self.local.sandboxes, self.local.incomplete) = (all.found, all.incomplete);
        let mut without_gateway = all.without_gateway;
        for task in &desired.attached {
            let Some(Namespace::Unread { path, why, .. }) = namespaces.get(&task.id) else { continue };
            self.could_not_look(&task.id, path, why, round);
            // That is not known to have changed either.
            without_gateway.extend(self.local.without_gateway.contains_key(&task.id).then(|| task.id.clone()));
        }
        if !round.only_looks {
            self.report_unreachable(without_gateway);
        }
    }

    /// Tells the other nodes of tasks here that stay without an interface on the gateway bridge: they leave them out of
    /// the routing mesh.
    fn report_unreachable(&mut self, without_gateway: BTreeSet<String>) {
        let now = Instant::now();
        self.local.without_gateway.retain(|id, _| without_gateway.contains(id));
        for id in without_gateway {
            self.local.without_gateway.entry(id).or_insert(now);
        }
        let Some(hub) = &self.hub else { return };
        let tasks = &self.table.model.tasks;
        // What was said before an agent's restart still holds.
        let known = |id: &str| tasks.get(id).is_some_and(|task| task.unreachable);
        let stays = |since: Instant| now.duration_since(since) >= GATEWAY_PATIENCE;
        let all = self.local.without_gateway.iter().filter(|(id, since)| stays(**since) || known(id));
        let unreachable: BTreeSet<String> = all.map(|(id, _)| id.clone()).collect();
        hub.own.send_if_modified(|own| {
            let news = own.unreachable != unreachable;
            if news {
                Arc::make_mut(own).unreachable = unreachable;
            }
            news
        });
    }

    /// Keeps what was found of where tasks' replies go, and names tasks with more routes than are looked at.
    pub(super) fn note_replies(&mut self, namespaces: &BTreeMap<String, Namespace>, round: &mut RoundLog) {
        let found = namespaces.iter().filter_map(|(task, namespace)| match namespace {
            Namespace::Present(inside) => Some((task, &inside.replies)),
            _ => None,
        });
        let found: BTreeMap<_, _> = found.map(|(task, replies)| (task.clone(), replies.clone())).collect();
        // A look that fails says nothing of them.
        self.local.replies.retain(|task, _| matches!(namespaces.get(task), Some(Namespace::Unread { .. })));
        self.local.replies.extend(found);
        let cut = self.local.replies.iter().filter(|(_, replies)| replies.more > 0);
        round.waiting.extend(cut.map(|(task, replies)| OpenItem {
            item: Item::Task(task.clone()).to_string(),
            why: format!(
                "its namespace has {} more routes than are looked at: clients of published ports behind them may not get \
                 its replies",
                replies.more
            ),
            attempts: 0,
            retry: None,
        }));
    }

    /// Has the stacks of containers that serve published ports cut what they send, and gives back what is not needed
    /// any more.
    pub(super) fn offloads(&mut self, desired: &Desired, spaces: &Spaces, round: &mut RoundLog) {
        let behind_gateway = || desired.attached.iter().filter(|task| task.gateway);
        // Who is only gone for a moment keeps its setting. First, for what is given back by mistake is turned off again
        // below.
        let keep: BTreeSet<&str> = behind_gateway().map(|task| task.id.as_str()).collect();
        let (_, failures) = offloads::give_back(&self.state, |offload| keep.contains(offload.task.as_str()));
        for failure in failures {
            round.note::<(), _>(&mut self.backoff, "giving offloads back", Err(failure));
        }
        let mut found = Vec::new();
        for task in behind_gateway() {
            let (Some(sandbox), Some(space)) = (self.local.sandboxes.get(&task.id), spaces.0.get(&task.id)) else {
                continue;
            };
            let Some(port) = &sandbox.gateway else { continue };
            let item = Item::Task(task.id.clone()).to_string();
            if !round.may(&self.backoff, &item) {
                continue;
            }
            let on = self.seen(offloads::still_on(&task.id, space, &port.name), &item, round);
            found.extend(on.filter(|on| !on.is_empty()).map(|on| (item, space, on)));
        }
        let all = found.iter().flat_map(|(_, _, on)| on.iter().cloned()).collect();
        if round.note(&mut self.backoff, "turning offloads off", offloads::remember(&self.state, &all)).is_some() {
            for (item, space, on) in found {
                self.seen(offloads::turn_off(space, &on), &item, round);
            }
        }
    }

    /// What was done at a container's interface; one that is gone since it was seen is looked for again.
    fn seen<T>(&mut self, done: Result<T, OffloadError>, item: &str, round: &mut RoundLog) -> Option<T> {
        if let Err(OffloadError::Kernel(error)) = &done
            && error.errno() == Some(libc::ENODEV)
        {
            self.local.incomplete = true;
            return None;
        }
        round.note(&mut self.backoff, item, done)
    }

    /// Programs on the containers' own interfaces.
    pub(super) fn attach_sandboxes(&mut self, desired: &Desired, spaces: &Spaces, round: &mut RoundLog) {
        let mut dataplane = self.shared.dataplane();
        let mut keep = BTreeSet::new();
        for task in &desired.attached {
            // Who is only gone for a moment keeps its programs.
            keep.extend(task.overlay_ports.iter().map(|port| port.id));
            let (Some(sandbox), Some(space)) = (self.local.sandboxes.get(&task.id), spaces.0.get(&task.id)) else {
                continue;
            };
            let item = Item::Task(task.id.clone()).to_string();
            for (id, link) in &sandbox.overlay_ports {
                if round.may(&self.backoff, &item) {
                    match dataplane.attach_sandbox(space.file.as_fd(), &link.name, *id) {
                        // Gone since it was seen.
                        Err(error) if error.no_interface() => self.local.incomplete = true,
                        attached => drop(round.note(&mut self.backoff, &item, attached)),
                    }
                }
            }
        }
        let detached = dataplane.detach_sandboxes_except(&keep);
        if !detached.failures.is_empty() {
            round.note::<(), _>(&mut self.backoff, "detaching programs", Err(detached.failures.join("; ")));
        }
    }
}

/// What is taken over; `None` where no engine carries a network.
pub(super) fn account(
    model: &Model,
    settings: &Settings,
    desired: &Desired,
    sandboxes: &BTreeMap<String, Sandbox>,
) -> Option<Takeover> {
    let mut engine = model.networks.values().filter(|network| network.carrier == Carrier::Engine).peekable();
    engine.peek()?;
    let ingress = engine.any(|network| network.ingress);
    let overlay_ports = || desired.attached.iter().flat_map(|task| &task.overlay_ports);
    let networks: BTreeSet<&String> = overlay_ports().map(|port| &port.network).collect();
    let why = mesh_left_to_engine(model, settings);
    Some(Takeover {
        networks: networks
            .into_iter()
            .map(|id| model.networks.get(id.as_str()).map_or(id, |network| &network.name).clone())
            .collect(),
        tasks: desired.attached.len(),
        interfaces: overlay_ports().count(),
        found: sandboxes.values().map(|sandbox| sandbox.overlay_ports.len()).sum(),
        mesh_tasks: sandboxes.values().filter(|sandbox| sandbox.gateway.is_some()).count(),
        mesh: ingress.then_some(why.is_none()),
        mesh_why: why,
    })
}
