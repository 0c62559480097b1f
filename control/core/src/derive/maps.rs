//! Model and desired state → contents of the BPF maps.

use std::net::Ipv4Addr;

use dataplane_common::{
    ABI_VERSION,
    addr::{NetId, VIRTUAL_MAC},
    config::Config,
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep, kind},
    mesh::{NodeAddress, Target, TargetKey},
    service::Backend,
    state::{MapState, SetKey},
};

use crate::{
    desired::{Desired, Interface, LocalTask, Role},
    model::{Dataplane, Model, Network, Service},
    roles::TaskRole,
    settings::{Facts, Settings},
    tag::tag,
    topology::{Placed, Topology},
};

/// Everything in the maps that packets don't write themselves. `desired` must have been derived from the same `model`
/// and `settings`. What needs an interface that `facts` does not have yet is left out, and so are backends behind it.
pub fn map_state(model: &Model, desired: &Desired, settings: &Settings, facts: &Facts) -> MapState {
    let vtep = desired.vtep.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let topology = Topology::new(model, settings, &desired.node, vtep);
    let mut maps = Maps { topology: &topology, desired, facts, state: MapState::default() };
    maps.state.config = Config {
        abi: ABI_VERSION,
        underlay_ifindex: facts.underlay_ifindex,
        vtep: vtep.octets(),
        mesh_vni: settings.mesh_vni.to_be_bytes(),
        vxlan_port: settings.vxlan_port.to_be_bytes(),
        underlay_mtu: facts.underlay_mtu,
        ..Config::default()
    };
    maps.nodes();
    maps.networks();
    maps.tasks();
    maps.services();
    maps.ports();
    maps.state
}

/// The maps while they are being filled.
struct Maps<'a> {
    topology: &'a Topology<'a>,
    desired: &'a Desired,
    facts: &'a Facts,
    state: MapState,
}

