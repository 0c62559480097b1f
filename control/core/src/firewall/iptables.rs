//! Rules as `iptables-save` prints them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use dataplane_common::headers::ipproto;
use ipnet::Ipv4Net;

use super::{
    ranges::Ranges,
    rules::{Addresses, Base, Chain, Condition, End, Hook, Rule, Table, Verdict, state},
    words::words,
};

/// Sets by name, as far as they could be read.
pub type Sets = BTreeMap<String, Addresses>;

/// The base chains of iptables' tables: their hooks, and priorities by table.
const HOOKS: [(&str, Hook); 3] =
    [("PREROUTING", Hook::Prerouting), ("FORWARD", Hook::Forward), ("POSTROUTING", Hook::Postrouting)];

/// Targets that only note something.
const NOTES: [&str; 18] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "HL",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TEE",
    "TRACE",
    "TTL",
];
/// Targets that send a packet elsewhere or translate it, which ends the table's chain.
const SENDS: [&str; 7] = ["ACCEPT", "DNAT", "MASQUERADE", "NETMAP", "REDIRECT", "SNAT", "TPROXY"];

/// All tables that `iptables-save` has printed.
pub fn tables(saved: &str, sets: &Sets) -> Vec<Table> {
    let mut all: Vec<Table> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            all.push(Table { family: "ip".into(), name: name.trim().into(), ..Table::default() });
        }
        let Some(table) = all.last_mut() else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            // `:INPUT DROP [0:0]`
            let mut words = declared.split_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            let chain = Chain { base: base(&table.name, name, policy == Some("DROP")), rules: Vec::new() };
            table.chains.insert(name.to_owned(), chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = words(rule).into_iter();
            let chain = words.next().unwrap_or_default();
            let rule = rule_of(line, words, sets);
            if let Some(chain) = table.chains.get_mut(&chain) {
                chain.rules.push(rule);
            }
        }
    }
    all.iter_mut().for_each(known_chains);
    all
}

/// Names of the sets that rules ask for.
pub fn set_names(saved: &str) -> impl Iterator<Item = String> + '_ {
    saved.lines().flat_map(|line| {
        let words = words(line);
        let names = words.windows(2).filter(|pair| pair[0] == "--match-set").map(|pair| pair[1].clone());
        names.collect::<Vec<_>>()
    })
}

/// Where an engine's own rules send published ports of its routing mesh.
pub fn ingress_sandbox(saved: &str) -> Ranges {
    let rules = saved.lines().filter(|line| line.starts_with("-A DOCKER-INGRESS "));
    let to = rules.filter_map(|rule| rule.split_once("--to-destination "));
    to.filter_map(|(_, to)| to.split([':', ' ']).next()?.parse().ok()).map(|ip: Ipv4Addr| Ipv4Net::from(ip)).collect()
}

fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let (_, hook) = HOOKS.into_iter().find(|(name, _)| *name == chain)?;
    let priority = match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    };
    Some(Base { hook, priority, nat: table == "nat", drops, devices: None })
}

/// A target is a chain only if the table has one of that name; other targets are extensions that may do anything.
fn known_chains(table: &mut Table) {
    let names: BTreeSet<String> = table.chains.keys().cloned().collect();
    for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
        if let Verdict::Jump(to) | Verdict::Goto(to) = &rule.verdict
            && !names.contains(to)
        {
            rule.verdict = Verdict::Drop;
        }
    }
}

