//! Who is where, seen from one node: what [`crate::derive`] and [`crate::map_state`] have in common.

mod endpoints;
mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

pub(crate) use endpoints::Endpoints;
pub(crate) use ports::{HostPort, Published};

use crate::{
    desired::LeftOut,
    model::{Address, Carrier, Dataplane, Model, Network, Service, Subnet, Task},
    roles::TaskRole,
    settings::Settings,
};

/// A networked task with its node.
pub(crate) struct Placed<'a> {
    pub(crate) task: &'a Task,
    pub(crate) role: TaskRole,
    pub(crate) node: &'a str,
    /// VTEP of its node; this node's own for a local one.
    pub(crate) vtep: Ipv4Addr,
    pub(crate) local: bool,
    /// Clients of published ports can be led to it.
    pub(crate) in_mesh: bool,
    /// Its node takes mesh frames.
    pub(crate) hiveway: bool,
    /// A Docker engine has made its namespace and interfaces: one of its networks is the engine's.
    pub(crate) attached: bool,
}

/// The swarm seen from one node. Networks that clash with this node's settings are not in it.
pub(crate) struct Topology<'a> {
    pub(crate) model: &'a Model,
    pub(crate) vtep: Ipv4Addr,
    pub(crate) networks: BTreeMap<&'a str, &'a Network>,
    /// All endpoints, by task id.
    pub(crate) endpoints: Endpoints<'a>,
    /// Ids of networks with an endpoint on this node.
    pub(crate) joined: BTreeSet<&'a str>,
    /// Ids of networks whose slow path we have on this node: the joined ones that no engine carries, and the ingress
    /// network (unless an engine carries it) wherever ports answer.
    pub(crate) carried: BTreeSet<&'a str>,
    /// Ports in ingress mode, by (IP protocol number, port), whose tasks take mesh frames here.
    pub(crate) published: BTreeMap<(u8, u16), Published<'a>>,
    /// This node answers clients on them. Otherwise the engine's own mesh does, while ours on other nodes sends frames
    /// to the tasks here all the same.
    answers: bool,
    /// Ports of local tasks in host mode, likewise. No port is in both.
    pub(crate) host_ports: BTreeMap<(u8, u16), HostPort<'a>>,
    pub(crate) left_out: Vec<LeftOut>,
}

impl<'a> Topology<'a> {
    /// Seen from node `me` (an id), whose tunnel address is `vtep`.
    pub(crate) fn new(model: &'a Model, settings: &Settings, me: &str, vtep: Ipv4Addr) -> Self {
        let mut left_out = Vec::new();
        let networks: BTreeMap<_, _> = model
            .networks
            .values()
            .filter(|network| match clash(network, settings) {
                None => true,
                Some(why) => {
                    left_out.push(LeftOut { what: format!("network {} ({})", network.name, network.id), why });
                    false
                }
            })
            .map(|network| (network.id.as_str(), network))
            .collect();

        let mut endpoints = Vec::with_capacity(model.tasks.len());
        let (mut joined, mut carried) = (BTreeSet::new(), BTreeSet::new());
        let ingress = networks.values().copied().find(|n| n.ingress);
        let translates = ingress
            .is_some_and(|n| by_engine(n) && model.nodes.get(me).is_some_and(|m| m.addresses.contains_key(&n.id)));
        for task in model.tasks.values() {
            let role = model.role(task);
            let Some(node) = task.node.as_ref().and_then(|id| model.nodes.get(id)) else { continue };
            let on = || task.addresses.keys().filter_map(|id| networks.get(id.as_str()).copied());
            if !role.is_endpoint() || on().next().is_none() {
                continue;
            }
            let local = node.id == *me;
            let attached = on().any(by_engine);
            if local && attached {
                joined.extend(on().filter(|network| by_engine(network)).map(|network| network.id.as_str()));
                left_out.extend(on().filter(|network| !by_engine(network)).map(|network| on_both(task, network)));
            } else if local {
                joined.extend(on().map(|network| network.id.as_str()));
                carried.extend(on().map(|network| network.id.as_str()));
            }
            let hiveway = local || node.dataplane == Dataplane::Hiveway;
            let placed = Placed {
                task,
                role,
                node: &node.id,
                vtep: if local { vtep } else { node.vtep },
                local,
                in_mesh: (hiveway || translates) && !task.unreachable,
                hiveway,
                attached,
            };
            endpoints.push(placed);
        }
        let endpoints = Endpoints::new(endpoints);
        let mut published = ports::published(model, settings, &endpoints, &mut left_out);
        let why = ingress.and_then(|n| not_taken_over(n, settings));
        let answers = why.is_none();
        if let Some(why) = why {
            left_out.push(LeftOut { what: ROUTING_MESH.to_owned(), why });
        }
        if ingress.is_some_and(unusable) {
            published.clear();
        }
        carried.extend(ingress.filter(|n| !by_engine(n) && !published.is_empty()).map(|n| n.id.as_str()));
        let mut topology = Self {
            model,
            vtep,
            networks,
            endpoints,
            joined,
            carried,
            published,
            answers,
            host_ports: BTreeMap::new(),
            left_out,
        };
        ports::host_mode(&mut topology, settings);
        topology
    }

