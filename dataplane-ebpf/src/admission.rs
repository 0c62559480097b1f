//! Mesh, ingress node: what may open a connection, and what belongs to one.

use aya_ebpf::btf_maps::lpm_trie::Key;
use dataplane_common::{
    config::Config,
    drop_reason::DropReason,
    flow::{Affinity, flag},
    service::{AllowPrefix, PortKey, PublishedPort, access, port_flag},
};

use crate::{
    clock, connection,
    maps::{self, ALLOW, NODE_ADDRESSES},
    parse::Packet,
    succession,
};

/// Whether the packet belongs to the connection `known`, rather than opening another one in its place.
#[inline(always)]
pub(crate) fn goes_on(known: &Affinity, packet: &Packet) -> bool {
    !(makes_room(known, packet) || connection::may_open(packet) && left_behind(known))
}

/// See [`succession::makes_room`].
// Not inlined: the verifier walks what follows once instead of once per condition.
#[inline(never)]
fn makes_room(known: &Affinity, packet: &Packet) -> bool {
    succession::makes_room(known, packet, clock::now)
}

/// Whether Hiveway was taken down on the backend's node since the connection began: nobody there knows mesh frames now,
/// and what may open a connection is given to a backend anew.
#[inline(always)]
fn left_behind(known: &Affinity) -> bool {
    known.flags & (flag::STOCK | flag::OWN) == 0 && maps::is_stock(&known.vtep)
}

/// Whether nobody outside has the packet's source address, by what the kernel's input routing knows without the routing
/// table: it would call the packet martian, and drops it. What comes over the host link has passed that already, and is
/// this node's own.
#[inline(always)]
pub(crate) fn is_martian(config: &Config, packet: &Packet) -> bool {
    connection::is_nobodys(packet.src[0])
        || (packet.dst != config.host_ip
            && (packet.src == config.host_ip
                // SAFETY: entries are replaced as a whole by the agent.
                || unsafe { NODE_ADDRESSES.get(packet.src) }.is_some()))
}

/// Whether the client may open a connection to the port.
#[inline(always)]
pub(crate) fn check_allowed(port: &PublishedPort, packet: &Packet) -> Result<(), DropReason> {
    if port.flags & port_flag::RESTRICTED != 0 && !allowed(packet) { Err(DropReason::NotAllowed) } else { Ok(()) }
}

/// Whether the lists of a restricted port let the client in.
#[inline(always)]
fn allowed(packet: &Packet) -> bool {
    let port = PortKey { proto: packet.proto, _pad: 0, port: packet.dport };
    let found = ALLOW.get(&Key::new(8 * size_of::<AllowPrefix>() as u32, AllowPrefix { port, ip: packet.src }));
    found.is_some_and(|access| *access == access::ALLOWED)
}
