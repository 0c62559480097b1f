//! Telling a container at once that nobody answers, instead of letting it wait: its packet is turned into the answer.
//! TCP gets a reset (RFC 9293 section 3.10.7.1), everything else an ICMP destination unreachable (RFC 792).

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::generated::{bpf_csum_diff, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use dataplane_common::{
    addr::Ip4,
    drop_reason::DropReason,
    headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, TCP_LEN, ipproto, tcpflag},
};

use crate::{
    checksum,
    maps::scratch,
    parse::{self, Fragment, ICMP_ECHO_REQUEST, Packet},
    verdict::{self, Action, Verdict},
};

const IP_TOTAL_LEN: usize = 2;
const IP_CHECKSUM: usize = 10;
const IP_ADDRESSES: usize = 12;

/// ICMP type and codes.
const UNREACHABLE: u8 = 3;
const HOST: u8 = 1;
const PORT: u8 = 3;

/// What an ICMP error quotes: IP header and eight bytes.
const QUOTE_LEN: usize = IPV4_LEN + 8;

/// Answers `packet`, which was not changed yet, in the name of its destination, and counts it as dropped for `reason`.
/// What must not be answered (resets, ICMP errors, fragments) is only dropped.
#[inline(always)]
pub(crate) fn refuse(ctx: &TcContext, packet: &Packet, reason: DropReason) -> Verdict {
    if packet.fragment != Fragment::Whole {
        return Err(reason);
    }
    let icmp_code = match packet.proto {
        ipproto::TCP if packet.flags & tcpflag::RST == 0 => None,
        ipproto::UDP if !packet.has_options() => Some(PORT),
        ipproto::ICMP if packet.flags == ICMP_ECHO_REQUEST && !packet.has_options() => Some(HOST),
        _ => return Err(reason),
    };
    // The packet's own length counts, not the answer's.
    verdict::count_drop(ctx, reason);
    match icmp_code {
        None => reset(ctx, packet)?,
        Some(code) => unreachable(ctx, packet, code)?,
    }
    Ok(Action::Refuse(verdict::ifindex(ctx), reason))
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
fn reset(ctx: &TcContext, packet: &Packet) -> Result<(), DropReason> {
    let header_len = packet.l4 - packet.net;
    let segment_len = packet.total_len.wrapping_sub(header_len as u16);
    let buffer = &mut scratch()?.packet;
    // SAFETY: the buffer is large enough, `Tcp` has alignment 1 and any bytes are valid.
    let tcp = unsafe { &mut *buffer.as_mut_ptr().cast::<Tcp>() };
    load(ctx, packet.l4, tcp)?;
    // A partial checksum (the sum of the pseudo-header, the rest left to the NIC) must stay one: the skb remembers.
    let pseudo = checksum::pseudo(packet.src, packet.dst, ipproto::TCP, segment_len);
    let partial = parse::gso_size(ctx) != 0 || tcp.checksum == checksum::fold(pseudo).to_be_bytes();

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
    // The helper sums words as they stand in memory; a folded sum may be byte-swapped afterwards (RFC 1071 section 2).
    u32::from(u16::from_be(checksum::fold(sum as u32)))
}

#[inline(always)]
fn swap_macs(ctx: &TcContext) -> Result<(), DropReason> {
    let eth = parse::eth(ctx, 0)?;
    ctx.store(0, &[eth.src, eth.dst], 0).map_err(|_| DropReason::RewriteFailed)
}

/// Copies a header into scratch memory.
#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize, to: &mut T) -> Result<(), DropReason> {
    // SAFETY: `to` has room for `size_of::<T>()` bytes, and any bytes are a valid `T` here.
    let result = unsafe {
        bpf_skb_load_bytes(ctx.as_ptr().cast(), offset as u32, core::ptr::from_mut(to).cast(), size_of::<T>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(DropReason::Truncated) }
}

/// An ICMP error from the network header on.
#[repr(C)]
struct Unreachable {
    ip: [u8; IPV4_LEN],
    icmp: [u8; ICMP_LEN],
    quote: [u8; QUOTE_LEN],
}

const _: () = assert!(align_of::<Unreachable>() == 1 && size_of::<Unreachable>() <= 80);

// Not inlined, and its buffers in scratch memory: see `reset`.
#[inline(never)]
fn unreachable(ctx: &TcContext, packet: &Packet, code: u8) -> Result<(), DropReason> {
    trim(ctx, packet.net + QUOTE_LEN)?;
    let buffer = &mut scratch()?.packet;
    // SAFETY: the buffer is large enough, `Unreachable` has alignment 1 and any bytes are valid.
    let answer = unsafe { &mut *buffer.as_mut_ptr().cast::<Unreachable>() };
    load(ctx, packet.net, &mut answer.quote)?;
    let first_word = u32::from(UNREACHABLE) << 8 | u32::from(code);
    let checksum = (!checksum::fold(first_word + checksum::sum(&answer.quote))).to_be_bytes();
    answer.icmp = [UNREACHABLE, code, checksum[0], checksum[1], 0, 0, 0, 0];
    ip_header(&mut answer.ip, packet.dst, packet.src, size_of::<Unreachable>() as u16);
    let failed = |_| DropReason::RewriteFailed;
    ctx.adjust_room((IPV4_LEN + ICMP_LEN) as i32, BPF_ADJ_ROOM_MAC, 0).map_err(failed)?;
    ctx.store(ETH_LEN, answer, 0).map_err(failed)?;
    swap_macs(ctx)
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
fn trim(ctx: &TcContext, len: usize) -> Result<(), DropReason> {
    // SAFETY: plain helper call on a valid context.
    let result = unsafe { bpf_skb_change_tail(ctx.skb.skb, len as u32, 0) };
    if result == 0 { Ok(()) } else { Err(DropReason::RewriteFailed) }
}
