//! nftables' rules, as `nft -j list ruleset` prints them; those of iptables-nft are among them.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_common::headers::ipproto;
use serde_json::Value;

use super::chains::{Chain, Chains, Rule, Verdict};

/// Our own table.
const OURS: &str = "hiveway";
/// The table in which iptables-nft keeps its filter rules; an engine has its own there, DOCKER-USER apart.
const IPTABLES: (&str, &str) = ("ip", "filter");

/// All tables for IPv4 but ours and those that an engine has made.
pub(super) fn chains(ruleset: &Value) -> Vec<Chains> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let mut all = BTreeMap::<(String, String), Chains>::new();
    for chain in objects().map(|object| &object["chain"]).filter(|chain| concerns_us(chain)) {
        let (key, name) = (key(chain), word(chain, "name"));
        let iptables = (key.0.as_str(), key.1.as_str()) == IPTABLES;
        let asked = match chain["hook"].as_str() {
            Some("input") => true,
            // What iptables has there is the engine's, and what it says about published ports is in DOCKER-USER.
            Some("forward") => !iptables,
            _ => iptables && name == "DOCKER-USER",
        };
        let asked = asked && chain["type"].as_str().is_none_or(|kind| kind == "filter");
        let table = all.entry(key.clone()).or_insert_with(|| Chains {
            table: if iptables { "iptables".to_owned() } else { format!("nftables table {} {}", key.0, key.1) },
            ..Chains::default()
        });
        table.chains.insert(name, Chain { asked, drops: chain["policy"] == "drop", rules: Vec::new() });
    }
    for object in objects().map(|object| &object["rule"]).filter(|rule| concerns_us(rule)) {
        let chain = all.get_mut(&key(object)).and_then(|table| table.chains.get_mut(&word(object, "chain")));
        if let Some(chain) = chain {
            chain.rules.extend(rules(object));
        }
    }
    all.into_values().collect()
}

/// Of a chain or a rule: a table for IPv4, neither ours nor an engine's own.
fn concerns_us(object: &Value) -> bool {
    let table = object["table"].as_str().unwrap_or(OURS);
    matches!(object["family"].as_str(), Some("ip" | "inet")) && table != OURS && !table.starts_with("docker-")
}

fn key(object: &Value) -> (String, String) {
    (word(object, "family"), word(object, "table"))
}

fn word(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

/// A rule, or one per entry of its verdict map.
fn rules(object: &Value) -> Vec<Rule> {
    let mut rule = Rule::default();
    let mut by_map = Vec::new();
    for statement in object["expr"].as_array().into_iter().flatten() {
        let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else { continue };
        match kind.as_str() {
            "match" => {
                if matched(body, &mut rule).is_none() {
                    return Vec::new(); // Never IPv4 to a published port.
                }
            }
            "vmap" => by_map.extend(verdict_map(body)),
            "counter" | "log" | "comment" => {}
            "xt" if body["type"] == "target" => rule.verdict = target(body["name"].as_str().unwrap_or_default()),
            other => match verdict(other, body) {
                Some(verdict) => rule.verdict = verdict,
                None => rule.more = true,
            },
        }
    }
    if by_map.is_empty() {
        return vec![rule];
    }
    by_map.into_iter().map(|verdict| Rule { verdict, more: true, ..rule.clone() }).collect()
}

/// Takes a condition into `rule`. `None`: it holds for no packet that matters.
fn matched(body: &Value, rule: &mut Rule) -> Option<()> {
    let (left, right) = (&body["left"], &body["right"]);
    let equal = body["op"] == "==" || body["op"] == "in";
    let (protocol, field) = (left["payload"]["protocol"].as_str(), left["payload"]["field"].as_str());
    let meta = left["meta"]["key"].as_str();
    match (protocol, field, meta) {
        (Some("ip6" | "icmp" | "icmpv6" | "arp" | "igmp"), ..) => return None,
        (Some(named @ ("tcp" | "udp" | "sctp" | "th")), Some("dport"), _) if equal => {
            rule.protocols = number(named).map(|number| BTreeSet::from([number])).or(rule.protocols.take());
            match ports(right) {
                Some(ports) => rule.ports = Some(ports),
                None => rule.more = true,
            }
        }
        (Some("ip"), Some("protocol"), _) | (_, _, Some("l4proto")) if equal => {
            rule.protocols = Some(texts(right).filter_map(|text| number(&text)).collect());
        }
        (_, _, Some("nfproto")) if equal => {
            if !texts(right).any(|text| text == "ipv4") {
                return None;
            }
        }
        (_, _, Some("iifname" | "iif")) if equal => rule.from = Some(texts(right).collect()),
        _ if left["ct"]["key"] == "state" && equal && texts(right).all(|state| state == "invalid") => {
            rule.invalid = true;
        }
        _ => rule.more = true,
    }
    Some(())
}

/// A value or the values of an anonymous set; numbers as text.
fn texts(value: &Value) -> impl Iterator<Item = String> + '_ {
    let several = value["set"].as_array().or_else(|| value.as_array());
    let all: Vec<&Value> = several.map_or_else(|| vec![value], |all| all.iter().collect());
    all.into_iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// Ports as ranges; `None` for named sets and whatever else is not spelt out.
fn ports(value: &Value) -> Option<Vec<(u16, u16)>> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let range = |value: &Value| match value["range"].as_array().map(Vec::as_slice) {
        Some([first, last]) => Some((port(first)?, port(last)?)),
        _ => port(value).map(|port| (port, port)),
    };
    match value["set"].as_array() {
        Some(all) => all.iter().map(range).collect(),
        None => range(value).map(|one| vec![one]),
    }
}

/// By name or number.
fn number(text: &str) -> Option<u8> {
    match text {
        "tcp" => Some(ipproto::TCP),
        "udp" => Some(ipproto::UDP),
        "sctp" => Some(ipproto::SCTP),
        other => other.parse().ok(),
    }
}

fn verdict(kind: &str, body: &Value) -> Option<Verdict> {
    Some(match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(word(body, "target")),
        "goto" => Verdict::Goto(word(body, "target")),
        "continue" => Verdict::Continue,
        _ => return None,
    })
}

/// Targets that nft has no words for.
fn target(name: &str) -> Verdict {
    match name {
        "REJECT" | "TARPIT" | "DROP" => Verdict::Drop,
        _ => Verdict::Continue,
    }
}

/// The verdicts of a map, but for what connection tracking finds invalid.
fn verdict_map(body: &Value) -> Vec<Verdict> {
    let entries = body["data"]["set"].as_array().into_iter().flatten().filter_map(Value::as_array);
    entries
        .filter(|entry| entry.first().is_none_or(|key| key != "invalid"))
        .filter_map(|entry| {
            let (kind, body) = entry.get(1)?.as_object()?.iter().next()?;
            verdict(kind, body)
        })
        .collect()
}
