//! Model and desired state → contents of the BPF maps.

mod access;
mod attached;
mod mesh;

use std::net::Ipv4Addr;

use dataplane_common::{
    ABI_VERSION,
    addr::{NetId, VIRTUAL_MAC},
    config::{Config, mesh_return, node_flag},
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep, endpoint_flag, kind, local_flag, vtep_mesh},
    mesh::NodeAddress,
    service::{Backend, NOWHERE},
    state::{MapState, SetKey},
};

use crate::{
    binding::classes,
    desired::{Desired, Role},
    model::{Carrier, Dataplane, Model, Network, Service, Task},
    names,
    roles::TaskRole,
    settings::{Facts, Settings},
    tag::tag,
    topology::{Placed, Topology},
};

pub(super) use access::{restricted, without_class};
use mesh::GatewayEnd;

/// Everything in the maps that packets don't write themselves. `desired` must have been derived from the same `model`
/// and `settings`. What needs an interface that `facts` does not have yet is left out, and so are backends behind it or
/// behind one that has not been up.
pub fn map_state(model: &Model, desired: &Desired, settings: &Settings, facts: &Facts) -> MapState {
    let vtep = desired.vtep.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let topology = Topology::new(model, settings, &desired.node, vtep);
    let mut maps = Maps { topology: &topology, desired, facts, state: MapState::default() };
    let ingress = topology.ingress();
    let ingress_vxlan = ingress.and_then(|n| facts.ifindex.get(&names::vxlan(n.vni().get())));
    let stock = topology.speaks_with_stock_nodes(&desired.node);
    maps.state.config = Config {
        abi: ABI_VERSION,
        underlay_ifindex: facts.underlay_ifindex,
        vtep: vtep.octets(),
        underlay_ip: facts.underlay_ip.unwrap_or(vtep).octets(),
        mesh_vni: settings.mesh_vni.to_be_bytes(),
        vxlan_port: settings.vxlan_port.to_be_bytes(),
        underlay_mtu: facts.underlay_mtu,
        underlay_mac: facts.underlay_mac,
        gateway_ip: gateway_ip(desired, settings).map_or([0; 4], |ip| ip.octets()),
        ingress_net: ingress.map_or([0; 4], Network::net_id),
        ingress_vxlan_ifindex: ingress_vxlan.copied().unwrap_or(0),
        ingress_ip: stock.map_or([0; 4], |(ip, _)| ip.octets()),
        ingress_vni: stock.map_or([0; 4], |(_, subnet)| subnet.vni.bytes()),
        mesh_return: if settings.direct_return { mesh_return::DIRECT } else { mesh_return::TUNNEL },
        ..Config::default()
    };
    maps.nodes();
    maps.networks();
    maps.tasks();
    maps.attached();
    maps.services();
    maps.ports();
    maps.host_link();
    maps.state.left = facts.left.entries.clone();
    maps.state.left_flags.clone_from(&facts.left.flags);
    maps.state
}

/// This node's address on the gateway bridge: ours, or the engine's if its tasks are on it.
fn gateway_ip(desired: &Desired, settings: &Settings) -> Option<Ipv4Addr> {
    let ours = desired.gateway.as_ref().map(|gateway| gateway.address.addr());
    let theirs = settings.adopts_gwbridge() && desired.attached.iter().any(|task| task.gateway);
    ours.or(theirs.then(|| settings.gwbridge_address().addr()))
}

