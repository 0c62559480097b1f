//! What the host's own packet filters may close is left to the host; where that is everything an engine's routing mesh
//! stays the engine's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use hiveway_core::{
    Model,
    firewall::{Ignored, Judgement, LeftEntries, Path, Port, Ranges, Reason, Ruleset, judgement},
    observed::Link,
};
use serde::Serialize;
use tokio::{sync::watch::Receiver, task::block_in_place};

use super::{
    facts::Gateway,
    reconcile::{Agent, Cause},
};
use crate::{host_firewall::LastReading, mesh};

/// No more rules than these are shown, and no more of one rule's sources.
const SHOWN_RULES: usize = 50;
const SHOWN_SOURCES: usize = 8;
/// No more chains than these have numbers of their own: each is a series of the metrics.
const SHOWN_CHAINS: usize = 20;
/// More addresses of an engine's sandbox are not looked at; it has one.
const MOST_SANDBOXES: usize = 16;
/// The name of the rest; chains' have colons.
const OTHER_CHAINS: &str = "other";

/// The host's rules as last judged.
#[derive(Clone)]
pub(super) struct HostRules {
    heard: Receiver<LastReading>,
    judged: Option<Judged>,
    /// What the last round has seen of them: the rules, and why they could not be read again.
    seen: (Option<Arc<Ruleset>>, Option<String>),
    /// What the maps held when the agent started: published ports, and what of them was left to the host. It stays in
    /// force until the rules have been read.
    before: LeftEntries,
    /// Published ports of a round without any rules.
    unread: Option<BTreeSet<Port>>,
    left: Option<(Arc<Judgement>, BTreeMap<String, u32>, LeftEntries)>,
    /// Chains of `--ignore-firewall` that were last not there.
    missing: Vec<String>,
}

#[derive(Clone)]
struct Judged {
    rules: Arc<Ruleset>,
    path: Path,
    judgement: Arc<Judgement>,
    /// Its rules by chain.
    chains: Vec<LeftChain>,
}

/// `firewall` of `status --json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FirewallStatus {
    /// What may close published ports, the largest first; what it closes is left to the host's own path.
    pub left: Vec<LeftRule>,
    /// How many such rules there are; not all of them may be shown.
    pub rules: usize,
    /// The same by chain: those with the most rules, and one named `other` for the rest.
    pub chains: Vec<LeftChain>,
    /// Entries in map `LEFT`.
    pub prefixes: usize,
    /// There were too many: what shares a prefix of this length with one of them is left, too.
    pub widened_to: Option<u8>,
    /// There were too many: some clients of single ports are left at all of them.
    pub for_all_ports: bool,
    /// Sets that could not be read; their rules count for every source.
    pub unread_sets: Vec<String>,
    /// Chains that are ignored as asked, or `all`.
    pub ignored: Vec<String>,
    /// Those of them that are not on the host, or that are never asked.
    pub ignored_missing: Vec<String>,
    /// Why the mesh is not taken over, if that is because of a rule.
    pub refused: Option<String>,
    /// This agent has not read the rules yet: what the maps held before holds, and all other ports are left to the
    /// host.
    pub unread: bool,
}

/// What a chain closes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftChain {
    /// Like `ip:filter:DOCKER-USER`.
    pub chain: String,
    /// How many of its rules.
    pub rules: usize,
    /// How many CIDRs of clients they have together; what several rules have in common counts for each.
    pub prefixes: usize,
}