fn rule_of(line: &str, mut words: impl Iterator<Item = String>, sets: &Sets) -> Rule {
    let mut rule = Rule { text: line.to_owned(), ..Rule::default() };
    let (mut negated, mut module, mut set_negated) = (false, String::new(), false);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let not = std::mem::take(&mut negated);
        let condition = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            // The rest is the target's business.
            "-j" | "-g" => {
                rule.verdict = verdict(&value(), word == "-g");
                break;
            }
            "-m" => {
                module = value();
                // Asks for something by being there.
                match module.as_str() {
                    "socket" | "cluster" | "cpu" | "nfacct" | "ipv6header" => Condition::Unknown,
                    _ => continue,
                }
            }
            "-s" => address(End::Source, &value(), not),
            "-d" => address(End::Destination, &value(), not),
            "--ctorigsrc" => address(End::OriginalSource, &value(), not),
            "--ctorigdst" => address(End::OriginalDestination, &value(), not),
            "--src-range" => address_range(End::Source, &value(), not),
            "--dst-range" => address_range(End::Destination, &value(), not),
            "-p" | "--ctproto" => protocol(&value(), not),
            "--dport" | "--dports" | "--destination-ports" => ports(End::Destination, &value(), not),
            "--sport" | "--sports" | "--source-ports" => ports(End::Source, &value(), not),
            "--ctorigdstport" => ports(End::OriginalDestination, &value(), not),
            "--ctorigsrcport" => ports(End::OriginalSource, &value(), not),
            "-i" => interface(End::Source, &value(), not),
            "-o" => interface(End::Destination, &value(), not),
            "--ctstate" | "--state" => states(&value(), not),
            "--ctdir" => Condition::Direction { reply: (value() == "REPLY") != not },
            "--ctstatus" => status(&value(), not),
            "--dst-type" => kind(End::Destination, &value(), not),
            "--src-type" => kind(End::Source, &value(), not),
            "--pkt-type" => pkt_type(&value(), not),
            "--tcp-flags" => flags(&value(), &value(), not),
            "--syn" => Condition::Flags { mask: 0x17, set: 0x02, negated: not },
            "--match-set" => {
                set_negated = not;
                match_set(&value(), &value(), not, sets)
            }
            // The exceptions match instead, and only they.
            "--return-nomatch" => match rule.conditions.pop() {
                Some(Condition::Address(end, Addresses { most, .. })) if !set_negated => {
                    Condition::Address(end, Addresses { most, least: Arc::default() })
                }
                _ => Condition::Unknown,
            },
            // Only later fragments: these follow their first, which has ports.
            "-f" if not => continue,
            "-f" => Condition::Never,
            "--icmp-type" => Condition::Never,
            // A route back that no spoofed packet has; a client's has one.
            "--invert" if module == "rpfilter" => Condition::Never,
            "--loose" | "--validmark" | "--accept-local" if module == "rpfilter" => continue,
            "--comment" => {
                drop(value());
                continue;
            }
            // `--limit-iface-in` and the like restrict what was asked for before.
            other if other.starts_with('-') => Condition::Unknown,
            // Values of those.
            _ => continue,
        };
        rule.conditions.push(condition);
    }
    rule
}

fn verdict(target: &str, goto: bool) -> Verdict {
    match target {
        "RETURN" => Verdict::Return,
        target if SENDS.contains(&target) => Verdict::Accept,
        target if NOTES.contains(&target) => Verdict::Continue,
        "DROP" | "REJECT" | "TARPIT" | "NFQUEUE" | "QUEUE" => Verdict::Drop,
        // Whether there is such a chain is seen at the end.
        chain if goto => Verdict::Goto(chain.to_owned()),
        chain => Verdict::Jump(chain.to_owned()),
    }
}

/// `10.0.0.0/8`, `10.0.0.1/32`, or with a mask that is no prefix.
fn address(end: End, text: &str, negated: bool) -> Condition {
    let known = text.parse::<Ipv4Net>().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
    match known.ok().or_else(|| with_mask(text)) {
        Some(net) => Condition::Address(end, Addresses::exactly(Ranges::net(net)).negated(negated)),
        None => Condition::Unknown,
    }
}

fn with_mask(text: &str) -> Option<Ipv4Net> {
    let (ip, mask) = text.split_once('/')?;
    Ipv4Net::with_netmask(ip.parse().ok()?, mask.parse().ok()?).ok()
}

fn address_range(end: End, text: &str, negated: bool) -> Condition {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<Ipv4Addr>(), last.parse::<Ipv4Addr>()) {
        (Ok(first), Ok(last)) => {
            let range = Ranges::of([(first.to_bits(), last.to_bits())]);
            Condition::Address(end, Addresses::exactly(range).negated(negated))
        }
        _ => Condition::Unknown,
    }
}

