//! The node's own connections to published ports, and those of containers on the gateway bridge, turn into a client's on
//! the host link: the destination becomes the address that stands for published ports, the source the tunnel address.
//! Connection tracking undoes both on the way back, down to 127.0.0.1.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use dataplane_common::headers::ipproto;
use hiveway_core::names;
use serde_json::{Value, json};

use super::{
    TABLE,
    ruleset::{chain, named, payload, rule},
};

/// Just before everybody else's destination NAT (-100), so that a stock engine's rules for the same ports find the
/// connection translated.
const DESTINATION: i32 = -110;
/// Just before everybody else's source NAT (100), which would masquerade with whichever address it finds.
const SOURCE: i32 = 90;
/// As mangling (-150).
const MANGLE: i32 = -150;

/// What the host link needs of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRules {
    /// Stands for published ports on the host link.
    pub ip: Ipv4Addr,
    /// The tunnel address, which the node's connections show.
    pub vtep: Ipv4Addr,
    /// The gateway bridge, ours or adopted.
    pub bridge: Option<String>,
    /// Published ports: (IP protocol number, port).
    pub ports: BTreeSet<(u8, u16)>,
    /// Largest TCP segment that fits the tunnel. The sockets would go by the loopback device's MTU.
    pub mss: u16,
}

impl HostRules {
    /// One set per protocol.
    pub(super) fn sets(&self) -> Vec<Value> {
        let (family, table) = TABLE;
        let sets = self.by_protocol().into_iter().map(|(protocol, ports)| {
            let mut elements: Vec<Value> = ports.into_iter().map(|port| json!(port)).collect();
            elements.sort_by_key(Value::to_string);
            json!({"set": {"family": family, "name": set_name(protocol), "table": table, "type": "inet_service",
                           "elem": elements}})
        });
        sets.collect()
    }

    pub(super) fn chains(&self) -> Vec<Value> {
        [
            ("host_output", "nat", "output", DESTINATION),
            ("host_prerouting", "nat", "prerouting", DESTINATION),
            ("host_postrouting", "nat", "postrouting", SOURCE),
            ("host_mss_out", "filter", "postrouting", MANGLE),
            ("host_mss_in", "filter", "prerouting", MANGLE),
        ]
        .map(|(name, kind, hook, priority)| chain(name, kind, hook, priority))
        .into()
    }

    /// In the order of the chains.
    pub(super) fn rules(&self) -> Vec<Value> {
        let mut rules: Vec<_> = self.destination(&[]).map(|statements| rule("host_output", statements)).collect();
        if let Some(bridge) = &self.bridge {
            let from = [named("==", "iifname", bridge)];
            rules.extend(self.destination(&from).map(|statements| rule("host_prerouting", statements)));
        }
        let source = json!({"snat": {"family": "ip", "addr": self.vtep}});
        rules.push(rule("host_postrouting", vec![named("==", "oifname", names::HOST), source]));
        for (name, key) in [("host_mss_out", "oifname"), ("host_mss_in", "iifname")] {
            rules.push(rule(name, vec![named("==", key, names::HOST), is_syn(), self.clamp()]));
        }
        rules
    }

    /// Published ports at whatever address of this node, floating ones too.
    fn destination<'a>(&'a self, head: &'a [Value]) -> impl Iterator<Item = Vec<Value>> + 'a {
        let local = json!({"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}},
                                     "right": "local"}});
        let to = json!({"dnat": {"family": "ip", "addr": self.ip}});
        self.by_protocol().into_keys().map(move |protocol| {
            let set = format!("@{}", set_name(protocol));
            let port = json!({"match": {"op": "==", "left": payload(protocol, "dport"), "right": set}});
            head.iter().cloned().chain([port, local.clone(), to.clone()]).collect()
        })
    }

    fn clamp(&self) -> Value {
        json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": self.mss}})
    }

    /// Protocols that nftables has names for.
    fn by_protocol(&self) -> BTreeMap<&'static str, BTreeSet<u16>> {
        let mut found = BTreeMap::<_, BTreeSet<_>>::new();
        for (protocol, port) in &self.ports {
            let name = match *protocol {
                ipproto::TCP => "tcp",
                ipproto::UDP => "udp",
                ipproto::SCTP => "sctp",
                _ => continue,
            };
            found.entry(name).or_default().insert(*port);
        }
        found
    }
}

fn set_name(protocol: &str) -> String {
    format!("{protocol}_ports")
}

fn is_syn() -> Value {
    json!({"match": {"op": "in", "left": payload("tcp", "flags"), "right": "syn"}})
}
