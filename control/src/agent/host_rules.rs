//! What the host's own packet filters may close is left to the host; where that is everything an engine's routing mesh stays
//! the engine's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hiveway_core::{
    Model,
    firewall::{Ignored, Judgement, LeftEntries, Path, Port, Ranges, Reason, Ruleset, judgement},
    model::Carrier,
    observed::Link,
};
use serde::Serialize;
use tokio::{sync::watch::Receiver, task::block_in_place};

use super::{facts::Gateway, reconcile::Agent};
use crate::{host_firewall::Heard, mesh};

/// No more rules than these are shown, and no more of one rule's sources.
const SHOWN_RULES: usize = 50;
const SHOWN_SOURCES: usize = 8;

/// The host's rules as last judged.
pub(super) struct HostRules {
    heard: Receiver<Heard>,
    judged: Option<Judged>,
    left: Option<(Arc<Judgement>, BTreeMap<String, u32>, LeftEntries)>,
}

struct Judged {
    rules: Arc<Ruleset>,
    path: Path,
    judgement: Arc<Judgement>,
}

/// `firewall` of `status --json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FirewallStatus {
    /// What may close published ports, the largest first; what it closes is left to the host's own path.
    pub left: Vec<LeftRule>,
    /// How many such rules there are; not all of them may be shown.
    pub rules: usize,
    /// Entries in map `LEFT`.
    pub prefixes: usize,
    /// There were too many: what shares a prefix of this length with one of them is left, too.
    pub widened_to: Option<u8>,
    /// Sets that could not be read; their rules count for every source.
    pub unread_sets: Vec<String>,
    /// Chains that are ignored as asked, or `all`.
    pub ignored: Vec<String>,
    /// Why the mesh is not taken over, if that is because of a rule.
    pub refused: Option<String>,
}

/// One rule.
#[derive(Clone, Debug, Serialize)]
pub struct LeftRule {
    /// Like `ip:filter:DOCKER-USER`.
    pub chain: String,
    /// As its tool prints it.
    pub rule: String,
    /// Some of the clients' CIDRs.
    pub sources: Vec<String>,
    /// How many CIDRs there are.
    pub prefixes: usize,
    /// Like `8080/tcp`; empty: all that are published.
    pub ports: Vec<String>,
    /// Empty: all where clients arrive.
    pub interfaces: Vec<String>,
}

impl HostRules {
    pub(super) fn new(heard: Receiver<Heard>) -> Self {
        Self { heard, judged: None, left: None }
    }

    /// Whether rules have come that were not judged yet.
    pub(super) fn are_new(&self) -> bool {
        let heard = self.heard.borrow();
        let judged = self.judged.as_ref().map(|judged| &judged.rules);
        heard.reading.as_ref().is_some_and(|reading| judged.is_some_and(|rules| !Arc::ptr_eq(rules, &reading.rules)))
            || (judged.is_none() && heard.reading.is_some())
    }

    /// What map `LEFT` should hold, for interfaces with these indices.
    pub(super) fn entries(&mut self, links: &BTreeMap<String, Link>) -> LeftEntries {
        let Some(judged) = &self.judged else { return LeftEntries::default() };
        let indices: BTreeMap<String, u32> =
            judged.path.interfaces.iter().filter_map(|name| Some((name.clone(), links.get(name)?.index))).collect();
        match &self.left {
            Some((judgement, known, entries)) if Arc::ptr_eq(judgement, &judged.judgement) && *known == indices => {
                entries.clone()
            }
            _ => {
                let entries = judged.judgement.left.entries(&judged.path.ports, |name| indices.get(name).copied());
                self.left = Some((judged.judgement.clone(), indices, entries.clone()));
                entries
            }
        }
    }

    fn judge(&mut self, rules: &Arc<Ruleset>, path: Path, ignored: &Ignored) -> Arc<Judgement> {
        match &self.judged {
            Some(judged) if Arc::ptr_eq(&judged.rules, rules) && judged.path == path => judged.judgement.clone(),
            _ => {
                let judgement = Arc::new(block_in_place(|| judgement(rules, &path, ignored)));
                self.judged = Some(Judged { rules: rules.clone(), path, judgement: judgement.clone() });
                judgement
            }
        }
    }

