//! The older iptables' rules, as `iptables-save` prints them.

use std::collections::BTreeSet;

use dataplane_common::headers::ipproto;

use super::chains::{Chain, Chains, Rule, Verdict};

/// Reads the filter table.
pub(super) fn chains(saved: &str) -> Chains {
    let mut all = Chains { table: "iptables".to_owned(), ..Chains::default() };
    for line in saved.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            // `:INPUT DROP [0:0]`
            Some(declared) if declared.starts_with(':') => {
                let name = declared.trim_start_matches(':');
                let chain = Chain { asked: is_asked(name), drops: words.next() == Some("DROP"), rules: Vec::new() };
                all.chains.insert(name.to_owned(), chain);
            }
            Some("-A") => {
                let Some(chain) = words.next().and_then(|name| all.chains.get_mut(name)) else { continue };
                chain.rules.push(rule(words));
            }
            _ => {}
        }
    }
    all
}

/// FORWARD is an engine's.
fn is_asked(name: &str) -> bool {
    matches!(name, "INPUT" | "DOCKER-USER")
}

fn rule<'a>(mut words: impl Iterator<Item = &'a str>) -> Rule {
    let mut rule = Rule::default();
    let mut negated = false;
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        match word {
            "!" => {
                negated = true;
                continue;
            }
            // Loads a match; what it asks for follows.
            "-m" => drop(value()),
            "-j" | "-g" => rule.verdict = verdict(value(), word == "-g"),
            "-p" if !negated => rule.protocols = Some(protocol(value()).into_iter().collect()),
            "--dport" | "--dports" if !negated => rule.ports = ports(value()),
            "-i" if !negated => rule.from = Some(BTreeSet::from([value().to_owned()])),
            "--ctstate" | "--state" if !negated => match value() {
                "INVALID" => rule.invalid = true,
                _ => rule.more = true,
            },
            // How a packet is rejected or logged.
            "--comment" | "--reject-with" | "--log-prefix" | "--log-level" => drop(value()),
            other if other.starts_with('-') => rule.more = true,
            // The rest of a quoted text.
            _ => {}
        }
        negated = false;
    }
    rule
}

fn verdict(target: &str, goto: bool) -> Verdict {
    match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" | "TARPIT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "AUDIT" => Verdict::Continue,
        chain if goto => Verdict::Goto(chain.to_owned()),
        chain => Verdict::Jump(chain.to_owned()),
    }
}

/// By name or number; `None` for what no published port has.
fn protocol(text: &str) -> Option<u8> {
    match text {
        "tcp" | "6" => Some(ipproto::TCP),
        "udp" | "17" => Some(ipproto::UDP),
        "sctp" | "132" => Some(ipproto::SCTP),
        _ => None,
    }
}

/// `80`, `80:90` or `80,443,8000:8010`; `None`, which means all, for names of services.
fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    text.split(',')
        .map(|range| {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .collect()
}
