//! A packet towards a service's virtual address.

use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, Local},
    flow::flag,
    fragment::{Fragmented, place},
};

use crate::{
    connection, echo, encap, flow, follow, fragment, maps,
    nat::{self, Translation},
    opening,
    parse::{Fragment, Packet},
    reject,
    scratch::{NewFlow, scratch},
    service,
    skb::Skb,
    succession,
    verdict::{self, Verdict},
};

/// Answers a ping of the VIP while somebody serves it.
#[inline(always)]
pub(crate) fn ping(ctx: &Skb, vip: &Endpoint, packet: &Packet) -> Verdict {
    if service::set(vip.set).is_some_and(|set| set.count > 0) {
        echo::answer(ctx, packet)
    } else {
        reject::refuse(ctx, packet, DropReason::NoBackend)
    }
}

/// Translates a packet from `local` to the VIP `vip`, towards the backend that is returned.
#[inline(always)]
pub(crate) fn translate(
    ctx: &Skb,
    local: &Local,
    vip: &Endpoint,
    packet: &mut Packet,
) -> Result<&'static Endpoint, DropReason> {
    let backend = find(ctx, local, vip, packet)?;
    // Whoever sent what does not fit is told in terms of what it sent.
    if encap::exceeds(ctx, backend, packet) {
        return Err(DropReason::MtuExceeded);
    }
    rewrite(ctx, local, backend, packet)?;
    Ok(backend)
}

/// The backend of a packet from `local` to the VIP `vip`; its translation is in `scratch().new.to`. An existing
/// connection keeps its backend; a new one gets the next.
#[inline(always)]
pub(crate) fn find(ctx: &Skb, local: &Local, vip: &Endpoint, packet: &Packet) -> Result<&'static Endpoint, DropReason> {
    let mut backend = None;
    if packet.fragment == Fragment::Later {
        follow(ctx, local, packet, &mut backend)?;
    } else {
        fragment::begin(packet, local.net, place::TO_VIP);
        established(ctx, local, packet, &mut backend)?;
        if backend.is_none() {
            open(ctx, local, vip, packet, &mut backend)?;
        }
    }
    backend.ok_or(DropReason::BackendGone)
}

/// Rewrites the packet as [`find`] has said.
#[inline(always)]
pub(crate) fn rewrite(ctx: &Skb, local: &Local, backend: &Endpoint, packet: &mut Packet) -> Result<(), DropReason> {
    let to = &scratch()?.new.to;
    let (src, dst, tag) = (to.src, to.dst, backend.tag);
    fragment::decided(ctx, packet, local.net, place::TO_VIP, Fragmented { src, dst, tag, ..Fragmented::default() })?;
    nat::rewrite(ctx, packet, to)?;
    (packet.src, packet.dst, packet.sport, packet.dport) = (to.src, to.dst, to.sport, to.dport);
    Ok(())
}

/// Whether the container is told at once that nobody serves it, rather than left to wait.
#[inline(always)]
pub(crate) fn is_refusal(reason: DropReason) -> bool {
    matches!(reason, DropReason::NoBackend | DropReason::NoFlow | DropReason::BackendGone)
}

/// A later fragment goes where its first went: as [`established`].
#[inline(never)]
fn follow(ctx: &Skb, local: &Local, packet: &Packet, found: &mut Option<&'static Endpoint>) -> Result<(), DropReason> {
    if !fragment::recall(ctx, packet, local.net, place::TO_VIP) {
        return Err(DropReason::Fragment);
    }
    let scratch = scratch()?;
    let first = &scratch.fragmented;
    scratch.new.to = Translation { src: first.src, dst: first.dst, sport: packet.sport, dport: packet.dport };
    let tag = first.tag;
    let backend = maps::endpoint(&EndpointKey { net: local.net, ip: first.dst }).ok_or(DropReason::BackendGone)?;
    if backend.tag != tag {
        return Err(DropReason::BackendGone);
    }
    *found = Some(backend);
    Ok(())
}

/// Finds the connection's backend, if there is one and it may go on, and puts its translation into `scratch().new.to`.
// Not inlined, as `open`: together with the frame of `from_container` there would be no room for the calls below them.
// The backend is not returned but stored, as one aligned word: otherwise the verifier forgets that it is a pointer.
#[inline(never)]
fn established(
    ctx: &Skb,
    local: &Local,
    packet: &Packet,
    found: &mut Option<&'static Endpoint>,
) -> Result<(), DropReason> {
    let key = connection::flow_key(local.net, packet);
    let Some(known) = follow::forward(ctx, &key, packet) else {
        return Ok(());
    };
    let fresh_start = succession::replaces(packet, known);
    // The reply of a hairpin connection also goes to the VIP, and back to its own sender.
    let is_reply = known.flags & flag::REPLY != 0;
    let backend = maps::endpoint(&EndpointKey { net: local.net, ip: known.dst });
    match backend {
        Some(backend) if !fresh_start && backend.tag == known.tag => {
            follow::touch_forward(&key, known, packet);
            scratch()?.new.to = flow::translation(known);
            *found = Some(backend);
            Ok(())
        }
        _ if is_reply => Err(DropReason::BackendGone),
        _ => {
            flow::forget(&key, known);
            // A new connection, or a UDP flow, goes to another backend; TCP in mid-flow cannot.
            if connection::may_open(packet) { Ok(()) } else { Err(DropReason::BackendGone) }
        }
    }
}

/// Gives a new connection the next backend, and puts its translation into `scratch().new.to`.
#[inline(never)]
fn open(
    ctx: &Skb,
    local: &Local,
    vip: &Endpoint,
    packet: &Packet,
    found: &mut Option<&'static Endpoint>,
) -> Result<(), DropReason> {
    if !connection::may_open(packet) {
        return Err(DropReason::NoFlow);
    }
    let chosen = service::pick(vip.set).ok_or(DropReason::NoBackend)?;
    let backend = maps::endpoint(&EndpointKey { net: local.net, ip: chosen.ip }).ok_or(DropReason::BackendGone)?;
    // A task that is its own backend must see the VIP as the client, or it would answer itself directly.
    let src = if chosen.ip == local.ip { packet.dst } else { packet.src };
    let to = Translation { src, dst: chosen.ip, sport: packet.sport, dport: packet.dport };
    let new = &mut scratch()?.new;
    *new = NewFlow { zone: local.net, to, tag: chosen.tag, peer: [0; 4], task: [0; 4], flags: 0 };
    opening::open(ctx, packet, new)?;
    verdict::count(ctx, Counter::VipFlow);
    *found = Some(backend);
    Ok(())
}
