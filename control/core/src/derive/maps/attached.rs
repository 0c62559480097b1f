//! Maps beside a Docker engine: its bridges, tunnels and routers are its own and are not in the maps; who is where is.

use dataplane_common::{
    addr::{Mac, VIRTUAL_MAC},
    endpoint::{Endpoint, Local, endpoint_flag, kind, local_flag},
};

use super::{Maps, flag, mesh::GatewayEnd};
use crate::{
    model::{Address, Carrier, Network},
    observed::Sandbox,
    tag::tag,
};

impl Maps<'_> {
    /// Local tasks whose interfaces the engine has made: endpoints as soon as the table knows them, since it carries to
    /// them by itself; interfaces and targets of the mesh once they were found.
    pub(super) fn attached(&mut self) {
        let (topology, facts) = (self.topology, self.facts);
        let nothing = Sandbox::default();
        for task in &self.desired.attached {
            let Some(placed) = topology.endpoints.get(task.id.as_str()) else { continue };
            let sandbox = facts.sandboxes.get(&task.id).unwrap_or(&nothing);
            for network in topology.networks_of(placed.task).filter(|n| n.carrier == Carrier::Engine) {
                let Some(address) = placed.task.addresses.get(&network.id) else { continue };
                let port = task.overlay_ports.iter().find(|port| port.network == network.id);
                let seen = port.and_then(|port| sandbox.overlay_ports.get(&port.id));
                let mac = seen.map_or(address.mac, |link| link.mac);
                let endpoint = Endpoint {
                    tag: tag(&task.id),
                    kind: kind::LOCAL,
                    mac,
                    vtep: topology.vtep.octets(),
                    flags: flag(self.backs_vip(placed.task, network), endpoint_flag::VIP_BACKEND),
                    ..Endpoint::default()
                };
                self.endpoint(network, address.ip, endpoint);
                if let (Some(port), Some(_)) = (port, seen) {
                    let (net, vni, ip) = (port.net.to_be_bytes(), port.vni.to_be_bytes(), port.ip.octets());
                    let flags = if facts.engine_balances { 0 } else { local_flag::NO_BALANCER };
                    let local = Local { tag: task.tag, net, vni, ip, mac, flags, ..Local::default() };
                    self.state.locals.insert(port.id, local);
                }
            }
            let Some(port) = &sandbox.gateway else { continue };
            let ip = port.address.addr().octets();
            let local = Local { tag: task.tag, ip, mac: port.mac, ..Local::default() };
            self.state.locals.insert(port.ifindex, local);
            let gateway = GatewayEnd { ifindex: port.ifindex, address: port.address, mac: port.mac };
            self.mesh(task.tag, placed, &gateway);
        }
    }

    /// What ARP answers for the VIPs of a network: on the engine's networks what its own balancer here answers, so that
    /// what containers have learnt stays right when we come and when we go.
    pub(super) fn vip_mac(&self, network: &Network) -> Mac {
        let me = self.topology.model.nodes.get(self.desired.node.as_str());
        let own = me.filter(|_| network.carrier == Carrier::Engine).and_then(|node| node.addresses.get(&network.id));
        own.map_or(VIRTUAL_MAC, |ip| Address::with_default_mac(*ip).mac)
    }
}
