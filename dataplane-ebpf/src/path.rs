//! How large a packet may be on its way to another node: path-MTU discovery (RFC 1191) for the tunnel's outer packets.
//!
//! Those to other members have DF, so a router that cannot pass one on says so to this node's tunnel address. No socket
//! has sent the packet, so the kernel has nobody to tell, and the error is noted here. Those to nodes without Hiveway
//! may be cut on the way, as what comes back from there; that shows what the path takes, too.

use aya_ebpf::bindings::BPF_NOEXIST;
use dataplane_common::{
    addr::Ip4,
    config::Config,
    counter::Counter,
    headers::{ICMP_LEN, IPV4_LEN, icmpcode, icmptype, ipproto},
    path::{Path, PathState},
};

use crate::{
    clock,
    maps::{self, PATH_STATE, PATHS},
    parse::{Copied, Fragment, Packet},
    skb::Skb,
    verdict,
};

/// Whether an outer IP packet of this length fits the path to `vtep`.
#[inline(always)]
pub(crate) fn takes(config: &Config, vtep: &Ip4, len: u32) -> bool {
    all_take(config, len) || (len <= u32::from(config.underlay_mtu) && len <= u32::from(mtu(config, vtep)))
}

/// Whether it fits every path.
#[inline(always)]
pub(crate) fn all_take(config: &Config, len: u32) -> bool {
    len <= u32::from(config.underlay_mtu) && u64::from(len) <= floor()
}

/// What every path takes that the interface takes; see [`PathState::floor`].
#[inline(always)]
fn floor() -> u64 {
    // SAFETY: the reference is valid; it is stored as a whole.
    PATH_STATE.get(0).map_or(0, |state| unsafe { core::ptr::read_volatile(&raw const state.floor) })
}

/// The longest outer IP packet that fits the path to `vtep`.
// Not inlined: it is for large packets and refusals.
#[inline(never)]
pub(crate) fn mtu(config: &Config, vtep: &Ip4) -> u16 {
    // SAFETY: the element stays readable until the RCU grace period after this program's run.
    match unsafe { PATHS.get(vtep) } {
        Some(path) => path.mtu(config.underlay_mtu, clock::now()),
        None => config.underlay_mtu,
    }
}

/// What is looked at of an ICMP error about a tunnel's packet: ICMP header, quoted IP header without options, quoted
/// ports.
const LOOKED_AT: usize = ICMP_LEN + IPV4_LEN + 4;

/// Notes what an ICMP error says about the path to another node, if that is "fragmentation needed" about a packet of a
/// tunnel from this node to another one. As in the kernel, only a smaller value is believed, and never one below the
/// configured minimum; a router quotes a packet that is longer than what it says fits.
#[inline(never)]
pub(crate) fn note(ctx: &Skb, config: &Config, packet: &Packet) {
    if packet.flags != icmptype::UNREACHABLE || packet.fragment != Fragment::Whole || packet.dst != config.underlay_ip {
        return;
    }
    let Ok(Copied::<LOOKED_AT>(error)) = ctx.load(packet.l4) else { return };
    let [_, code, _, _, _, _, mtu_high, mtu_low, version, _, len_high, len_low, ..] = error;
    let told = u16::from_be_bytes([mtu_high, mtu_low]);
    let [fragment_high, fragment_low] = [error[14], error[15]];
    let src = [error[20], error[21], error[22], error[23]];
    let vtep = [error[24], error[25], error[26], error[27]];
    if code != icmpcode::FRAGMENTATION_NEEDED
        || version != 0x45
        || told >= u16::from_be_bytes([len_high, len_low])
        || fragment_high & 0x1f != 0
        || fragment_low != 0
        || error[17] != ipproto::UDP
        || src != config.underlay_ip
        || [error[30], error[31]] != config.vxlan_port
        || maps::vtep(&vtep).is_none()
    {
        return;
    }
    learn(ctx, config, &vtep, told);
}

/// Notes how long the first fragment is into which a tunnel's packet was cut on the way from a node without Hiveway,
/// whose packets have no DF: the way there is taken to be as narrow. From members come fragments that they have cut
/// themselves.
#[inline(never)]
pub(crate) fn note_cut(ctx: &Skb, config: &Config, packet: &Packet) {
    if maps::is_stock(&packet.src) {
        learn(ctx, config, &packet.src, packet.total_len);
    }
}

/// Believes that the path to `vtep` takes `told` bytes only.
#[inline(always)]
fn learn(ctx: &Skb, config: &Config, vtep: &Ip4, told: u16) {
    let Some(state) = PATH_STATE.get_ptr_mut(0) else { return };
    // SAFETY: into a live array map; the agent stores each word as a whole.
    let (min, expires) =
        unsafe { ((&raw const (*state).min).read_volatile(), (&raw const (*state).expires).read_volatile()) };
    let learned = told.max(min as u16);
    if expires == 0 || learned > mtu(config, vtep) || learned >= config.underlay_mtu {
        return;
    }
    if believe(vtep, learned, clock::now() + expires) {
        lower_floor(state, learned);
        verdict::count(ctx, Counter::PathMtuLearned);
    }
}

/// Writes it into the path's entry, or a new one. Whether there is room.
#[inline(always)]
fn believe(vtep: &Ip4, learned: u16, until: u64) -> bool {
    if let Some(path) = PATHS.get_ptr_mut(vtep) {
        // SAFETY: a live element. A program on another CPU that reads one of the two old sees another valid value.
        unsafe {
            (&raw mut (*path).learned).write_volatile(learned);
            (&raw mut (*path).learned_until).write_volatile(until);
        }
        return true;
    }
    let path = Path { learned, learned_until: until, ..Path::default() };
    PATHS.insert(vtep, &path, u64::from(BPF_NOEXIST)).is_ok()
}

/// Another CPU may raise it meanwhile: the agent sets it right, and so does the next error.
#[inline(always)]
fn lower_floor(state: *mut PathState, mtu: u16) {
    // SAFETY: into a live array map, aligned to 8.
    unsafe {
        let floor = &raw mut (*state).floor;
        if floor.read_volatile() > u64::from(mtu) {
            floor.write_volatile(u64::from(mtu));
        }
    }
}