fn protocol(text: &str, negated: bool) -> Condition {
    let number = match text {
        "tcp" => ipproto::TCP,
        "udp" => ipproto::UDP,
        "sctp" => ipproto::SCTP,
        "all" => {
            return if negated { Condition::Never } else { Condition::Protocol { numbers: vec![], negated: true } };
        }
        other => match other.parse() {
            Ok(number) => number,
            // By name; no published port has it.
            Err(_) => return if negated { Condition::Protocol { numbers: vec![], negated } } else { Condition::Never },
        },
    };
    Condition::Protocol { numbers: vec![number], negated }
}

/// `80`, `80:90` or `80,443,8000:8010`.
fn ports(end: End, text: &str, negated: bool) -> Condition {
    let range = |range: &str| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    match text.split(',').map(range).collect() {
        Some(ranges) => Condition::Port { end, ranges, negated, exact: true },
        None => Condition::Unknown,
    }
}

fn interface(end: End, name: &str, negated: bool) -> Condition {
    let name = name.strip_suffix('+').map_or_else(|| name.to_owned(), |prefix| format!("{prefix}*"));
    Condition::Interface { end, names: vec![name], negated }
}

fn states(text: &str, negated: bool) -> Condition {
    let bit = |word| match word {
        "NEW" => state::NEW,
        "ESTABLISHED" => state::ESTABLISHED,
        "DNAT" => state::TRANSLATED,
        _ => state::OTHER,
    };
    Condition::State { states: text.split(',').map(bit).fold(0, |all, bit| all | bit), negated }
}

fn status(text: &str, negated: bool) -> Condition {
    // More than one, and the others, say more than is known here.
    if text == "DNAT" { Condition::State { states: state::TRANSLATED, negated } } else { Condition::Unknown }
}

fn kind(end: End, text: &str, negated: bool) -> Condition {
    match text {
        "LOCAL" => Condition::Local { end, negated },
        "UNICAST" => Condition::Unknown,
        "BROADCAST" | "MULTICAST" | "ANYCAST" | "BLACKHOLE" | "PROHIBIT" | "UNSPEC" if !negated => Condition::Never,
        _ => Condition::Unknown,
    }
}

fn pkt_type(text: &str, negated: bool) -> Condition {
    if (text == "unicast") != negated {
        Condition::Protocol { numbers: vec![], negated: true }
    } else {
        Condition::Never
    }
}

fn flags(mask: &str, set: &str, negated: bool) -> Condition {
    let bits = |text: &str| -> Option<u8> {
        text.split(',').try_fold(0, |all, flag| {
            Some(
                all | match flag {
                    "FIN" => 0x01,
                    "SYN" => 0x02,
                    "RST" => 0x04,
                    "PSH" => 0x08,
                    "ACK" => 0x10,
                    "URG" => 0x20,
                    "ALL" => 0x3f,
                    "NONE" => 0,
                    _ => return None,
                },
            )
        })
    };
    match (bits(mask), bits(set)) {
        (Some(mask), Some(set)) => Condition::Flags { mask, set, negated },
        _ => Condition::Unknown,
    }
}

/// `--match-set NAME src`, or `src,dst` and the like: the set's first dimension counts, others may match or not.
fn match_set(name: &str, dimensions: &str, negated: bool, sets: &Sets) -> Condition {
    let (first, more) = dimensions.split_once(',').unwrap_or((dimensions, ""));
    if !matches!(first, "src" | "dst") {
        // A blank in the set's name, which is printed as it is.
        return Condition::Unknown;
    }
    let end = if first == "src" { End::Source } else { End::Destination };
    match sets.get(name) {
        Some(found) if more.is_empty() => Condition::Address(end, found.clone().negated(negated)),
        Some(found) => {
            let some = Addresses { most: found.most.clone(), least: Arc::default() };
            Condition::Address(end, some.negated(negated))
        }
        None => Condition::Unknown,
    }
}
