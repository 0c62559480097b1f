//! The slow path: bridges, vxlan devices and their static entries.

use std::net::Ipv4Addr;

use crate::{
    desired::{OverlayNetwork, OverlaySubnet, Peer},
    model::{Address, Network},
    names,
    topology::Topology,
};

/// Networks with an endpoint on this node, by id.
pub(super) fn joined(topology: &Topology<'_>, me: &str) -> Vec<OverlayNetwork> {
    let networks = topology.joined.iter().filter_map(|id| topology.networks.get(id));
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
    });
    OverlayNetwork {
        id: network.id.clone(),
        name: network.name.clone(),
        bridge: names::bridge(network.vni().get()),
        mtu: network.mtu,
        subnets: subnets.collect(),
    }
}