impl FirewallStatus {
    /// Everything that leaves clients to the host, by a stable name, and whether it does now.
    pub fn why_left(&self) -> [(&'static str, bool); 5] {
        [
            ("rules", self.rules > 0),
            ("unread", self.unread),
            ("unread_sets", !self.unread_sets.is_empty()),
            ("for_all_ports", self.for_all_ports),
            ("widened", self.widened_to.is_some()),
        ]
    }

    /// What was asked for and has no effect.
    pub fn warnings(&self) -> Vec<String> {
        self.ignored_missing.iter().map(|chain| not_there(chain)).collect()
    }
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
    pub(super) fn new(heard: Receiver<LastReading>, before: LeftEntries) -> Self {
        Self { heard, judged: None, seen: (None, None), before, unread: None, left: None, missing: Vec::new() }
    }

    /// Where an engine's routing mesh leads published ports, as its own rules say: one address, or a few while they
    /// change.
    pub(super) fn sandbox(&self) -> BTreeSet<Ipv4Addr> {
        let spans = self.seen.0.iter().flat_map(|rules| rules.sandbox.spans());
        spans
            .flat_map(|(first, last)| first.to_bits()..=last.to_bits())
            .take(MOST_SANDBOXES)
            .map(Ipv4Addr::from_bits)
            .collect()
    }

    /// What is to be done about news of the rules: everything is looked at only if they mean something else for
    /// published ports than in the last round. `ignored`: as in that round.
    pub(super) fn news(&mut self, ignored: &Ignored) -> Cause {
        let heard = self.heard.borrow().clone();
        if heard.error != self.seen.1 {
            return Cause::Tick;
        }
        let (Some(reading), Some(seen)) = (&heard.reading, &self.seen.0) else {
            return if heard.reading.is_some() { Cause::Tick } else { Cause::Guard };
        };
        if Arc::ptr_eq(seen, &reading.rules) {
            return Cause::Guard;
        }
        let moved = seen.sandbox != reading.rules.sandbox;
        self.seen.0 = Some(reading.rules.clone());
        if moved {
            return Cause::Tick;
        }
        // Nothing is published: they say nothing.
        let Some((path, before)) = self.judged.as_ref().map(|judged| (judged.path.clone(), judged.judgement.clone()))
        else {
            return Cause::Guard;
        };
        let unread = self.judged.as_ref().map(|judged| judged.rules.unread.clone());
        let judgement = self.judge(&reading.rules, path, ignored);
        match *judgement == *before && unread.as_ref() == Some(&reading.rules.unread) {
            true => Cause::Guard,
            false => Cause::Tick,
        }
    }

    /// What map `LEFT` should hold, for interfaces with these indices.
    pub(super) fn entries(&mut self, links: &BTreeMap<String, Link>) -> LeftEntries {
        if let Some(ports) = &self.unread {
            return LeftEntries::unread(&self.before, ports);
        }
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
                let judgement = block_in_place(|| judgement(rules, &path, ignored));
                // What is the same stays the same value: the map's entries need not be made again.
                let same = self.judged.as_ref().filter(|judged| judged.path == path && *judged.judgement == judgement);
                let judgement = same.map_or_else(|| Arc::new(judgement), |judged| judged.judgement.clone());
                let chains = match &self.judged {
                    Some(judged) if Arc::ptr_eq(&judged.judgement, &judgement) => judged.chains.clone(),
                    _ => block_in_place(|| by_chain(&judgement.reasons)),
                };
                self.judged = Some(Judged { rules: rules.clone(), path, judgement: judgement.clone(), chains });
                judgement
            }
        }
    }

    /// For display. What `ignored` names and is not there is logged, once.
    pub(super) fn status(&mut self, ignored: &Ignored) -> FirewallStatus {
        let missing = self.seen.0.as_ref().map(|rules| ignored.missing(rules)).unwrap_or_default();
        for chain in missing.iter().filter(|chain| !self.missing.contains(chain)) {
            tracing::warn!("{}", not_there(chain));
        }
        self.missing = missing;
        FirewallStatus { ignored_missing: self.missing.clone(), ..self.of_judgement(ignored) }
    }

    fn of_judgement(&self, ignored: &Ignored) -> FirewallStatus {
        let ignored = match ignored {
            Ignored::None => Vec::new(),
            Ignored::All => vec!["all".to_owned()],
            Ignored::Chains(chains) => chains.iter().cloned().collect(),
        };
        if let Some(ports) = &self.unread {
            let prefixes = LeftEntries::unread(&self.before, ports).entries.len();
            return FirewallStatus { ignored, prefixes, unread: true, ..FirewallStatus::default() };
        }
        let Some(judged) = &self.judged else { return FirewallStatus { ignored, ..FirewallStatus::default() } };
        let judgement = &judged.judgement;
        FirewallStatus {
            left: judgement.reasons.iter().take(SHOWN_RULES).map(|reason| shown(reason, &judged.path)).collect(),
            rules: judgement.reasons.len(),
            chains: judged.chains.clone(),
            prefixes: self.left.as_ref().map_or(0, |(_, _, entries)| entries.entries.len()),
            widened_to: judgement.left.widened,
            for_all_ports: judgement.left.for_all_ports,
            unread_sets: judged.rules.unread.clone(),
            ignored,
            ignored_missing: Vec::new(),
            refused: judgement.unbounded.as_ref().filter(|_| judged.path.engine).map(refusal),
            unread: false,
        }
    }
}

/// What the host's rules mean for published ports.
#[derive(Debug, Default)]
pub(super) struct HostSay {
    /// Why an engine's routing mesh stays the engine's.
    pub(super) refused: Option<String>,
    /// What is wrong, and what to do about it.
    pub(super) problem: Option<String>,
}

impl HostSay {
    /// `resumes`: an agent before this one served published ports.
    fn unread(why: &str, resumes: bool, engine: bool) -> Self {
        let until = match (resumes, engine) {
            (true, _) => "what it said before the agent was restarted stays in force",
            (false, true) => "published ports stay with the engine until it has been",
            (false, false) => "published ports are not served until it has been",
        };
        let problem =
            format!("the host's firewall cannot be read, {until} (or start the agent with --ignore-firewall): {why}");
        let refused = engine && !resumes;
        Self { refused: refused.then(|| format!("the host's firewall cannot be read: {why}")), problem: Some(problem) }
    }
}

