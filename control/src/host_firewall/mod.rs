//! What the host's own firewall says about published ports: the routing mesh is answered before it, so where it has a
//! say, it would no longer be heard.
//!
//! Looked at are the chain DOCKER-USER, which an engine asks about everything that is forwarded to containers, chains at
//! the input hook, and forward chains that no engine has made; of nftables and of the older iptables. Only IPv4.

mod chains;
mod judge;
mod legacy;
mod native;

use std::{collections::BTreeSet, fs, time::Duration};

use crate::{
    child::{self, Limits},
    nft,
};
use chains::Chains;

/// Names of the old iptables' tables that are in use.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";
const LEGACY_SAVE: &str = "iptables-legacy-save";

/// What keeps some clients from some of the `published` ports (IP protocol number, port), one sentence each, at the
/// interfaces `clients`; empty if nothing does. Rules that are too hard to understand count as restricting.
///
/// # Errors
/// When the rules cannot be read, with the remedy.
pub fn restrictions(published: &BTreeSet<(u8, u16)>, clients: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let mut all: Vec<Chains> = native::chains(&nft::ruleset().map_err(|error| error.to_string())?);
    if let Some(legacy) = legacy()? {
        all.push(legacy);
    }
    Ok(all.iter().flat_map(|chains| chains.restrictions(published, clients)).collect())
}

/// The filter table of the older iptables, if it is in use.
fn legacy() -> Result<Option<Chains>, String> {
    let tables = fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
    if !tables.lines().any(|table| table == "filter") {
        return Ok(None);
    }
    let limits = Limits { time: Duration::from_secs(5), bytes: 16 << 20 };
    let output = child::run(LEGACY_SAVE, &["-t", "filter"], b"", limits)
        .map_err(|error| format!("{error}; install the package iptables if it is missing"))?;
    if !output.status.success() {
        return Err(format!("{LEGACY_SAVE}: {}", output.stderr.trim()));
    }
    Ok(Some(legacy::chains(&String::from_utf8_lossy(&output.stdout))))
}
