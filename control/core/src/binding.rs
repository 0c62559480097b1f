//! Published ports that answer at some of a node's addresses only.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::{
    model::{AllowList, Places},
    settings::Settings,
    topology::Topology,
};

/// Where a port answers: at addresses that are in each of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding(Vec<Places>);

impl Binding {
    /// `None`: at all addresses.
    pub(crate) fn new(node: Option<&Places>, service: Option<Places>) -> Option<Self> {
        let all: Vec<_> = node.cloned().into_iter().chain(service).collect();
        (!all.is_empty()).then_some(Self(all))
    }

    /// As CIDRs, on a node whose interfaces carry `addresses`.
    pub fn nets(&self, addresses: &dyn Fn(&str) -> Vec<ipnet::Ipv4Net>) -> AllowList {
        let mut all = self.0.iter().map(|places| places.nets(addresses));
        let first = all.next().unwrap_or_default();
        all.fold(first, |both, other| both.and(&other))
    }
}

/// Bound ports among those that answer here, by (IP protocol number, port).
pub(crate) fn bindings(topology: &Topology<'_>, settings: &Settings) -> BTreeMap<(u8, u16), Binding> {
    let everywhere = topology.answered().map(|(key, port)| (key, port.service));
    let here = topology.host_ports.iter().map(|(key, port)| (key, port.service));
    let bound = everywhere.chain(here).filter_map(|(key, service)| {
        let service = topology.model.services.get(service);
        let places = service.and_then(|service| service.places());
        Some((*key, Binding::new(settings.mesh_addresses.as_ref(), places)?))
    });
    bound.collect()
}

/// The bits of the classes, in the order of `bindings`, that an address is of.
pub(crate) fn classes(nets: &[AllowList], ip: Ipv4Addr) -> u32 {
    nets.iter().enumerate().filter(|(_, nets)| nets.contains(ip)).fold(0, |bits, (class, _)| bits | 1 << class)
}
