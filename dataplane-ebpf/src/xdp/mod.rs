//! Hook `xdp_mesh`: the hot path of the routing mesh at the ingress node, before the kernel has made a socket buffer.
//!
//! It carries packets of clients towards backends on other Hiveway nodes, and their answers back, and makes of them
//! exactly what `mesh_ingress.rs` makes. It never drops and never ends anything: whatever it does not carry it passes
//! on untouched, and has counted and noted nothing about it, so that the TC programs decide as if there were no XDP
//! ([ADR 14](../../../docs/adr/0014-xdp-carries-only-what-is-established.md)). What is established costs one lookup
//! ([ADR 15](../../../docs/adr/0015-next-hops-and-generations.md)).

mod access;
mod arrival;
mod forward;
mod head;
mod hop;
mod known;
mod opening;
mod reply;
mod send;
mod tunnel;

use aya_ebpf::{bindings::xdp_action::XDP_PASS, programs::XdpContext};
use dataplane_common::{
    config::Config,
    flow::Affinity,
    headers::{ETH_LEN, ipproto},
};

use self::access::{Frame, half, word};
use crate::{
    age, fib,
    maps::{XDP_DEVICES, config},
};

/// Entry of the hook.
#[inline(always)]
pub(crate) fn handle(ctx: &XdpContext) -> u32 {
    carry(ctx).unwrap_or(XDP_PASS)
}

/// `None`: not for this path.
#[inline(always)]
fn carry(ctx: &XdpContext) -> Option<u32> {
    let frame = Frame::of(ctx);
    let packet = head::outer(frame)?;
    let config = config().ok()?;
    let uplink = own(frame, config)?;
    let to_us = packet.proto == ipproto::UDP && packet.dst == word(&config.underlay_ip);
    if to_us && packet.dport() == half(&config.vxlan_port) {
        // On other interfaces nobody looks into a tunnel.
        if !uplink {
            return None;
        }
        return reply::carry(ctx, frame, config, &packet);
    }
    forward::carry(ctx, frame, config, &packet)
}

/// Whether the interface that the frame came in through is an uplink. `None`: the frame is for another MAC than its, as
/// [`crate::parse::is_own`] says where there is an skb. A tag that is in the frame has left no IPv4 in sight; one that
/// the NIC has taken off does not show.
#[inline(always)]
fn own(frame: Frame, config: &Config) -> Option<bool> {
    let (mac, uplink) = if frame.ifindex == config.underlay_ifindex {
        (&config.underlay_mac, true)
    } else {
        // SAFETY: entries are replaced as a whole by the agent.
        let device = unsafe { XDP_DEVICES.get(frame.ifindex) }?;
        (&device.mac, device.uplink != 0)
    };
    let to = frame.part::<0, ETH_LEN>()?;
    let [first, second] = access::mac(mac);
    (to.four::<0>() == first && u32::from(to.two::<4>()) == second).then_some(uplink)
}

/// Whether the TC programs shall see this packet of a connection for the neighbours' sake, see [`fib::is_sample`]: only
/// one that would renew an entry's time, which TC does, too. Where the agent keeps the next hop it sees to that.
#[inline(always)]
fn is_sample(known: &Affinity, now: u64) -> bool {
    age::old(known.last_seen, now) && fib::is_sample(now)
}
