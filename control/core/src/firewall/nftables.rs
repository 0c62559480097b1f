//! Rules as `nft -j list ruleset` prints them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use dataplane_common::headers::ipproto;
use ipnet::Ipv4Net;
use serde_json::Value;

use super::{
    ranges::Ranges,
    rules::{Addresses, Base, Chain, Condition, End, Hook, Rule, Table, Verdict, state},
};

/// Our own table.
const OURS: &str = "hiveway";
/// The tables of an engine with the nftables backend (29): of its bridges, and of encrypted overlays. Others whose
/// names begin like these are the administrator's.
const ENGINES: [&str; 2] = ["docker-bridges", "docker-overlay"];

/// A named set or map: family, table, name.
pub type SetName = (String, String, String);
/// Their elements, as `nft -j list set` prints them, as far as they could be read.
pub type Elements = BTreeMap<SetName, Vec<Value>>;
/// Rules and base chains in words, as `nft -a list ruleset` prints them: by family, table, and the handle that stands
/// behind each.
pub type Texts = BTreeMap<(String, String, u64), String>;

/// All tables for IPv4 but ours and an engine's own. `saved`: iptables' tables as `iptables-nft-save` prints them, for
/// the conditions that `nft` does not show.
///
/// Only rules with such a condition are taken from there. `iptables-nft-save` prints rules that `nft` has written
/// without what it does not know (sets, ranges, verdict maps), and says nothing about it.
pub fn tables(ruleset: &Value, elements: &Elements, texts: &Texts, saved: &[Table]) -> Vec<Table> {
    let mut all = BTreeMap::<(String, String), Table>::new();
    let mut lines = Lines::of(ruleset, saved);
    for chain in objects(ruleset, "chain").filter(concerns_us) {
        let (family, name) = key(chain);
        let table =
            all.entry((family.clone(), name.clone())).or_insert_with(|| Table { family, name, ..Table::default() });
        table.chains.insert(word(chain, "name"), Chain { base: base(chain, texts), rules: Vec::new() });
    }
    for object in objects(ruleset, "rule").filter(concerns_us) {
        let line = lines.next(object);
        let chain = all.get_mut(&key(object)).and_then(|table| table.chains.get_mut(str(object, "chain")));
        if let Some(chain) = chain {
            chain.rules.extend(rules(object, elements, texts, line));
        }
    }
    all.into_values().collect()
}

/// The rules that `iptables-nft-save` has printed, by the place that they have in their chains.
struct Lines<'a> {
    /// By table and chain: rules that are still to come. Chains of which it has printed more or fewer rules than there
    /// are are missing: nobody knows which is which.
    chains: BTreeMap<(&'a str, &'a str), std::slice::Iter<'a, Rule>>,
}

impl<'a> Lines<'a> {
    fn of(ruleset: &'a Value, saved: &'a [Table]) -> Self {
        let mut counts = BTreeMap::<(&str, &str), usize>::new();
        for rule in objects(ruleset, "rule").filter(|rule| str(rule, "family") == "ip") {
            *counts.entry((str(rule, "table"), str(rule, "chain"))).or_default() += 1;
        }
        let chains = saved.iter().flat_map(|table| {
            table.chains.iter().map(|(name, chain)| ((table.name.as_str(), name.as_str()), chain.rules.iter()))
        });
        let chains = chains.filter(|(name, rules)| counts.get(name) == Some(&rules.len())).collect();
        Self { chains }
    }

    /// The line of the next rule of its chain.
    fn next(&mut self, rule: &'a Value) -> Option<&'a Rule> {
        (str(rule, "family") == "ip").then_some(())?;
        self.chains.get_mut(&(str(rule, "table"), str(rule, "chain")))?.next()
    }
}

/// Whether rules of a table need words that `nft` does not have.
pub fn has_opaque_rules(ruleset: &Value, family: &str, table: &str) -> bool {
    objects(ruleset, "rule").any(|rule| {
        str(rule, "family") == family
            && str(rule, "table") == table
            && rule["expr"].as_array().into_iter().flatten().any(|statement| statement.get("xt").is_some())
    })
}

/// The named sets and maps that rules ask for.
pub fn set_names(ruleset: &Value) -> Vec<SetName> {
    let mut all = Vec::new();
    for rule in objects(ruleset, "rule").filter(concerns_us) {
        let (family, table) = key(rule);
        named(&rule["expr"], &mut |name| all.push((family.clone(), table.clone(), name.to_owned())));
    }
    all.sort();
    all.dedup();
    all
}

/// Calls `found` for each name of a set in a rule's expressions.
fn named(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix('@') {
                found(name);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| named(value, found)),
        Value::Object(all) => all.values().for_each(|value| named(value, found)),
        _ => {}
    }
}

