//! Mesh, ingress node: whether a reply comes from where its connection was given to.

use dataplane_common::{
    addr::{Ip4, Mac, TASK_MAC_PREFIX, mac_of},
    drop_reason::DropReason,
    flow::{Affinity, MESH_ZONE, flag},
    fragment::{Fragmented, place},
};

use crate::{
    affinity, connection, fragment, icmp,
    parse::{Fragment, Packet},
    scratch::scratch,
    skb::Skb,
};

/// Lets a reply pass that comes from where its connection was given to: `task` (ingress MAC) behind `vtep`. A later
/// fragment passes if its first has passed, from there.
#[inline(always)]
pub(crate) fn check_return(ctx: &Skb, packet: &Packet, task: &Mac, vtep: &Ip4) -> Result<(), DropReason> {
    if icmp::is_error(packet) {
        return if icmp::returned(ctx, packet, task, vtep) { Ok(()) } else { Err(DropReason::MeshBadReturn) };
    }
    if packet.fragment != Fragment::Later {
        fragment::begin(packet, MESH_ZONE, place::RETURN);
        if !returned(ctx, packet, task, vtep) {
            return Err(DropReason::MeshBadReturn);
        }
        let decided = Fragmented { task: [task[2], task[3], task[4], task[5]], peer: *vtep, ..Fragmented::default() };
        return fragment::decided(ctx, packet, MESH_ZONE, place::RETURN, decided);
    }
    if !fragment::recall(ctx, packet, MESH_ZONE, place::RETURN) {
        return Err(DropReason::Fragment);
    }
    let first = &scratch()?.fragmented;
    let same = *task == mac_of(TASK_MAC_PREFIX, first.task) && *vtep == first.peer;
    if same { Ok(()) } else { Err(DropReason::MeshBadReturn) }
}

/// Whether `packet` answers a connection that this node gave to the task with ingress MAC `task` behind `vtep`; notes it.
#[inline(never)]
fn returned(ctx: &Skb, packet: &Packet, task: &Mac, vtep: &Ip4) -> bool {
    let key = connection::affinity_key_of_answer(packet);
    let Some(known) = affinity::find(&key).filter(|(known, _)| given_to(known, task, vtep)) else {
        return false;
    };
    affinity::answered(ctx, &key, known, packet);
    true
}

/// Whether the connection was given to the task with ingress MAC `task` behind `vtep`.
#[inline(always)]
fn given_to(known: &Affinity, task: &Mac, vtep: &Ip4) -> bool {
    known.flags & flag::OWN == 0 && *task == mac_of(TASK_MAC_PREFIX, known.ip) && *vtep == known.vtep
}
