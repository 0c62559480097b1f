//! Probes of the paths between nodes; see `dataplane_common::probe`.
//!
//! They take the way of all other tunnelled packets: from the host link through `encap.rs` and out, in through
//! `from_underlay` and its sender checks. The answer is made here, so that it says nothing about the other node's agent
//! but all about its data plane, and its headers are those that `encap.rs` writes.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes},
};
use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, ip_in_mac, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    headers::{
        ENCAP_LEN, ETH_LEN, INNER_ETH, INNER_NET, IPV4_LEN, UDP_LEN, VXLAN, VXLAN_FLAG_VNI, VXLAN_LEN, ethertype,
        ipproto,
    },
    probe::{INNER_LEN, OUTER_LEN, PORT, Probe, Probed, VERSION, kind},
};

use crate::{
    checksum, encap,
    headers::ATOMIC,
    maps::{self, PROBES},
    next_hop,
    parse::{self, Copied, Eth, Fragment, Packet},
    path,
    scratch::{SCRATCH_PACKET, scratch},
    skb::Skb,
    verdict::{self, Action, Verdict},
};

/// Another node's requests are answered no more often than this: 200 a second, and so many at once.
const SPACING_NS: u64 = 5_000_000;
const BURST_NS: u64 = 20 * SPACING_NS;

/// Whether a packet on the host link is a probe of this node's agent.
#[inline(always)]
pub(crate) fn is_to_leave(config: &Config, packet: &Packet, ifindex: u32) -> bool {
    packet.proto == ipproto::UDP
        && packet.dport == PORT
        && packet.src == config.vtep
        // The node's own connections to a published port with this number go to that address.
        && packet.dst != config.host_ip
        && config.host_ifindex != 0
        && ifindex == config.host_ifindex
}

/// Sends it to the node with that tunnel address.
#[inline(always)]
pub(crate) fn leave(ctx: &Skb, config: &Config, packet: &Packet) -> Verdict {
    if maps::vtep(&packet.dst).is_none() {
        return Err(DropReason::UnknownVtep);
    }
    verdict::count(ctx, Counter::ProbeSent);
    let hash = encap::own_hash_apart(packet);
    let (to, src) = (mac_of(NODE_MAC_PREFIX, packet.dst), mac_of(NODE_MAC_PREFIX, config.vtep));
    encap::encapsulate(ctx, config, packet.dst, config.mesh_vni, to, src, packet.tos, hash)
}

/// Whether a mesh frame for this node's own MAC is a probe: both its MACs name nodes.
#[inline(always)]
pub(crate) fn is_probe(eth: &Eth) -> bool {
    // VERIFIER(6.18): in one comparison, or all that follows for other frames would be walked once per byte.
    u16::from_le_bytes([eth.src[0], eth.src[1]]) == u16::from_le_bytes(NODE_MAC_PREFIX)
}

/// A probe from the node behind `outer`, which takes part in the mesh.
#[inline(always)]
pub(crate) fn arrived(ctx: &Skb, config: &Config, outer: &Packet, eth: &Eth, inner: &Packet) -> Verdict {
    if ip_in_mac(NODE_MAC_PREFIX, eth.src) != Some(outer.src)
        || inner.src != outer.src
        || inner.dst != config.vtep
        || inner.proto != ipproto::UDP
        || inner.fragment != Fragment::Whole
        || inner.has_options()
    {
        return Err(DropReason::BadInnerSource);
    }
    let Copied::<2>([version, kind]) = ctx.load(PROBE).map_err(|_| DropReason::Truncated)?;
    match (version, kind) {
        (VERSION, kind::REQUEST) => answer(ctx, config, outer, inner),
        (VERSION, kind::ANSWER) => {
            answered(ctx, &outer.src)?;
            Ok(Action::Taken)
        }
        _ => Err(DropReason::MalformedHeader),
    }
}

/// Where the probe is in the frame.
const PROBE: usize = INNER_NET + IPV4_LEN + UDP_LEN;

#[inline(always)]
fn now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { bpf_ktime_get_ns() }
}

