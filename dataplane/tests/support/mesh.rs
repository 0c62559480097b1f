//! Packets of the routing mesh, for its golden packets.

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Neigh, Peer},
};
use dataplane_common::{addr::VIRTUAL_MAC, counter::Counter};

use super::{
    golden::{Golden, golden},
    packets::{Ip, Ip4, L4, Mac, frame, hop, ip, vxlan},
    world::*,
};

/// Backends of the published port in the order of its set.
pub const BACKENDS: [Task; 3] = [LOCAL1, REMOTE1, REMOTE2];
/// Another Hiveway node, for packets through two ingress nodes.
pub const THIRD: Ip4 = [192, 0, 2, 4];
/// A client's address on the second interface's own subnet.
pub const NEAR: Ip4 = [203, 0, 113, 50];
pub const NEAR_MAC: Mac = [0x52, 0x54, 0, 0, 1, 0x50];

pub fn underlay(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, decision)
}

pub fn gateway(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromGateway, world.dev.gw1, packet, decision)
}

/// A packet of the client's as it arrives on the underlay.
pub fn from_client(l4: &L4) -> Vec<u8> {
    frame(ROUTER_MAC, NODE_MAC, &client_ip(), l4)
}

pub fn client_ip() -> Ip {
    Ip { ttl: 57, ..ip(CLIENT, VTEP) }
}

/// A mesh frame: `packet` between two nodes, with the MACs that say where it goes.
pub fn mesh_frame(eth: (Mac, Mac), from: Ip4, to: Ip4, src: Mac, dst: Mac, ip: &Ip, l4: &L4) -> Vec<u8> {
    let (outer, tunnel) = vxlan(from, to, 50000, MESH, &frame(src, dst, ip, l4));
    frame(eth.0, eth.1, &outer, &tunnel)
}

/// What this node, as ingress node, makes of a client's packet for `task`.
pub fn forwarded(task: &Task, ip: &Ip, l4: &L4) -> Vec<u8> {
    mesh_frame(([0; 6], [0; 6]), VTEP, task.vtep, node_mac(VTEP), mac(task.ingress), &hop(ip), l4)
}

/// What arrives here, as backend's node, from the ingress node `from`.
pub fn arriving(from: Ip4, task: &Task, ip: &Ip, l4: &L4) -> Vec<u8> {
    mesh_frame((ROUTER_MAC, NODE_MAC), from, VTEP, node_mac(from), mac(task.ingress), ip, l4)
}

/// What arrives here, as ingress node, from the backend's node.
pub fn returning(from: Ip4, task: &Task, ip: &Ip, l4: &L4) -> Vec<u8> {
    mesh_frame((ROUTER_MAC, NODE_MAC), from, VTEP, mac(task.ingress), node_mac(VTEP), ip, l4)
}

/// The client's packet is given to `task`, on whichever node that is.
pub fn given_to(world: &mut World, what: &'static str, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let packet = from_client(l4);
    let len = packet.len();
    if task.vtep == VTEP {
        let translated = match l4.clone() {
            L4::Tcp { sport, flags, mss, payload, .. } => L4::Tcp { sport, dport: TARGET_PORT, flags, mss, payload },
            L4::Udp { sport, payload, checksum, .. } => L4::Udp { sport, dport: TARGET_PORT, payload, checksum },
            other => other,
        };
        let out = frame(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..hop(&client_ip()) }, &translated);
        let mut case = underlay(world, what, packet, Peer(world.dev.gw1))
            .counts(Counter::MeshForward, len)
            .counts(Counter::Delivered, len)
            .becomes(out);
        if new {
            case = case.counts(Counter::MeshFlow, len);
        }
        return case.check(&mut world.harness);
    }
    let out = forwarded(task, &client_ip(), l4);
    let mut case = underlay(world, what, packet, Neigh(world.dev.underlay))
        .counts(Counter::MeshForward, len)
        .counts(Counter::Encapsulated, len + 50)
        .becomes(out);
    if new {
        case = case.counts(Counter::MeshFlow, len);
    }
    case.check_tunnelled(&mut world.harness).map(|_| ())
}