/// Rules, and base chains of interfaces, in the words of `nft -a list ruleset`.
pub fn texts(listing: &str) -> Texts {
    let mut all = Texts::new();
    let (mut family, mut table, mut chain) = (String::new(), String::new(), None);
    for line in listing.lines().map(str::trim) {
        let (text, handle) = match line.rsplit_once(" # handle ") {
            Some((text, handle)) => (text, handle.trim().parse().ok()),
            None => (line, None),
        };
        if let Some(rest) = text.strip_prefix("table ") {
            let mut words = rest.split_whitespace();
            family = words.next().unwrap_or_default().to_owned();
            table = words.next().unwrap_or_default().to_owned();
        } else if text.starts_with("chain ") && text.ends_with('{') {
            chain = handle;
        } else if text.starts_with("type ") && text.contains(" hook ") {
            if let Some(handle) = chain {
                all.insert((family.clone(), table.clone(), handle), text.to_owned());
            }
        } else if let Some(handle) = handle {
            all.insert((family.clone(), table.clone(), handle), text.to_owned());
        }
    }
    all
}

fn objects<'v>(ruleset: &'v Value, kind: &'static str) -> impl Iterator<Item = &'v Value> {
    ruleset["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

/// Of a chain or a rule: a table for IPv4, neither ours nor an engine's own.
fn concerns_us(object: &&Value) -> bool {
    let table = object["table"].as_str().unwrap_or(OURS);
    matches!(object["family"].as_str(), Some("ip" | "inet" | "netdev")) && table != OURS && !ENGINES.contains(&table)
}

fn key(object: &Value) -> (String, String) {
    (word(object, "family"), word(object, "table"))
}

fn str<'v>(object: &'v Value, key: &str) -> &'v str {
    object[key].as_str().unwrap_or_default()
}

fn word(object: &Value, key: &str) -> String {
    str(object, key).to_owned()
}

