//! Message → model. Values are checked one by one here, sense by [`sanitize`]; whatever is wrong is left out alone and
//! named.

use std::{collections::BTreeMap, net::Ipv4Addr, num::NonZeroU16, sync::Arc};

use hiveway_core::{
    LeftOut, Model,
    model::{
        Address, ByNetwork, Id, Ids, MAX_MTU, MIN_MTU, Network, Node, Port, Ports, Service, Subnet, Task, Vni,
        checked_mac,
    },
    sanitize,
};
use hiveway_proto::relay as wire;
use ipnet::Ipv4Net;

use super::{names, port_of};

/// The model that a message stands for, and what of it makes no sense, together with what the sender left out.
pub fn decode(table: wire::Table) -> (Model, Vec<LeftOut>) {
    let mut left_out: Vec<_> =
        table.left_out.into_iter().map(|item| LeftOut { what: item.what, why: item.why }).collect();
    let mut ids = Ids::default();
    let model = Model {
        networks: keyed(
            table.networks,
            "network",
            |n| (n.id.clone(), n.name.clone()),
            network,
            &mut ids,
            &mut left_out,
        ),
        nodes: keyed(table.nodes, "node", |n| (n.id.clone(), n.hostname.clone()), node, &mut ids, &mut left_out),
        services: keyed(
            table.services,
            "service",
            |s| (s.id.clone(), s.name.clone()),
            |s, place| service(s, place).map(Arc::new),
            &mut ids,
            &mut left_out,
        ),
        tasks: keyed(
            table.tasks,
            "task",
            |t| (t.id.clone(), String::new()),
            |t, place| task(t, place).map(Arc::new),
            &mut ids,
            &mut left_out,
        ),
        jobs_serve: table.jobs_serve,
    };
    let (model, mut inconsistent) = sanitize(model);
    left_out.append(&mut inconsistent);
    left_out.sort();
    left_out.dedup();
    (model, left_out)
}

/// Where an item puts what of it is left out, and under which name.
struct Place<'l> {
    what: String,
    ids: &'l mut Ids,
    left_out: &'l mut Vec<LeftOut>,
}

impl Place<'_> {
    fn leave_out(&mut self, part: impl std::fmt::Display, why: String) {
        self.left_out.push(LeftOut { what: format!("{part} of {}", self.what), why });
    }
}

