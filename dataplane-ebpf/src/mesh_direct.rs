//! Routing mesh, the backend's node (N2), with `--mesh-return dsr`: which replies leave directly for their client, with
//! the ingress node's address and published port as their source, and which go back through the tunnel all the same
//! ([ADR 16](../../docs/adr/0016-direct-server-return.md)).
//!
//! The ingress node need not know. What it lives by still passes it: every packet of the client's, and of the replies
//! those that open, prove or end a connection, or that alone keep it from being forgotten.

use dataplane_common::{
    addr::Ip4,
    config::{Config, mesh_return},
    counter::Counter,
    drop_reason::DropReason,
    flow::{Flow, MESH_ZONE, flag},
    fragment::way,
    headers::{ipproto, tcpflag},
    line,
};

use crate::{
    age, clock, connection,
    fib::{self, Ends, Way},
    flow, host,
    nat::Translation,
    parse::Packet,
    proof,
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
};

/// A client that was not heard for so long may be one that only listens. More than twice as long as entries are
/// touched.
const SILENT_NS: u64 = 1_200_000_000;

/// Time is cut into turns of about half a second; every 32nd is a connection's turn to send a reply through the tunnel.
const TURN_SHIFT: u32 = 29;
const TURNS: u8 = 32;

/// Which way the reply `packet` of the connection `known` should go (one of [`way`]). `proved`: its entry was
/// established before this packet, and had not ended. To be asked before the entry is touched.
#[inline(always)]
pub(crate) fn way_of(config: &Config, packet: &Packet, known: &Flow, proved: bool) -> u8 {
    if config.mesh_return != mesh_return::DIRECT || !may_leave(packet, known) {
        way::TUNNEL
    } else if ingress_must_see(packet, known, proved) {
        way::TUNNEL_IF_IT_FITS
    } else {
        way::DIRECT
    }
}

/// Whether the client can be answered from here at all.
#[inline(always)]
fn may_leave(packet: &Packet, known: &Flow) -> bool {
    // A client that the task sees with another address is one whose own leads elsewhere from here: it is in a subnet
    // that every node has for itself. And what stands for published ports on the host link is an address of that link
    // only.
    packet.dst == known.dst && known.src[..2] != [169, 254]
}

/// Whether the ingress node needs this reply for what it remembers of the connection.
#[inline(always)]
fn ingress_must_see(packet: &Packet, known: &Flow, proved: bool) -> bool {
    // Its end, and what may acknowledge the client's.
    let ends = packet.proto == ipproto::TCP && packet.flags & (tcpflag::FIN | tcpflag::RST) != 0;
    if ends || (known.flags & (flag::FIN | flag::ENDED) != 0 && !proof::server_proves(packet)) {
        return true;
    }
    // The SYN-ACK says which number proves the client; without connections the first answer does it.
    let opening = match packet.proto {
        ipproto::TCP => !proved || packet.flags & tcpflag::SYN != 0,
        // An end that was meant for another's packet, which this one takes back.
        ipproto::SCTP => !proved || known.flags & flag::SEEN == 0,
        _ => known.flags & flag::SEEN == 0,
    };
    if opening {
        return true;
    }
    let now = clock::now();
    if !is_due(known, now) {
        return false;
    }
    // A client of TCP or SCTP acknowledges what it gets, through the ingress node.
    let one_way = packet.proto != ipproto::TCP && packet.proto != ipproto::SCTP && silent(packet, known, now);
    one_way || its_turn(packet, now)
}

/// Whether this reply is the first for about half a second.
#[inline(always)]
fn is_due(known: &Flow, now: u64) -> bool {
    // In a pending entry each packet is noted, in an established one the first of half a second.
    if line::is_pending(known.created) {
        known.last_seen >> TURN_SHIFT != now >> TURN_SHIFT
    } else {
        age::old(known.last_seen, now)
    }
}

/// Whether nothing has come from the client for a while.
#[inline(always)]
fn silent(packet: &Packet, known: &Flow, now: u64) -> bool {
    let key = connection::forward_key(MESH_ZONE, known, packet.proto);
    flow::get(&key).is_none_or(|forward| now.saturating_sub(forward.last_seen) > SILENT_NS)
}

/// Once in about 17 seconds, each connection at its own time: whatever the ingress node has missed, it catches up.
#[inline(always)]
fn its_turn(packet: &Packet, now: u64) -> bool {
    ((now >> TURN_SHIFT) as u8 ^ packet.dport[1]).is_multiple_of(TURNS)
}

/// How a reply that may go directly really goes.
pub(crate) enum Leaves {
    /// Out of this interface.
    Directly(u32),
    /// Not at all: its sender is to learn this MTU. (Not told here: one frame more on the stack than 6.1 has room for.)
    TooBig(u16),
    /// There is no direct way, or it would have to be fragmented.
    Tunnel,
}

/// Asks the routing table about the way from here to the client of the ingress node `ingress`.
// VERIFIER(6.1): not inlined, for the frames of `from_gateway` and of what it calls are more than 512 bytes otherwise.
#[inline(never)]
pub(crate) fn ask(ctx: &Skb, packet: &Packet, to: &Translation, ingress: Ip4) -> Result<Leaves, DropReason> {
    let len = skb::network_len(ctx, packet).min(u32::from(u16::MAX)) as u16;
    Ok(match fib::ask(ctx, &Ends::of(to.src, to.dst, packet.proto), len)? {
        // The ingress node as router, or as the client, would not believe a packet with its own address as the source.
        Way::Interface { via, .. } if via == Some(ingress) => Leaves::Tunnel,
        Way::Interface { index, .. } => Leaves::Directly(index),
        Way::TooNarrow(mtu) if packet.dont_fragment => Leaves::TooBig(mtu),
        Way::TooNarrow(_) | Way::None => Leaves::Tunnel,
    })
}

/// Sends a reply, rewritten already, out of that interface.
#[inline(always)]
pub(crate) fn leave(ctx: &Skb, packet: &Packet, index: u32) -> Verdict {
    verdict::count(ctx, Counter::MeshDirectReply);
    host::mark_reply(ctx, packet);
    Ok(Action::Neigh(index))
}
