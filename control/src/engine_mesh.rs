//! Whether a Docker engine can serve published ports by itself: what a node has left where Hiveway does not serve them.

use std::{collections::BTreeSet, path::Path};

use dataplane_common::headers::ipproto;
use hiveway_core::{Model, TaskRole};
use serde::Serialize;

use crate::host_firewall::Reading;

/// There while the kernel's IPVS is loaded, with which engines balance.
const IPVS: &str = "/proc/net/ip_vs";
/// What engines call their firewall backend without iptables.
const NFTABLES: &str = "nftables";
/// A table that engines make with it, and remove without it.
const NFTABLES_TABLE: &str = "docker-bridges";

/// Published ports that neither Hiveway nor the engine serves on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadPorts {
    /// Like `8080/tcp`.
    pub ports: Vec<String>,
    /// Why the engine cannot serve them, and what to do about it.
    pub why: String,
}

/// Whether the kernel's IPVS is loaded, in the caller's network namespace. An engine loads it with its first service.
pub fn has_ipvs() -> bool {
    Path::new(IPVS).exists()
}

/// Those ports of an engine's routing mesh that Hiveway does not serve (it serves `served`), if the engine cannot
/// either. `backend`: the engine's firewall backend, if it says so; `reading`: the host's rules, if they can be read.
pub fn dead_ports(
    model: &Model,
    served: &BTreeSet<(u8, u16)>,
    backend: Option<&str>,
    reading: Option<&Reading>,
) -> Option<DeadPorts> {
    if !model.engine_has_ingress() {
        return None;
    }
    // An engine loads IPVS, and leads a port anywhere, only when the first task serves it.
    let tasks = model.tasks.values().filter(|task| model.role(task) == TaskRole::Backend);
    let serving: BTreeSet<_> = tasks.filter_map(|task| task.service.as_ref()).collect();
    let services = model.services.iter().filter(|(id, _)| serving.contains(id)).map(|(_, service)| service);
    let ports = services.flat_map(|service| &service.ports).filter_map(|port| port.ingress());
    let left: BTreeSet<(u8, u16)> = ports.filter(|port| !served.contains(port)).collect();
    if left.is_empty() {
        return None;
    }
    let why = broken(has_ipvs(), backend, reading)?;
    Some(DeadPorts { ports: left.into_iter().map(text).collect(), why })
}

/// Why the routing mesh of this node's engine does not work; `None` where nothing speaks against it.
pub fn broken(ipvs: bool, backend: Option<&str>, reading: Option<&Reading>) -> Option<String> {
    let rules = reading.filter(|reading| !reading.nat_unread).map(|reading| !reading.rules.sandbox.is_empty());
    // The engine says `nftables+firewalld` as well.
    let nftables = match backend {
        Some(backend) => backend.starts_with(NFTABLES),
        None => reading.is_some_and(has_nftables_table),
    };
    if nftables && rules != Some(true) {
        return Some(
            "the engine's firewall backend is nftables, with which it has no routing mesh; remedy: \
             \"firewall-backend\": \"iptables\" in /etc/docker/daemon.json and a restart of the engine"
                .into(),
        );
    }
    if !ipvs {
        return Some(format!(
            "the kernel has no IPVS ({IPVS} is missing), with which the engine balances; remedy: `modprobe ip_vs`, or a \
             kernel that has it, and a restart of the engine"
        ));
    }
    (rules == Some(false)).then(|| {
        "the engine has no rules for published ports (chain DOCKER-INGRESS of table nat leads nowhere); remedy: a restart \
         of the engine"
            .into()
    })
}

fn has_nftables_table(reading: &Reading) -> bool {
    let objects = reading.listing["nftables"].as_array().into_iter().flatten();
    objects.map(|object| &object["table"]).any(|table| table["family"] == "ip" && table["name"] == NFTABLES_TABLE)
}

fn text((protocol, port): (u8, u16)) -> String {
    match protocol {
        ipproto::TCP => format!("{port}/tcp"),
        ipproto::UDP => format!("{port}/udp"),
        ipproto::SCTP => format!("{port}/sctp"),
        other => format!("{port}/{other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hiveway_core::firewall::{Ruleset, iptables};
    use serde_json::json;

    use super::*;

    /// The nat table of an engine with a published port.
    const NAT: &str = "*nat\n:DOCKER-INGRESS - [0:0]\n\
        -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080\n\
        -A DOCKER-INGRESS -j RETURN\nCOMMIT\n";
    /// Without one.
    const NO_PORT: &str = "*nat\n:DOCKER-INGRESS - [0:0]\n-A DOCKER-INGRESS -j RETURN\nCOMMIT\n";

    fn reading(nat: &str, table: &str) -> Reading {
        let rules = Ruleset { sandbox: iptables::ingress_sandbox(nat), ..Ruleset::default() };
        let listing = json!({"nftables": [{"metainfo": {}}, {"table": {"family": "ip", "name": table, "handle": 1}}]});
        Reading { rules: Arc::new(rules), listing: Arc::new(listing), nat_unread: false }
    }

    #[test]
    fn an_engine_that_can_serve_and_those_that_cannot() {
        let (good, empty, bridges) = (reading(NAT, "nat"), reading(NO_PORT, "nat"), reading("", NFTABLES_TABLE));
        let said = |ipvs, backend, reading| broken(ipvs, backend, reading).unwrap_or_default();
        assert_eq!(broken(true, Some("iptables"), Some(&good)), None);
        assert_eq!(broken(true, None, Some(&good)), None, "engines before 28.2 do not say");
        assert_eq!(broken(true, None, None), None, "rules that cannot be read speak against nothing");
        let unread = Reading { nat_unread: true, ..reading("", "nat") };
        assert_eq!(broken(true, Some("iptables"), Some(&unread)), None, "nor do those of one table");

        assert!(said(false, Some("iptables"), Some(&good)).contains("modprobe ip_vs"));
        assert!(said(true, Some("iptables"), Some(&empty)).contains("DOCKER-INGRESS"));
        for backend in ["nftables", "nftables+firewalld"] {
            assert!(said(true, Some(backend), Some(&bridges)).contains("\"firewall-backend\": \"iptables\""));
            assert!(said(false, Some(backend), None).contains("firewall-backend"));
            assert_eq!(broken(true, Some(backend), Some(&good)), None, "its rules are there all the same");
        }
        // Nothing has asked the engine: its tables tell, unless it says otherwise.
        assert!(said(true, None, Some(&bridges)).contains("firewall-backend"));
        assert!(said(true, Some("iptables+firewalld"), Some(&bridges)).contains("DOCKER-INGRESS"));
    }
}
