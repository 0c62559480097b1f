//! Telling a sender at once what became of its packet, instead of letting it wait: the packet is turned into the
//! answer. Where nobody serves, TCP gets a reset (RFC 9293 section 3.10.7.1), everything else an ICMP destination
//! unreachable (RFC 792); a packet that does not fit the tunnel and must not be fragmented gets "fragmentation needed"
//! with the size that would fit (RFC 1191); one that has no hop left gets "time exceeded".
//!
//! Not for packets that were decapsulated: the kernel refuses to cut them.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::generated::{bpf_csum_diff, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use dataplane_common::{
    addr::Ip4,
    counter::Counter,
    drop_reason::DropReason,
    headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, TCP_LEN, icmpcode, icmptype, ipproto, sctpchunk, tcpflag},
};

use crate::{
    checksum, group,
    parse::{self, Fragment, ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST, Packet},
    scratch::{SCRATCH_PACKET, scratch},
    skb::Skb,
    verdict::{self, Action, Verdict},
};

const IP_TOTAL_LEN: usize = 2;
const IP_CHECKSUM: usize = 10;
const IP_ADDRESSES: usize = 12;

/// ICMP codes.
const HOST: u8 = 1;
const PORT: u8 = 3;
const IN_TRANSIT: u8 = 0;

/// What an ICMP error quotes of the transport header.
const QUOTED: usize = 8;
/// The longest quote.
const MAX_QUOTE: usize = 60 + QUOTED;

/// Answers `packet`, which was not changed yet, in the name of its destination, and counts it as dropped for `reason`.
/// What must not be answered (resets, ICMP errors, fragments) is only dropped.
#[inline(always)]
pub(crate) fn refuse(ctx: &Skb, packet: &Packet, reason: DropReason) -> Verdict {
    if packet.fragment != Fragment::Whole {
        return Err(reason);
    }
    let icmp_code = match packet.proto {
        ipproto::TCP if packet.flags & tcpflag::RST == 0 => None,
        ipproto::UDP => Some(PORT),
        ipproto::ICMP if packet.flags == ICMP_ECHO_REQUEST => Some(HOST),
        ipproto::TCP | ipproto::ICMP => return Err(reason),
        ipproto::SCTP if packet.flags == sctpchunk::ABORT => return Err(reason),
        // SCTP and protocols that we do not know: enough of them to quote must be there.
        _ if usize::from(packet.total_len) >= packet.l4 - packet.net + QUOTED => Some(HOST),
        _ => return Err(reason),
    };
    // The packet's own length counts, not the answer's.
    verdict::count_drop(ctx, reason);
    match icmp_code {
        None => reset(ctx, packet)?,
        Some(code) => error(ctx, packet, [icmptype::UNREACHABLE, code], 0, packet.dst)?,
    }
    Ok(Action::Refuse(verdict::ifindex(ctx), reason))
}

/// Answers `packet`, which was not changed yet, with the size that fits, `mtu`, in the name of its destination: it must
/// not be fragmented and is too big for the way. Counted as dropped. What must not be answered (RFC 1122 section 3.2.2)
/// is only dropped.
#[inline(always)]
pub(crate) fn too_big(ctx: &Skb, packet: &Packet, mtu: u16) -> Verdict {
    answer_too_big(ctx, packet, mtu)?;
    Ok(Action::Refuse(verdict::ifindex(ctx), DropReason::MtuExceeded))
}

// Not inlined: see `reset`.
#[inline(never)]
fn answer_too_big(ctx: &Skb, packet: &Packet, mtu: u16) -> Result<(), DropReason> {
    let reason = DropReason::MtuExceeded;
    if !packet.dont_fragment || !may_be_answered(ctx, packet)? {
        return Err(reason);
    }
    // The packet's own length counts, not the answer's.
    verdict::count_drop(ctx, reason);
    verdict::count(ctx, Counter::FragNeeded);
    error(ctx, packet, [icmptype::UNREACHABLE, icmpcode::FRAGMENTATION_NEEDED], mtu, packet.dst)
}

