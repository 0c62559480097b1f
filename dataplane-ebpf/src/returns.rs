//! Mesh, ingress node: whether a reply comes from where its connection was given to.

use dataplane_common::{
    addr::Ip4,
    drop_reason::DropReason,
    flow::MESH_ZONE,
    fragment::{Fragmented, place},
};

use crate::{
    affinity, connection, fragment, icmp, notes,
    parse::{Fragment, Packet},
    scratch::scratch,
    skb::Skb,
};

/// Lets a reply pass that comes from where its connection was given to: from `task`, behind `vtep`. A later fragment
/// passes if its first has passed, from there.
#[inline(always)]
pub(crate) fn check_return(ctx: &Skb, packet: &Packet, task: Ip4, vtep: Ip4) -> Result<(), DropReason> {
    if icmp::is_error(packet) {
        return if icmp::returned(ctx, packet, task, vtep) { Ok(()) } else { Err(DropReason::MeshBadReturn) };
    }
    if packet.fragment != Fragment::Later {
        fragment::begin(packet, MESH_ZONE, place::RETURN);
        if !returned(ctx, packet, task, vtep) {
            return Err(DropReason::MeshBadReturn);
        }
        let decided = Fragmented { task, peer: vtep, ..Fragmented::default() };
        return fragment::decided(ctx, packet, MESH_ZONE, place::RETURN, decided);
    }
    if !fragment::recall(ctx, packet, MESH_ZONE, place::RETURN) {
        return Err(DropReason::Fragment);
    }
    let first = &scratch()?.fragmented;
    if task == first.task && vtep == first.peer { Ok(()) } else { Err(DropReason::MeshBadReturn) }
}

/// Whether `packet` answers a connection that this node gave to `task` behind `vtep`; notes it.
#[inline(never)]
fn returned(ctx: &Skb, packet: &Packet, task: Ip4, vtep: Ip4) -> bool {
    let key = connection::affinity_key_of_answer(packet);
    let Some(known) = affinity::find(&key).filter(|(known, _)| notes::was_given_to(known, task, vtep)) else {
        return false;
    };
    affinity::answered(ctx, &key, known, packet);
    true
}