impl Agent {
    /// Judges the host's rules. Returns why an engine's routing mesh must stay the engine's, as far as they are
    /// concerned, and what keeps published ports from being served as they should.
    pub(super) fn mesh_refused(&mut self, links: &BTreeMap<String, Link>, gateway: &Gateway) -> HostSay {
        let (path, ignored) = (self.path(links, gateway), self.args.ignored());
        let heard = self.host_rules.heard.borrow().clone();
        self.host_rules.seen = (heard.reading.as_ref().map(|reading| reading.rules.clone()), heard.error.clone());
        self.host_rules.unread = None;
        if path.ports.is_empty() {
            self.host_rules.judged = None;
            return HostSay::default();
        }
        let all = ignored == Ignored::All;
        let Some(reading) = heard.reading else {
            if all {
                return HostSay::default();
            }
            let why = heard.error.unwrap_or_else(|| "it has not been read yet".into());
            let resumes = !self.host_rules.before.flags.is_empty();
            self.host_rules.unread = Some(path.ports);
            return HostSay::unread(&why, resumes, path.engine);
        };
        let engine = path.engine;
        let judgement = self.host_rules.judge(&reading.rules, path, &ignored);
        let closed = judgement.unbounded.as_ref().map(refusal);
        let again = heard
            .error
            .filter(|_| !all)
            .map(|why| format!("the host's rules cannot be read, what they said before stays in force: {why}"));
        match engine {
            true => HostSay { refused: closed, problem: again },
            false => HostSay { refused: None, problem: again.or(closed) },
        }
    }

    /// The way of clients' packets to published ports, without Hiveway.
    fn path(&self, links: &BTreeMap<String, Link>, gateway: &Gateway) -> Path {
        let model = &self.table.model;
        let engine = model.engine_has_ingress();
        let bridge = links.get(&gateway.name).into_iter().flat_map(|link| &link.addresses);
        Path {
            engine,
            ports: published(model, engine),
            interfaces: mesh::interfaces(links, &self.args.mesh_interfaces, &self.uplinks.names, &gateway.name),
            addresses: mesh::addresses(links, &gateway.name).into_keys().map(ipnet::Ipv4Net::from).collect(),
            bridge: gateway.name.clone(),
            bridge_subnet: bridge.copied().collect::<Ranges>(),
            containers: mesh::container_bridges(links, &gateway.name)
                .map(|(name, bridge)| (name.clone(), bridge.addresses.iter().copied().collect()))
                .collect(),
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

fn not_there(chain: &str) -> String {
    format!(
        "chain {chain} of --ignore-firewall is not on the host, or is never asked: nothing is ignored by it; chains are \
         named by family, table and name, like ip:filter:DOCKER-USER"
    )
}

/// What the rules close, by chain; the chains with the most rules first.
fn by_chain(reasons: &[Reason]) -> Vec<LeftChain> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for reason in reasons {
        let (rules, prefixes) = counts.entry(&reason.chain).or_default();
        (*rules, *prefixes) = (*rules + 1, *prefixes + reason.sources.prefixes().count());
    }
    let row =
        |(chain, (rules, prefixes)): (&str, (usize, usize))| LeftChain { chain: chain.to_owned(), rules, prefixes };
    let mut chains: Vec<_> = counts.into_iter().map(row).collect();
    chains.sort_by(|a, b| b.rules.cmp(&a.rules).then_with(|| a.chain.cmp(&b.chain)));
    let rest = chains.split_off(chains.len().min(SHOWN_CHAINS));
    if !rest.is_empty() {
        chains.push(LeftChain {
            chain: OTHER_CHAINS.to_owned(),
            rules: rest.iter().map(|chain| chain.rules).sum(),
            prefixes: rest.iter().map(|chain| chain.prefixes).sum(),
        });
    }
    chains
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

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(chain: &str, sources: &[&str]) -> Reason {
        Reason {
            chain: chain.to_owned(),
            rule: "drop".to_owned(),
            sources: sources.iter().map(|net| net.parse::<ipnet::Ipv4Net>().unwrap()).collect(),
            ports: BTreeSet::new(),
            interfaces: BTreeSet::new(),
        }
    }

    #[test]
    fn rules_are_counted_by_chain() {
        let user = "ip:filter:DOCKER-USER";
        let reasons = [
            reason("inet:f2b:pre", &["192.0.2.0/24"]),
            reason(user, &["192.0.2.1/32", "192.0.2.9/32"]),
            reason(user, &["192.0.2.1/32"]),
        ];
        let row = |chain: &str, rules, prefixes| LeftChain { chain: chain.to_owned(), rules, prefixes };
        assert_eq!(by_chain(&reasons), [row(user, 2, 3), row("inet:f2b:pre", 1, 1)]);
    }

    #[test]
    fn so_many_chains_have_numbers_of_their_own() {
        let mut reasons: Vec<_> =
            (0..SHOWN_CHAINS + 5).map(|n| reason(&format!("ip:t:{n:02}"), &["10.0.0.0/8"])).collect();
        reasons.push(reason("ip:t:24", &["10.0.0.0/8"]));
        let chains = by_chain(&reasons);
        assert_eq!(chains.len(), SHOWN_CHAINS + 1);
        assert_eq!((chains[0].chain.as_str(), chains[0].rules), ("ip:t:24", 2), "the largest has one");
        let other = chains.last().unwrap();
        assert_eq!((other.chain.as_str(), other.rules, other.prefixes), (OTHER_CHAINS, 5, 5));
        assert_eq!(chains.iter().map(|chain| chain.rules).sum::<usize>(), reasons.len());
    }
}