/// Answers `packet`, which was not changed yet and has no hop left, in the name of the router `router`: an address of
/// this node that its sender can see. Counted as dropped. What must not be answered (RFC 1122 section 3.2.2), and what
/// is too much for one interface, is only dropped.
#[inline(always)]
pub(crate) fn time_exceeded(ctx: &Skb, packet: &Packet, router: Ip4) -> Verdict {
    answer_time_exceeded(ctx, packet, router)?;
    Ok(Action::Refuse(verdict::ifindex(ctx), DropReason::TtlExceeded))
}

// Not inlined: see `reset`.
#[inline(never)]
fn answer_time_exceeded(ctx: &Skb, packet: &Packet, router: Ip4) -> Result<(), DropReason> {
    let reason = DropReason::TtlExceeded;
    if !is_host(router) || !may_be_answered(ctx, packet)? {
        return Err(reason);
    }
    group::admit(ctx, reason)?;
    // The packet's own length counts, not the answer's.
    verdict::count_drop(ctx, reason);
    error(ctx, packet, [icmptype::TIME_EXCEEDED, IN_TRANSIT], 0, router)
}

/// Whether an ICMP error may answer the packet (RFC 1122 section 3.2.2).
#[inline(always)]
fn may_be_answered(ctx: &Skb, packet: &Packet) -> Result<bool, DropReason> {
    let query = packet.proto != ipproto::ICMP || packet.flags == ICMP_ECHO_REQUEST || packet.flags == ICMP_ECHO_REPLY;
    if packet.fragment == Fragment::Later || !query {
        return Ok(false);
    }
    let eth = parse::eth(ctx, 0)?;
    Ok(!eth.is_group() && eth.src[0] & 1 == 0 && is_host(packet.src) && is_host(packet.dst))
}

/// The address can be a single host's, neither "this network", nor loopback, multicast, reserved or broadcast.
#[inline(always)]
fn is_host(ip: Ip4) -> bool {
    ip[0] != 0 && ip[0] != 127 && ip[0] < 224
}

