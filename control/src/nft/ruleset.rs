//! What the table should hold, in exactly the form in which `nft -j list` shows it, so that both compare.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    GUARD, HostRules, Listed, STRAY,
    json::{chain, drop_it, is_local, is_translated, named, payload, regular_chain, rule, set},
    lists,
};

/// Lowest port that masquerading may pick.
const FIRST_PORT: u16 = 1024;
/// After everybody's source NAT (100): what was forwarded under another address and now pretends to be this node's
/// tunnel.
const TRANSLATED: i32 = 110;
/// Before everybody's source NAT (100), which keeps a container's source port if it can.
const PORTS: i32 = 95;
/// What is forwarded towards another node's VXLAN port goes through this chain.
const TUNNELLED: &str = "tunnelled";
/// What processes send to a VXLAN port, whosever.
const SENT: &str = "sent";
/// The set of containers' bridges, and how rules name it.
const CONTAINERS: &str = "containers";
const IN_CONTAINERS: &str = "@containers";
/// The set of our overlay bridges, and how rules name it.
const OVERLAYS: &str = "overlays";
const IN_OVERLAYS: &str = "@overlays";

/// Contents of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Tunnel addresses of the other nodes.
    pub vteps: BTreeSet<Ipv4Addr>,
    /// This node's own.
    pub vtep: Option<Ipv4Addr>,
    /// Bridges of containers, the gateway bridge, ours or adopted, among them: what comes from them comes from a
    /// container.
    pub bridges: BTreeSet<String>,
    /// Bridges of ours that are overlay networks' slow path: nothing that comes from them is for this node.
    pub overlays: BTreeSet<String>,
    /// Our VNIs, the mesh's included, wherever they are joined.
    pub vnis: BTreeSet<u32>,
    /// What processes of this node may send through other people's vxlan devices.
    pub foreign: Foreign,
    /// For our own gateway bridge; an adopted one has its owner's.
    pub masquerade: Option<Masquerade>,
    /// Published TCP and UDP ports, which masquerading never picks.
    pub published: BTreeSet<u16>,
    /// Those of UDP.
    pub published_udp: BTreeSet<u16>,
    /// Published ports that not every client may use, where an engine answers them as well.
    pub listed: Vec<Listed>,
    /// The gateway bridge of an engine that answers published ports as well.
    pub engine_bridge: Option<String>,
    /// Addresses of that engine's sandbox, which answers published ports as the node's do.
    pub sandbox: BTreeSet<Ipv4Addr>,
    /// For the host link, once it is there.
    pub host: Option<HostRules>,
}

/// VNIs of other people's vxlan devices on this node that use the same port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// These.
    Vnis(BTreeSet<u32>),
    /// A device has no VNI of its own: whoever sends through it chooses one (`external`, Open vSwitch).
    Any,
}

/// What leaves the node with its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The gateway bridge.
    pub bridge: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
}

impl Firewall {
    /// Sets, then chains each followed by its rules, as `nft` lists them.
    pub(super) fn objects(&self) -> Vec<Value> {
        // What other chains ask comes before them.
        let mut chains = vec![regular_chain(TUNNELLED), regular_chain(SENT)];
        let mut rules: Vec<_> = self.tunnelled().chain(self.sent()).collect();
        if self.host.is_some() {
            chains.push(HostRules::regular_chain());
            rules.extend(HostRules::regular_rules());
        }
        let bound = self.host.as_ref().filter(|host| host.engine && !host.bound.is_empty());
        let gwbridge = self.engine_bridge.as_ref().filter(|_| !self.listed.is_empty() || bound.is_some());
        if gwbridge.is_some() {
            chains.push(lists::gwbridge_chain());
            rules.extend(lists::gwbridge_rules(&self.listed, bound.into_iter().flat_map(HostRules::bound_ports)));
        }
        chains.extend(["forward", "input", "output"].map(|hook| chain(hook, "filter", hook, 0)));
        rules.extend([self.forward(), self.scattered(), routed()]);
        if let Some(masquerade) = &self.masquerade {
            // Containers on the bridge reach each other neither as neighbours (isolated ports) nor through us.
            let bridge = &masquerade.bridge;
            rules
                .push(rule("forward", vec![named("==", "iifname", bridge), named("==", "oifname", bridge), drop_it()]));
        }
        if self.host.is_some() {
            rules.push(HostRules::uninvited("forward"));
        }
        rules.extend(gwbridge.map(|bridge| lists::forwarded_to_gwbridge(bridge)));
        rules.extend([taken(), self.entered(), self.output()]);
        if self.host.is_some() {
            rules.push(HostRules::uninvited("output"));
        }
        rules.extend(gwbridge.map(|bridge| lists::sent_to_gwbridge(bridge)));
        if let Some(masquerade) = &self.masquerade {
            chains.push(chain("postrouting", "nat", "postrouting", 100));
            rules.extend(self.masquerade(masquerade));
        }
        if !self.published_udp.is_empty() {
            chains.push(chain("source_ports", "nat", "postrouting", PORTS));
            rules.push(self.source_ports());
        }
        if let Some(vtep) = self.vtep {
            chains.push(chain("guard_postrouting", "filter", "postrouting", TRANSLATED));
            let forged = [from(vtep), is_translated("snat")];
            let rest = self.tunnel([count_it(), drop_it()]);
            rules.push(rule("guard_postrouting", forged.into_iter().chain(rest).collect()));
        }
        let mut sets = vec![
            set("vteps", "ipv4_addr", &self.vteps),
            set(OVERLAYS, "ifname", &self.overlays),
            set(CONTAINERS, "ifname", &self.bridges),
            set("published", "inet_service", &self.published_udp),
        ];
        if let Some(host) = &self.host {
            sets.extend(host.sets());
            chains.extend(host.chains());
            rules.extend(host.rules());
        }
        if gwbridge.is_some() {
            sets.push(lists::sandbox_set(&self.sandbox));
        }
        if !self.listed.is_empty() {
            sets.extend(lists::sets(&self.listed));
            chains.push(lists::chain());
            rules.extend(lists::rules(&self.listed));
        }
        sets.into_iter().chain(chains).chain(rules).collect()
    }

