//! Beside an engine its own mesh answers published ports for every packet that the programs leave to the stack: first
//! fragments without a whole header, what is sent to a bridge's address, what arrives at an interface without a
//! program. It knows no lists, so they are asked here as well. So they are where the engine's rules lead packets that
//! nobody has translated: its sandbox and containers, at their own addresses on the gateway bridge.

use std::{collections::BTreeSet, net::Ipv4Addr};

use hiveway_core::firewall::Ranges;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    TABLE,
    host::{DESTINATION, by_protocol},
    json::{self, drop_closed, elements, is_local, is_translated, named, payload, rule, to_ports},
};

/// Between our translations into the host link and the engine's destination NAT (-100). A connection that was
/// translated is not looked at again: the programs ask the lists about its new source.
const PRIORITY: i32 = DESTINATION + 5;
const CHAIN: &str = "lists_prerouting";
/// What goes to the engine's sandbox or to containers on its gateway bridge goes through this chain.
const GWBRIDGE: &str = "gwbridge";
/// The set of the sandbox's addresses, and how rules name it.
const SANDBOX: &str = "sandbox";
const IN_SANDBOX: &str = "@sandbox";

/// Published ports with one list of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// (IP protocol number, port).
    pub ports: BTreeSet<(u8, u16)>,
    /// Clients that may open connections to them.
    pub allowed: Ranges,
}

impl Listed {
    /// How clients are compared with which set. Releases of `nft` differ in how they print a set that goes up to the
    /// last address there is, so it is the set of those who may, or of those who may not.
    fn clients(&self) -> (&'static str, Ranges) {
        match self.allowed.contains(Ipv4Addr::BROADCAST) {
            true => ("==", self.allowed.complement()),
            false => ("!=", self.allowed.clone()),
        }
    }
}

/// The addresses of the engine's sandbox.
pub(super) fn sandbox_set(all: &BTreeSet<Ipv4Addr>) -> Value {
    json::set(SANDBOX, "ipv4_addr", all)
}

/// Per list one set of clients, and one of ports per protocol.
pub(super) fn sets(all: &[Listed]) -> Vec<Value> {
    let (family, table) = TABLE;
    let mut sets = Vec::new();
    for (number, listed) in all.iter().enumerate() {
        let mut set = json!({"family": family, "name": clients_name(number), "table": table, "type": "ipv4_addr",
                             "flags": ["interval"]});
        let (_, clients) = listed.clients();
        if !clients.is_empty() {
            set["elem"] = elements(clients.spans().map(span)).into();
        }
        sets.push(json!({"set": set}));
        for (protocol, ports) in by_protocol(&listed.ports) {
            sets.push(json!({"set": {"family": family, "name": ports_name(protocol, number), "table": table,
                                      "type": "inet_service", "elem": elements(ports)}}));
        }
    }
    sets
}

pub(super) fn chain() -> Value {
    json::chain(CHAIN, "nat", "prerouting", PRIORITY)
}

/// Drops new connections of clients that may not open them. A chain of type nat sees the first packet of each
/// connection only, put together if it came in pieces: what is open goes on, as at the programs.
pub(super) fn rules(all: &[Listed]) -> Vec<Value> {
    shut_out(all)
        .map(|matches| rule(CHAIN, matches.into_iter().chain([is_local()]).chain(drop_closed()).collect()))
        .collect()
}

/// Comes before what [`forwarded_to_gwbridge`] and [`sent_to_gwbridge`] add to other chains.
pub(super) fn gwbridge_chain() -> Value {
    json::regular_chain(GWBRIDGE)
}

/// Has [`GWBRIDGE`] look at what is forwarded to the engine's gateway bridge: its sandbox answers published ports there
/// as the node does, containers their own, and the engine's rules let everybody in who has a route.
pub(super) fn forwarded_to_gwbridge(bridge: &str) -> Value {
    rule("forward", vec![named("==", "oifname", bridge), json!({"jump": {"target": GWBRIDGE}})])
}