fn keyed<W, T>(
    items: Vec<W>,
    kind: &str,
    named: impl Fn(&W) -> (String, String),
    read: impl Fn(W, &mut Place<'_>) -> Result<T, String>,
    ids: &mut Ids,
    left_out: &mut Vec<LeftOut>,
) -> BTreeMap<Id, T> {
    let mut found = BTreeMap::new();
    for item in items {
        let (id, name) = named(&item);
        let what = if name.is_empty() { format!("{kind} {id}") } else { format!("{kind} {name} ({id})") };
        let id = ids.get(&id);
        let mut place = Place { what: what.clone(), ids, left_out };
        match read(item, &mut place) {
            Ok(_) if found.contains_key(&id) => {
                left_out.push(LeftOut { what, why: "is listed twice; the first counts".into() });
            }
            Ok(item) => drop(found.insert(id, item)),
            Err(why) => left_out.push(LeftOut { what, why }),
        }
    }
    found
}

fn node(node: wire::Node, place: &mut Place<'_>) -> Result<Node, String> {
    Ok(Node {
        hostname: if node.hostname.is_empty() { node.id.clone() } else { node.hostname },
        id: place.ids.get(&node.id),
        state: names::node_state_of(node.state),
        address: address(node.address)?,
        vtep: address(node.vtep)?,
        dataplane: names::dataplane_of(node.dataplane),
        vxlan_port: port_of("VXLAN port", node.vxlan_port).ok().flatten(),
        addresses: plain(node.addresses, place.ids),
    })
}

fn address(bits: u32) -> Result<Ipv4Addr, String> {
    let ip = Ipv4Addr::from_bits(bits);
    let possible = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
    possible.then_some(ip).ok_or_else(|| format!("{ip} is no node's address"))
}

fn plain(addresses: Vec<wire::NetworkAddress>, ids: &mut Ids) -> ByNetwork<Ipv4Addr> {
    addresses.into_iter().map(|entry| (ids.get(&entry.network_id), Ipv4Addr::from_bits(entry.ip))).collect()
}

fn network(network: wire::Network, place: &mut Place<'_>) -> Result<Network, String> {
    let mut subnets = network.subnets.iter().map(subnet).collect::<Result<Vec<_>, _>>()?;
    subnets.sort();
    if !(MIN_MTU..=MAX_MTU).contains(&network.mtu) {
        return Err(format!("its MTU {} is not between {MIN_MTU} and {MAX_MTU}", network.mtu));
    }
    Ok(Network {
        id: place.ids.get(&network.id),
        name: network.name,
        subnets,
        ingress: network.ingress,
        internal: network.internal,
        mtu: network.mtu,
        carrier: names::carrier_of(network.carrier)?,
        encrypted: network.encrypted,
    })
}

fn subnet(subnet: &wire::Subnet) -> Result<Subnet, String> {
    let net = u8::try_from(subnet.prefix_len)
        .ok()
        .and_then(|length| Ipv4Net::new(Ipv4Addr::from_bits(subnet.address), length).ok())
        .ok_or_else(|| format!("{} is no prefix length", subnet.prefix_len))?;
    Ok(Subnet {
        vni: Vni::new(subnet.vni).ok_or_else(|| format!("{} is no VNI", subnet.vni))?,
        subnet: net.trunc(),
        gateway: Ipv4Addr::from_bits(subnet.gateway),
    })
}

fn service(service: wire::Service, place: &mut Place<'_>) -> Result<Service, String> {
    Ok(Service {
        id: place.ids.get(&service.id),
        name: service.name,
        endpoint_mode: names::endpoint_mode_of(service.endpoint_mode)?,
        virtual_ips: plain(service.virtual_ips, place.ids),
        ports: ports(service.ports, place),
        labels: service.labels.into_iter().collect(),
        vanished: service.vanished,
    })
}

fn ports(ports: Vec<wire::Port>, place: &mut Place<'_>) -> Ports {
    let mut found = Vec::new();
    for raw in ports {
        match port(&raw) {
            Ok(port) => found.push(port),
            Err(why) => place.leave_out(format_args!("port {} → {}", raw.published_port, raw.target_port), why),
        }
    }
    found.into_iter().collect()
}

fn port(port: &wire::Port) -> Result<Port, String> {
    let narrow = |number: u32| u16::try_from(number).map_err(|_| format!("{number} is no port"));
    Ok(Port {
        protocol: names::protocol_of(port.protocol)?,
        published_port: NonZeroU16::new(narrow(port.published_port)?),
        target_port: NonZeroU16::new(narrow(port.target_port)?).ok_or("it has no target port")?,
        publish_mode: names::publish_mode_of(port.publish_mode)?,
    })
}

fn task(task: wire::Task, place: &mut Place<'_>) -> Result<Task, String> {
    let mut addresses = ByNetwork::default();
    for entry in task.addresses {
        let ip = Ipv4Addr::from_bits(entry.ip);
        match mac(ip, &entry.mac) {
            Ok(address) => drop(addresses.insert(place.ids.get(&entry.network_id), address)),
            Err(why) => place.leave_out(format_args!("address {ip}"), why),
        }
    }
    let created = match task.created.as_str() {
        "" => None,
        // Only decides between two that claim one port of a node.
        text => text.parse().ok(),
    };
    Ok(Task {
        id: place.ids.get(&task.id),
        service: Some(task.service_id).filter(|id| !id.is_empty()).map(|id| place.ids.get(&id)),
        slot: task.slot,
        node: Some(task.node_id).filter(|id| !id.is_empty()).map(|id| place.ids.get(&id)),
        desired_state: names::task_state_of(task.desired_state),
        state: names::task_state_of(task.state),
        unhealthy: task.unhealthy,
        unreachable: task.unreachable,
        addresses,
        created,
        netns: None,
        ports: ports(task.ports, place),
    })
}

fn mac(ip: Ipv4Addr, mac: &[u8]) -> Result<Address, String> {
    if mac.is_empty() {
        return Ok(Address::with_default_mac(ip));
    }
    let mac = mac.try_into().map_err(|_| "its MAC address has not six bytes".to_owned())?;
    Ok(Address { ip, mac: checked_mac(mac)? })
}
