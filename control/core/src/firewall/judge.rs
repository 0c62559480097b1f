//! What rules may close: which clients, at which interfaces, of which published ports.
//!
//! Every question that matters is asked of every chain on the path: may a packet of such a connection be dropped here,
//! and of which clients? A chain is walked with the set of clients whose packets may still be under way in it. A rule
//! that drops closes the part of them that it may match; one that accepts takes out only those that it surely matches.
//! Published ports that all rules treat alike are asked about once.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use dataplane_common::headers::ipproto;

use super::{
    Ignored, Path,
    ranges::Ranges,
    rules::{Base, Condition, End, Hook, Rule, Ruleset, Table, Verdict, state},
};

/// How deep chains may ask chains: more than the kernel's limit would be a loop.
const DEEPEST: usize = 16;
/// How many times the rules of a table may be looked at for one packet: chains that ask a chain several times, on
/// several levels, multiply them. Rule sets of hosts need a few.
const MOST_TIMES: usize = 64;
/// A few rules may be looked at this many times in all.
const FEW_RULES: usize = 1 << 16;
/// Priorities at which destination and source NAT happen.
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

/// An engine's chains, which iptables' FORWARD jumps to in 20.10 to 29. The first two let published ports of the
/// routing mesh pass: what comes after them is not asked. The others concern other traffic.
const DECIDE: [&str; 2] = ["DOCKER-INGRESS", "DOCKER-FORWARD"];
const ENGINES: [&str; 7] = [
    "DOCKER",
    "DOCKER-ISOLATION-STAGE-1",
    "DOCKER-ISOLATION-STAGE-2",
    "DOCKER-CT",
    "DOCKER-BRIDGE",
    "DOCKER-INTERNAL",
    "DOCKER-PUBLISHED",
];
/// The administrator's, which an engine asks first.
const ADMINISTRATORS: &str = "DOCKER-USER";

/// A published port: IP protocol number and port.
pub type Port = (u8, u16);

/// A rule that may close something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The chain, like `ip:filter:DOCKER-USER`.
    pub chain: String,
    /// The rule as its tool prints it, or the chain's policy.
    pub rule: String,
    /// To these clients.
    pub sources: Ranges,
    /// These ports.
    pub ports: BTreeSet<Port>,
    /// At these interfaces.
    pub interfaces: BTreeSet<String>,
}

/// What may be closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// To which clients, for ports that are treated alike and an interface.
    pub clients: Vec<(Vec<Port>, String, Ranges)>,
    /// By what; the largest first.
    pub reasons: Vec<Reason>,
}

/// One of the questions: a packet of a connection that is opened or open, to the published port or back.
#[derive(Clone, Copy, Debug)]
struct Packet<'a> {
    reply: bool,
    opens: bool,
    port: Port,
    /// Where the client is.
    interface: &'a str,
}

/// Judges `rules` for the path of published ports.
pub fn judge(rules: &Ruleset, path: &Path, ignored: &Ignored) -> Closed {
    let mut judge = Judge { rules, path, ignored, found: BTreeMap::new() };
    let mut closed = Closed::default();
    for ports in judge.alike() {
        for interface in &path.interfaces {
            let clients = judge.clients(&ports, interface);
            if !clients.is_empty() {
                closed.clients.push((ports.clone(), interface.clone(), clients));
            }
        }
    }
    closed.reasons = judge.found.into_values().filter(|reason| !reason.sources.is_empty()).collect();
    closed.reasons.sort_by_key(|reason| {
        let size = |all: bool, n: usize| (std::cmp::Reverse(all), std::cmp::Reverse(n));
        size(reason.sources.is_all(), reason.ports.len() * reason.interfaces.len())
    });
    closed
}

struct Judge<'a> {
    rules: &'a Ruleset,
    path: &'a Path,
    ignored: &'a Ignored,
    /// By table, chain and rule (the number of rules for the policy).
    found: BTreeMap<(usize, String, usize), Reason>,
}

/// What a rule does to one packet: clients that it may match, and that it surely matches.
struct Match<'a> {
    most: Cow<'a, Ranges>,
    least: Cow<'a, Ranges>,
}

