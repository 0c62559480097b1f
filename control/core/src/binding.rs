//! Published ports that answer at some of a node's addresses only.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::{desired::Binding, model::AllowList, settings::Settings, topology::Topology};

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