fn base(chain: &Value, texts: &Texts) -> Option<Base> {
    let hook = match chain["hook"].as_str()? {
        "ingress" => Hook::Ingress,
        "prerouting" => Hook::Prerouting,
        "forward" => Hook::Forward,
        "postrouting" => Hook::Postrouting,
        _ => return None,
    };
    let (family, table) = key(chain);
    let text = chain["handle"].as_u64().and_then(|handle| texts.get(&(family, table, handle)));
    let named = |value: &Value| match value {
        Value::Array(all) => Some(all.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        value => value.as_str().map(|name| vec![name.to_owned()]),
    };
    Some(Base {
        hook,
        priority: chain["prio"].as_i64().and_then(|priority| priority.try_into().ok()).unwrap_or(0),
        nat: chain["type"] == "nat",
        drops: chain["policy"] == "drop",
        // Versions differ in whether their JSON has them.
        devices: named(&chain["dev"]).or_else(|| text.and_then(|text| devices(text))),
    })
}

/// The names in `type filter hook ingress devices = { "eth0", "eth1" } priority 0; policy accept;`.
fn devices(text: &str) -> Option<Vec<String>> {
    let (_, rest) = text.split_once(" device")?;
    let (names, _) = rest.split_once(" priority ")?;
    let names = names.trim_start_matches('s').trim().trim_start_matches('=').trim().trim_matches(['{', '}', ' ']);
    Some(names.split(',').map(|name| name.trim().trim_matches('"').to_owned()).collect())
}

/// A rule, or one per entry of its verdict map. `line`: the same rule as `iptables-nft-save` prints it.
fn rules(object: &Value, elements: &Elements, texts: &Texts, line: Option<&Rule>) -> Vec<Rule> {
    let (family, table) = key(object);
    let text = object["handle"].as_u64().and_then(|handle| texts.get(&(family.clone(), table.clone(), handle)));
    let reader = Reader { family, table, elements };
    let text = text.cloned().unwrap_or_else(|| object["expr"].to_string());
    let mut rule = Rule { text, ..Rule::default() };
    let (mut by_map, mut hidden, mut unknown) = (Vec::new(), false, false);
    for statement in object["expr"].as_array().into_iter().flatten() {
        let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
            // What `nft` has no JSON for stands there as text: updates of maps, say.
            rule.conditions.push(Condition::Unknown);
            continue;
        };
        match kind.as_str() {
            "match" => rule.conditions.extend(reader.condition(body)),
            "vmap" => by_map.push(body),
            "counter" | "log" | "notrack" | "mangle" | "meta" | "ct helper" | "ct timeout" | "ct expectation"
            | "flow" | "dup" | "secmark" | "flow add" => {}
            "xt" => {
                hidden = true;
                match str(body, "type") {
                    "target" => rule.verdict = target(str(body, "name")),
                    "match" => unknown |= body["name"] != "comment",
                    // Before 1.0.3 `nft` does not say which one it is.
                    _ => {
                        unknown = true;
                        if rule.verdict == Verdict::Continue {
                            rule.verdict = line.map_or(Verdict::Drop, |line| line.verdict.clone());
                        }
                    }
                }
            }
            other => match verdict(other, body) {
                Some(verdict) => rule.verdict = verdict,
                // Limits, quotas, meters, updates of sets and maps (a full one, or a limit in its elements, ends the
                // rule), and whatever is new.
                None => rule.conditions.push(Condition::Unknown),
            },
        }
    }
    // Rules that `nft` has written have nothing hidden. Another verdict would be another rule: they have changed
    // meanwhile.
    match line.filter(|line| hidden && line.verdict == rule.verdict) {
        Some(line) => {
            rule.text.clone_from(&line.text);
            let more = line.conditions.iter().filter(|condition| !rule.conditions.contains(condition));
            let more: Vec<_> = more.cloned().collect();
            rule.conditions.extend(more);
        }
        None if unknown => rule.conditions.push(Condition::Unknown),
        None => {}
    }
    if by_map.is_empty() {
        return vec![rule];
    }
    by_map.into_iter().flat_map(|map| reader.verdict_map(map, &rule)).collect()
}

/// The condition on the protocol that a field of TCP, UDP or SCTP comes with, negated or not: `nft` does not print the
/// match on the protocol that it puts in front of `udp dport 443`.
fn carrier(left: &Value) -> Option<Condition> {
    let number = match left["payload"]["protocol"].as_str()? {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "dccp" => 33,
        "udplite" => 136,
        _ => return None,
    };
    Some(Condition::Protocol { numbers: vec![number], negated: false })
}

/// Reads the conditions of one table's rules.
struct Reader<'a> {
    family: String,
    table: String,
    elements: &'a Elements,
}