/// `bit` if `set`.
fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
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
                let hiveway = match node.dataplane {
                    Dataplane::Hiveway => vtep_mesh::MEMBER,
                    Dataplane::Left => vtep_mesh::LEFT,
                    Dataplane::None => vtep_mesh::NONE,
                };
                if hiveway != vtep_mesh::MEMBER {
                    self.state.config.flags |= node_flag::STOCK_NODES;
                }
                self.state.vteps.insert(node.vtep.octets(), Vtep { hiveway, ..Vtep::default() });
            }
        }
        let nets = self.classes();
        for (ip, ifindex) in &self.facts.node_addresses {
            let address = NodeAddress { ifindex: *ifindex, classes: classes(&nets, *ip) };
            self.state.node_addresses.insert(ip.octets(), address);
        }
    }

    /// The node as a client of its own published ports.
    fn host_link(&mut self) {
        let Some(link) = &self.desired.host_link else { return };
        let Some(&ifindex) = self.facts.ifindex.get(names::HOST_FAR) else { return };
        self.state.config.host_ifindex = ifindex;
        self.state.config.host_ip = link.ip.octets();
        // The firewall leads there only what is for an address of the port's.
        let address = NodeAddress { ifindex, classes: (1 << NOWHERE) - 1 };
        self.state.node_addresses.insert(link.ip.octets(), address);
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
                        flags: flag(self.backs_vip(placed.task, network), endpoint_flag::VIP_BACKEND),
                        ..Endpoint::default()
                    },
                );
            }
        }
    }

    /// Whether a VIP on `network` may lead to `task`, or did: also while it drains or does not run yet, or when its
    /// service is gone and the task not yet.
    fn backs_vip(&self, task: &Task, network: &Network) -> bool {
        task.service.as_ref().is_some_and(|service| {
            let service = self.topology.model.services.get(service);
            service.is_none_or(|s| s.virtual_ips.contains_key(&network.id))
        })
    }

    fn endpoint(&mut self, network: &Network, ip: Ipv4Addr, endpoint: Endpoint) {
        let Some(subnet) = network.subnet_of(ip) else { return };
        let key = EndpointKey { net: network.net_id(), ip: ip.octets() };
        self.state.endpoints.insert(key, Endpoint { vni: subnet.vni.bytes(), ..endpoint });
    }

    /// Local tasks: their interfaces, endpoints and what the mesh needs of them.
    fn tasks(&mut self) {
        for task in &self.desired.tasks {
            let Some(placed) = self.topology.endpoints.get(task.id.as_str()) else { continue };
            for interface in &task.interfaces {
                let Some(ifindex) = self.facts.ifindex.get(&interface.host).copied() else { continue };
                let ip = interface.address.addr().octets();
                let (net, vni) = match interface.role {
                    Role::Overlay { net, vni } => (net.to_be_bytes(), vni.to_be_bytes()),
                    Role::Gateway => Default::default(),
                };
                let network = self.topology.networks_of(placed.task).find(|n| n.net_id() == net);
                let backs_vip = network.is_some_and(|n| self.backs_vip(placed.task, n));
                let flags = flag(backs_vip, local_flag::VIP_BACKEND);
                let local = Local { tag: task.tag, net, vni, ip, mac: interface.mac, flags, ..Local::default() };
                self.state.locals.insert(ifindex, local);
                if let Role::Overlay { .. } = interface.role {
                    let endpoint = Endpoint {
                        tag: task.tag,
                        kind: kind::LOCAL,
                        mac: interface.mac,
                        vtep: self.topology.vtep.octets(),
                        vni,
                        ifindex,
                        flags: flag(backs_vip, endpoint_flag::VIP_BACKEND),
                        ..Endpoint::default()
                    };
                    self.state.endpoints.insert(EndpointKey { net, ip }, endpoint);
                }
            }
            let gateway = task.interfaces.iter().find(|i| i.role == Role::Gateway);
            let port = gateway.and_then(|i| {
                let ifindex = *self.facts.ifindex.get(&i.host)?;
                Some(GatewayEnd { ifindex, address: i.address, mac: i.mac })
            });
            if let Some(port) = port {
                self.mesh(task.tag, placed, &port);
            }
        }
    }

    /// VIPs on joined networks: the endpoint that answers for them, and their backends.
    fn services(&mut self) {
        let topology = self.topology;
        for service in topology.model.services.values() {
            for (network, ip) in topology.vips(service).filter(|(n, _)| topology.joined.contains(n.id.as_str())) {
                if network.ingress && network.carrier == Carrier::Engine {
                    // Nobody is told of these.
                    continue;
                }
                let vip = Endpoint { kind: kind::VIP, mac: self.vip_mac(network), ..Endpoint::default() };
                self.endpoint(network, ip, vip);
                let set = self.backends(service, network, |_, _| true);
                self.state.sets.insert(SetKey::Vip { net: network.net_id(), ip: ip.octets() }, set);
            }
        }
    }

    /// The service's backends on a network that fulfil `also` and whose endpoint is in the maps, sorted.
    fn backends(
        &self,
        service: &Service,
        network: &Network,
        also: impl Fn(&Placed<'_>, Ipv4Addr) -> bool,
    ) -> Vec<Backend> {
        let mut backends: Vec<_> = self
            .topology
            .of_service(service, network)
            .filter(|(p, address)| p.role == TaskRole::Backend && also(p, address.ip))
            .filter_map(|(placed, address)| {
                let (tag, ip) = (tag(&placed.task.id), address.ip.octets());
                let endpoint = self.state.endpoints.get(&EndpointKey { net: network.net_id(), ip })?;
                let open = !placed.local || self.is_open(&placed.task.id, &network.id);
                (open && endpoint.tag == tag).then_some(Backend { tag, ip, vtep: placed.vtep.octets() })
            })
            .collect();
        backends.sort_by_key(|b| (b.ip, b.tag));
        backends
    }

    /// Whether what is sent to a task of this node by its interface on a network can be answered. Until then it has its
    /// entries, for it may send as soon as the interface is up, but nobody here is led to it.
    fn is_open(&self, task: &str, network: &str) -> bool {
        let unopened = &self.facts.unopened;
        unopened.is_empty() || !unopened.contains(&names::veth(task, network))
    }
}
