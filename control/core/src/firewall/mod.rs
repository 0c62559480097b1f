//! What the host's own packet filters say about published ports.
//!
//! The routing mesh answers before them, so what they may close is left to the host's own path, where they decide; all
//! else stays with the mesh. A packet to a port of an engine's routing mesh passes the hooks ingress, prerouting,
//! forward (it is on its way to the engine's sandbox) and postrouting, never input; its answer the same ones, back.
//!
//! ```text
//! iptables::tables  ─┐
//! nftables::tables  ─┴▶ rules::Ruleset ─ judge ─▶ Closed (clients, ports, interfaces, and by what) ─ Left::of ─▶ Left
//! ```
//!
//! What cannot be read with certainty widens what is left to the host. Some rules are not followed, and leave nothing:
//! reverse path filters, redirections, rules about a few of a client's own ports, and about packets that no connection
//! has.

mod entries;
pub mod ipset;
pub mod iptables;
mod judge;
mod left;
pub mod nftables;
mod ranges;
mod rules;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};

pub use entries::LeftEntries;
pub use judge::{Closed, Port, Reason, judge};
pub use left::{Left, MOST_PREFIXES};
pub use ranges::Ranges;
pub use rules::{Addresses, Base, Chain, Condition, End, Hook, Rule, Ruleset, Table, Verdict, state};

/// The way of packets to published ports, without Hiveway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// They are an engine's: it forwards them to its sandbox on the gateway bridge. Otherwise nothing but Hiveway
    /// serves them.
    pub engine: bool,
    /// What is published.
    pub ports: BTreeSet<Port>,
    /// Where clients arrive.
    pub interfaces: BTreeSet<String>,
    /// The node's addresses.
    pub addresses: Ranges,
    /// The gateway bridge.
    pub bridge: String,
    /// Its subnet.
    pub bridge_subnet: Ranges,
    /// Bridges of an engine's containers, with their subnets.
    pub containers: BTreeMap<String, Ranges>,
}

/// `--ignore-firewall`: chains that are not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ignored {
    /// Every chain is looked at.
    #[default]
    None,
    /// Whatever they say.
    All,
    /// These are not, named like `ip:filter:DOCKER-USER`.
    Chains(BTreeSet<String>),
}

impl Ignored {
    /// Whether this chain is not looked at.
    pub fn contains(&self, chain: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Chains(all) => all.contains(chain),
        }
    }

    /// Chains that are named here and are none of those in `rules`.
    pub fn missing(&self, rules: &Ruleset) -> Vec<String> {
        let Self::Chains(all) = self else { return Vec::new() };
        let there = |chain: &&String| {
            rules.tables.iter().any(|table| table.chains.keys().any(|name| table.chain(name) == **chain))
        };
        all.iter().filter(|chain| !there(chain)).cloned().collect()
    }
}

/// What is left to the host, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Clients that are.
    pub left: Left,
    /// What may close a port to them.
    pub reasons: Vec<Reason>,
    /// Why the mesh cannot be taken over at all: everything is closed to everybody, or may be, whatever is published
    /// and wherever clients arrive.
    pub unbounded: Option<Reason>,
}

/// The rule that closes everything: not just what happens to be published and the interfaces that there are, which
/// rules name, but any port at any interface.
fn unbounded(rules: &Ruleset, path: &Path, ignored: &Ignored, closed: &Closed) -> Option<Reason> {
    let protocols: BTreeSet<u8> = path.ports.iter().map(|(protocol, _)| *protocol).collect();
    let port = unnamed_port(rules, path);
    // No interface has such a name.
    let interfaces = BTreeSet::from([" ".to_owned()]);
    let other =
        Path { ports: protocols.iter().map(|protocol| (*protocol, port)).collect(), interfaces, ..path.clone() };
    let all = judge(rules, &other, ignored);
    if !Left::of(&all, 1, other.ports.len()).everywhere.is_all() {
        return None;
    }
    let same = |reason: &Reason| {
        closed.reasons.iter().find(|known| known.chain == reason.chain && known.rule == reason.rule).cloned()
    };
    all.reasons.first().and_then(same).or(closed.reasons.first().cloned())
}

/// A port that is not published and that the fewest rules name.
fn unnamed_port(rules: &Ruleset, path: &Path) -> u16 {
    let conditions = rules.tables.iter().flat_map(|table| table.chains.values()).flat_map(|chain| &chain.rules);
    // How many more rules name a port than the one before it.
    let mut steps = BTreeMap::<u32, i64>::from([(1, 0)]);
    let mut name = |first: u16, last: u16| {
        *steps.entry(first.into()).or_default() += 1;
        *steps.entry(u32::from(last) + 1).or_default() -= 1;
    };
    for condition in conditions.flat_map(|rule| &rule.conditions) {
        if let Condition::Port { ranges, negated: false, .. } = condition {
            ranges.iter().for_each(|(first, last)| name(*first, *last));
        }
    }
    for (_, port) in &path.ports {
        name(*port, *port);
    }
    let mut named = 0;
    let ports = steps.into_iter().map(|(first, step)| {
        named += step;
        (named, first)
    });
    let ports = ports.filter_map(|(named, first)| Some((named, u16::try_from(first).ok().filter(|port| *port > 0)?)));
    ports.min().map_or(1, |(_, port)| port)
}

/// Judges `rules`. With [`Ignored::All`] the reasons are those that are ignored.
pub fn judgement(rules: &Ruleset, path: &Path, ignored: &Ignored) -> Judgement {
    let all = *ignored == Ignored::All;
    let closed = judge(rules, path, if all { &Ignored::None } else { ignored });
    if all {
        return Judgement { reasons: closed.reasons, ..Judgement::default() };
    }
    let left = Left::of(&closed, path.interfaces.len(), path.ports.len());
    let unbounded = if left.everywhere.is_all() { unbounded(rules, path, ignored, &closed) } else { None };
    Judgement { left, reasons: closed.reasons, unbounded }
}