impl<'a> Judge<'a> {
    /// Published ports that no condition tells apart.
    fn alike(&self) -> Vec<Vec<Port>> {
        let rules = self.rules.tables.iter().flat_map(|table| table.chains.values()).flat_map(|chain| &chain.rules);
        let mut told: Vec<&Condition> = rules
            .flat_map(|rule| &rule.conditions)
            .filter(|condition| matches!(condition, Condition::Port { .. } | Condition::Protocol { .. }))
            .collect();
        told.sort_by_cached_key(|condition| format!("{condition:?}"));
        told.dedup();
        let mut alike = BTreeMap::<Vec<u8>, Vec<Port>>::new();
        for (protocol, port) in &self.path.ports {
            let hold = |condition: &&Condition| match condition {
                Condition::Port { ranges, .. } => u8::from(within(ranges, *port)),
                Condition::Protocol { numbers, .. } => u8::from(numbers.contains(protocol)),
                _ => 0,
            };
            // TCP has flags.
            let kind = u8::from(*protocol == ipproto::TCP);
            alike
                .entry([kind].into_iter().chain(told.iter().map(hold)).collect())
                .or_default()
                .push((*protocol, *port));
        }
        alike.into_values().collect()
    }

    fn clients(&mut self, ports: &[Port], interface: &str) -> Ranges {
        let Some(port) = ports.first() else { return Ranges::NONE };
        let mut all = Vec::new();
        for (reply, opens) in [(false, true), (false, false), (true, false)] {
            let packet = Packet { reply, opens, port: *port, interface };
            for at in 0..self.rules.tables.len() {
                self.table(at, packet, &mut all);
            }
        }
        // All at once: there may be tens of thousands of rules.
        let clients = Ranges::any_of(all.iter().map(|(_, sources)| sources));
        let mut by_rule = BTreeMap::<_, Vec<Ranges>>::new();
        for (rule, sources) in all {
            by_rule.entry(rule).or_default().push(sources);
        }
        for ((table, chain, rule), sources) in by_rule {
            let sources = Ranges::any_of(&sources);
            let named = &self.rules.tables[table];
            let reason = self.found.entry((table, chain.clone(), rule)).or_insert_with(|| Reason {
                rule: named.chains[&chain].rules.get(rule).map_or("its policy".into(), |rule| rule.text.clone()),
                chain: named.chain(&chain),
                sources: Ranges::NONE,
                ports: BTreeSet::new(),
                interfaces: BTreeSet::new(),
            });
            if reason.sources != sources {
                reason.sources = reason.sources.or(&sources);
            }
            reason.ports.extend(ports);
            if !reason.interfaces.contains(interface) {
                reason.interfaces.insert(interface.to_owned());
            }
        }
        clients
    }

    /// All base chains of a table on the packet's way.
    fn table(&self, at: usize, packet: Packet<'_>, closed: &mut Vec<((usize, String, usize), Ranges)>) {
        let table = &self.rules.tables[at];
        let looks = FEW_RULES + MOST_TIMES * table.chains.values().map(|chain| chain.rules.len()).sum::<usize>();
        let mut asked_administrator = false;
        for (name, chain) in &table.chains {
            let Some(base) = &chain.base else { continue };
            if !self.on_the_way(base, packet) || self.ignored.contains(&table.chain(name)) {
                asked_administrator |= base.hook == Hook::Forward;
                continue;
            }
            let mut walk = Walk { judge: self, at, table, base, packet, closed, asked: BTreeSet::new(), looks };
            let out = walk.chain(name, Ranges::all(), 0);
            asked_administrator |= walk.asked.contains(ADMINISTRATORS);
            if base.drops && !out.is_empty() && !self.is_no_say(base, None) && !self.engine_lets_pass(base, table, name)
            {
                closed.push(((at, name.clone(), chain.rules.len()), out));
            }
        }
        // The engine makes FORWARD ask it whenever it starts.
        if !asked_administrator && self.path.engine && table.chains.contains_key(ADMINISTRATORS) {
            let base = Base { hook: Hook::Forward, priority: 0, nat: false, drops: false, devices: None };
            let mut walk = Walk { judge: self, at, table, base: &base, packet, closed, asked: BTreeSet::new(), looks };
            walk.chain(ADMINISTRATORS, Ranges::all(), 0);
        }
    }

    /// Whether such a packet is asked about there.
    fn on_the_way(&self, base: &Base, packet: Packet<'_>) -> bool {
        if base.nat {
            // Only what opens a connection is.
            return packet.opens && base.hook != Hook::Forward;
        }
        let entry = if packet.reply { self.path.bridge.as_str() } else { packet.interface };
        match base.hook {
            Hook::Ingress => base.devices.as_ref().is_none_or(|all| all.iter().any(|name| name == entry)),
            _ => true,
        }
    }