/// Notes a request of the other node's.
#[inline(always)]
fn heard(from: &Ip4, probe: &Probe) -> Result<(), DropReason> {
    let now = now();
    let mtu = u16::from_be_bytes(probe.mtu);
    let Some(known) = PROBES.get_ptr_mut(from) else {
        // This node's agent has not begun to probe that one.
        let new = scratch()?.packet.0.as_mut_ptr().cast::<Probed>();
        // SAFETY: the buffer is large enough and aligned to eight; any bytes are valid.
        let new = unsafe {
            new.write(Probed { heard: now, their_mtu: mtu, ..Probed::default() });
            &*new
        };
        return PROBES.insert(from, new, u64::from(BPF_NOEXIST)).map_err(|_| DropReason::ProbeRate);
    };
    // SAFETY: a live element; each field is written as a whole.
    unsafe {
        let free = &raw mut (*known).free;
        let busy = free.read_volatile().saturating_sub(now);
        if busy > BURST_NS {
            return Err(DropReason::ProbeRate);
        }
        free.write_volatile(now + busy + SPACING_NS);
        (&raw mut (*known).heard).write_volatile(now);
        (&raw mut (*known).their_mtu).write_volatile(mtu);
    }
    Ok(())
}

/// Notes an answer to a request of this node's agent.
// VERIFIER(6.18): not inlined, for LLVM then joins two ways of the caller, one of which holds a pointer where the other
// has a number.
#[inline(never)]
fn answered(ctx: &Skb, from: &Ip4) -> Result<(), DropReason> {
    let probe = load(ctx)?;
    verdict::count(ctx, Counter::ProbeAnswered);
    let Some(known) = PROBES.get_ptr_mut(from) else { return Ok(()) };
    let now = now();
    let nonce = u64::from_ne_bytes(probe.nonce);
    let sequence = u32::from_ne_bytes(probe.sequence);
    let size = u16::from_be_bytes(probe.size);
    let trip = now.wrapping_sub(u64::from_ne_bytes(probe.sent)) / 1000;
    // SAFETY: a live element; each field is written as a whole. Answers of one node come one after the other.
    unsafe {
        if nonce == 0 || (&raw const (*known).nonce).read_volatile() != nonce {
            return Ok(());
        }
        (&raw mut (*known).answered).write_volatile(now);
        (&raw mut (*known).their_mtu).write_volatile(u16::from_be_bytes(probe.mtu));
        if usize::from(size) == OUTER_LEN {
            (&raw mut (*known).rtt).write_volatile(if trip > u64::from(u32::MAX) { u32::MAX } else { trip as u32 });
            (&raw mut (*known).sequence).write_volatile(sequence);
            let answers = &raw mut (*known).answers;
            answers.write_volatile(answers.read_volatile().wrapping_add(1));
        } else {
            (&raw mut (*known).large_size).write_volatile(size);
            (&raw mut (*known).large_sequence).write_volatile(sequence);
        }
    }
    Ok(())
}

/// What follows the tunnel's headers in an answer.
#[repr(C, align(4))]
struct Answer {
    ip: [u8; IPV4_LEN],
    udp: [u8; UDP_LEN],
}

const _: () = assert!(INNER_NET + size_of::<Answer>() == PROBE && size_of::<Answer>() <= SCRATCH_PACKET);

/// The probe in the frame, copied into scratch memory.
#[inline(always)]
fn load(ctx: &Skb) -> Result<&'static mut Probe, DropReason> {
    let probe = &mut scratch()?.probe;
    let to = core::ptr::from_mut(probe).cast();
    // SAFETY: room for as many bytes, any of which are valid.
    let result = unsafe { bpf_skb_load_bytes(ctx.as_ptr().cast(), PROBE as u32, to, size_of::<Probe>() as u32) };
    if result == 0 { Ok(probe) } else { Err(DropReason::Truncated) }
}

/// Cuts a request to the smallest size. From the front, where all is written anew: the kernel cuts the tail of no
/// packet that it calls encapsulated, which one from a veth still is.
#[inline(always)]
fn cut(ctx: &Skb) -> Result<(), DropReason> {
    // What the kernel takes out with one call.
    const AT_ONCE: usize = 0xfff;
    let len = INNER_NET + INNER_LEN;
    // Three are enough for jumbo frames.
    for _ in 0..3 {
        let more = (ctx.len() as usize).saturating_sub(len);
        if more == 0 {
            return Ok(());
        }
        let now = if more > AT_ONCE { AT_ONCE } else { more };
        ctx.adjust_room(-(now as i32), BPF_ADJ_ROOM_MAC, 0).map_err(|_| DropReason::RewriteFailed)?;
    }
    if ctx.len() as usize == len { Ok(()) } else { Err(DropReason::RewriteFailed) }
}

