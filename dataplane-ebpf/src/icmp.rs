//! ICMP errors that quote a translated connection (RFC 792, RFC 5508 section 4): they follow it, translated, to whoever
//! must see them. They never keep a connection alive nor end one: whoever can guess ports can send them.

use dataplane_common::{
    addr::{Ip4, NetId, Tag},
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, Local, kind},
    flow::{Affinity, AffinityKey, Flow, MESH_ZONE, flag},
    fragment::Fragmented,
    headers::{icmptype, ipproto},
    mesh::{Target, TargetKey},
};

use crate::{
    affinity, flow,
    maps::{self, MESH_TARGETS},
    notes,
    parse::{Fragment, Packet},
    quote,
    scratch::scratch,
    skb::{self, Skb},
    verdict,
};

/// The packet is an ICMP error, with the whole quote in it.
#[inline(always)]
pub(crate) fn is_error(packet: &Packet) -> bool {
    packet.proto == ipproto::ICMP && packet.fragment == Fragment::Whole && is_error_type(packet.flags)
}

/// Whether a container's packet is an error in a form that no host sends one in: to many, or in pieces. What is asked
/// of errors would not be asked of it.
#[inline(always)]
pub(crate) fn is_hidden(packet: &Packet, group: bool) -> bool {
    (group || packet.fragment == Fragment::First)
        && packet.proto == ipproto::ICMP
        && packet.fragment != Fragment::Later
        && is_error_type(packet.flags)
}

/// ICMP types that quote a packet and may have to follow a connection. A redirect (5) is for the next router only.
#[inline(always)]
fn is_error_type(kind: u8) -> bool {
    matches!(
        kind,
        icmptype::UNREACHABLE | icmptype::SOURCE_QUENCH | icmptype::TIME_EXCEEDED | icmptype::PARAMETER_PROBLEM
    )
}

/// An error on its way into the container that it is for: if that talks to a VIP, the error must be about the VIP, not
/// about the backend. A container says nothing about what is another's in its network: that is no way through it.
#[inline(never)]
pub(crate) fn to_client(ctx: &Skb, packet: &Packet, net: &NetId) -> Result<(), DropReason> {
    let Some(quote) = skb::quoted(ctx, packet, net) else { return Ok(()) };
    if quote.key.src != packet.src && is_container(net, packet.src) && is_member(net, quote.key.src) {
        return Err(DropReason::IcmpUnmatched);
    }
    match flow::get(&quote.key) {
        Some(known) if known.flags & flag::REPLY != 0 => translate(ctx, packet, net),
        // It is about a connection that nobody translates.
        _ => Ok(()),
    }
}

/// Whether anybody in the network, a VIP or a gateway too, has the address.
#[inline(always)]
fn is_member(net: &NetId, ip: Ip4) -> bool {
    maps::endpoint(&EndpointKey { net: *net, ip }).is_some()
}

#[inline(always)]
fn is_container(net: &NetId, ip: Ip4) -> bool {
    maps::endpoint(&EndpointKey { net: *net, ip }).is_some_and(|it| it.kind == kind::LOCAL || it.kind == kind::REMOTE)
}

/// A container's error about what it got from a VIP: the backend that sent it.
#[inline(never)]
pub(crate) fn to_backend(ctx: &Skb, packet: &Packet, local: &Local) -> Option<&'static Endpoint> {
    let quote = skb::quoted(ctx, packet, &local.net)?;
    let known = flow::get(&quote.key)?;
    // About its own connection, not about another container's.
    if quote.key.src != local.ip {
        return None;
    }
    maps::endpoint(&EndpointKey { net: local.net, ip: known.dst }).filter(|backend| backend.tag == known.tag)
}

/// Mesh, ingress node: the connection that an error from outside is about, if it is one that this node gave away.
#[inline(never)]
pub(crate) fn given_away(ctx: &Skb, packet: &Packet) -> Option<&'static Affinity> {
    if !is_error(packet) {
        return None;
    }
    let quote = skb::quoted(ctx, packet, &MESH_ZONE)?;
    let key = AffinityKey::new((quote.key.src, quote.key.sport), (quote.key.dst, quote.key.dport), quote.key.proto);
    let known = affinity::get(&key)?;
    // A connection of this node's own is the stack's.
    (known.flags & flag::OWN == 0).then_some(known)
}

/// Mesh, backend's node: where an error leads that the ingress node `ingress` sent for task `task`.
#[inline(never)]
pub(crate) fn to_task(ctx: &Skb, packet: &Packet, task: &Ip4, ingress: &Ip4) -> Option<&'static Target> {
    let quote = skb::quoted(ctx, packet, &MESH_ZONE)?;
    let key = TargetKey { ip: *task, port: quote.key.dport, proto: quote.key.proto, _pad: 0 };
    // SAFETY: entries are replaced as a whole by the agent.
    let target = unsafe { MESH_TARGETS.get(key) }?;
    let known = flow::get(&quote.key)?;
    let ours = known.flags & flag::REPLY == 0 && known.tag == target.tag && known.peer == *ingress;
    ours.then_some(target)
}

/// Mesh, backend's node: whether an error of task `tag`'s container is about the client of a mesh connection. Which way
/// it goes is in `scratch().fragmented`, and the addresses it shall have in `scratch().new.to`, as for other replies.
#[inline(never)]
pub(crate) fn from_task(ctx: &Skb, packet: &Packet, tag: &Tag) -> bool {
    if !is_error(packet) {
        return false;
    }
    let Some(known) = known(ctx, packet, &MESH_ZONE) else { return false };
    let Ok(scratch) = scratch() else { return false };
    scratch.new.to = flow::translation(known);
    scratch.fragmented = Fragmented { peer: known.peer, task: known.task, ..Fragmented::default() };
    known.flags & flag::REPLY != 0 && known.tag == *tag
}

/// The entry that translates packets which go the way of this error.
#[inline(always)]
fn known(ctx: &Skb, packet: &Packet, zone: &NetId) -> Option<&'static mut Flow> {
    flow::get(&skb::quoted(ctx, packet, zone)?.key)
}

/// Translates an error as the entry says that packets which go its way are translated with.
// VERIFIER(6.18): a function of its own, apart from those that find out where the error leads: a result with both a
// reference and a reason does not fit a register, and what comes back through memory has lost its type.
#[inline(never)]
pub(crate) fn translate(ctx: &Skb, packet: &Packet, zone: &NetId) -> Result<(), DropReason> {
    let quote = skb::quoted(ctx, packet, zone).ok_or(DropReason::IcmpUnmatched)?;
    let known = flow::get(&quote.key).ok_or(DropReason::IcmpUnmatched)?;
    verdict::count(ctx, Counter::IcmpTranslated);
    quote::rewrite(ctx, packet, quote, known)
}

/// Mesh, ingress node: whether an error that came back is about a connection that this node gave to `task` behind
/// `vtep`, and says so in the name of the address that the client talks to.
#[inline(never)]
pub(crate) fn returned(ctx: &Skb, packet: &Packet, task: Ip4, vtep: Ip4) -> bool {
    let Some(quote) = skb::quoted(ctx, packet, &MESH_ZONE) else {
        return false;
    };
    let key = AffinityKey::new((quote.key.dst, quote.key.dport), (quote.key.src, quote.key.sport), quote.key.proto);
    let Some(known) = affinity::get(&key) else {
        return false;
    };
    packet.src == quote.key.src && notes::was_given_to(known, task, vtep)
}