    /// Whether a rule (`None`: the policy) says nothing about published ports, because without an engine nobody opens
    /// them where packets are forwarded: what drops whatever nobody has accepted there was not made with them in mind.
    fn is_no_say(&self, base: &Base, rule: Option<&Rule>) -> bool {
        let particular = |condition: &Condition| matches!(condition, Condition::Address(..) | Condition::Port { .. });
        !self.path.engine
            && matches!(base.hook, Hook::Forward | Hook::Postrouting)
            && !rule.is_some_and(|rule| rule.conditions.iter().any(particular))
    }

    /// Whether what a base chain does not decide is an engine's to decide, which has set the policy.
    fn engine_lets_pass(&self, base: &Base, table: &Table, name: &str) -> bool {
        base.hook == Hook::Forward && self.path.engine && engines_part(table, name) < usize::MAX
    }
}

/// How many of a chain's rules come before an engine has let published ports pass; all of them without an engine's.
fn engines_part(table: &Table, name: &str) -> usize {
    let rules = || {
        table.chains[name].rules.iter().map(|rule| match &rule.verdict {
            Verdict::Jump(to) | Verdict::Goto(to) => to.as_str(),
            _ => "",
        })
    };
    let decides = rules().position(|to| DECIDE.contains(&to));
    // Where a kernel lacks what the mesh needs, the chain that lets its ports pass is missing.
    let last = || rules().rposition(|to| ENGINES.contains(&to));
    decides.or_else(last).unwrap_or(usize::MAX)
}

fn within(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
}

/// Whether a client's own port is one of these. A client is not kept out by a rule about few of the ports that it may
/// have: such a rule is about servers.
fn client_port(ranges: &[(u16, u16)], negated: bool) -> Holds {
    const USUAL: (u16, u16) = (32_768, 60_999);
    let inside = |(first, last): &(u16, u16)| {
        let (first, last) = ((*first).max(USUAL.0), (*last).min(USUAL.1));
        if first <= last { usize::from(last - first) + 1 } else { 0 }
    };
    let (named, all) = (ranges.iter().map(inside).sum::<usize>(), usize::from(USUAL.1 - USUAL.0) + 1);
    let matching = if negated { all.saturating_sub(named) } else { named };
    if 2 * matching >= all { Holds::Maybe } else { Holds::No }
}

/// One packet on its way through a base chain.
struct Walk<'w, 'a> {
    judge: &'w Judge<'a>,
    at: usize,
    table: &'a Table,
    base: &'w Base,
    packet: Packet<'w>,
    closed: &'w mut Vec<((usize, String, usize), Ranges)>,
    /// Chains that were asked.
    asked: BTreeSet<String>,
    /// How many more rules are looked at before no chain is asked any more.
    looks: usize,
}

/// Whether a condition holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    No,
    Maybe,
    Yes,
}

impl Holds {
    fn of(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }
}