    /// VXLAN towards another node, then `rest`.
    fn tunnel(&self, rest: impl IntoIterator<Item = Value>) -> Vec<Value> {
        let to_nodes = json!({"match": {"op": "==", "left": payload("ip", "daddr"), "right": "@vteps"}});
        [to_nodes, self.to_port()].into_iter().chain(rest).collect()
    }

    /// UDP to the VXLAN port, wherever that is.
    fn to_port(&self) -> Value {
        json!({"match": {"op": "==", "left": payload("udp", "dport"), "right": self.vxlan_port}})
    }

    /// Has [`TUNNELLED`] look at VXLAN towards another node, so that nothing else that is forwarded is compared with
    /// bridges.
    fn forward(&self) -> Value {
        rule("forward", self.tunnel([json!({"jump": {"target": TUNNELLED}})]))
    }

    /// Drops VXLAN that containers send, on whichever bridge an engine has put them: a raw socket, which every
    /// container of Docker's may open, can give it another node's tunnel address. Drops what says to come from this
    /// node's own, too. Other people's VXLAN that is routed or bridged through this node passes, virtual machines' that
    /// are nodes of the swarm, say.
    fn tunnelled(&self) -> impl Iterator<Item = Value> {
        let forged = [named("==", "iifname", IN_CONTAINERS)].into_iter().chain(self.vtep.map(from));
        forged.map(|forged| rule(TUNNELLED, vec![forged, count_it(), drop_it()]))
    }

    /// Drops VXLAN that containers send anywhere but to each other: other nodes take it at all of their addresses, and
    /// this one knows their tunnel addresses only. What merely goes to that port, an answer say, is no VXLAN.
    fn scattered(&self) -> Value {
        let leaves = [named("==", "iifname", IN_CONTAINERS), named("!=", "oifname", IN_CONTAINERS)];
        let tunnel = [self.to_port(), is_asked(), count_it(), drop_it()];
        rule("forward", leaves.into_iter().chain(tunnel).collect())
    }

    /// Drops what containers send to this node's own VXLAN port, at whichever address: the kernel's sockets there ask
    /// nobody where a frame comes from.
    fn entered(&self) -> Value {
        rule("input", vec![named("==", "iifname", IN_CONTAINERS), self.to_port(), count_it(), drop_it()])
    }

    /// Has [`SENT`] look at what processes send to the VXLAN port. The kernel's own tunnel sockets have no owner.
    fn output(&self) -> Value {
        let process = json!({"match": {"op": ">=", "left": {"meta": {"key": "skuid"}}, "right": 0}});
        rule("output", vec![process, self.to_port(), json!({"jump": {"target": SENT}})])
    }

    /// Drops VXLAN that a process of this node sends to another node, to this one (127.0.0.1 is an address of the
    /// kernel's sockets as well), or to an address that may be another node's. What a process sends through a vxlan
    /// device keeps its owner all the way out, so frames with the VNIs of others' devices pass. Ours never come from
    /// processes: our bridges have no address. Which VNIs the swarm has elsewhere this node need not know.
    fn sent(&self) -> Vec<Value> {
        let (op, vnis): (_, Vec<u32>) = match &self.foreign {
            Foreign::Vnis(vnis) => ("==", vnis.difference(&self.vnis).copied().collect()),
            Foreign::Any => ("!=", self.vnis.iter().copied().collect()),
        };
        let mut rules = Vec::new();
        if !vnis.is_empty() {
            let right = match vnis.as_slice() {
                [one] => json!(one),
                several => json!({"set": several}),
            };
            // A payload too short for a VNI does not match, and so does not pass.
            let vni = json!({"payload": {"base": "th", "offset": 96, "len": 24}});
            rules.push(vec![json!({"match": {"op": op, "left": vni, "right": right}}), json!({"return": null})]);
        }
        let to_nodes = json!({"match": {"op": "==", "left": payload("ip", "daddr"), "right": "@vteps"}});
        rules.extend([to_nodes, is_local(), is_asked()].map(|forged| vec![forged, count_it(), drop_it()]));
        rules.into_iter().map(|statements| rule(SENT, statements)).collect()
    }