impl Maps<'_> {
    fn nodes(&mut self) {
        for node in self.topology.model.nodes.values() {
            if node.id != self.desired.node && node.vtep != self.topology.vtep {
                let hiveway = u8::from(node.dataplane == Dataplane::Hiveway);
                self.state.vteps.insert(node.vtep.octets(), Vtep { hiveway, ..Vtep::default() });
            }
        }
        for (ip, ifindex) in &self.facts.node_addresses {
            self.state.node_addresses.insert(ip.octets(), NodeAddress { ifindex: *ifindex });
        }
    }

    /// VNIs, gateways, node addresses and remote tasks of joined networks; of the ingress network in any case, because
    /// the mesh asks who a backend is.
    fn networks(&mut self) {
        for network in self.desired.networks.iter() {
            let Some(first) = network.subnets.first() else { continue };
            let net: NetId = first.vni.to_be_bytes();
            for subnet in &network.subnets {
                let vni = subnet.vni.to_be_bytes();
                if let Some(vxlan_ifindex) = self.facts.ifindex.get(&subnet.vxlan) {
                    self.state.vnis.insert(vni, VniInfo { net, vxlan_ifindex: *vxlan_ifindex });
                    // `from_vxlan` asks which network a frame without its outer header belongs to.
                    self.state.locals.insert(*vxlan_ifindex, Local { net, vni, ..Local::default() });
                }
                let gateway = Endpoint { kind: kind::GATEWAY, mac: VIRTUAL_MAC, vni, ..Endpoint::default() };
                self.state.endpoints.insert(EndpointKey { net, ip: subnet.gateway.octets() }, gateway);
            }
        }
        let topology = self.topology;
        for network in topology.networks.values().filter(|n| n.ingress || topology.joined.contains(n.id.as_str())) {
            for (address, vtep) in topology.node_addresses(network, &self.desired.node) {
                self.endpoint(
                    network,
                    address.ip,
                    Endpoint { kind: kind::NODE, mac: address.mac, vtep: vtep.octets(), ..Endpoint::default() },
                );
            }
            for (placed, address) in topology.on(network).filter(|(p, _)| !p.local) {
                self.endpoint(
                    network,
                    address.ip,
                    Endpoint {
                        tag: tag(&placed.task.id),
                        kind: kind::REMOTE,
                        mac: address.mac,
                        vtep: placed.vtep.octets(),
                        ..Endpoint::default()
                    },
                );
            }
        }
    }

    fn endpoint(&mut self, network: &Network, ip: Ipv4Addr, endpoint: Endpoint) {
        let Some(subnet) = network.subnet_of(ip) else { return };
        let key = EndpointKey { net: network.net_id(), ip: ip.octets() };
        self.state.endpoints.insert(key, Endpoint { vni: subnet.vni.bytes(), ..endpoint });
    }

    /// Local tasks: their interfaces, endpoints and what mesh frames call them.
    fn tasks(&mut self) {
        for task in &self.desired.tasks {
            for interface in &task.interfaces {
                let Some(ifindex) = self.facts.ifindex.get(&interface.host).copied() else { continue };
                let ip = interface.address.addr().octets();
                let (net, vni) = match interface.role {
                    Role::Overlay { net, vni } => (net.to_be_bytes(), vni.to_be_bytes()),
                    Role::Gateway => Default::default(),
                };
                let local = Local { tag: task.tag, net, vni, ip, mac: interface.mac, ..Local::default() };
                self.state.locals.insert(ifindex, local);
                if let Role::Overlay { .. } = interface.role {
                    let endpoint = Endpoint {
                        tag: task.tag,
                        kind: kind::LOCAL,
                        mac: interface.mac,
                        vtep: self.topology.vtep.octets(),
                        vni,
                        ifindex,
                        ..Endpoint::default()
                    };
                    self.state.endpoints.insert(EndpointKey { net, ip }, endpoint);
                }
            }
            self.targets(task);
        }
    }

    fn targets(&mut self, task: &LocalTask) {
        let Some(ingress) = self.topology.ingress() else { return };
        let Some(placed) = self.topology.endpoints.get(task.id.as_str()) else { return };
        let Some(address) = placed.task.addresses.get(&ingress.id) else { return };
        let gateway: Option<(&Interface, u32)> = task
            .interfaces
            .iter()
            .find(|i| i.role == Role::Gateway)
            .and_then(|i| Some((i, *self.facts.ifindex.get(&i.host)?)));
        let Some((gateway, ifindex)) = gateway else { return };
        for port in &placed.task.ports {
            let Some((proto, published)) = port.ingress() else { continue };
            if !self.topology.published.contains_key(&(proto, published)) {
                continue;
            }
            let key = TargetKey { ip: address.ip.octets(), port: published.to_be_bytes(), proto, _pad: 0 };
            let target = Target {
                tag: task.tag,
                ifindex,
                ip: gateway.address.addr().octets(),
                port: port.target_port.get().to_be_bytes(),
                mac: gateway.mac,
                ..Target::default()
            };
            self.state.targets.insert(key, target);
        }
    }

    /// VIPs on joined networks: the endpoint that answers for them, and their backends.
    fn services(&mut self) {
        let topology = self.topology;
        for service in topology.model.services.values() {
            for (network, ip) in topology.vips(service).filter(|(n, _)| topology.joined.contains(n.id.as_str())) {
                let vip = Endpoint { kind: kind::VIP, mac: VIRTUAL_MAC, ..Endpoint::default() };
                self.endpoint(network, ip, vip);
                let set = self.backends(service, network, |_| true);
                self.state.sets.insert(SetKey::Vip { net: network.net_id(), ip: ip.octets() }, set);
            }
        }
    }

    /// Published ports: on every node, whether or not it has a task.
    fn ports(&mut self) {
        for ((proto, port), published) in &self.topology.published {
            let key = SetKey::Port { proto: *proto, port: port.to_be_bytes() };
            let service = self.topology.model.services.get(published.service);
            let set = match (service, self.topology.ingress()) {
                (Some(service), Some(ingress)) => self.backends(service, ingress, |placed| {
                    let serves = placed.task.ports.iter().any(|p| p.ingress() == Some((*proto, *port)));
                    serves && placed.in_mesh && (!placed.local || self.has_target(placed, ingress, *proto, *port))
                }),
                _ => Vec::new(),
            };
            self.state.sets.insert(key, set);
        }
    }

    fn has_target(&self, placed: &Placed<'_>, ingress: &Network, proto: u8, port: u16) -> bool {
        placed.task.addresses.get(&ingress.id).is_some_and(|address| {
            let key = TargetKey { ip: address.ip.octets(), port: port.to_be_bytes(), proto, _pad: 0 };
            self.state.targets.get(&key).is_some_and(|t| t.tag == tag(&placed.task.id))
        })
    }

    /// The service's backends on a network that fulfil `also` and whose endpoint is in the maps, sorted.
    fn backends(&self, service: &Service, network: &Network, also: impl Fn(&Placed<'_>) -> bool) -> Vec<Backend> {
        let mut backends: Vec<_> = self
            .topology
            .of_service(service, network)
            .filter(|(p, _)| p.role == TaskRole::Backend && also(p))
            .filter_map(|(placed, address)| {
                let (tag, ip) = (tag(&placed.task.id), address.ip.octets());
                let endpoint = self.state.endpoints.get(&EndpointKey { net: network.net_id(), ip })?;
                (endpoint.tag == tag).then_some(Backend { tag, ip, vtep: placed.vtep.octets() })
            })
            .collect();
        backends.sort_by_key(|b| (b.ip, b.tag));
        backends
    }
}
