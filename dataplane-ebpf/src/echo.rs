//! Pings answered by the node itself: a service's VIP while it has a backend, and a subnet's gateway.

use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    headers::{ETH_LEN, ipproto},
};

use crate::{
    parse::{self, Fragment, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, Packet},
    scratch::scratch,
    skb::Skb,
    verdict::{self, Action, Verdict},
};

/// Offset of the addresses in an IPv4 header.
const ADDRESSES: usize = 12;

/// Turns an echo request into its reply (RFC 792) and sends it back. Anything else is not for the node.
#[inline(always)]
pub(crate) fn answer(ctx: &Skb, packet: &Packet) -> Verdict {
    if packet.proto != ipproto::ICMP || packet.flags != ICMP_ECHO_REQUEST {
        return Err(DropReason::UnsupportedProtocol);
    }
    if packet.fragment != Fragment::Whole {
        return Err(DropReason::Fragment);
    }
    turn(ctx, packet)?;
    verdict::count(ctx, Counter::EchoReply);
    Ok(Action::Reply(verdict::ifindex(ctx)))
}

// Not inlined: the caller has little of the 512 bytes of stack to spare.
#[inline(never)]
fn turn(ctx: &Skb, packet: &Packet) -> Result<(), DropReason> {
    let eth = parse::eth(ctx, 0)?;
    let failed = |_| DropReason::RewriteFailed;
    ctx.store(0, &[eth.src, eth.dst], 0).map_err(failed)?;
    // Exchanging two 32-bit words leaves the header checksum as it is.
    ctx.store(ETH_LEN + ADDRESSES, &[packet.dst, packet.src], 0).map_err(failed)?;
    let from = u64::from(u16::from_ne_bytes([ICMP_ECHO_REQUEST, 0]));
    let to = u64::from(u16::from_ne_bytes([ICMP_ECHO_REPLY, 0]));
    ctx.l4_csum_replace(packet.l4 + 2, from, to, 2).map_err(failed)?;
    // By way of memory that the compiler cannot see through: a lone zero would become a string constant, in a section
    // that the loader does not relocate.
    let kind = &mut scratch()?.packet.0[0];
    *kind = ICMP_ECHO_REPLY;
    ctx.store(packet.l4, kind, 0).map_err(failed)
}