impl Reader<'_> {
    fn condition(&self, body: &Value) -> Vec<Condition> {
        let negated = body["op"] == "!=";
        if !negated && body["op"] != "==" && body["op"] != "in" {
            return vec![Condition::Unknown];
        }
        if body["op"] == "in" && body["left"]["payload"]["field"] == "flags" {
            // Any of these bits.
            let flags = match flag_bits(&body["right"]) {
                Some(bits) if bits.is_power_of_two() => Condition::Flags { mask: bits, set: bits, negated },
                Some(bits) => Condition::Flags { mask: bits, set: 0, negated: !negated },
                None => Condition::Unknown,
            };
            return carrier(&body["left"]).into_iter().chain([flags]).collect();
        }
        match body["left"]["concat"].as_array() {
            // Each field at most one of what the elements have there; which ones belong together is not followed.
            Some(fields) if !negated => {
                let values = self.values(&body["right"]);
                let fields = fields.iter().enumerate();
                let mut all: Vec<_> = fields
                    .flat_map(|(index, left)| {
                        let values = values
                            .as_ref()
                            .map(|all| all.iter().map(|value| value["concat"][index].clone()).collect::<Vec<_>>());
                        carrier(left).into_iter().chain([upper(self.field(left, values.as_deref(), false))])
                    })
                    .collect();
                all.push(Condition::Unknown);
                all
            }
            Some(_) => vec![Condition::Unknown],
            None => {
                let field = self.field(&body["left"], self.values(&body["right"]).as_deref(), negated);
                carrier(&body["left"]).into_iter().chain([field]).collect()
            }
        }
    }

    /// The elements of a set, or one value; `None`: a set that could not be read. What elements carry beside their
    /// value (timeouts, comments) is taken off.
    fn values(&self, right: &Value) -> Option<Vec<Value>> {
        let bare = |value: &Value| match value.get("elem") {
            Some(elem) => elem.get("val").unwrap_or(elem).clone(),
            None => value.clone(),
        };
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            let found = self.elements.get(&(self.family.clone(), self.table.clone(), name.to_owned()));
            return found.map(|all| all.iter().map(bare).collect());
        }
        let several = right["set"].as_array().or_else(|| right.as_array());
        Some(several.map_or_else(|| vec![right.clone()], |all| all.iter().map(bare).collect()))
    }

    /// The condition that `left` is one of `values`.
    fn field(&self, left: &Value, values: Option<&[Value]>, negated: bool) -> Condition {
        let payload = (left["payload"]["protocol"].as_str(), left["payload"]["field"].as_str());
        let meta = left["meta"]["key"].as_str();
        match (payload, meta) {
            ((Some("ip6" | "icmp" | "icmpv6" | "arp" | "igmp" | "esp" | "ah"), _), _) => return Condition::Never,
            (_, Some("nfproto" | "protocol")) => return family(values, negated),
            _ => {}
        }
        let Some(values) = values else { return Condition::Unknown };
        let one = |text: &str| values.len() == 1 && values[0] == text;
        let condition = match (payload, meta) {
            ((Some("ip"), Some("saddr")), _) => addresses(End::Source, values, negated),
            ((Some("ip"), Some("daddr")), _) => addresses(End::Destination, values, negated),
            ((Some("ip"), Some("protocol")), _) | (_, Some("l4proto")) => protocols(values, negated),
            ((Some("ip"), Some("version")), _) => Some(family(Some(values), negated)),
            ((Some("tcp" | "udp" | "sctp" | "th" | "udplite" | "dccp"), Some(field @ ("dport" | "sport"))), _) => {
                let end = if field == "dport" { End::Destination } else { End::Source };
                ports(end, values, negated)
            }
            (_, Some("iifname" | "iif")) => names(End::Source, values, negated),
            (_, Some("oifname" | "oif")) => names(End::Destination, values, negated),
            (_, Some("pkttype")) if one("host") || one("unicast") => {
                return if negated { Condition::Never } else { Condition::Protocol { numbers: vec![], negated: true } };
            }
            ((Some("tcp"), Some("flags")), _) => tcp_flags(0x3f, values, negated),
            _ => None,
        };
        condition.or_else(|| tracked(left, values, negated)).unwrap_or(Condition::Unknown)
    }

    /// A rule per entry of a verdict map, behind the conditions that the rule has besides.
    fn verdict_map(&self, map: &Value, rule: &Rule) -> Vec<Rule> {
        let left = &map["key"];
        let Some(entries) = self.values(&map["data"]) else {
            // It could not be read: any verdict.
            let conditions = rule.conditions.iter().cloned().chain([Condition::Unknown]).collect();
            return vec![Rule { conditions, verdict: Verdict::Drop, ..rule.clone() }];
        };
        let entry = |entry: &Value| {
            let (value, what) = (entry.get(0)?, entry.get(1)?.as_object()?.iter().next()?);
            let value = value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value);
            let condition = match left["concat"].as_array() {
                None => {
                    let field = self.field(left, Some(std::slice::from_ref(value)), false);
                    carrier(left).into_iter().chain([field]).collect::<Vec<_>>()
                }
                Some(fields) => {
                    let fields = fields.iter().enumerate();
                    let both = |(at, left): (usize, &Value)| {
                        let field = self.field(left, Some(&[value["concat"][at].clone()]), false);
                        carrier(left).into_iter().chain([field])
                    };
                    fields.flat_map(both).collect()
                }
            };
            let conditions = rule.conditions.iter().cloned().chain(condition).collect();
            // No verdict that is known: whatever it is, it may drop.
            let verdict = verdict(what.0, what.1).unwrap_or(Verdict::Drop);
            Some(Rule { conditions, verdict, ..rule.clone() })
        };
        entries.iter().filter_map(entry).collect()
    }
}