/// Turns a request into its answer, cut to the smallest size.
// Not inlined: the caller has little of the 512 bytes of stack to spare.
#[inline(never)]
fn answer(ctx: &Skb, config: &Config, outer: &Packet, inner: &Packet) -> Verdict {
    const TTL: u8 = 64;
    const DF: u8 = 0x40;
    let probe = load(ctx)?;
    heard(&outer.src, probe)?;
    verdict::count(ctx, Counter::ProbeReply);
    let failed = |_| DropReason::RewriteFailed;
    cut(ctx)?;
    let (to, src) = (mac_of(NODE_MAC_PREFIX, outer.src), mac_of(NODE_MAC_PREFIX, config.vtep));
    let hash = encap::own_hash_apart(inner);
    encap::write_headers(ctx, config, outer.src, config.mesh_vni, to, src, 0, OUTER_LEN as u32, ATOMIC, hash)?;
    let mtu = path::mtu(config, &outer.src);
    let buffer = &mut scratch()?.packet.0;
    // SAFETY: the buffer is large enough and aligned to eight; any bytes are valid.
    let answer = unsafe { &mut *buffer.as_mut_ptr().cast::<Answer>() };
    answer.ip = [0; IPV4_LEN];
    answer.ip[0] = 0x45;
    [answer.ip[2], answer.ip[3]] = (INNER_LEN as u16).to_be_bytes();
    answer.ip[6] = DF;
    answer.ip[8] = TTL;
    answer.ip[9] = ipproto::UDP;
    [answer.ip[12], answer.ip[13], answer.ip[14], answer.ip[15]] = config.vtep;
    [answer.ip[16], answer.ip[17], answer.ip[18], answer.ip[19]] = outer.src;
    [answer.ip[10], answer.ip[11]] = (!checksum::fold(checksum::sum(&answer.ip))).to_be_bytes();
    answer.udp = [0; UDP_LEN];
    [answer.udp[0], answer.udp[1]] = inner.dport;
    [answer.udp[2], answer.udp[3]] = inner.sport;
    [answer.udp[4], answer.udp[5]] = ((INNER_LEN - IPV4_LEN) as u16).to_be_bytes();
    (probe.kind, probe.size, probe.mtu) = (kind::ANSWER, outer.total_len.to_be_bytes(), mtu.to_be_bytes());
    ctx.store(INNER_NET, answer, 0).map_err(failed)?;
    ctx.store(PROBE, probe, 0).map_err(failed)?;
    // As all that goes to that node: of several uplinks the way back may be another than the request's. The kernel may
    // refuse to say, as an interface that forwards nothing makes it.
    let out = encap::uplink(ctx, config, &outer.src, hash).unwrap_or(verdict::ifindex(ctx));
    Ok(next_hop::towards(ctx, outer.src, out))
}

/// Notes a probe of another node that uses another port for VXLAN. `packet` is for this node, to a port that is not its
/// own.
#[inline(always)]
pub(crate) fn note_stray(ctx: &Skb, config: &Config, packet: &Packet) {
    if packet.proto == ipproto::UDP
        && packet.dst == config.underlay_ip
        && usize::from(packet.total_len) == OUTER_LEN
        && packet.fragment == Fragment::Whole
    {
        stray(ctx, config, packet);
    }
}

#[inline(never)]
fn stray(ctx: &Skb, config: &Config, packet: &Packet) {
    let Ok(Copied::<VXLAN_LEN>(vxlan)) = ctx.load(VXLAN) else { return };
    let Ok(eth) = parse::eth(ctx, INNER_ETH) else { return };
    if packet.has_options()
        || vxlan[0] & VXLAN_FLAG_VNI == 0
        || [0, vxlan[4], vxlan[5], vxlan[6]] != config.mesh_vni
        || ip_in_mac(NODE_MAC_PREFIX, eth.src) != Some(packet.src)
        || ip_in_mac(NODE_MAC_PREFIX, eth.dst) != Some(config.vtep)
        || eth.ethertype != ethertype::IPV4
    {
        return;
    }
    let Some(known) = PROBES.get_ptr_mut(&packet.src) else { return };
    // SAFETY: a live element; each field is written as a whole.
    unsafe {
        (&raw mut (*known).stray_port).write_volatile(packet.dport);
        (&raw mut (*known).stray).write_volatile(now());
    }
}

const _: () = assert!(ENCAP_LEN + ETH_LEN == INNER_NET && size_of::<Probed>() == 72);
