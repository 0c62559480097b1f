//! The routing mesh's maps: published ports, the tasks behind them, and whose clients can't be shown as they are.

use std::net::Ipv4Addr;

use dataplane_common::{
    mesh::{ClientPrefix, ClientRule, Target, TargetKey, shown_as},
    state::SetKey,
};
use ipnet::Ipv4Net;

use super::Maps;
use crate::{
    desired::{Interface, LocalTask, Role},
    model::Network,
    tag::tag,
    topology::Placed,
};

/// Bits of a [`ClientPrefix`] before the address.
const INDEX_BITS: u32 = 32;
/// No reply to a loopback address ever leaves its container.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

impl Maps<'_> {
    /// What clients' packets find of a local task, if it can be reached: its interface on the gateway bridge exists.
    pub(super) fn mesh(&mut self, task: &LocalTask, placed: &Placed<'_>) {
        let gateway: Option<(&Interface, u32)> = task
            .interfaces
            .iter()
            .find(|i| i.role == Role::Gateway)
            .and_then(|i| Some((i, *self.facts.ifindex.get(&i.host)?)));
        let Some((gateway, ifindex)) = gateway else { return };
        let before = self.state.targets.len();
        self.targets(task, placed, gateway, ifindex);
        if self.state.targets.len() > before {
            self.clients(placed, gateway, ifindex);
        }
    }

    /// Names of the task in mesh frames.
    fn targets(&mut self, task: &LocalTask, placed: &Placed<'_>, gateway: &Interface, ifindex: u32) {
        let Some(ingress) = self.topology.ingress() else { return };
        let Some(address) = placed.task.addresses.get(&ingress.id) else { return };
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

    /// Clients whose address is connected inside the task's namespace, other subnets of its networks included: replies to
    /// them would not leave by the default route.
    fn clients(&mut self, placed: &Placed<'_>, gateway: &Interface, ifindex: u32) {
        let overlays = self.topology.networks_of(placed.task).flat_map(|n| n.subnets.iter().map(|s| s.subnet));
        let rules = overlays
            .map(|subnet| (subnet, shown_as::GATEWAY))
            .chain([gateway.address.trunc(), LOOPBACK].map(|subnet| (subnet, shown_as::INGRESS_NODE)));
        for (subnet, shown_as) in rules {
            let prefix = ClientPrefix { ifindex: ifindex.to_be_bytes(), ip: subnet.network().octets() };
            let length = INDEX_BITS + u32::from(subnet.prefix_len());
            self.state.clients.insert((length, prefix), ClientRule { shown_as, ..ClientRule::default() });
        }
    }

    /// Published ports: on every node, whether or not it has a task.
    pub(super) fn ports(&mut self) {
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
}