/// The same, as what can match at most.
fn upper(condition: Condition) -> Condition {
    match condition {
        Condition::Address(end, addresses) => {
            Condition::Address(end, Addresses { least: Default::default(), ..addresses })
        }
        Condition::Port { end, ranges, negated, .. } => Condition::Port { end, ranges, negated, exact: false },
        other => other,
    }
}

fn texts_of(values: &[Value]) -> impl Iterator<Item = &str> {
    values.iter().filter_map(Value::as_str)
}

/// Of the address family: IPv4 is what there is.
fn family(values: Option<&[Value]>, negated: bool) -> Condition {
    let Some(values) = values else { return Condition::Unknown };
    let ipv4 = texts_of(values).any(|text| matches!(text, "ipv4" | "ip")) || values.iter().any(|value| *value == 4);
    if ipv4 == negated { Condition::Never } else { Condition::Protocol { numbers: vec![], negated: true } }
}

/// `"10.0.0.1"`, `{"prefix": …}` or `{"range": …}`.
fn range(value: &Value) -> Option<(u32, u32)> {
    let ip = |value: &Value| Some(value.as_str()?.parse::<Ipv4Addr>().ok()?.to_bits());
    if let Some(prefix) = value.get("prefix") {
        let len = u8::try_from(prefix["len"].as_u64()?).ok()?;
        let net = Ipv4Net::new(Ipv4Addr::from_bits(ip(&prefix["addr"])?), len).ok()?;
        return Some((net.network().to_bits(), net.broadcast().to_bits()));
    }
    match value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some((ip(first)?, ip(last)?)),
        Some(_) => None,
        None => {
            let text = value.as_str()?;
            // Some versions print prefixes as text.
            let net = text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from)).ok()?;
            Some((net.network().to_bits(), net.broadcast().to_bits()))
        }
    }
}

fn addresses(end: End, values: &[Value], negated: bool) -> Option<Condition> {
    let ranges = values.iter().map(range).collect::<Option<Vec<_>>>()?;
    Some(Condition::Address(end, Addresses::exactly(Ranges::of(ranges)).negated(negated)))
}

fn ports(end: End, values: &[Value], negated: bool) -> Option<Condition> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let range = |value: &Value| match value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some((port(first)?, port(last)?)),
        _ => port(value).map(|port| (port, port)),
    };
    let ranges = values.iter().map(range).collect::<Option<_>>()?;
    Some(Condition::Port { end, ranges, negated, exact: true })
}

fn protocols(values: &[Value], negated: bool) -> Option<Condition> {
    let number = |value: &Value| {
        let number = match value.as_str() {
            Some("tcp") => ipproto::TCP,
            Some("udp") => ipproto::UDP,
            Some("sctp") => ipproto::SCTP,
            // By name, and not one of these.
            Some(_) => 0,
            None => u8::try_from(value.as_u64()?).ok()?,
        };
        Some(number)
    };
    let numbers = values.iter().map(number).collect::<Option<_>>()?;
    Some(Condition::Protocol { numbers, negated })
}

fn names(end: End, values: &[Value], negated: bool) -> Option<Condition> {
    let names: Vec<_> = texts_of(values).map(str::to_owned).collect();
    (names.len() == values.len()).then_some(Condition::Interface { end, names, negated })
}

