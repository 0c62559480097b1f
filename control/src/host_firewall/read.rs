//! Reads the rules: nftables' by `nft`, what iptables' rules among them ask for and `nft` has no words for by
//! `iptables-nft-save`, those of the older iptables by `iptables-legacy-save`, and the sets that they name.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use hiveway_core::firewall::{
    Addresses, Ruleset, ipset,
    iptables::{self, Sets},
    nftables::{self, Elements, SetName},
};
use serde_json::Value;

use super::Reading;
use crate::{
    child::{self, Limits},
    nft,
};

/// Names of the old iptables' tables that are in use.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";
/// iptables' tables that published ports pass.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];
/// Hooks that they pass.
const HOOKS: [&str; 4] = ["ingress", "prerouting", "forward", "postrouting"];
/// A listing of rules, without elements of sets.
const RULES: Limits = Limits { time: Duration::from_secs(5), bytes: 64 << 20 };
/// The elements of one set: about a million addresses.
const SET: Limits = Limits { time: Duration::from_secs(10), bytes: 64 << 20 };
/// Sets that a list of sets may have. Each of them is read by a program.
const MOST_LISTED: usize = 64;

/// Reads everything, in the caller's network namespace.
///
/// # Errors
/// When rules cannot be read, with the remedy. A set that cannot be read is none: it is named in the result.
pub fn read() -> Result<Reading, String> {
    let listing = nft::list_json(&["-j", "-t", "list", "ruleset"], RULES).map_err(|error| error.to_string())?;
    let listing = listing.unwrap_or_default();
    let words = nft::list(&["-s", "-t", "-a", "list", "ruleset"], RULES).map_err(|error| error.to_string())?;
    let texts = nftables::texts(&String::from_utf8_lossy(&words.unwrap_or_default()));

    // What is only readable for iptables itself, if it is there: otherwise its conditions are unknown.
    let opaque: Vec<&str> =
        TABLES.into_iter().filter(|table| nftables::has_opaque_rules(&listing, "ip", table)).collect();
    let saved: BTreeMap<&str, String> = opaque
        .into_iter()
        .filter_map(|table| {
            let saved = save("iptables-nft-save", table).ok()?;
            saved.contains(&format!("*{table}\n")).then_some((table, saved))
        })
        .collect();
    let legacy = fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
    let legacy = legacy.lines().filter(|table| TABLES.contains(table));
    let legacy = legacy.map(|table| save("iptables-legacy-save", table)).collect::<Result<Vec<_>, _>>()?;

    let mut rules = Ruleset::default();
    let mut sets = Sets::new();
    for name in saved.values().chain(&legacy).flat_map(|text| iptables::set_names(text)) {
        if !sets.contains_key(&name) && !rules.unread.contains(&name) {
            match addresses(&name, &mut sets) {
                Some(found) => drop(sets.insert(name, found)),
                None => rules.unread.push(name),
            }
        }
    }
    let elements = elements(&listing, &mut rules.unread);
    let lines: Vec<_> = saved.values().flat_map(|text| iptables::tables(text, &sets)).collect();
    rules.tables = nftables::tables(&listing, &elements, &texts, &lines);
    rules.tables.extend(legacy.iter().flat_map(|text| iptables::tables(text, &sets)));
    // Where an engine's own rules are readable as iptables' they say where its sandbox is.
    let engines = if saved.contains_key("nat") { Ok(None) } else { engines_nat(&listing) };
    let nat_unread = engines.is_err();
    let nat = saved.get("nat").cloned().or_else(|| engines.ok().flatten());
    let nat = nat.iter().chain(&legacy).map(|text| iptables::ingress_sandbox(text));
    rules.sandbox = nat.fold(rules.sandbox, |all, found| all.or(&found));
    Ok(Reading { rules: Arc::new(rules), listing: Arc::new(listing), nat_unread })
}

/// One table as this program prints it.
fn save(program: &str, table: &str) -> Result<String, String> {
    let output = child::run(program, &["-t", table], b"", RULES)
        .map_err(|error| format!("{error}; if it is missing, install the package iptables"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program}: {}", output.stderr.trim())),
    }
}

/// iptables' nat table, if an engine's routing mesh is in it.
fn engines_nat(listing: &Value) -> Result<Option<String>, String> {
    let mut chains = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    let there = chains.any(|chain| chain["name"] == "DOCKER-INGRESS");
    there.then(|| save("iptables-nft-save", "nat")).transpose()
}

/// What is in a set of `ipset`, or in the sets that it lists. `known`: those that were read before.
fn addresses(name: &str, known: &mut Sets) -> Option<Addresses> {
    match listed(name)? {
        ipset::Set::Of(found) => Some(found),
        ipset::Set::Lists(names) if names.len() <= MOST_LISTED => {
            for name in &names {
                if !known.contains_key(name) {
                    // The kernel refuses lists in lists.
                    let ipset::Set::Of(found) = listed(name)? else { return None };
                    known.insert(name.clone(), found);
                }
            }
            Some(ipset::any_of(names.iter().filter_map(|name| known.get(name))))
        }
        ipset::Set::Lists(_) => None,
    }
}

/// One set as `ipset` lists it.
fn listed(name: &str) -> Option<ipset::Set> {
    let output = child::run("ipset", &["save", name], b"", SET).ok()?;
    output.status.success().then(|| ipset::set(&String::from_utf8_lossy(&output.stdout)))?
}

/// Elements of the sets and maps that rules in tables on the path name.
fn elements(listing: &Value, unread: &mut Vec<String>) -> Elements {
    let objects = |kind: &'static str| {
        listing["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
    };
    let on_path = |family: &str, table: &str| {
        objects("chain").any(|chain| {
            chain["family"] == family && chain["table"] == table && HOOKS.iter().any(|hook| chain["hook"] == *hook)
        })
    };
    let mut found = Elements::new();
    for (family, table, name) in nftables::set_names(listing) {
        let is = |object: &&Value| object["family"] == *family && object["table"] == *table && object["name"] == *name;
        let kind = ["set", "map"].into_iter().find(|kind| objects(kind).any(|object| is(&object)));
        let Some(kind) = kind.filter(|_| on_path(&family, &table)) else { continue };
        // No IPv4 packet is in one of IPv6 addresses.
        let six = objects(kind).filter(is).any(|object| object["type"] == "ipv6_addr");
        if six {
            continue;
        }
        let key: SetName = (family, table, name);
        match nft::list_json(&["-j", "list", kind, &key.0, &key.1, &key.2], SET) {
            Ok(Some(set)) => {
                let objects = set["nftables"].as_array().into_iter().flatten();
                let elements = objects.filter_map(|object| object.get(kind)?.get("elem")?.as_array()).flatten();
                found.insert(key, elements.cloned().collect());
            }
            // It is gone meanwhile, with the rules that named it.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("set {} {} {}: {error}; its rules count for every source", key.0, key.1, key.2);
                unread.push(format!("{}:{}:{}", key.0, key.1, key.2));
            }
        }
    }
    found
}
