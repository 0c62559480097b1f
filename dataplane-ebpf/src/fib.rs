//! Where a packet leaves the node.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Params,
    },
    helpers::generated::bpf_fib_lookup,
};
use dataplane_common::{addr::Ip4, config::Config, drop_reason::DropReason};

use crate::{
    clock, ending,
    parse::Packet,
    scratch::scratch,
    skb::{self, Skb},
    verdict::{self, Action, Verdict, ifindex},
};

const AF_INET: u8 = 2;

/// Sends the packet out of the interface that the main routing table names.
///
/// With the Ethernet addresses that come with the answer, or for the neighbours' sake now and then with the next hop,
/// whose address the kernel looks up then: nobody looks the route up once more. Only on an uplink with an Ethernet
/// header: some tunnel devices (GRE without a remote address) take the destination from the packet's route, which is
/// not set then.
#[inline(always)]
pub(crate) fn route(ctx: &Skb, config: &Config, packet: &Packet) -> Verdict {
    // Without a length the kernel would compare the skb's with the interface's MTU, as if every link had an Ethernet
    // header.
    let len = skb::network_len(ctx, packet).min(u32::from(u16::MAX)) as u16;
    let ends = Ends::of(packet.src, packet.dst, packet.proto);
    let way = match ask(ctx, &ends, len)? {
        // A path's MTU, which a router on the path enforces and tells the sender: only the interface's counts here.
        Way::TooNarrow(_) => ask(ctx, &ends, 0)?,
        way => way,
    };
    match way {
        Way::Interface { index, via: Some(via), known }
            if index == config.underlay_ifindex && config.underlay_mac != [0; 6] =>
        {
            if known && !begins(packet) && !is_sample(clock::now()) {
                address(ctx)?;
                return Ok(Action::Addressed(index));
            }
            note_next_hop(via)?;
            Ok(Action::Via(index))
        }
        Way::Interface { index, .. } => Ok(Action::Neigh(index)),
        // Nobody would fragment it between here and the interface.
        Way::TooNarrow(_) => Err(DropReason::MtuExceeded),
        Way::None => Err(DropReason::NoRoute),
    }
}

/// What the routing table says of a destination.
pub(crate) enum Way {
    /// Out of the interface with this index; `via`: the next router, or the destination itself; `None`: a router with
    /// an IPv6 address. `known`: the kernel knows its Ethernet address, which the answer has.
    Interface { index: u32, via: Option<Ip4>, known: bool },
    /// The way takes no more than this.
    TooNarrow(u16),
    /// To this node itself, or nowhere.
    None,
}

/// One in so many steps of 4 ms, as fine as the coarse clock gets, belongs to the neighbours.
const SAMPLED: u64 = 16;

/// Whether a packet at `now` is sent through the kernel's neighbour entry: the kernel asks whether a neighbour is still
/// there only when its entry is used, and one that is never used would keep a dead one's address.
#[inline(always)]
pub(crate) fn is_sample(now: u64) -> bool {
    (now >> 22).is_multiple_of(SAMPLED)
}

/// Whether a backend accepts a connection with the packet: its client's address may be another machine's by now, and
/// must be asked about soon, whatever the samples.
#[inline(always)]
fn begins(packet: &Packet) -> bool {
    ending::begins(packet.proto, packet.flags)
}

/// Writes the Ethernet addresses of the last answer.
#[inline(always)]
fn address(ctx: &Skb) -> Result<(), DropReason> {
    let params = &mut scratch()?.fib;
    // The header has them the other way round.
    let (to, from) = (params.dmac, params.smac);
    let addresses = &mut scratch()?.packet.0;
    addresses[..6].copy_from_slice(&to);
    addresses[6..12].copy_from_slice(&from);
    let addresses = addresses.first_chunk::<12>().ok_or(DropReason::RewriteFailed)?;
    ctx.store(0, addresses, 0).map_err(|_| DropReason::RewriteFailed)
}

/// Notes the next hop for [`Action::Via`].
#[inline(always)]
fn note_next_hop(via: Ip4) -> Result<(), DropReason> {
    let hop = verdict::next_hop()?;
    // SAFETY: room enough, aligned; for IPv4 the helper reads the family and the first word of the address.
    unsafe {
        (*hop).nh_family = AF_INET.into();
        (*hop).__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(via);
    }
    Ok(())
}

/// What the routing table is asked about.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub src: Ip4,
    pub dst: Ip4,
    pub proto: u8,
    /// Ports, as numbers; 0 where the table has no need of them.
    pub sport: u16,
    pub dport: u16,
}

impl Ends {
    /// Without ports.
    #[inline(always)]
    pub(crate) fn of(src: Ip4, dst: Ip4, proto: u8) -> Self {
        Self { src, dst, proto, sport: 0, dport: 0 }
    }
}

/// The parameter block of a question to the routing table about a packet of the protocol `proto`: all zero but for that
/// and the address family. It lives in scratch memory and has the size that the helper is told.
#[inline(always)]
pub(crate) fn question(proto: u8) -> Result<&'static mut Params, DropReason> {
    let params = &mut scratch()?.fib;
    const { assert!(size_of::<Params>() == 64 && align_of::<Params>() == 4) };
    // In words, and none left out: LLVM would clear it with a function that goes byte by byte.
    for word in 0..16 {
        // SAFETY: as many bytes, aligned; an all-zero parameter block is valid; unions are written through their IPv4
        // members.
        unsafe { core::ptr::from_mut(params).cast::<u32>().add(word).write_volatile(0) };
    }
    params.family = AF_INET;
    params.l4_protocol = proto;
    Ok(params)
}

/// Asks for the way of a forwarded packet. `len`: of the packet from the IP header on, to be compared with the route's
/// MTU; 0: the kernel compares the packet at hand with the interface's, if it is no GSO packet.
#[inline(always)]
pub(crate) fn ask(ctx: &Skb, ends: &Ends, len: u16) -> Result<Way, DropReason> {
    let params = question(ends.proto)?;
    params.sport = ends.sport.to_be();
    params.dport = ends.dport.to_be();
    params.ifindex = ifindex(ctx);
    params.__bindgen_anon_1.tot_len = len;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(ends.src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(ends.dst);
    // SAFETY: the parameter block lives in scratch memory and has the size that is given.
    let result = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut *params, size_of::<Params>() as i32, 0) };
    // Without a neighbour entry the interface is known all the same; the kernel resolves the rest.
    Ok(if result == BPF_FIB_LKUP_RET_SUCCESS as i64 || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        // SAFETY: the kernel has written it, or left our own bytes; any are valid.
        let via = unsafe { params.__bindgen_anon_4.ipv4_dst }.to_ne_bytes();
        // No address (Linux before 6.1.15): the kernel is asking for it.
        let known = result == BPF_FIB_LKUP_RET_SUCCESS as i64 && params.dmac != [0; 6];
        Way::Interface { index: params.ifindex, via: (params.family == AF_INET).then_some(via), known }
    } else if result == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64 {
        // SAFETY: the kernel has written it; any bytes are valid.
        Way::TooNarrow(unsafe { params.__bindgen_anon_1.mtu_result })
    } else {
        Way::None
    })
}
