//! ARP from a container (RFC 826): known addresses of its network are answered on the spot, with what the table says.

use dataplane_common::{
    addr::{Ip4, Mac},
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{EndpointKey, Local, kind},
    headers::{ETH_LEN, ethertype},
};

use crate::{
    group, maps,
    parse::Eth,
    scratch::{Buffer, SCRATCH_PACKET, scratch},
    skb::Skb,
    verdict::{self, Action, Verdict},
};

/// ARP for IPv4 over Ethernet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Arp {
    /// Hardware type, protocol type, address lengths.
    pub format: [u8; 6],
    pub operation: [u8; 2],
    pub sender_mac: Mac,
    pub sender_ip: Ip4,
    pub target_mac: Mac,
    pub target_ip: Ip4,
}

pub(crate) const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// Ethernet and ARP header of an answer, written in one go.
#[repr(C)]
struct Answer {
    eth: Eth,
    arp: Arp,
}

const _: () = assert!(align_of::<Answer>() <= align_of::<Buffer>() && size_of::<Answer>() <= SCRATCH_PACKET);

/// Whether sender addresses are the container's own. A zero sender address is a probe (RFC 5227).
#[inline(always)]
pub(crate) fn check_sender(ctx: &Skb, local: &Local) -> Result<Arp, DropReason> {
    let arp: Arp = ctx.load(ETH_LEN).map_err(|_| DropReason::Truncated)?;
    if arp.sender_mac != local.mac {
        return Err(DropReason::SpoofedMac);
    }
    if arp.sender_ip != local.ip && arp.sender_ip != [0; 4] {
        return Err(DropReason::SpoofedIp);
    }
    Ok(arp)
}

/// An ARP packet out of an overlay veth, for the MAC `dst`.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb, local: &Local, dst: &Mac) -> Verdict {
    let mut answered = false;
    answer(ctx, local, &mut answered)?;
    if !answered {
        return group::slow_path(ctx, local, dst);
    }
    verdict::count(ctx, Counter::ArpReply);
    Ok(Action::Reply(verdict::ifindex(ctx)))
}

// Not inlined: the caller has little of the 512 bytes of stack to spare.
#[inline(never)]
fn answer(ctx: &Skb, local: &Local, answered: &mut bool) -> Result<(), DropReason> {
    let arp = check_sender(ctx, local)?;
    // The asker's own address (duplicate address detection, gratuitous ARP) is never answered.
    if arp.format != ETHERNET_IPV4 || arp.operation != REQUEST || arp.target_ip == local.ip {
        return Ok(());
    }
    let Some(endpoint) = maps::endpoint(&EndpointKey { net: local.net, ip: arp.target_ip }) else {
        return Ok(());
    };
    *answered = true;
    write(ctx, &arp, endpoint.mac)
}

/// A packet out of a container's own interface on a network that the engine carries: the network's VIPs are ours to
/// answer for, everything else is the engine's, whatever it looks like.
#[inline(always)]
pub(crate) fn for_vip(ctx: &Skb, local: &Local) -> Verdict {
    let mut answered = false;
    answer_for_vip(ctx, local, &mut answered)?;
    if !answered {
        return Ok(Action::Pass);
    }
    verdict::count(ctx, Counter::ArpReply);
    Ok(Action::Reply(verdict::ifindex(ctx)))
}

// Not inlined: as `answer`.
#[inline(never)]
fn answer_for_vip(ctx: &Skb, local: &Local, answered: &mut bool) -> Result<(), DropReason> {
    let Ok(arp) = ctx.load::<Arp>(ETH_LEN) else { return Ok(()) };
    // Who asks for the address that it says it has does not ask.
    if arp.format != ETHERNET_IPV4 || arp.operation != REQUEST || arp.target_ip == arp.sender_ip {
        return Ok(());
    }
    match maps::endpoint(&EndpointKey { net: local.net, ip: arp.target_ip }) {
        Some(endpoint) if endpoint.kind == kind::VIP => {
            *answered = true;
            write(ctx, &arp, endpoint.mac)
        }
        _ => Ok(()),
    }
}

/// Turns the request `arp` into the answer that its target has this MAC.
#[inline(always)]
fn write(ctx: &Skb, arp: &Arp, mac: Mac) -> Result<(), DropReason> {
    // SAFETY: the buffer is large enough and aligned, and any bytes are valid.
    let answer = unsafe { &mut *scratch()?.packet.0.as_mut_ptr().cast::<Answer>() };
    *answer = Answer {
        eth: Eth { dst: arp.sender_mac, src: mac, ethertype: ethertype::ARP },
        arp: Arp {
            format: ETHERNET_IPV4,
            operation: REPLY,
            sender_mac: mac,
            sender_ip: arp.target_ip,
            target_mac: arp.sender_mac,
            target_ip: arp.sender_ip,
        },
    };
    ctx.store(0, answer, 0).map_err(|_| DropReason::RewriteFailed)
}
