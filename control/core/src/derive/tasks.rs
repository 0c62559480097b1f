//! Local tasks and their interfaces.

use ipnet::Ipv4Net;

use crate::{
    desired::{GatewayAddresses, Interface, LocalTask, Role},
    model::{Address, Network, Task},
    names,
    settings::Settings,
    tag::tag,
    topology::Topology,
};

/// All tasks that get networking on this node, by id.
pub(super) fn local(topology: &Topology<'_>, settings: &Settings, addresses: &GatewayAddresses) -> Vec<LocalTask> {
    let local = topology.endpoints.values().filter(|p| p.local && !p.attached);
    local
        .map(|placed| LocalTask {
            id: placed.task.id.to_string(),
            tag: tag(&placed.task.id),
            netns: placed.task.netns.clone(),
            interfaces: interfaces(topology, settings, addresses, placed.task),
        })
        .collect()
}

/// In the order of the container's names: overlays by name, ingress, gateway bridge.
fn interfaces(
    topology: &Topology<'_>,
    settings: &Settings,
    addresses: &GatewayAddresses,
    task: &Task,
) -> Vec<Interface> {
    let mut networks: Vec<(&Network, Address)> = task
        .addresses
        .iter()
        .filter_map(|(id, address)| Some((*topology.networks.get(id.as_str())?, *address)))
        .collect();
    networks.sort_by_key(|(n, _)| (n.ingress, &n.name, &n.id));

    let mut interfaces: Vec<_> =
        networks.into_iter().filter_map(|(network, address)| overlay(task, network, address)).collect();
    if let Some(ip) = addresses.get(task.id.as_str()).filter(|_| topology.needs_gateway(task)) {
        let bridge = settings.gwbridge_address();
        let address = Address::with_default_mac(*ip);
        interfaces.push(Interface {
            host: names::veth(&task.id, names::GATEWAY),
            container: String::new(),
            bridge: settings.gwbridge.clone(),
            address: Ipv4Net::new_assert(address.ip, bridge.prefix_len()),
            mac: address.mac,
            mtu: settings.gateway_mtu,
            routes: vec![(Ipv4Net::default(), bridge.addr())],
            role: Role::Gateway,
        });
    }
    for (i, interface) in interfaces.iter_mut().enumerate() {
        interface.container = format!("eth{i}");
    }
    interfaces
}

/// The interface on one network; the network's other subnets are reached through its own subnet's gateway.
fn overlay(task: &Task, network: &Network, address: Address) -> Option<Interface> {
    let own = network.subnet_of(address.ip)?;
    let others = network.subnets.iter().filter(|s| s.vni != own.vni);
    Some(Interface {
        host: names::veth(&task.id, &network.id),
        container: String::new(),
        bridge: names::bridge(network.vni().get()),
        address: Ipv4Net::new_assert(address.ip, own.subnet.prefix_len()),
        mac: address.mac,
        mtu: network.mtu,
        routes: others.map(|s| (s.subnet, own.gateway)).collect(),
        role: Role::Overlay { net: network.vni().get(), vni: own.vni.get() },
    })
}