impl<'a> Walk<'_, 'a> {
    /// Walks a chain with packets of these clients; returns those that may come out at its end.
    fn chain(&mut self, name: &str, mut here: Ranges, depth: usize) -> Ranges {
        let table: &'a Table = self.table;
        let Some(chain) = table.chains.get(name) else { return here };
        self.asked.insert(name.to_owned());
        if self.judge.ignored.contains(&table.chain(name)) {
            return here;
        }
        let ends = if self.base.hook == Hook::Forward && self.judge.path.engine && depth == 0 {
            engines_part(table, name)
        } else {
            usize::MAX
        };
        let mut returned = Vec::new();
        for (at, rule) in chain.rules.iter().enumerate() {
            if at >= ends {
                return Ranges::NONE;
            }
            self.looks = self.looks.saturating_sub(1);
            let Some(found) = self.matched(rule) else { continue };
            let may = here.and(&found.most);
            if may.is_empty() {
                continue;
            }
            match &rule.verdict {
                Verdict::Continue => {}
                Verdict::Drop if self.judge.is_no_say(self.base, Some(rule)) => {}
                Verdict::Drop => {
                    // Whatever comes later, these are closed.
                    if found.least.is_all() {
                        here = Ranges::NONE;
                    }
                    self.closed.push(((self.at, name.to_owned(), at), may));
                }
                Verdict::Accept => here.remove(&found.least),
                Verdict::Return => {
                    here.remove(&found.least);
                    returned.push(may);
                }
                // What an engine has there is about other traffic.
                Verdict::Jump(to) | Verdict::Goto(to) if self.judge.path.engine && ENGINES.contains(&to.as_str()) => {}
                Verdict::Jump(to) | Verdict::Goto(to) if depth < DEEPEST && self.looks > 0 => {
                    let out = self.chain(to, may, depth + 1);
                    here.remove(&found.least);
                    match &rule.verdict {
                        Verdict::Jump(_) if out.is_within(&here) => {}
                        Verdict::Jump(_) => here = here.or(&out),
                        _ => returned.push(out),
                    }
                }
                // It asks itself, or too much: it may do anything.
                Verdict::Jump(_) | Verdict::Goto(_) => self.closed.push(((self.at, name.to_owned(), at), may)),
            }
            if here.is_empty() {
                break;
            }
        }
        returned.push(here);
        Ranges::any_of(&returned)
    }

    /// `None`: it matches no such packet.
    fn matched(&self, rule: &'a Rule) -> Option<Match<'a>> {
        if self.packet.reply && is_about_containers(self.base, rule, self.judge.path) {
            return None;
        }
        let all = || Cow::Owned(Ranges::all());
        let mut found = Match { most: all(), least: all() };
        // Cheap ones first.
        let mut sure = true;
        for condition in &rule.conditions {
            match self.holds(condition) {
                Some(Holds::No) => return None,
                Some(Holds::Maybe) => sure = false,
                Some(Holds::Yes) | None => {}
            }
        }
        for condition in &rule.conditions {
            let Condition::Address(end, addresses) = condition else { continue };
            if !self.is_client(*end) {
                continue;
            }
            found.most = meet(found.most, &addresses.most);
            found.least = meet(found.least, &addresses.least);
        }
        if found.most.is_empty() {
            return None;
        }
        if !sure {
            found.least = Cow::Owned(Ranges::NONE);
        }
        Some(found)
    }

    /// Whether that end of the packet is the client's.
    fn is_client(&self, end: End) -> bool {
        match end {
            End::Source => !self.packet.reply,
            End::Destination => self.packet.reply,
            End::OriginalSource => true,
            End::OriginalDestination => false,
        }
    }

    /// Whether a condition about anything but the client's address holds; `None`: it is about that.
    fn holds(&self, condition: &Condition) -> Option<Holds> {
        let packet = self.packet;
        Some(match condition {
            Condition::Address(end, _) if self.is_client(*end) => return None,
            Condition::Address(end, addresses) => {
                let server = self.server(*end);
                if server.and(&addresses.most).is_empty() {
                    Holds::No
                } else if !server.is_empty() && server.is_within(&addresses.least) {
                    Holds::Yes
                } else {
                    Holds::Maybe
                }
            }
            Condition::Port { end, ranges, negated, exact } => {
                let servers = match end {
                    End::Source => packet.reply,
                    End::Destination => !packet.reply,
                    End::OriginalSource => false,
                    End::OriginalDestination => true,
                };
                let holds = match servers {
                    true => Holds::of(within(ranges, packet.port.1) != *negated),
                    false => client_port(ranges, *negated),
                };
                if holds == Holds::Yes && !exact { Holds::Maybe } else { holds }
            }
            Condition::Protocol { numbers, negated } => Holds::of(numbers.contains(&packet.port.0) != *negated),
            Condition::Interface { end, names, negated } => {
                let holds = self.through(*end, names);
                if *negated { holds.not() } else { holds }
            }
            Condition::State { states, negated } => {
                let mut is = if packet.opens { state::NEW } else { state::ESTABLISHED };
                let translated = match self.base.hook {
                    Hook::Ingress => Holds::No,
                    Hook::Prerouting if self.base.priority < DESTINATION_NAT && packet.opens => Holds::No,
                    _ if self.judge.path.engine => Holds::Yes,
                    _ => Holds::Maybe,
                };
                if translated == Holds::Yes {
                    is |= state::TRANSLATED;
                }
                let unsure = translated == Holds::Maybe && states & state::TRANSLATED != 0 && states & is == 0;
                match unsure {
                    true => Holds::Maybe,
                    false => Holds::of((states & is != 0) != *negated),
                }
            }
            Condition::Direction { reply } => Holds::of(*reply == packet.reply),
            Condition::Local { end, negated } => {
                let holds = self.local(*end);
                if *negated { holds.not() } else { holds }
            }
            Condition::Flags { mask, set, negated } => {
                let holds = self.flags(*mask, *set);
                if *negated { holds.not() } else { holds }
            }
            Condition::Unknown => Holds::Maybe,
            Condition::Never => Holds::No,
        })
    }

    /// The server's address at that end of the packet, as far as it is known.
    fn server(&self, end: End) -> Cow<'_, Ranges> {
        let path = self.judge.path;
        if end == End::OriginalDestination || !path.engine {
            return Cow::Borrowed(&path.addresses);
        }
        let sandbox = if self.judge.rules.sandbox.is_empty() { &path.bridge_subnet } else { &self.judge.rules.sandbox };
        let priority = self.base.priority;
        // Translated there, or on the way back not any more.
        let (before, at) = match (self.base.hook, self.packet.reply) {
            (Hook::Ingress, false) => (true, false),
            (Hook::Prerouting, false) => (priority < DESTINATION_NAT, priority == DESTINATION_NAT),
            (Hook::Postrouting, true) => (priority > SOURCE_NAT, priority == SOURCE_NAT),
            _ => (false, false),
        };
        match (before, at) {
            (true, _) => Cow::Borrowed(&path.addresses),
            (_, true) => Cow::Owned(path.addresses.or(sandbox)),
            _ => Cow::Borrowed(sandbox),
        }
    }

    /// Whether the packet comes in or leaves by an interface with one of these names.
    fn through(&self, end: End, names: &[String]) -> Holds {
        let path = self.judge.path;
        let bridge = path.bridge.as_str();
        let (comes, leaves) =
            if self.packet.reply { (bridge, self.packet.interface) } else { (self.packet.interface, bridge) };
        let known = match (end, self.base.hook) {
            (End::Source, _) => comes,
            (_, Hook::Forward | Hook::Postrouting) => leaves,
            // Not decided yet there.
            _ => return Holds::No,
        };
        Holds::of(names.iter().any(|name| match name.strip_suffix('*') {
            Some(prefix) => known.starts_with(prefix),
            None => known == name,
        }))
    }

    fn local(&self, end: End) -> Holds {
        if self.is_client(end) {
            return Holds::No;
        }
        if !self.judge.path.engine {
            return Holds::Yes;
        }
        match (self.base.hook, self.packet.reply) {
            (Hook::Ingress, false) => Holds::Yes,
            (Hook::Prerouting, false) if self.base.priority < DESTINATION_NAT => Holds::Yes,
            (Hook::Prerouting, false) if self.base.priority == DESTINATION_NAT => Holds::Maybe,
            (Hook::Postrouting, true) => Holds::Maybe,
            _ => Holds::No,
        }
    }

    /// Of the TCP flags that a connection's packets have. No other combination belongs to one.
    fn flags(&self, mask: u8, set: u8) -> Holds {
        const FIN: u8 = 0x01;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        const PSH: u8 = 0x08;
        const ACK: u8 = 0x10;
        const URG: u8 = 0x20;
        if self.packet.port.0 != ipproto::TCP {
            return Holds::No;
        }
        let usual = [ACK, ACK | PSH, ACK | FIN, ACK | PSH | FIN, ACK | URG, ACK | PSH | URG, RST, RST | ACK];
        let seen: Vec<u8> = match (self.packet.opens, self.packet.reply) {
            (true, _) => vec![SYN],
            (false, false) => usual.to_vec(),
            (false, true) => usual.into_iter().chain([SYN | ACK]).collect(),
        };
        let matching = seen.iter().filter(|flags| *flags & mask == set).count();
        match matching {
            0 => Holds::No,
            n if n == seen.len() => Holds::Yes,
            _ => Holds::Maybe,
        }
    }
}

/// Whether this is how engines (28 and later) keep others from containers' own addresses:
/// `-d CONTAINER ! -i BRIDGE -j DROP` in raw, about addresses of that bridge. No client of another interface has one.
fn is_about_containers(base: &Base, rule: &Rule, path: &Path) -> bool {
    let bridge = |condition: &Condition| match condition {
        Condition::Interface { end: End::Source, names, negated: true } => match names.as_slice() {
            [name] => path.containers.get(name).cloned(),
            _ => None,
        },
        _ => None,
    };
    let Some(subnets) = rule.conditions.iter().find_map(bridge) else { return false };
    let within = |condition: &Condition| match condition {
        Condition::Address(End::Destination, addresses) => addresses.most.is_within(&subnets),
        _ => false,
    };
    base.hook == Hook::Prerouting
        && rule.verdict == Verdict::Drop
        && rule.conditions.len() == 2
        && rule.conditions.iter().any(within)
}

fn meet<'a>(one: Cow<'a, Ranges>, other: &'a Ranges) -> Cow<'a, Ranges> {
    if one.is_all() { Cow::Borrowed(other) } else { Cow::Owned(one.and(other)) }
}