    /// Ports in ingress mode that are answered here.
    pub(crate) fn answered<'s>(&'s self) -> impl Iterator<Item = (&'s (u8, u16), &'s Published<'a>)> {
        self.published.iter().filter(|(_, published)| self.answers && !self.only_engine_reaches(published.service))
    }

    /// Whether no backend of `service` has an interface on its node's gateway bridge, because a network of the
    /// service's own is the way out. The engine's mesh reaches tasks over the ingress network, so it can serve such
    /// ports, and ours cannot.
    pub(crate) fn only_engine_reaches(&self, service: &str) -> bool {
        let mut backends =
            self.endpoints.of_service(service).filter(|placed| placed.role == TaskRole::Backend).peekable();
        self.ingress().is_some_and(by_engine)
            && backends.peek().is_some()
            && backends.all(|placed| placed.task.unreachable)
    }

    /// Endpoints with an address on `network`.
    pub(crate) fn on<'s>(&'s self, network: &'s Network) -> impl Iterator<Item = (&'s Placed<'a>, Address)> {
        self.endpoints.values().filter_map(|placed| Some((placed, *placed.task.addresses.get(&network.id)?)))
    }

    /// Endpoints of `service` with an address on `network`.
    pub(crate) fn of_service<'s>(
        &'s self,
        service: &'s Service,
        network: &'s Network,
    ) -> impl Iterator<Item = (&'s Placed<'a>, Address)> {
        let of_service = self.endpoints.of_service(&service.id);
        of_service.filter_map(|placed| Some((placed, *placed.task.addresses.get(&network.id)?)))
    }

    /// Usable networks on which `task` has an address.
    pub(crate) fn networks_of<'s>(&'s self, task: &'s Task) -> impl Iterator<Item = &'a Network> + 's {
        task.addresses.keys().filter_map(|id| self.networks.get(id.as_str()).copied())
    }

    /// Whether a task has a way out, and clients a way to it: one of its networks is not internal.
    pub(crate) fn needs_gateway(&self, task: &Task) -> bool {
        self.networks_of(task).any(|n| n.ingress || !n.internal)
    }

    /// Other nodes' own addresses on `network`, with their VTEPs.
    pub(crate) fn node_addresses<'s>(
        &'s self,
        network: &'s Network,
        me: &'s str,
    ) -> impl Iterator<Item = (Address, Ipv4Addr)> + 's {
        self.model.nodes.values().filter(move |n| n.id != me).filter_map(|n| {
            let ip = *n.addresses.get(&network.id)?;
            Some((Address::with_default_mac(ip), n.vtep))
        })
    }

    /// Ids of usable networks where `service` has a VIP.
    pub(crate) fn vips<'s>(&'s self, service: &'s Service) -> impl Iterator<Item = (&'a Network, Ipv4Addr)> + 's {
        service.virtual_ips.iter().filter_map(|(id, ip)| Some((*self.networks.get(id.as_str())?, *ip)))
    }

    /// This node's own address on the engine's ingress network, with its subnet: what tasks on nodes without Hiveway
    /// see of clients that come through here. `None`: they cannot be served.
    pub(crate) fn speaks_with_stock_nodes(&self, me: &str) -> Option<(Ipv4Addr, &'a Subnet)> {
        stock_address(self.model, self.ingress(), me)
    }

    /// The usable ingress network.
    pub(crate) fn ingress(&self) -> Option<&'a Network> {
        self.networks.values().copied().find(|n| n.ingress)
    }
}

/// What the engine's routing mesh is called where it is left to the engine.
const ROUTING_MESH: &str = "routing mesh";

fn stock_address<'a>(model: &Model, ingress: Option<&'a Network>, me: &str) -> Option<(Ipv4Addr, &'a Subnet)> {
    let ingress = ingress.filter(|network| by_engine(network))?;
    let ip = *model.nodes.get(me)?.addresses.get(&ingress.id)?;
    Some((ip, ingress.subnet_of(ip)?))
}

fn by_engine(network: &Network) -> bool {
    network.carrier == Carrier::Engine
}

/// Nobody may carry the mesh of this ingress network but the engine, on any node.
fn unusable(ingress: &Network) -> bool {
    by_engine(ingress) && ingress.encrypted
}

/// Why the mesh of an engine's ingress network stays the engine's.
fn not_taken_over(ingress: &Network, settings: &Settings) -> Option<String> {
    if !by_engine(ingress) {
        return None;
    }
    if unusable(ingress) {
        return Some(format!(
            "the ingress network {} is encrypted, and mesh frames of ours are not: it stays the engine's",
            ingress.name
        ));
    }
    settings.mesh_refused.clone()
}

/// Why an engine's routing mesh stays the engine's; `None` if there is none, or it is taken over.
pub fn mesh_left_to_engine(model: &Model, settings: &Settings) -> Option<String> {
    not_taken_over(model.networks.values().find(|network| network.ingress)?, settings)
}

/// A task whose interfaces the engine makes gets none from us.
fn on_both(task: &Task, network: &Network) -> LeftOut {
    LeftOut {
        what: format!("network {} ({}) of task {}", network.name, network.id, task.id),
        why: "a Docker engine carries another of the task's networks and has made its interfaces; give the task networks \
              of one kind"
            .into(),
    }
}

/// Why a network can't be had with these settings.
fn clash(network: &Network, settings: &Settings) -> Option<String> {
    let gateway = settings.gwbridge_subnet.trunc();
    network.subnets.iter().find_map(|s| {
        if s.vni.get() == settings.mesh_vni {
            return Some(format!("VNI {} is the routing mesh's; start the agents with another --mesh-vni", s.vni));
        }
        if by_engine(network) {
            // What overlaps with what is the engine's business.
            return None;
        }
        let overlap = s.subnet.contains(&gateway) || gateway.contains(&s.subnet);
        overlap.then(|| {
            format!(
                "subnet {} overlaps the gateway bridge's {gateway}; start the agents with another --gwbridge-subnet",
                s.subnet
            )
        })
    })
}
