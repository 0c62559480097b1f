//! The node's own connections to published ports, and those of containers on its bridges, turn into a client's on the
//! host link: the destination becomes the address that stands for published ports, the source the tunnel address.
//! Connection tracking undoes both on the way back, down to 127.0.0.1.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use dataplane_common::headers::ipproto;
use hiveway_core::names;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    TABLE,
    json::{chain, drop_closed, elements, is_local, is_translated, named, payload, regular_chain, rule, to_ports},
};

/// Just before everybody else's destination NAT (-100), so that a stock engine's rules for the same ports find the
/// connection translated.
pub(super) const DESTINATION: i32 = -110;
/// Just before everybody else's source NAT (100), which would masquerade with whichever address it finds.
const SOURCE: i32 = 90;
/// What leaves by the host link goes through this chain.
const UNINVITED: &str = "uninvited";
/// As mangling (-150).
const MANGLE: i32 = -150;

/// What the host link needs of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRules {
    /// Stands for published ports on the host link.
    pub ip: Ipv4Addr,
    /// The tunnel address, which the node's connections show.
    pub vtep: Ipv4Addr,
    /// Bridges of containers: the gateway bridge, ours or adopted, and those that an engine has made for containers of
    /// this node alone.
    pub bridges: BTreeSet<String>,
    /// Published ports that answer at all addresses of the node: (IP protocol number, port).
    pub ports: BTreeSet<(u8, u16)>,
    /// Those that answer at some only, together with the others that answer at the same ones.
    pub bound: Vec<Bound>,
    /// An engine serves the same ports at all addresses: bound ones are closed at the others.
    pub engine: bool,
    /// Largest TCP segment that fits the tunnel. The sockets would go by the loopback device's MTU.
    pub mss: u16,
}

/// Published ports that answer at some addresses of the node only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// (IP protocol number, port).
    pub ports: BTreeSet<(u8, u16)>,
    /// The addresses, sorted, none of them inside another.
    pub nets: Vec<Ipv4Net>,
}

impl HostRules {
    /// All published ports.
    pub fn published(&self) -> BTreeSet<(u8, u16)> {
        self.ports.iter().chain(self.bound.iter().flat_map(|bound| &bound.ports)).copied().collect()
    }

    /// One set per protocol.
    pub(super) fn sets(&self) -> Vec<Value> {
        let (family, table) = TABLE;
        let sets = self.groups().into_iter().flat_map(|group| {
            let named = by_protocol(group.ports).into_iter();
            named.map(move |(protocol, ports)| (set_name(protocol, group.number), ports))
        });
        let sets = sets.map(|(name, ports)| {
            json!({"set": {"family": family, "name": name, "table": table, "type": "inet_service",
                           "elem": elements(ports)}})
        });
        sets.collect()
    }

    /// Has [`UNINVITED`] look at what a chain lets out of the host link.
    pub(super) fn uninvited(chain: &str) -> Value {
        rule(chain, vec![named("==", "oifname", names::HOST), json!({"jump": {"target": UNINVITED}})])
    }

    /// Comes before what [`HostRules::uninvited`] adds to other chains.
    pub(super) fn regular_chain() -> Value {
        regular_chain(UNINVITED)
    }

    /// Drops what is sent to the host link's address by others than our own translation: it would get the tunnel
    /// address as its source, which lists and bindings know nothing against.
    pub(super) fn regular_rules() -> [Value; 3] {
        // Of a connection that connection tracking has lost: it opens nothing, and its server is to know.
        let reset = json!({"match": {"op": "in", "left": payload("tcp", "flags"), "right": "rst"}});
        [
            rule(UNINVITED, vec![reset, json!({"return": null})]),
            rule(UNINVITED, vec![is_translated("dnat"), json!({"return": null})]),
            rule(UNINVITED, drop_closed().into()),
        ]
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
        let output = self.destination(&[]).chain(self.closed());
        let mut rules: Vec<_> = output.map(|statements| rule("host_output", statements)).collect();
        for bridge in &self.bridges {
            let from = [named("==", "iifname", bridge)];
            rules.extend(self.destination(&from).map(|statements| rule("host_prerouting", statements)));
        }
        rules.extend(self.closed().into_iter().map(|statements| rule("host_prerouting", statements)));
        let source = json!({"snat": {"family": "ip", "addr": self.vtep}});
        rules.push(rule("host_postrouting", vec![named("==", "oifname", names::HOST), is_translated("dnat"), source]));
        for (name, key) in [("host_mss_out", "oifname"), ("host_mss_in", "iifname")] {
            rules.push(rule(name, vec![named("==", key, names::HOST), is_syn(), self.clamp()]));
        }
        rules
    }

