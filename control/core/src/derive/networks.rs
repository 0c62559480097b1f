//! The slow path: bridges, vxlan devices and their static entries.

use std::{collections::BTreeMap, net::Ipv4Addr};

use dataplane_common::addr::{Mac, NODE_MAC_PREFIX, TASK_MAC_PREFIX, mac_of};

use crate::{
    desired::{OverlayNetwork, OverlaySubnet, Peer},
    model::{Address, Dataplane, Network},
    names,
    topology::Topology,
};

/// Networks whose slow path this node has, by id.
pub(super) fn carried(topology: &Topology<'_>, me: &str) -> Vec<OverlayNetwork> {
    let networks = topology.carried.iter().filter_map(|id| topology.networks.get(id));
    networks.map(|network| overlay(topology, network, me)).collect()
}

fn overlay(topology: &Topology<'_>, network: &Network, me: &str) -> OverlayNetwork {
    let remote: Vec<(Address, Ipv4Addr)> = topology
        .on(network)
        .filter(|(placed, _)| !placed.local)
        .map(|(placed, address)| (address, placed.vtep))
        .chain(topology.node_addresses(network, me))
        .collect();
    let subnets = network.subnets.iter().map(|s| OverlaySubnet {
        vni: s.vni.get(),
        vxlan: names::vxlan(s.vni.get()),
        subnet: s.subnet,
        gateway: s.gateway,
        peers: remote
            .iter()
            .filter(|(address, _)| s.subnet.contains(&address.ip))
            .map(|(address, vtep)| Peer { ip: address.ip, mac: address.mac, vtep: *vtep })
            .collect(),
        flood: remote.iter().map(|(_, vtep)| *vtep).collect(),
        mesh: if network.ingress && s.vni == network.vni() { mesh(topology, network, me) } else { BTreeMap::new() },
    });
    OverlayNetwork {
        id: network.id.to_string(),
        name: network.name.clone(),
        bridge: names::bridge(network.vni().get()),
        mtu: network.mtu,
        subnets: subnets.collect(),
    }
}

/// Whom mesh frames name as their destination: tasks by their ingress address (whatever MAC the table gives them), for
/// the way back nodes by their VTEP.
fn mesh(topology: &Topology<'_>, ingress: &Network, me: &str) -> BTreeMap<Mac, Ipv4Addr> {
    let nodes = topology.model.nodes.values().filter(|n| n.id != me && n.dataplane == Dataplane::Hiveway);
    let tasks = topology.on(ingress).filter(|(placed, _)| !placed.local && placed.hiveway);
    nodes
        .map(|node| (mac_of(NODE_MAC_PREFIX, node.vtep.octets()), node.vtep))
        .chain(tasks.map(|(placed, address)| (mac_of(TASK_MAC_PREFIX, address.ip.octets()), placed.vtep)))
        // A former self of this node may still be listed.
        .filter(|(_, vtep)| *vtep != topology.vtep)
        .collect()
}
