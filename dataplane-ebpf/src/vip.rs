//! A packet towards a service's virtual address.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, Local},
    flow::flag,
    headers::ipproto,
};

use crate::{
    echo, flow, maps, nat,
    nat::Translation,
    parse::{Fragment, Packet},
    service,
    verdict::{self, Action},
};

/// What became of the packet.
pub(crate) enum Outcome {
    /// It was answered by the node.
    Answered(Action),
    /// Nobody serves it; the container should be told.
    Refused(DropReason),
    /// It was rewritten and now goes to `backend`.
    Translated { packet: Packet, backend: &'static Endpoint },
}

/// Translates a packet from `local` to the VIP `vip`. An existing connection keeps its backend; a new one gets the next.
#[inline(always)]
pub(crate) fn translate(
    ctx: &TcContext,
    local: &Local,
    vip: &Endpoint,
    packet: &Packet,
) -> Result<Outcome, DropReason> {
    match packet.proto {
        ipproto::TCP | ipproto::UDP => {}
        ipproto::ICMP => {
            let served = service::set(vip.set).is_some_and(|set| set.count > 0);
            return if served {
                echo::answer(ctx, packet).map(Outcome::Answered)
            } else {
                Ok(Outcome::Refused(DropReason::NoBackend))
            };
        }
        _ => return Err(DropReason::UnsupportedProtocol),
    }
    if packet.fragment != Fragment::Whole {
        return Err(DropReason::Fragment);
    }
    let found = match established(local, packet) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => open(ctx, local, vip, packet),
        Err(reason) => Err(reason),
    };
    let (to, backend) = match found {
        Ok(found) => found,
        Err(reason @ (DropReason::NoBackend | DropReason::NoFlow | DropReason::BackendGone)) => {
            return Ok(Outcome::Refused(reason));
        }
        Err(reason) => return Err(reason),
    };
    nat::rewrite(ctx, packet, &to)?;
    let packet = Packet { src: to.src, dst: to.dst, sport: to.sport, dport: to.dport, ..*packet };
    Ok(Outcome::Translated { packet, backend })
}

/// The connection's translation and backend, if there is one and it may go on.
#[inline(always)]
fn established(local: &Local, packet: &Packet) -> Result<Option<(Translation, &'static Endpoint)>, DropReason> {
    let key = flow::key(local.net, packet);
    let Some(known) = flow::get(&key) else {
        return Ok(None);
    };
    let fresh_start = flow::is_syn(packet) && flow::closed(known);
    // The reply of a hairpin connection also goes to the VIP, and back to its own sender.
    let is_reply = known.flags & flag::REPLY != 0;
    let backend = maps::endpoint(&EndpointKey { net: local.net, ip: known.dst });
    match backend {
        Some(backend) if !fresh_start && backend.tag == known.tag => {
            flow::touch(known, packet);
            Ok(Some((flow::translation(known), backend)))
        }
        _ if is_reply => Err(DropReason::BackendGone),
        _ => {
            flow::forget(&key, known);
            // A new connection, or a UDP flow, goes to another backend; TCP in mid-flow cannot.
            if flow::may_open(packet) { Ok(None) } else { Err(DropReason::BackendGone) }
        }
    }
}

#[inline(always)]
fn open(
    ctx: &TcContext,
    local: &Local,
    vip: &Endpoint,
    packet: &Packet,
) -> Result<(Translation, &'static Endpoint), DropReason> {
    if !flow::may_open(packet) {
        return Err(DropReason::NoFlow);
    }
    let chosen = service::pick(vip.set).ok_or(DropReason::NoBackend)?;
    let backend = maps::endpoint(&EndpointKey { net: local.net, ip: chosen.ip }).ok_or(DropReason::BackendGone)?;
    // A task that is its own backend must see the VIP as the client, or it would answer itself directly.
    let src = if chosen.ip == local.ip { packet.dst } else { packet.src };
    let to = Translation { src, dst: chosen.ip, sport: packet.sport, dport: packet.dport };
    let new = flow::NewFlow { zone: local.net, to, tag: chosen.tag, peer: [0; 4], task: [0; 4] };
    let to = flow::open(packet, &new)?;
    verdict::count(ctx, Counter::VipFlow);
    Ok((to, backend))
}
