//! The connection tables `FLOWS` and `FLOWS_PENDING` (with its twin for what is not TCP): two entries per translated
//! connection, one per direction.
//!
//! A connection begins in `FLOWS_PENDING`, where the least recently used entry makes room, and moves to `FLOWS`, where
//! nothing is ever displaced, once both ends have proved that they are there (see `pending.rs`). A flood of packets
//! from invented sources never gets that far. Either entry of a pending connection may be displaced; each can be made
//! again from the other.
//!
//! What a packet says about its connection is in `dataplane-core` (`connection`, `proof`, `ending`, `succession`,
//! `age`). The tables are used here and, on top of this file, by `opening.rs`, `pending.rs` and `follow.rs`.
//!
//! Concurrency: entries are created by whichever CPU sees the first packet (`BPF_NOEXIST` decides races); after that
//! only `last_seen`, `flags` and `tcp_number` change. Who moves an entry puts it into `FLOWS` before it takes it out
//! of `FLOWS_PENDING`; readers that must not miss it look into them in the opposite order. Two CPUs that note something
//! in `flags` at once may lose one of both: a connection whose FINs cross so lasts until it has been silent for long.

use aya_ebpf::bindings::BPF_NOEXIST;
use dataplane_common::{
    addr::NetId,
    drop_reason::DropReason,
    flow::{Flow, FlowKey, flag},
    headers::ipproto,
};

use crate::{
    clock,
    connection::{answers, forward_key, reply_key},
    ending, global,
    maps::{FLOWS, pending_flows},
    nat::Translation,
    scratch::scratch,
    shares, succession,
};

/// The entry with this key, in whichever table.
#[inline(always)]
pub(crate) fn get(key: &FlowKey) -> Option<&'static mut Flow> {
    match established(key) {
        None => pending(key),
        found => found,
    }
}

/// The entry with this key in `FLOWS`.
#[inline(always)]
pub(crate) fn established(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: see the module's note on concurrency; a torn read cannot happen on the fields that change (8 and 1 byte).
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// The entry with this key in the pending table of its protocol.
#[inline(always)]
pub(crate) fn pending(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: as above.
    pending_flows(key.proto)?.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Notes that a packet went by.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow) {
    clock::note(&mut flow.last_seen, &mut flow.flags, flag::SEEN);
}

/// What the entry makes of its packets.
#[inline(always)]
pub(crate) fn translation(flow: &Flow) -> Translation {
    Translation { src: flow.src, dst: flow.dst, sport: flow.sport, dport: flow.dport }
}

/// Whether the connection of a reply entry has ended, and so long ago that its key may be used again.
#[inline(always)]
pub(crate) fn outlived(reply: &Flow, zone: NetId, proto: u8) -> bool {
    let now = clock::now();
    succession::outlived(reply, now, |finished| {
        // In scratch memory: the callers have little of the 512 bytes of stack to spare.
        let Ok(scratch) = scratch() else { return false };
        scratch.reply_key = forward_key(zone, reply, proto);
        succession::forward_over(get(&scratch.reply_key).as_deref(), finished, now)
    })
}

/// Enters a new pending entry. `FlowCollision`: another CPU was faster with the same key.
#[inline(always)]
pub(crate) fn enter(key: &FlowKey, flow: &Flow) -> Result<(), DropReason> {
    insert_pending(key, flow, BPF_NOEXIST)
}

/// Puts an entry into the pending table of its protocol. `FlowCollision`: with `BPF_NOEXIST` there is one already.
#[inline(always)]
pub(crate) fn insert_pending(key: &FlowKey, flow: &Flow, mode: u32) -> Result<(), DropReason> {
    const EEXIST: i32 = -17;
    let table = pending_flows(key.proto).ok_or(DropReason::FlowTableFull)?;
    match table.insert(key, flow, mode.into()) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(DropReason::FlowCollision),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// Removes an entry from the pending table of its protocol.
#[inline(always)]
pub(crate) fn remove_pending(key: &FlowKey) {
    if let Some(table) = pending_flows(key.proto) {
        let _ = table.remove(key);
    }
}

/// Removes an entry of the connection with this forward key from both tables.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey, forward_key: &FlowKey) {
    shares::count_flow(forward_key, take_out(key));
}

/// The same, not counted: what it changes, see [`shares::taken_out`].
#[inline(always)]
fn take_out(key: &FlowKey) -> i64 {
    remove_pending(key);
    shares::taken_out(FLOWS.remove(key))
}

/// Forgets a connection by its forward key and entry. Where it has ended, its backend may keep it in TIME-WAIT: then
/// the reply entry stays and holds its key, until `outlived` or the sweep finds it old enough.
#[inline(always)]
pub(crate) fn forget(forward_key: &FlowKey, forward: &Flow) {
    // Counted beside the global function, not by it: the stack has no room for both frames below a program's.
    shares::count_flow(forward_key, flow_forget(forward_key, forward));
}

/// Global, see [`global`]; returns what it changes, see [`shares::taken_out`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_forget(forward_key: *const FlowKey, forward: *const Flow) -> i64 {
    // SAFETY: `forget` passes references.
    let given = unsafe { (forward_key.as_ref(), forward.as_ref()) };
    let (Some(forward_key), Some(forward)) = given else { return 0 };
    let forward_key = &global::key(forward_key);
    let reply_key = reply_key(forward_key.zone, forward, forward_key.proto);
    let mut change = 0;
    if forward_key.proto == ipproto::TCP && ending::ended(forward) {
        if let Some(reply) = get(&reply_key)
            && answers(reply, forward_key)
        {
            reply.flags |= flag::ENDED;
        }
    } else {
        change = take_out(&reply_key);
    }
    change + take_out(forward_key)
}