    /// Drops new connections to bound ports at this node's other addresses, whoever asks and wherever he comes in: the
    /// engine's rules would lead them to a task. What connection tracking knows goes on.
    fn closed(&self) -> Vec<Vec<Value>> {
        let ipv4 = json!({"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}});
        let mut rules = Vec::new();
        for group in self.groups().into_iter().filter(|_| self.engine) {
            let Some(nets) = group.nets else { continue };
            for protocol in by_protocol(group.ports).into_keys() {
                let port = to_ports(protocol, &set_name(protocol, group.number));
                rules.extend(nets.iter().map(|net| vec![to_net(*net), port.clone(), json!({"accept": null})]));
                rules.push([ipv4.clone(), port, is_local()].into_iter().chain(drop_closed()).collect());
            }
        }
        rules
    }

    /// A match for each set of bound ports.
    pub(super) fn bound_ports(&self) -> impl Iterator<Item = Value> + '_ {
        let bound = self.groups().into_iter().filter(|group| group.nets.is_some());
        bound.flat_map(|group| {
            let named = by_protocol(group.ports).into_keys();
            named.map(move |protocol| to_ports(protocol, &set_name(protocol, group.number)))
        })
    }

    /// Published ports at whatever address of this node, floating ones too; bound ones at theirs.
    fn destination<'a>(&'a self, head: &'a [Value]) -> impl Iterator<Item = Vec<Value>> + 'a {
        let local = is_local();
        let to = json!({"dnat": {"family": "ip", "addr": self.ip}});
        let matches = self.groups().into_iter().flat_map(|group| {
            let protocols: Vec<_> = by_protocol(group.ports).into_keys().collect();
            protocols.into_iter().flat_map(move |protocol| {
                let port = to_ports(protocol, &set_name(protocol, group.number));
                let nets = group.nets.map_or(vec![None], |nets| nets.iter().copied().map(Some).collect());
                nets.into_iter().map(move |net| net.map(to_net).into_iter().chain([port.clone()]).collect::<Vec<_>>())
            })
        });
        matches.map(move |found| {
            let head = head.iter().cloned();
            head.chain(found).chain([local.clone(), to.clone()]).collect()
        })
    }

    /// Ports that are led alike: those of all addresses, then the bound ones.
    fn groups(&self) -> Vec<Group<'_>> {
        let bound = self.bound.iter().enumerate();
        let bound = bound.map(|(n, bound)| Group { number: Some(n), ports: &bound.ports, nets: Some(&bound.nets) });
        [Group { number: None, ports: &self.ports, nets: None }].into_iter().chain(bound).collect()
    }

    fn clamp(&self) -> Value {
        json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": self.mss}})
    }
}

/// Ports with one rule per protocol, and per net of those that are bound.
#[derive(Clone, Copy)]
struct Group<'a> {
    number: Option<usize>,
    ports: &'a BTreeSet<(u8, u16)>,
    nets: Option<&'a Vec<Ipv4Net>>,
}

/// Protocols that nftables has names for.
pub(super) fn by_protocol(ports: &BTreeSet<(u8, u16)>) -> BTreeMap<&'static str, BTreeSet<u16>> {
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for (protocol, port) in ports {
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

fn set_name(protocol: &str, group: Option<usize>) -> String {
    match group {
        None => format!("{protocol}_ports"),
        Some(number) => format!("{protocol}_bound_{number}"),
    }
}

/// As `nft` lists it: a whole address without its prefix length.
fn to_net(net: Ipv4Net) -> Value {
    let right = match net.prefix_len() {
        32 => json!(net.addr()),
        length => json!({"prefix": {"addr": net.network(), "len": length}}),
    };
    json!({"match": {"op": "==", "left": payload("ip", "daddr"), "right": right}})
}

fn is_syn() -> Value {
    json!({"match": {"op": "in", "left": payload("tcp", "flags"), "right": "syn"}})
}
