//! Model → message.

use std::net::Ipv4Addr;

use hiveway_core::{
    LeftOut, Model,
    model::{Address, ByNetwork, Id, Network, Node, Port, Service, Subnet, Task, is_meant_for_us},
};
use hiveway_proto::relay as wire;

use super::{names, port_number};

/// Items beyond this many that were left out are only counted: a message stays small whatever is wrong.
const MAX_LEFT_OUT: usize = 500;

/// `model` as a message; revision and freshness are the caller's.
pub fn encode(model: &Model, left_out: &[LeftOut]) -> wire::Table {
    let mut named: Vec<_> = left_out
        .iter()
        .take(MAX_LEFT_OUT)
        .map(|item| wire::LeftOut { what: item.what.clone(), why: item.why.clone() })
        .collect();
    if let Some(more) = left_out.len().checked_sub(MAX_LEFT_OUT).filter(|more| *more > 0) {
        let why = "see `hiveway status` on the manager".into();
        named.push(wire::LeftOut { what: format!("{more} more items"), why });
    }
    wire::Table {
        nodes: model.nodes.values().map(node).collect(),
        networks: model.networks.values().map(network).collect(),
        services: model.services.values().map(|item| service(item)).collect(),
        tasks: model.tasks.values().map(|item| task(item)).collect(),
        left_out: named,
        jobs_serve: model.jobs_serve,
        ..Default::default()
    }
}

fn node(node: &Node) -> wire::Node {
    wire::Node {
        id: node.id.to_string(),
        hostname: node.hostname.clone(),
        state: names::node_state(node.state).into(),
        address: node.address.to_bits(),
        vtep: node.vtep.to_bits(),
        dataplane: names::dataplane(node.dataplane).into(),
        addresses: plain(&node.addresses),
        vxlan_port: port_number(node.vxlan_port),
    }
}

fn plain(addresses: &ByNetwork<Ipv4Addr>) -> Vec<wire::NetworkAddress> {
    let entry = |(network, ip): (&Id, &Ipv4Addr)| wire::NetworkAddress {
        network_id: network.to_string(),
        ip: ip.to_bits(),
        mac: Vec::new(),
    };
    addresses.iter().map(entry).collect()
}

fn network(network: &Network) -> wire::Network {
    let subnet = |subnet: &Subnet| wire::Subnet {
        address: subnet.subnet.network().to_bits(),
        prefix_len: subnet.subnet.prefix_len().into(),
        gateway: subnet.gateway.to_bits(),
        vni: subnet.vni.get(),
    };
    wire::Network {
        id: network.id.to_string(),
        name: network.name.clone(),
        subnets: network.subnets.iter().map(subnet).collect(),
        ingress: network.ingress,
        internal: network.internal,
        mtu: network.mtu,
        carrier: names::carrier(network.carrier).into(),
        encrypted: network.encrypted,
    }
}

fn service(service: &Service) -> wire::Service {
    let ours = service.labels.iter().filter(|(name, _)| is_meant_for_us(name));
    wire::Service {
        id: service.id.to_string(),
        name: service.name.clone(),
        endpoint_mode: names::endpoint_mode(service.endpoint_mode).into(),
        virtual_ips: plain(&service.virtual_ips),
        ports: ports(&service.ports),
        labels: ours.map(|(name, value)| (name.clone(), value.clone())).collect(),
        vanished: service.vanished,
    }
}

fn ports(ports: &[Port]) -> Vec<wire::Port> {
    let port = |port: &Port| wire::Port {
        protocol: names::protocol(port.protocol).into(),
        published_port: port.published_port.map_or(0, |port| port.get().into()),
        target_port: port.target_port.get().into(),
        publish_mode: names::publish_mode(port.publish_mode).into(),
    };
    ports.iter().map(port).collect()
}

fn task(task: &Task) -> wire::Task {
    let address = |(network, address): (&Id, &Address)| {
        let default = *address == Address::with_default_mac(address.ip);
        wire::NetworkAddress {
            network_id: network.to_string(),
            ip: address.ip.to_bits(),
            mac: if default { Vec::new() } else { address.mac.to_vec() },
        }
    };
    wire::Task {
        id: task.id.to_string(),
        service_id: task.service.as_deref().unwrap_or_default().to_owned(),
        slot: task.slot,
        node_id: task.node.as_deref().unwrap_or_default().to_owned(),
        desired_state: names::task_state(task.desired_state),
        state: names::task_state(task.state),
        unhealthy: task.unhealthy,
        unreachable: task.unreachable,
        addresses: task.addresses.iter().map(address).collect(),
        created: task.created.as_ref().map(ToString::to_string).unwrap_or_default(),
        ports: ports(&task.ports),
    }
}
