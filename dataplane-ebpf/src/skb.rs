//! The packet of the hooks that have an skb: how it is read and changed, and where what is read of it is kept.

use core::{ffi::c_void, ops::Deref, ptr};

use aya_ebpf::{EbpfContext, helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use dataplane_common::{
    addr::NetId,
    drop_reason::DropReason,
    headers::{ETH_LEN, UDP_LEN, ethertype, ipproto},
};
use dataplane_core::{Edit, Failed, View};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    options,
    parse::{self, Packet},
    quote::{self, Quote},
    scratch::scratch,
};

/// Context of a TC program.
#[repr(transparent)]
pub(crate) struct Skb(pub(crate) TcContext);

impl Skb {
    /// See [`View::gso_size`].
    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        // SAFETY: the context pointer is valid for the program's run.
        unsafe { (*self.skb.skb).gso_size }
    }
}

impl Deref for Skb {
    type Target = TcContext;

    #[inline(always)]
    fn deref(&self) -> &TcContext {
        &self.0
    }
}

impl EbpfContext for Skb {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl View for Skb {
    #[inline(always)]
    fn load<T: FromBytes>(&self, offset: usize) -> Result<T, Failed> {
        self.0.load(offset).map_err(|_| Failed)
    }

    #[inline(always)]
    fn load_to(&self, offset: usize, to: &mut [u8]) -> Result<(), Failed> {
        let (len, to) = (to.len() as u32, to.as_mut_ptr().cast());
        // SAFETY: `to` has room for as many bytes as are asked for.
        let result = unsafe { bpf_skb_load_bytes(self.as_ptr().cast(), offset as u32, to, len) };
        if result == 0 { Ok(()) } else { Err(Failed) }
    }

    #[inline(always)]
    fn frame_len(&self) -> u32 {
        self.0.len()
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.gso_size()
    }

    #[inline(always)]
    fn vlan_tci(&self) -> Option<u16> {
        let skb = self.skb.skb;
        // VERIFIER(6.18): volatile, as in `verdict::ifindex`.
        // SAFETY: as above.
        unsafe {
            (ptr::read_volatile(&raw const (*skb).vlan_present) != 0)
                .then(|| ptr::read_volatile(&raw const (*skb).vlan_tci) as u16)
        }
    }

    #[inline(always)]
    fn pkt_type(&self) -> u32 {
        // VERIFIER(6.18): volatile, as in `verdict::ifindex`.
        // SAFETY: as above.
        unsafe { ptr::read_volatile(&raw const (*self.skb.skb).pkt_type) }
    }
}

impl Edit for Skb {
    #[inline(always)]
    fn store<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), Failed> {
        self.0.store(offset, value, 0).map_err(|_| Failed)
    }

    #[inline(always)]
    fn l3_csum_replace(&self, offset: usize, from: u64, to: u64, size: u64) -> Result<(), Failed> {
        self.0.l3_csum_replace(offset, from, to, size).map_err(|_| Failed)
    }

    #[inline(always)]
    fn l4_csum_replace(&self, offset: usize, from: u64, to: u64, flags: u64) -> Result<(), Failed> {
        self.0.l4_csum_replace(offset, from, to, flags).map_err(|_| Failed)
    }
}

/// The IPv4 packet whose header starts at `net`; the outer one where there are two. It lives in scratch memory.
#[inline(always)]
pub(crate) fn outer(ctx: &Skb, net: usize) -> Result<&'static mut Packet, DropReason> {
    let packet = &mut scratch()?.outer;
    parse::ipv4(ctx, net, packet)?;
    Ok(packet)
}

/// The same for the packet inside a tunnel.
#[inline(always)]
pub(crate) fn inner(ctx: &Skb, net: usize) -> Result<&'static mut Packet, DropReason> {
    let packet = &mut scratch()?.inner;
    parse::ipv4(ctx, net, packet)?;
    Ok(packet)
}

/// The IPv4 packet in a frame from outside. `None`: another protocol, or too broken to read; both are the stack's to
/// judge, not ours.
#[inline(always)]
pub(crate) fn from_outside(ctx: &Skb) -> Option<&'static mut Packet> {
    let eth = parse::eth(ctx, 0).ok()?;
    if eth.ethertype != ethertype::IPV4 {
        return None;
    }
    outer(ctx, ETH_LEN).ok()
}

/// Whether the packet has a source route.
#[inline(always)]
pub(crate) fn has_source_route(ctx: &Skb, packet: &Packet) -> bool {
    packet.has_options() && find_source_route(ctx, packet)
}

// Not inlined: rare, and callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn find_source_route(ctx: &Skb, packet: &Packet) -> bool {
    scratch().is_ok_and(|scratch| options::find_source_route(ctx, packet, &mut scratch.options_room))
}

/// What the ICMP error `packet` quotes, as [`quote::of`] says. It lives in scratch memory.
// Not inlined: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn quoted(ctx: &Skb, packet: &Packet, zone: &NetId) -> Option<&'static Quote> {
    quote::of(ctx, packet, zone, &mut scratch().ok()?.quote)
}

/// `gso_size` of packets that are a list of finished ones, as SCTP makes them (`<linux/skbuff.h>`). The kernel's helper
/// does not put a tunnel around those.
pub(crate) const GSO_BY_FRAGS: u32 = 0xffff;

/// Length of the packet, or of each segment of a GSO packet, from the IP header on.
#[inline(always)]
pub(crate) fn network_len(ctx: &Skb, packet: &Packet) -> u32 {
    let gso_size = ctx.gso_size();
    if gso_size == 0 {
        return u32::from(packet.total_len);
    }
    if gso_size == GSO_BY_FRAGS {
        // Cut by its sender's path MTU already; how large the largest piece is cannot be seen.
        return 0;
    }
    let transport = if packet.proto == ipproto::TCP { u32::from(packet.tcp_len) } else { UDP_LEN as u32 };
    (packet.l4 - packet.net) as u32 + transport + gso_size
}
