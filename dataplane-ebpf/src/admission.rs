//! Mesh, ingress node: what TC answers when [`dataplane_core::ingress`] asks about a client's packet.

use aya_ebpf::btf_maps::lpm_trie::Key;
use dataplane_common::{
    addr::Ip4,
    config::Config,
    drop_reason::DropReason,
    flow::Affinity,
    service::{AllowPrefix, PortKey, PublishedPort, access},
};

use crate::{
    affinity, clock, connection,
    ingress::{Known, World},
    left,
    maps::{self, ALLOW, NODE_ADDRESSES, PORTS},
    parse::Packet,
    reverse, service,
    skb::Skb,
    succession, ttl, verdict,
};

/// A client's packet where it has arrived.
pub(crate) struct Arrival<'a> {
    pub(crate) ctx: &'a Skb,
    pub(crate) config: &'a Config,
    pub(crate) packet: &'a Packet,
}

/// An entry of the table of clients, and whether it is still pending.
pub(crate) struct Found(pub(crate) &'static mut Affinity, pub(crate) bool);

impl Known for Found {
    #[inline(always)]
    fn entry(&self) -> &Affinity {
        self.0
    }
}

impl World for Arrival<'_> {
    const OPENS: bool = true;
    type Refusal = DropReason;
    type Known = Found;

    #[inline(always)]
    fn may_open(&self) -> bool {
        connection::may_open(self.packet)
    }

    #[inline(always)]
    fn is_spent(&self) -> bool {
        ttl::is_spent(self.packet)
    }

    #[inline(always)]
    fn src(&self) -> Ip4 {
        self.packet.src
    }

    #[inline(always)]
    fn is_for_host_link(&self) -> bool {
        self.packet.dst == self.config.host_ip
    }

    #[inline(always)]
    fn is_from_host_link(&self) -> bool {
        self.packet.src == self.config.host_ip
    }

    #[inline(always)]
    fn is_on_host_link(&self) -> bool {
        verdict::ifindex(self.ctx) == self.config.host_ifindex
    }

    #[inline(always)]
    fn published(&self) -> Option<&PublishedPort> {
        // SAFETY: entries are replaced as a whole by the agent.
        unsafe { PORTS.get(port_of(self.packet)) }
    }

    #[inline(always)]
    fn classes(&self) -> Option<u32> {
        // SAFETY: as above.
        unsafe { NODE_ADDRESSES.get(self.packet.dst) }.map(|address| address.classes)
    }

    #[inline(always)]
    fn is_from_node(&self) -> bool {
        // SAFETY: as above.
        unsafe { NODE_ADDRESSES.get(self.packet.src) }.is_some()
    }

    #[inline(always)]
    fn is_left(&self, port: &PublishedPort) -> Result<bool, DropReason> {
        let src = u32::from_ne_bytes(self.packet.src);
        Ok(left::is_left(port, verdict::ifindex(self.ctx), port_of(self.packet), src))
    }

    #[inline(always)]
    fn known(&self) -> Option<Found> {
        affinity::find(&connection::affinity_key(self.packet)).map(|(known, is_pending)| Found(known, is_pending))
    }

    /// Most of what arrives is for no published port: that is asked first, and nothing remembered.
    #[inline(always)]
    fn remembered(&self) -> Option<Found> {
        None
    }

    #[inline(always)]
    fn makes_room(&self, known: &Affinity) -> Result<bool, DropReason> {
        Ok(makes_room(known, self.packet))
    }

    #[inline(always)]
    fn is_stock(&self, vtep: &Ip4) -> bool {
        maps::is_stock(vtep)
    }

    #[inline(always)]
    fn check_allowed(&self, _: &PublishedPort) -> Result<(), DropReason> {
        if allowed(self.packet) { Ok(()) } else { Err(DropReason::NotAllowed) }
    }

    #[inline(always)]
    fn reverse_refuses(&self) -> Result<bool, DropReason> {
        Ok(reverse::refuses(self.ctx, self.packet))
    }

    #[inline(always)]
    fn is_served(&self, port: &PublishedPort) -> bool {
        service::set(port.set).is_some_and(|set| set.count > 0)
    }
}

/// The published port that the packet may be for.
#[inline(always)]
fn port_of(packet: &Packet) -> PortKey {
    PortKey { proto: packet.proto, _pad: 0, port: packet.dport }
}

// Not inlined: the verifier walks what follows once instead of once per condition.
#[inline(never)]
fn makes_room(known: &Affinity, packet: &Packet) -> bool {
    succession::makes_room(known, packet, clock::now)
}

/// Whether the lists of a restricted port let the client in.
#[inline(always)]
fn allowed(packet: &Packet) -> bool {
    let found = ALLOW
        .get(&Key::new(8 * size_of::<AllowPrefix>() as u32, AllowPrefix { port: port_of(packet), ip: packet.src }));
    found.is_some_and(|access| *access == access::ALLOWED)
}
