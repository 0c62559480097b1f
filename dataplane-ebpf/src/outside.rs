//! Hook `to_outside`: a packet leaves the node through the underlay or an interface where clients arrive.
//!
//! Only one kind matters: UDP from an address of this node and a published port that is no answer of the mesh. A socket
//! of the node itself, or a container behind masquerade, uses that port as its source; what comes back must not be
//! taken for a client's first packet. TCP needs no such care: what answers a SYN never opens a connection.

use dataplane_common::{
    config::Config,
    counter::Counter,
    flow::{Affinity, flag},
    headers::{IPV4_LEN, UDP_LEN, ethertype, ipproto},
    mark,
    service::PortKey,
};

use crate::{
    affinity, clock, connection,
    maps::{NODE_ADDRESSES, PORTS, config},
    no_ethernet,
    parse::{self, Fragment, Packet},
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
};

/// Entry of the hook. Every packet goes on, whatever is found. `NET`: length of the link's header, 14 or 0.
#[inline(always)]
pub(crate) fn handle<const NET: usize>(ctx: &Skb) -> Verdict {
    // SAFETY: the context pointer is valid for the program's run.
    if unsafe { (*ctx.skb.skb).mark } == mark::MESH_REPLY {
        ctx.set_mark(0);
        return Ok(Action::Pass);
    }
    // The VLAN device on top has its own hook.
    if parse::in_vlan(ctx) {
        return Ok(Action::Pass);
    }
    let config = config()?;
    if !may_be_own::<NET>(ctx, config) {
        return Ok(Action::Pass);
    }
    let packet = if NET == 0 { skb::outer(ctx, 0).ok() } else { skb::from_outside(ctx) };
    match packet {
        Some(packet) => own(ctx, config, packet),
        None => Ok(Action::Pass),
    }
}

/// Whether the frame has to be looked at: UDP and no tunnel. Every encapsulated packet comes by here, so this reads the
/// headers where they are.
#[inline(always)]
fn may_be_own<const NET: usize>(ctx: &Skb, config: &Config) -> bool {
    const HEAD: usize = IPV4_LEN + UDP_LEN;
    const PROTO: usize = 9;
    const DPORT: usize = IPV4_LEN + 2;
    if no_ethernet::protocol(ctx) != u32::from(u16::from_ne_bytes(ethertype::IPV4)) {
        return false;
    }
    let (ip, end) = (ctx.data() + NET, ctx.data_end());
    if ip + HEAD > end {
        // Not in one piece; read with care.
        return true;
    }
    // SAFETY: that many bytes are there, and any bytes are valid.
    let head = unsafe { &*(ip as *const [u8; HEAD]) };
    if head[PROTO] != ipproto::UDP {
        return false;
    }
    head[0] != 0x45 || [head[DPORT], head[DPORT + 1]] != config.vxlan_port
}

#[inline(always)]
fn own(ctx: &Skb, config: &Config, packet: &Packet) -> Verdict {
    if packet.proto != ipproto::UDP || packet.fragment == Fragment::Later || packet.dport == config.vxlan_port {
        return Ok(Action::Pass);
    }
    // SAFETY: entries are replaced as a whole by the agent.
    let published = unsafe { PORTS.get(PortKey { proto: packet.proto, _pad: 0, port: packet.sport }) }.is_some();
    // SAFETY: as above.
    if published && unsafe { NODE_ADDRESSES.get(packet.src) }.is_some() {
        note(ctx, packet);
    }
    Ok(Action::Pass)
}

/// Enters the connection under the key that its answers will have. A client's connection that has this key already
/// keeps its backend: then the local socket answers a client of the mesh, and is not meant.
// Not inlined: rare, and the entry needs stack.
#[inline(never)]
fn note(ctx: &Skb, packet: &Packet) {
    let key = connection::affinity_key_of_answer(packet);
    if let Some(known) = affinity::get(&key) {
        if known.flags & flag::OWN != 0 {
            clock::note(&mut known.last_seen, &mut known.flags, flag::SEEN);
            clock::renew(&mut known.last_seen);
        }
        return;
    }
    let now = clock::now();
    let entry = Affinity { last_seen: now, created: now, flags: flag::OWN | flag::SEEN, ..Affinity::default() };
    match affinity::insert_pending(&key, &entry) {
        Ok(()) => verdict::count(ctx, Counter::OwnNoted),
        Err(reason) => verdict::count_drop(ctx, reason),
    }
}
