//! Local tasks whose namespace and interfaces a Docker engine has made.

use std::collections::BTreeSet;

use dataplane_common::endpoint::SANDBOX_BIT;

use crate::{
    desired::{AttachedTask, OverlayPort},
    model::Carrier,
    names,
    roles::TaskRole,
    tag::tag,
    topology::Topology,
};

/// All of them, by id.
pub(super) fn local(topology: &Topology<'_>) -> Vec<AttachedTask> {
    let mut ids = BTreeSet::new();
    // Others' interfaces on the gateway bridge are none of our business.
    let mesh = topology.ingress().filter(|n| n.carrier == Carrier::Engine && !topology.published.is_empty());
    let local = topology.endpoints.values().filter(|placed| placed.local && placed.attached);
    local
        .filter_map(|placed| {
            let mut engines = topology.networks_of(placed.task).filter(|network| network.carrier == Carrier::Engine);
            let ip = engines.find_map(|network| placed.task.addresses.get(&network.id))?.ip;
            Some((placed, ip))
        })
        .map(|(placed, ip)| AttachedTask {
            id: placed.task.id.to_string(),
            tag: tag(&placed.task.id),
            netns: placed.task.netns.clone(),
            ip,
            overlay_ports: topology
                .networks_of(placed.task)
                .filter(|network| network.carrier == Carrier::Engine && !network.ingress)
                .filter_map(|network| {
                    let address = placed.task.addresses.get(&network.id)?;
                    Some(OverlayPort {
                        id: unused(names::overlay_port(&placed.task.id, &network.id), &mut ids),
                        network: network.id.to_string(),
                        net: network.vni().get(),
                        vni: network.subnet_of(address.ip)?.vni.get(),
                        ip: address.ip,
                        mac: address.mac,
                    })
                })
                .collect(),
            running: placed.role == TaskRole::Backend,
            unreachable: placed.task.unreachable,
            gateway: mesh.is_some_and(|ingress| placed.task.addresses.contains_key(&ingress.id)),
        })
        .collect()
}

/// The first id from `wanted` on that is not in `ids`. Tasks and networks come in order, so every agent of the node
/// finds the same ones.
fn unused(wanted: u32, ids: &mut BTreeSet<u32>) -> u32 {
    let mut id = wanted;
    while !ids.insert(id) {
        id = SANDBOX_BIT | id.wrapping_add(1);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_take_the_next_and_keep_the_bit() {
        let mut ids = BTreeSet::new();
        let all = [7, 7, 8].map(|low| unused(SANDBOX_BIT | low, &mut ids));
        assert_eq!(all, [7, 8, 9].map(|low| SANDBOX_BIT | low));
        let last = [u32::MAX; 2].map(|id| unused(id, &mut ids));
        assert_eq!(last, [u32::MAX, SANDBOX_BIT]);
    }
}