    /// Gives what containers send from a published UDP port another source port. The engine's masquerade would keep it,
    /// so a container could have the data plane take the port for the node's own towards any client.
    fn source_ports(&self) -> Value {
        let ipv4 = json!({"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}});
        let leaves = [ipv4, named("==", "iifname", IN_CONTAINERS), named("!=", "oifname", IN_CONTAINERS)];
        let (first, last) = port_range(&self.published);
        let from = json!({"match": {"op": "==", "left": payload("udp", "sport"), "right": "@published"}});
        let to = json!({"masquerade": {"port": {"range": [first, last]}}});
        rule("source_ports", leaves.into_iter().chain([from, to]).collect())
    }

    fn masquerade(&self, masquerade: &Masquerade) -> [Value; 2] {
        let net = masquerade.subnet.trunc();
        let prefix = json!({"prefix": {"addr": net.addr(), "len": net.prefix_len()}});
        let leaves = [
            json!({"match": {"op": "==", "left": payload("ip", "saddr"), "right": prefix}}),
            named("!=", "oifname", &masquerade.bridge),
        ];
        let (first, last) = port_range(&self.published);
        let with_ports = [
            json!({"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": ["tcp", "udp"]}}}),
            json!({"masquerade": {"port": {"range": [first, last]}}}),
        ];
        [
            rule("postrouting", leaves.iter().cloned().chain(with_ports).collect()),
            rule("postrouting", leaves.into_iter().chain([json!({"masquerade": null})]).collect()),
        ]
    }
}

/// Whether it goes the way of the connection's first packet, and so is no answer to somebody who has sent from that
/// port. The payload decides nothing: of several datagrams in one packet (UDP_SEGMENT) only the first can be looked at.
fn is_asked() -> Value {
    json!({"match": {"op": "==", "left": {"ct": {"key": "direction"}}, "right": "original"}})
}

/// Drops what this node would forward out of an overlay bridge: what a container sends to the bridge's MAC. What the
/// bridge itself forwards comes by here only where bridged frames are filtered as well (br_netfilter), and leaves by
/// the bridge.
fn routed() -> Value {
    let leaves = [named("==", "iifname", IN_OVERLAYS), named("!=", "oifname", IN_OVERLAYS)];
    rule("forward", leaves.into_iter().chain([stray(), drop_it()]).collect())
}

/// Drops what this node would take from an overlay bridge for itself. The bridge has no address: a container has sent
/// it to another one of the node's.
fn taken() -> Value {
    rule("input", vec![named("==", "iifname", IN_OVERLAYS), stray(), drop_it()])
}

/// With that source.
fn from(ip: Ipv4Addr) -> Value {
    json!({"match": {"op": "==", "left": payload("ip", "saddr"), "right": ip}})
}

/// The largest run of ports from 1024 on without a published one.
pub fn port_range(published: &BTreeSet<u16>) -> (u16, u16) {
    let mut best = (FIRST_PORT, FIRST_PORT);
    let mut start = u32::from(FIRST_PORT);
    let ends = published.iter().copied().filter(|port| *port >= FIRST_PORT).map(u32::from);
    for end in ends.chain([u32::from(u16::MAX) + 1]) {
        if end > start && end - start > u32::from(best.1 - best.0) + 1 {
            best = (start as u16, (end - 1) as u16);
        }
        start = end + 1;
    }
    best
}

fn count_it() -> Value {
    json!({"counter": GUARD})
}

fn stray() -> Value {
    json!({"counter": STRAY})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(published: &[u16]) -> (u16, u16) {
        port_range(&published.iter().copied().collect())
    }

    #[test]
    fn the_largest_gap_is_taken() {
        assert_eq!(range(&[]), (1024, 65535));
        assert_eq!(range(&[80, 443]), (1024, 65535));
        assert_eq!(range(&[8080]), (8081, 65535));
        assert_eq!(range(&[60000]), (1024, 59999));
        assert_eq!(range(&[1024, 65535]), (1025, 65534));
        assert_eq!(range(&[20000, 22000, 60000]), (22001, 59999));
    }

    #[test]
    fn an_adopted_bridge_gets_no_masquerade() {
        let firewall = Firewall {
            vxlan_port: 4789,
            vteps: [].into(),
            vtep: None,
            bridges: ["docker_gwbridge".into()].into(),
            overlays: [].into(),
            vnis: [7].into(),
            foreign: Foreign::Vnis([8].into()),
            masquerade: None,
            published: [].into(),
            published_udp: [].into(),
            listed: Vec::new(),
            engine_bridge: None,
            sandbox: BTreeSet::new(),
            host: None,
        };
        let text = Value::from(firewall.objects()).to_string();
        assert!(text.contains("4789") && !text.contains("masquerade") && !text.contains("postrouting"), "{text}");
    }
}