/// TCP header without options.
#[repr(C)]
struct Tcp {
    sport: [u8; 2],
    dport: [u8; 2],
    seq: [u8; 4],
    ack: [u8; 4],
    len: u8,
    flags: u8,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

const _: () = assert!(size_of::<Tcp>() == TCP_LEN && align_of::<Tcp>() == 1);

// Not inlined, and its buffers in scratch memory: the caller has little of the 512 bytes of stack to spare.
#[inline(never)]
fn reset(ctx: &Skb, packet: &Packet) -> Result<(), DropReason> {
    let header_len = packet.l4 - packet.net;
    let segment_len = packet.total_len.wrapping_sub(header_len as u16);
    let buffer = &mut scratch()?.packet.0;
    // SAFETY: the buffer is large enough, `Tcp` has alignment 1 and any bytes are valid.
    let tcp = unsafe { &mut *buffer.as_mut_ptr().cast::<Tcp>() };
    load(ctx, packet.l4, tcp)?;
    // A partial checksum (the sum of the pseudo-header, the rest left to the NIC) must stay one: the skb remembers.
    let pseudo = checksum::pseudo(packet.src, packet.dst, ipproto::TCP, segment_len);
    let partial = ctx.gso_size() != 0 || tcp.checksum == checksum::fold(pseudo).to_be_bytes();

    core::mem::swap(&mut tcp.sport, &mut tcp.dport);
    if tcp.flags & tcpflag::ACK != 0 {
        tcp.seq = tcp.ack;
        tcp.ack = [0; 4];
        tcp.flags = tcpflag::RST;
    } else {
        let control = u32::from(tcp.flags & tcpflag::SYN != 0) + u32::from(tcp.flags & tcpflag::FIN != 0);
        let payload = u32::from(segment_len).wrapping_sub(u32::from(packet.tcp_len));
        tcp.ack = u32::from_be_bytes(tcp.seq).wrapping_add(payload).wrapping_add(control).to_be_bytes();
        tcp.seq = [0; 4];
        tcp.flags = tcpflag::RST | tcpflag::ACK;
    }
    tcp.len = (TCP_LEN as u8 / 4) << 4;
    tcp.window = [0; 2];
    tcp.checksum = [0; 2];
    tcp.urgent = [0; 2];
    let pseudo = checksum::pseudo(packet.dst, packet.src, ipproto::TCP, TCP_LEN as u16);
    tcp.checksum = if partial {
        checksum::fold(pseudo).to_be_bytes()
    } else {
        (!checksum::fold(pseudo + header_sum(tcp))).to_be_bytes()
    };

    trim(ctx, packet.l4 + TCP_LEN)?;
    let failed = |_| DropReason::RewriteFailed;
    let total_len = ((header_len + TCP_LEN) as u16).to_be_bytes();
    let from = u64::from(u16::from_ne_bytes(packet.total_len.to_be_bytes()));
    let to = u64::from(u16::from_ne_bytes(total_len));
    ctx.l3_csum_replace(packet.net + IP_CHECKSUM, from, to, 2).map_err(failed)?;
    ctx.store(packet.net + IP_TOTAL_LEN, &total_len, 0).map_err(failed)?;
    ctx.store(packet.net + IP_ADDRESSES, &[packet.dst, packet.src], 0).map_err(failed)?;
    ctx.store(packet.l4, tcp, 0).map_err(failed)?;
    swap_macs(ctx)
}

/// Sum of the header's words. By the helper, because a loop of ours would be unrolled into more stack than there is.
#[inline(always)]
fn header_sum(tcp: &mut Tcp) -> u32 {
    // SAFETY: 20 readable bytes in scratch memory, a multiple of 4.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, core::ptr::from_mut(tcp).cast(), TCP_LEN as u32, 0) };
    folded(sum)
}

/// What `bpf_csum_diff` gives, as big-endian words sum up to. The helper sums words as they stand in memory; a folded
/// sum may be byte-swapped afterwards (RFC 1071 section 2).
#[inline(always)]
fn folded(sum: i64) -> u32 {
    u32::from(u16::from_be(checksum::fold(sum as u32)))
}

#[inline(always)]
fn swap_macs(ctx: &Skb) -> Result<(), DropReason> {
    let eth = parse::eth(ctx, 0)?;
    ctx.store(0, &[eth.src, eth.dst], 0).map_err(|_| DropReason::RewriteFailed)
}

/// Copies a header into scratch memory.
#[inline(always)]
fn load<T>(ctx: &Skb, offset: usize, to: &mut T) -> Result<(), DropReason> {
    // SAFETY: `to` has room for `size_of::<T>()` bytes, and any bytes are a valid `T` here.
    let result = unsafe {
        bpf_skb_load_bytes(ctx.as_ptr().cast(), offset as u32, core::ptr::from_mut(to).cast(), size_of::<T>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(DropReason::Truncated) }
}

/// A frame with an ICMP error.
#[repr(C)]
struct Error {
    eth: [u8; ETH_LEN],
    ip: [u8; IPV4_LEN],
    icmp: [u8; ICMP_LEN],
    quote: [u8; MAX_QUOTE],
}

const _: () = assert!(align_of::<Error>() == 1 && size_of::<Error>() <= SCRATCH_PACKET);

/// Length of the packet while it is being made: whatever it was before, its checksum's place lies within.
const KEPT: usize = 40;
/// How much of that is in front of the answer's headers for a moment: Ethernet and a little more than an IP header.
const RUMP: usize = ETH_LEN + IPV4_LEN + 4;

/// Turns the packet into an ICMP error of this type and code about it, from `router`.
// Not inlined, and its buffers in scratch memory: see `reset`.
#[inline(never)]
fn error(ctx: &Skb, packet: &Packet, kind: [u8; 2], mtu: u16, router: Ip4) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let buffer = &mut scratch()?.packet.0;
    // SAFETY: the buffer is large enough, `Error` has alignment 1 and any bytes are valid.
    let answer = unsafe { &mut *buffer.as_mut_ptr().cast::<Error>() };
    // The mask says to the verifier what the parser has seen to.
    let quote_len = ((packet.l4 - packet.net) & 0x3c) + QUOTED;
    let quote = answer.quote.as_mut_ptr();
    // SAFETY: the quote has room for the longest header and the eight bytes behind it.
    let loaded = unsafe { bpf_skb_load_bytes(ctx.as_ptr().cast(), packet.net as u32, quote.cast(), quote_len as u32) };
    if loaded != 0 {
        return Err(DropReason::Truncated);
    }
    answer.icmp = [kind[0], kind[1], 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8];
    let first_words = u32::from(u16::from_be_bytes(kind)) + u32::from(mtu);
    // SAFETY: readable bytes in scratch memory, a multiple of 4.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, quote.cast(), quote_len as u32, 0) };
    let checksum = (!checksum::fold(first_words + folded(sum))).to_be_bytes();
    (answer.icmp[2], answer.icmp[3]) = (checksum[0], checksum[1]);
    let len = ETH_LEN + IPV4_LEN + ICMP_LEN + quote_len;
    ip_header(&mut answer.ip, router, packet.src, (len - ETH_LEN) as u16);
    load(ctx, 0, &mut answer.eth)?;
    let (to, from) = answer.eth.split_at_mut(6);
    to.swap_with_slice(&mut from[..6]);

    // A container's packet may have a partial checksum, and the answer must not: whoever fills it in would write into
    // the quote and break the answer's own. The kernel forgets it when what it is the sum of is cut off at the front
    // (`skb_postpull_rcsum`), transport header included; so little is left of the packet before it grows again.
    trim(ctx, packet.l4 + KEPT)?;
    ctx.adjust_room(RUMP as i32 - (packet.l4 + KEPT) as i32, BPF_ADJ_ROOM_MAC, 0).map_err(failed)?;
    ctx.adjust_room(len as i32 - RUMP as i32, BPF_ADJ_ROOM_MAC, 0).map_err(failed)?;
    let from = core::ptr::from_mut(answer).cast();
    // SAFETY: the answer is at least as long as what is stored of it.
    let stored = unsafe { bpf_skb_store_bytes(ctx.as_ptr().cast(), 0, from, len as u32, 0) };
    if stored == 0 { Ok(()) } else { Err(DropReason::RewriteFailed) }
}

#[inline(always)]
fn ip_header(header: &mut [u8; IPV4_LEN], src: Ip4, dst: Ip4, len: u16) {
    const TTL: u8 = 64;
    *header = [0; IPV4_LEN];
    header[0] = 0x45;
    [header[2], header[3]] = len.to_be_bytes();
    header[8] = TTL;
    header[9] = ipproto::ICMP;
    [header[12], header[13], header[14], header[15]] = src;
    [header[16], header[17], header[18], header[19]] = dst;
    let checksum = !checksum::fold(checksum::sum(header));
    [header[10], header[11]] = checksum.to_be_bytes();
}

/// Cuts the packet to `len` bytes; segmentation ends with it.
#[inline(always)]
fn trim(ctx: &Skb, len: usize) -> Result<(), DropReason> {
    // SAFETY: plain helper call on a valid context.
    let result = unsafe { bpf_skb_change_tail(ctx.skb.skb, len as u32, 0) };
    if result == 0 { Ok(()) } else { Err(DropReason::RewriteFailed) }
}
