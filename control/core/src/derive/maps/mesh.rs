//! The routing mesh's maps: published ports, the tasks behind them, and whose clients can't be shown as they are.

use std::{collections::BTreeMap, net::Ipv4Addr};

use dataplane_common::{
    addr::{Mac, Tag},
    mesh::{ClientPrefix, ClientRule, Target, TargetKey, shown_as, target_flag},
    service::{AllowPrefix, Backend, PortKey},
    state::SetKey,
};
use ipnet::Ipv4Net;

use super::Maps;
use crate::{
    desired::{LocalTask, Role},
    model::{Access, Network, Protocol, Task},
    names,
    tag::tag,
    topology::Placed,
};

/// Bits of a [`ClientPrefix`] or [`AllowPrefix`] before the address.
const PREFIX_BITS: u32 = 32;
/// No reply to a loopback address ever leaves its container.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// A task's interface on the gateway bridge, whoever has made it.
pub(super) struct GatewayEnd {
    /// Index of the host-side end.
    pub(super) ifindex: u32,
    /// Address inside, with the bridge's prefix length.
    pub(super) address: Ipv4Net,
    /// MAC inside.
    pub(super) mac: Mac,
}

impl Maps<'_> {
    /// What clients' packets find of a local task that can be reached.
    pub(super) fn mesh(&mut self, tag: Tag, placed: &Placed<'_>, gateway: &GatewayEnd) {
        let before = self.state.targets.len();
        self.targets(tag, placed, gateway);
        if self.state.targets.len() > before {
            self.clients(placed, gateway);
        }
    }

    /// What the task is called: by mesh frames with its ingress address, by this node's own clients of a port in host
    /// mode with its address on the gateway bridge.
    fn targets(&mut self, tag: Tag, placed: &Placed<'_>, gateway: &GatewayEnd) {
        let topology = self.topology;
        let ingress = topology.ingress().and_then(|network| placed.task.addresses.get(&network.id));
        let own = gateway.address.addr();
        for port in placed.task.ports.iter().filter(|port| !port.needs_sctp_translation()) {
            let everywhere = port.ingress().filter(|key| topology.published.contains_key(key));
            let here = port.host().filter(|key| !placed.attached && topology.host_ports.contains_key(key));
            let name = everywhere
                .and_then(|key| Some((key, ingress?.ip, 0)))
                .or_else(|| here.map(|key| (key, own, target_flag::LOCAL_ONLY)));
            let Some((key, ip, flags)) = name else { continue };
            let target = Target {
                tag,
                ifindex: gateway.ifindex,
                ip: own.octets(),
                port: port.target_port.get().to_be_bytes(),
                mac: gateway.mac,
                flags,
                ..Target::default()
            };
            self.state.targets.insert(target_key(key, ip), target);
        }
    }

    /// Clients whose address is connected inside the task's namespace, other subnets of its networks included, or to
    /// whom a route of that namespace leads elsewhere: replies to them would not leave by the gateway bridge.
    fn clients(&mut self, placed: &Placed<'_>, gateway: &GatewayEnd) {
        let subnets = |network: &Network| network.subnets.iter().map(|s| s.subnet).collect::<Vec<_>>();
        let overlays = self.topology.networks_of(placed.task).flat_map(subnets).map(|subnet| (subnet, true));
        let routes = self.facts.replies.get(placed.task.id.as_str());
        let routes =
            routes.into_iter().flat_map(|replies| &replies.elsewhere).map(|(net, elsewhere)| (*net, *elsewhere));
        // The table knows of an overlay before its interface is there.
        let lost: BTreeMap<Ipv4Net, bool> = routes.chain(overlays).collect();
        // Nor would replies to a node whose tunnel address lies in one of them.
        let loses = |vtep: &Ipv4Addr| {
            let holds = lost.iter().filter(|(net, _)| net.contains(vtep));
            holds.max_by_key(|(net, _)| net.prefix_len()).is_some_and(|(_, lost)| *lost)
        };
        let some_lost = self.desired.vteps.iter().chain([&self.topology.vtep]).any(loses);
        let instead = if some_lost { shown_as::GATEWAY } else { shown_as::INGRESS_NODE };
        let exception = |net: &Ipv4Net| lost.iter().any(|(outer, lost)| *lost && outer != net && outer.contains(net));
        let rules = lost
            .iter()
            .filter(|(net, lost)| **lost || exception(net))
            .map(|(net, lost)| (*net, if *lost { shown_as::GATEWAY } else { shown_as::ITSELF }))
            .chain([gateway.address.trunc(), LOOPBACK].map(|subnet| (subnet, instead)));
        for (subnet, shown_as) in rules {
            let prefix = ClientPrefix { ifindex: gateway.ifindex.to_be_bytes(), ip: subnet.network().octets() };
            let length = PREFIX_BITS + u32::from(subnet.prefix_len());
            self.state.clients.insert((length, prefix), ClientRule { shown_as, ..ClientRule::default() });
        }
    }

    /// Published ports: those in ingress mode on every node, whether or not it has a task; those in host mode where
    /// their task is.
    pub(super) fn ports(&mut self) {
        let (topology, desired) = (self.topology, self.desired);
        for (key, published) in topology.answered() {
            let service = topology.model.services.get(published.service).map(AsRef::as_ref);
            let set = match (service, topology.ingress()) {
                (Some(service), Some(ingress)) => self.backends(service, ingress, |placed, ip| {
                    let port = placed.task.ports.iter().find(|p| p.ingress() == Some(*key));
                    let serves = port.is_some_and(|p| {
                        // Towards a stock node addresses and ports change, which SCTP's checksum forbids.
                        !p.needs_sctp_translation() && (placed.hiveway || p.protocol != Protocol::Sctp)
                    });
                    serves && placed.in_mesh && (!placed.local || self.has_target(placed.task, *key, ip))
                }),
                _ => Vec::new(),
            };
            self.port(*key, set);
        }
        for (key, port) in &topology.host_ports {
            let local = port.backend.and_then(|id| self.desired.tasks.iter().find(|t| t.id == id));
            let set = local.and_then(|task| self.here(task, *key)).into_iter().collect();
            self.port(*key, set);
        }
        for (key, access) in &desired.restricted {
            self.restrict(*key, access);
        }
    }

    /// The task that has a port in host mode, once it can be reached.
    fn here(&self, task: &LocalTask, key: (u8, u16)) -> Option<Backend> {
        let gateway = task.interfaces.iter().find(|i| i.role == Role::Gateway)?;
        let ip = gateway.address.addr();
        let target = self.state.targets.get(&target_key(key, ip))?;
        let backend = Backend { tag: task.tag, ip: ip.octets(), vtep: self.topology.vtep.octets() };
        (target.tag == task.tag && self.is_open(&task.id, names::GATEWAY)).then_some(backend)
    }

    fn port(&mut self, (proto, port): (u8, u16), set: Vec<Backend>) {
        self.state.sets.insert(SetKey::Port { proto, port: port.to_be_bytes() }, set);
    }

    fn restrict(&mut self, (proto, port): (u8, u16), access: &Access) {
        let port = PortKey { proto, _pad: 0, port: port.to_be_bytes() };
        self.state.restricted.insert(port);
        let prefix = |net: &Ipv4Net| {
            (PREFIX_BITS + u32::from(net.prefix_len()), AllowPrefix { port, ip: net.network().octets() })
        };
        self.state.allow.extend(access.allow.iter().map(prefix));
        self.state.deny.extend(access.deny.iter().map(prefix));
    }

    fn has_target(&self, task: &Task, key: (u8, u16), ip: Ipv4Addr) -> bool {
        self.is_open(&task.id, names::GATEWAY)
            && self.state.targets.get(&target_key(key, ip)).is_some_and(|t| t.tag == tag(&task.id))
    }
}

/// `ip`: the task's address on the ingress network, or on the gateway bridge for a port in host mode.
fn target_key((proto, port): (u8, u16), ip: Ipv4Addr) -> TargetKey {
    TargetKey { ip: ip.octets(), port: port.to_be_bytes(), proto, _pad: 0 }
}