    /// For display.
    pub(super) fn status(&self, ignored: &Ignored) -> FirewallStatus {
        let ignored = match ignored {
            Ignored::None => Vec::new(),
            Ignored::All => vec!["all".to_owned()],
            Ignored::Chains(chains) => chains.iter().cloned().collect(),
        };
        let Some(judged) = &self.judged else { return FirewallStatus { ignored, ..FirewallStatus::default() } };
        let judgement = &judged.judgement;
        FirewallStatus {
            left: judgement.reasons.iter().take(SHOWN_RULES).map(|reason| shown(reason, &judged.path)).collect(),
            rules: judgement.reasons.len(),
            prefixes: self.left.as_ref().map_or(0, |(_, _, entries)| entries.entries.len()),
            widened_to: judgement.left.widened,
            unread_sets: judged.rules.unread.clone(),
            ignored,
            refused: judgement.unbounded.as_ref().filter(|_| judged.path.engine).map(refusal),
        }
    }
}

impl Agent {
    /// Judges the host's rules. Why an engine's routing mesh must stay the engine's, as far as they are concerned.
    pub(super) fn mesh_refused(&mut self, links: &BTreeMap<String, Link>, gateway: &Gateway) -> Option<String> {
        let path = self.path(links, gateway);
        if path.ports.is_empty() {
            return None;
        }
        let heard = self.host_rules.heard.borrow().clone();
        let Some(reading) = heard.reading else {
            // What was never read may say anything.
            let why = heard.error.unwrap_or_else(|| "it has not been read yet".into());
            return (self.args.ignored() != Ignored::All).then(|| format!("the host's firewall cannot be read: {why}"));
        };
        let engine = path.engine;
        let judgement = self.host_rules.judge(&reading.rules, path, &self.args.ignored());
        judgement.unbounded.as_ref().filter(|_| engine).map(refusal)
    }

    /// The way of clients' packets to published ports, without Hiveway.
    fn path(&self, links: &BTreeMap<String, Link>, gateway: &Gateway) -> Path {
        let model = &self.table.model;
        let engine = model.networks.values().any(|network| network.ingress && network.carrier == Carrier::Engine);
        let bridge = links.get(&gateway.name).into_iter().flat_map(|link| &link.addresses);
        Path {
            engine,
            ports: published(model, engine),
            interfaces: mesh::interfaces(links, &self.args.mesh_interfaces, &self.uplinks.names, &gateway.name),
            addresses: mesh::addresses(links, &gateway.name).into_keys().map(ipnet::Ipv4Net::from).collect(),
            bridge: gateway.name.clone(),
            bridge_subnet: bridge.copied().collect::<Ranges>(),
        }
    }
}

/// Ports in ingress mode; without an engine those in host mode, too.
fn published(model: &Model, engine: bool) -> BTreeSet<Port> {
    let ports = model.services.values().flat_map(|service| &service.ports);
    ports.filter_map(|port| port.ingress().or_else(|| port.host().filter(|_| !engine))).collect()
}

fn refusal(reason: &Reason) -> String {
    format!(
        "{}: `{}` may close every published port to every client, and would not be asked: let it name sources, ports or \
         interfaces, restrict clients with --mesh-allow or the label hiveway.allow instead, or start the agent with \
         --ignore-firewall={}",
        reason.chain, reason.rule, reason.chain
    )
}

fn shown(reason: &Reason, path: &Path) -> LeftRule {
    let port = |(protocol, port): &Port| match protocol {
        6 => format!("{port}/tcp"),
        17 => format!("{port}/udp"),
        132 => format!("{port}/sctp"),
        other => format!("{port}/{other}"),
    };
    let all = reason.ports.len() == path.ports.len();
    LeftRule {
        chain: reason.chain.clone(),
        rule: reason.rule.clone(),
        sources: reason.sources.prefixes().take(SHOWN_SOURCES).map(|net| net.to_string()).collect(),
        prefixes: reason.sources.prefixes().count(),
        ports: if all { Vec::new() } else { reason.ports.iter().map(port).collect() },
        interfaces: match reason.interfaces == path.interfaces {
            true => Vec::new(),
            false => reason.interfaces.iter().cloned().collect(),
        },
    }
}
