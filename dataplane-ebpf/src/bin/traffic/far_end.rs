//! The far end: whoever the node under test sends to, servers and clients alike.
//!
//! While flows are opened it answers, so that both ends of each prove that they are there: a server echoes datagrams
//! and answers a SYN with a SYN-ACK, a client acknowledges that. Packets in the tunnel are answered in the tunnel, by
//! the node on its other end. While something is measured, everything is counted and dropped.

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    helpers::generated::bpf_redirect,
    programs::{TcContext, XdpContext},
};
use dataplane_common::{
    headers::{ETH_LEN, INNER_ETH, INNER_NET, IPV4_LEN, OUTER_UDP, ethertype, ipproto, tcpflag},
    traffic::{Answer, CLIENTS, far_end, sequence, tally},
};

use crate::{ANSWERS, FAR_END, count};

const VXLAN_PORT: [u8; 2] = 4789u16.to_be_bytes();
/// Offsets in the TCP header.
const SEQUENCE: usize = 4;
const OFFSET_AND_FLAGS: usize = 12;
const CHECKSUM: usize = 16;

#[inline(always)]
fn counting() -> bool {
    FAR_END.get(far_end::MODE).is_none_or(|mode| *mode == far_end::COUNT)
}

#[inline(always)]
pub(crate) fn sink(ctx: &XdpContext) -> u32 {
    let frame = ctx.data();
    if !counting() || frame + ETH_LEN > ctx.data_end() {
        return XDP_PASS;
    }
    // SAFETY: within the bounds checked above.
    if unsafe { *((frame + 12) as *const u16) } != u16::from_ne_bytes(ethertype::IPV4) {
        return XDP_PASS;
    }
    count(tally::DELIVERED);
    XDP_DROP
}

#[inline(always)]
pub(crate) fn take(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid during the run.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    if protocol != u32::from(u16::from_ne_bytes(ethertype::IPV4)) {
        return TC_ACT_UNSPEC;
    }
    if counting() {
        count(tally::DELIVERED);
        return TC_ACT_SHOT;
    }
    answer(ctx).unwrap_or(TC_ACT_SHOT)
}

/// Turns the packet into its answer and sends it back.
#[inline(always)]
fn answer(ctx: &TcContext) -> Result<i32, i64> {
    let outer: [u8; IPV4_LEN] = ctx.load(ETH_LEN)?;
    let outer_ports: [u8; 4] = ctx.load(OUTER_UDP)?;
    if outer[9] == ipproto::UDP && [outer_ports[2], outer_ports[3]] == VXLAN_PORT {
        let task: [u8; 4] = ctx.load(INNER_ETH + 2)?;
        turn(ctx, ETH_LEN)?;
        turn_ethernet(ctx, INNER_ETH)?;
        return converse(ctx, INNER_NET, task);
    }
    converse(ctx, ETH_LEN, [0; 4])
}

/// The answer of whoever the IP packet at `net` is for. `task`: see [`Answer::task`].
#[inline(always)]
fn converse(ctx: &TcContext, net: usize, task: [u8; 4]) -> Result<i32, i64> {
    let ip: [u8; IPV4_LEN] = ctx.load(net)?;
    let transport = net + IPV4_LEN;
    let to_client = is_client([ip[16], ip[17]]);
    count(if to_client { tally::ANSWERED } else { tally::SERVED });
    let tcp = ip[9] == ipproto::TCP;
    if tcp {
        let flags: u8 = ctx.load(transport + OFFSET_AND_FLAGS + 1)?;
        let expected = if to_client { tcpflag::SYN | tcpflag::ACK } else { tcpflag::SYN };
        if flags & (tcpflag::SYN | tcpflag::ACK) != expected {
            return Ok(TC_ACT_SHOT);
        }
        let (own, other, flags) = if to_client {
            (sequence::CLIENT + 1, sequence::SERVER + 1, tcpflag::ACK)
        } else {
            (sequence::SERVER, sequence::CLIENT + 1, tcpflag::SYN | tcpflag::ACK)
        };
        replace(ctx, transport, SEQUENCE, own.to_be_bytes())?;
        replace(ctx, transport, SEQUENCE + 4, other.to_be_bytes())?;
        let rest: [u8; 4] = ctx.load(transport + OFFSET_AND_FLAGS)?;
        replace(ctx, transport, OFFSET_AND_FLAGS, [rest[0], flags, rest[2], rest[3]])?;
    } else if to_client {
        return Ok(TC_ACT_SHOT);
    }
    turn(ctx, net)?;
    let ports: [u8; 4] = ctx.load(transport)?;
    // Agents probe their paths in the tunnel. Outside of it a masquerade may have replaced the client's address.
    if !to_client && (task == [0; 4] || is_client([ip[12], ip[13]])) {
        note(Answer {
            server: [ip[16], ip[17], ip[18], ip[19]],
            client: [ip[12], ip[13], ip[14], ip[15]],
            server_port: [ports[2], ports[3]],
            client_port: [ports[0], ports[1]],
            task,
        });
    }
    ctx.store(transport, &[ports[2], ports[3], ports[0], ports[1]], 0)?;
    turn_ethernet(ctx, 0)?;
    // SAFETY: the context is valid during the run; the device is the one that the packet came in by.
    Ok(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) } as i32)
}

/// Whether an address that begins so is an invented client's, of 100.64.0.0/10.
#[inline(always)]
fn is_client(beginning: [u8; 2]) -> bool {
    beginning[0] == CLIENTS[0] && beginning[1] & 0xc0 == CLIENTS[1]
}

/// Keeps what the generator needs for replies to this flow.
#[inline(always)]
fn note(answer: Answer) {
    let Some(next) = FAR_END.get_ptr_mut(far_end::NEXT) else { return };
    // SAFETY: flows are opened on one CPU, and user space writes here only between runs of the generator.
    unsafe {
        if let Some(slot) = ANSWERS.get_ptr_mut(*next) {
            *slot = answer;
            *next += 1;
        }
    }
}

/// Replaces four bytes of a TCP header, and what they add to its checksum.
#[inline(always)]
fn replace(ctx: &TcContext, transport: usize, at: usize, new: [u8; 4]) -> Result<(), i64> {
    let old: [u8; 4] = ctx.load(transport + at)?;
    let (from, to) = (u32::from_ne_bytes(old), u32::from_ne_bytes(new));
    ctx.l4_csum_replace(transport + CHECKSUM, from.into(), to.into(), 4)?;
    ctx.store(transport + at, &new, 0)
}

/// Exchanges the addresses of the IP header at `net`; no checksum changes by it.
#[inline(always)]
fn turn(ctx: &TcContext, net: usize) -> Result<(), i64> {
    let addresses: [u8; 8] = ctx.load(net + 12)?;
    let [a, b, c, d, e, f, g, h] = addresses;
    ctx.store(net + 12, &[e, f, g, h, a, b, c, d], 0)
}

/// Exchanges the addresses of the Ethernet header at `eth`.
#[inline(always)]
fn turn_ethernet(ctx: &TcContext, eth: usize) -> Result<(), i64> {
    let addresses: [u8; 12] = ctx.load(eth)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses;
    ctx.store(eth, &[g, h, i, j, k, l, a, b, c, d, e, f], 0)
}