/// What connection tracking, the routing table and arithmetic say.
fn tracked(left: &Value, values: &[Value], negated: bool) -> Option<Condition> {
    let end =
        |source: &str, key: &str| if key.contains(source) { End::OriginalSource } else { End::OriginalDestination };
    let original = left["ct"]["dir"] == "original";
    match left["ct"]["key"].as_str() {
        Some("state") => {
            let bit = |text: &str| match text {
                "new" => state::NEW,
                "established" => state::ESTABLISHED,
                _ => state::OTHER,
            };
            return Some(Condition::State { states: texts_of(values).map(bit).fold(0, |all, bit| all | bit), negated });
        }
        Some("status") if texts_of(values).eq(["dnat"]) => {
            return Some(Condition::State { states: state::TRANSLATED, negated });
        }
        Some("direction") => return Some(Condition::Direction { reply: texts_of(values).eq(["reply"]) != negated }),
        Some("ip saddr" | "ip daddr" | "saddr" | "daddr") if original => {
            return addresses(end("saddr", str(&left["ct"], "key")), values, negated);
        }
        Some("proto-src" | "proto-dst") if original => {
            return ports(end("src", str(&left["ct"], "key")), values, negated);
        }
        _ => {}
    }
    if let Some(fib) = left.get("fib") {
        let flags: Vec<&str> = match &fib["flags"] {
            Value::Array(all) => texts_of(all).collect(),
            one => one.as_str().into_iter().collect(),
        };
        return match (fib["result"].as_str()?, flags.as_slice()) {
            ("type", [side @ ("daddr" | "saddr")]) if texts_of(values).eq(["local"]) => {
                let end = if *side == "daddr" { End::Destination } else { End::Source };
                Some(Condition::Local { end, negated })
            }
            // Reverse path filters: a client's address has a way back.
            ("oif" | "oifname" | "check", flags) if flags.contains(&"saddr") => {
                let missing = values.iter().any(|value| *value == false || *value == 0 || *value == "");
                Some(match missing != negated {
                    true => Condition::Never,
                    false => Condition::Protocol { numbers: vec![], negated: true },
                })
            }
            _ => None,
        };
    }
    // `tcp flags & (fin|syn|rst|ack) == syn`.
    let [of, mask] = left["&"].as_array()?.as_slice() else { return None };
    if of["payload"]["protocol"] == "tcp" && of["payload"]["field"] == "flags" {
        return tcp_flags(flag_bits(mask)?, values, negated);
    }
    None
}

fn tcp_flags(mask: u8, values: &[Value], negated: bool) -> Option<Condition> {
    let set = values.iter().map(flag_bits).try_fold(0, |all, bits| Some(all | bits?))?;
    Some(Condition::Flags { mask, set, negated })
}

/// A flag, several, or `{"|": [...]}` of them.
fn flag_bits(value: &Value) -> Option<u8> {
    if let Some(all) = value.as_array().or_else(|| value.get("|").and_then(Value::as_array)) {
        return all.iter().map(flag_bits).try_fold(0, |all, bits| Some(all | bits?));
    }
    match value.as_str() {
        Some("fin") => Some(0x01),
        Some("syn") => Some(0x02),
        Some("rst") => Some(0x04),
        Some("psh") => Some(0x08),
        Some("ack") => Some(0x10),
        Some("urg") => Some(0x20),
        Some(_) => None,
        None => value.as_u64().and_then(|bits| u8::try_from(bits).ok()),
    }
}

fn verdict(kind: &str, body: &Value) -> Option<Verdict> {
    Some(match kind {
        "accept" | "dnat" | "snat" | "masquerade" | "redirect" | "tproxy" => Verdict::Accept,
        "drop" | "reject" | "queue" | "synproxy" => Verdict::Drop,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(word(body, "target")),
        "goto" => Verdict::Goto(word(body, "target")),
        "continue" => Verdict::Continue,
        _ => return None,
    })
}

/// iptables' targets that nft has no words for.
fn target(name: &str) -> Verdict {
    match name {
        "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" | "TPROXY" => Verdict::Accept,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "NOTRACK" | "SET" | "TCPMSS" | "TRACE" | "AUDIT"
        | "CHECKSUM" | "CLASSIFY" | "DSCP" | "TTL" | "TEE" | "CONNSECMARK" | "SECMARK" => Verdict::Continue,
        _ => Verdict::Drop,
    }
}
