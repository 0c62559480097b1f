//! Beside a Docker engine: its sandboxes are looked into and their interfaces get programs, and the routing mesh is left to
//! it where the host's own firewall has a say about published ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use hiveway_core::{
    Desired, Model, Settings, mesh_left_to_engine,
    model::Carrier,
    observed::{Link, Namespace},
    plan::Item,
    sandbox::{Sandbox, sandboxes},
};
use serde::Serialize;

use super::{
    apply::Round,
    facts::Gateway,
    reconcile::{Agent, Cause},
    shared::Trouble,
};
use crate::{host_firewall, mesh, netlink::Spaces};

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
    /// What the host's own firewall says about published ports.
    pub firewall: Vec<String>,
    /// `--ignore-firewall`.
    pub firewall_ignored: bool,
}

/// How long a running task may be without an interface on the gateway bridge before others are told: the engine makes it
/// before the task runs.
const GATEWAY_PATIENCE: Duration = Duration::from_secs(1);

/// Ports (IP protocol number, port), and the interfaces that their clients come in by.
type Question = (BTreeSet<(u8, u16)>, BTreeSet<String>);

/// The host's own rules about published ports, as last read.
#[derive(Clone, Debug, Default)]
pub(super) struct HostFirewall {
    /// What it was asked about.
    about: Option<Question>,
    /// What restricts them; empty: nothing does.
    pub(super) restrictions: Vec<String>,
}

impl Agent {
    /// Why an engine's routing mesh must stay the engine's, as far as this node's firewall is concerned. An engine's own
    /// mesh goes through the rules of DOCKER-USER; ours comes before all of them.
    pub(super) fn mesh_refused(
        &mut self,
        links: &BTreeMap<String, Link>,
        gateway: &Gateway,
        cause: Cause,
    ) -> Option<String> {
        let published = published(&self.table.model);
        if published.is_empty() {
            self.host_rules = HostFirewall::default();
            return None;
        }
        let clients = mesh::interfaces(links, &self.args.mesh_interfaces, &self.uplinks.names, &gateway.name);
        let about = Some((published, clients));
        if cause != Cause::Kernel || self.host_rules.about != about {
            let read = tokio::task::block_in_place(|| {
                about.as_ref().map_or(Ok(Vec::new()), |(ports, clients)| host_firewall::restrictions(ports, clients))
            });
            match read {
                Ok(restrictions) => self.host_rules = HostFirewall { about, restrictions },
                // A moment's failure changes nothing; what was never read may say anything.
                Err(why) if self.host_rules.about.is_none() => {
                    self.host_rules.restrictions = vec![format!("the host's firewall cannot be read: {why}")];
                }
                Err(why) => tracing::warn!("the host's firewall cannot be read, what it said before holds: {why}"),
            }
        }
        let first = self.host_rules.restrictions.first().filter(|_| !self.args.ignore_firewall)?;
        let more = match self.host_rules.restrictions.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        Some(format!(
            "{first}{more}: clients would get past it; restrict them with --mesh-allow or the service's label \
             hiveway.allow instead and start the agent with --ignore-firewall"
        ))
    }

    /// Finds the interfaces that the engine has made.
    pub(super) fn look_into_sandboxes(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        links: &BTreeMap<String, Link>,
        namespaces: &BTreeMap<String, Namespace>,
        round: &mut Round,
    ) {
        let all = sandboxes(desired, settings, links, namespaces);
        let waiting = all.waiting.into_iter();
        round.waiting.extend(waiting.map(|blocked| Trouble {
            item: blocked.item.to_string(),
            why: blocked.why,
            attempts: 0,
            retry: None,
        }));
        (self.sandboxes, self.incomplete) = (all.found, all.incomplete);
        self.report_unreachable(all.without_gateway);
    }

    /// Tells the other nodes of tasks here that stay without an interface on the gateway bridge: they leave them out of the
    /// routing mesh.
    fn report_unreachable(&mut self, without_gateway: BTreeSet<String>) {
        let now = Instant::now();
        self.without_gateway.retain(|id, _| without_gateway.contains(id));
        for id in without_gateway {
            self.without_gateway.entry(id).or_insert(now);
        }
        let Some(hub) = &self.hub else { return };
        let tasks = &self.table.model.tasks;
        // What was said before an agent's restart still holds.
        let known = |id: &str| tasks.get(id).is_some_and(|task| task.unreachable);
        let stays = |since: Instant| now.duration_since(since) >= GATEWAY_PATIENCE;
        let all = self.without_gateway.iter().filter(|(id, since)| stays(**since) || known(id));
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
    pub(super) fn note_replies(&mut self, namespaces: &BTreeMap<String, Namespace>, round: &mut Round) {
        let found = namespaces.iter().filter_map(|(task, namespace)| match namespace {
            Namespace::Present(inside) => Some((task, &inside.replies)),
            _ => None,
        });
        self.replies = found.map(|(task, replies)| (task.clone(), replies.clone())).collect();
        let cut = self.replies.iter().filter(|(_, replies)| replies.more > 0);
        round.waiting.extend(cut.map(|(task, replies)| Trouble {
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

    /// Programs on the containers' own interfaces.
    pub(super) fn taps(&mut self, desired: &Desired, spaces: &Spaces, round: &mut Round) {
        let mut dataplane = self.shared.dataplane();
        let mut keep = BTreeSet::new();
        for task in &desired.tapped {
            // Who is only gone for a moment keeps its programs.
            keep.extend(task.taps.iter().map(|tap| tap.id));
            let (Some(sandbox), Some(space)) = (self.sandboxes.get(&task.id), spaces.0.get(&task.id)) else { continue };
            let item = Item::Task(task.id.clone()).to_string();
            for (id, link) in &sandbox.taps {
                if round.may(&self.backoff, &item) {
                    match dataplane.attach_sandbox(space.file.as_fd(), &link.name, *id) {
                        // Gone since it was seen.
                        Err(error) if error.no_interface() => self.incomplete = true,
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

/// Ports that an engine's routing mesh publishes.
fn published(model: &Model) -> BTreeSet<(u8, u16)> {
    let engine = model.networks.values().any(|network| network.ingress && network.carrier == Carrier::Engine);
    let services = model.services.values().filter(|_| engine);
    services.flat_map(|service| service.ports.iter().filter_map(|port| port.ingress())).collect()
}

/// What is taken over; `None` where no engine carries a network.
pub(super) fn account(
    model: &Model,
    settings: &Settings,
    desired: &Desired,
    sandboxes: &BTreeMap<String, Sandbox>,
    firewall: &HostFirewall,
    firewall_ignored: bool,
) -> Option<Takeover> {
    let mut engine = model.networks.values().filter(|network| network.carrier == Carrier::Engine).peekable();
    engine.peek()?;
    let ingress = engine.any(|network| network.ingress);
    let taps = || desired.tapped.iter().flat_map(|task| &task.taps);
    let networks: BTreeSet<&String> = taps().map(|tap| &tap.network).collect();
    let why = mesh_left_to_engine(model, settings);
    Some(Takeover {
        networks: networks
            .into_iter()
            .map(|id| model.networks.get(id.as_str()).map_or(id, |network| &network.name).clone())
            .collect(),
        tasks: desired.tapped.len(),
        interfaces: taps().count(),
        found: sandboxes.values().map(|sandbox| sandbox.taps.len()).sum(),
        mesh_tasks: sandboxes.values().filter(|sandbox| sandbox.gateway.is_some()).count(),
        mesh: ingress.then_some(why.is_none()),
        mesh_why: why,
        firewall: firewall.restrictions.clone(),
        firewall_ignored,
    })
}