/// The same for what this node's own processes send to the sandbox.
pub(super) fn sent_to_gwbridge(bridge: &str) -> Value {
    let there = json!({"match": {"op": "==", "left": payload("ip", "daddr"), "right": IN_SANDBOX}});
    rule("output", vec![named("==", "oifname", bridge), there, json!({"jump": {"target": GWBRIDGE}})])
}

/// Drops new connections of clients that may not open them, and all to ports that answer at other addresses only. About
/// what was translated on its way in, [`rules`] were asked.
pub(super) fn gwbridge_rules(all: &[Listed], bound: impl Iterator<Item = Value>) -> Vec<Value> {
    let new = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}});
    let other = json!({"match": {"op": "!=", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}});
    let asked = [other, is_translated("dnat")].map(|passes| vec![passes, json!({"return": null})]);
    let bound = bound.map(|port| vec![new.clone(), port]);
    let listed = shut_out(all).map(|matches| [new.clone()].into_iter().chain(matches).collect());
    let dropped = bound.chain(listed).map(|matches: Vec<_>| matches.into_iter().chain(drop_closed()).collect());
    asked.into_iter().chain(dropped).map(|statements| rule(GWBRIDGE, statements)).collect()
}

/// Per list and protocol: a client that may not use the port.
fn shut_out(all: &[Listed]) -> impl Iterator<Item = [Value; 2]> + '_ {
    all.iter().enumerate().flat_map(|(number, listed)| {
        let (op, _) = listed.clients();
        by_protocol(&listed.ports).into_keys().map(move |protocol| {
            let clients = format!("@{}", clients_name(number));
            [
                to_ports(protocol, &ports_name(protocol, number)),
                json!({"match": {"op": op, "left": payload("ip", "saddr"), "right": clients}}),
            ]
        })
    })
}

fn clients_name(list: usize) -> String {
    format!("clients_{list}")
}

fn ports_name(protocol: &str, list: usize) -> String {
    format!("{protocol}_listed_{list}")
}

/// As `nft` lists it: a single address, a CIDR, or a range that is none.
fn span((first, last): (Ipv4Addr, Ipv4Addr)) -> Value {
    if first == last {
        return json!(first);
    }
    let net = Ipv4Net::new_assert(first, (first.to_bits() ^ last.to_bits()).leading_zeros() as u8);
    match net.network() == first && net.broadcast() == last {
        true => json!({"prefix": {"addr": first, "len": net.prefix_len()}}),
        false => json!({"range": [first, last]}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_as_short_as_nft_prints_it() {
        let of = |first: [u8; 4], last: [u8; 4]| span((first.into(), last.into())).to_string();
        assert_eq!(of([192, 0, 2, 1], [192, 0, 2, 1]), r#""192.0.2.1""#);
        assert_eq!(of([0, 0, 0, 0], [127, 255, 255, 255]), r#"{"prefix":{"addr":"0.0.0.0","len":1}}"#);
        assert_eq!(of([192, 0, 2, 4], [192, 0, 2, 7]), r#"{"prefix":{"addr":"192.0.2.4","len":30}}"#);
        assert_eq!(of([192, 0, 2, 5], [192, 0, 2, 7]), r#"{"range":["192.0.2.5","192.0.2.7"]}"#);
    }

    #[test]
    fn no_set_of_clients_holds_the_last_address() {
        let listed = |ranges: &[(u32, u32)]| Listed { ports: [(6, 80)].into(), allowed: Ranges::of(ranges.to_vec()) };
        for (ranges, op) in [(vec![(5, 9)], "!="), (vec![(5, u32::MAX)], "=="), (vec![], "!=")] {
            let listed = listed(&ranges);
            let (found, clients) = listed.clients();
            assert_eq!(found, op);
            assert!(!clients.contains(Ipv4Addr::BROADCAST));
            // Of who is in the set or not, the right ones are dropped.
            for client in [Ipv4Addr::from_bits(4), Ipv4Addr::from_bits(7), Ipv4Addr::BROADCAST] {
                assert_eq!(clients.contains(client) == (op == "=="), !listed.allowed.contains(client), "{client}");
            }
        }
    }
}
