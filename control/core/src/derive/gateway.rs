//! Addresses on the gateway bridge.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::{
    desired::{GatewayAddresses, LeftOut},
    topology::Topology,
};

/// Frees the addresses of tasks that are gone, drops those that can't be used on `bridge` (its own address with its
/// subnet's prefix length), and gives new local tasks the lowest free one; the highest on a bridge that is not ours
/// (`adopted`), because its owner hands out addresses too, from below.
pub(super) fn allocate(
    topology: &Topology<'_>,
    bridge: Ipv4Net,
    adopted: bool,
    addresses: &mut GatewayAddresses,
    left_out: &mut Vec<LeftOut>,
) {
    let usable = |ip: Ipv4Addr| {
        bridge.contains(&ip) && ip != bridge.addr() && ip != bridge.network() && ip != bridge.broadcast()
    };
    let mut used = BTreeSet::new();
    addresses.retain(|task, ip| topology.model.tasks.contains_key(task.as_str()) && usable(*ip) && used.insert(*ip));

    // Only ever shrinks: what was passed by is taken.
    let mut rest = bridge.network().to_bits()..=bridge.broadcast().to_bits();
    for placed in topology.endpoints.values().filter(|p| p.local && !p.attached && topology.needs_gateway(p.task)) {
        if addresses.contains_key(placed.task.id.as_str()) {
            continue;
        }
        let is_free = |bits: &u32| usable(Ipv4Addr::from_bits(*bits)) && !used.contains(&Ipv4Addr::from_bits(*bits));
        let free = if adopted { rest.rfind(is_free) } else { rest.find(is_free) };
        match free {
            Some(bits) => {
                let ip = Ipv4Addr::from_bits(bits);
                used.insert(ip);
                addresses.insert(placed.task.id.to_string(), ip);
            }
            None => left_out.push(LeftOut {
                what: format!("gateway bridge interface of task {}", placed.task.id),
                why: format!("no free address in {}; start the agent with a larger --gwbridge-subnet", bridge.trunc()),
            }),
        }
    }
}
