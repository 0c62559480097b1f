//! The tables `FLOWS_SEGMENTS` and `FLOWS`: two entries per translated connection, one per direction.
//!
//! A connection begins as pending entries in the lines, which make room for others when they were silent for longest.
//! Once both ends have proved that they are there (see `pending.rs`) its entries are established, each in its line,
//! where nothing is ever displaced. Only where its bucket has as many established ones as it may have one moves to the
//! hash `FLOWS`. A flood of packets from invented sources never gets that far. Either entry of a pending connection may
//! be displaced; each can be made again from the other.
//!
//! What a packet says about its connection is in `dataplane-core` (`connection`, `proof`, `ending`, `succession`,
//! `age`). The tables are used here and, on top of this file, by `opening.rs`, `pending.rs` and `follow.rs`.
//!
//! Concurrency: entries are created by whichever CPU sees the first packet ([`enter`] decides races); after that only
//! `last_seen`, `flags` and `tcp_number` change, and in lines the state, which lies in `created`. An entry that moves
//! is put into `FLOWS` before its line is freed, and look-ups read the lines first: they find it throughout. Two CPUs
//! that note something in `flags` at once may lose one of both: a connection whose FINs cross so lasts until it has
//! been silent for long.

use dataplane_common::{
    addr::NetId,
    drop_reason::DropReason,
    flow::{Flow, FlowKey, flag},
    headers::ipproto,
    line,
};

use crate::{
    clock,
    connection::{self, answers, forward_key},
    ending,
    flow_lines::{self, Translated},
    lines::New,
    lines_map,
    nat::Translation,
    scratch::scratch,
    shares, succession,
};

/// The entry with this key, in whichever table.
#[inline(always)]
pub(crate) fn get(key: &FlowKey) -> Option<&'static mut Flow> {
    find(key).map(|found| found.0)
}

/// The entry with this key, if it is established.
#[inline(always)]
pub(crate) fn established(key: &FlowKey) -> Option<&'static mut Flow> {
    find(key).filter(|found| !found.1).map(|found| found.0)
}

/// The entry with this key, and whether it is still pending.
#[inline(always)]
pub(crate) fn find(key: &FlowKey) -> Option<(&'static mut Flow, bool)> {
    let place = flow_lines::find(key);
    // VERIFIER: whether the place is none is not asked, which would be another way to the same end.
    match place.entry::<Translated>() {
        Some(entry) => Some((entry, !place.is_established())),
        None => lines_map::get_spilled::<Translated>(place, key).map(|entry| (entry, false)),
    }
}

/// Whether there is an established entry with this key.
#[inline(always)]
pub(crate) fn is_established(key: &FlowKey) -> bool {
    let place = flow_lines::find(key);
    place.is_established() || (!place.is_found() && lines_map::get_spilled::<Translated>(place, key).is_some())
}

/// Notes that a packet went by.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow) {
    note(flow, flag::SEEN);
}

/// The same, adding these bits. In a pending entry exactly: who is silent makes room for others there.
#[inline(always)]
pub(crate) fn note(flow: &mut Flow, bits: u8) {
    if line::is_pending(flow.created) {
        flow.flags |= bits;
        clock::renew(&mut flow.last_seen);
    } else {
        clock::note(&mut flow.last_seen, &mut flow.flags, bits);
    }
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
    if let Some(outlived) = succession::outlived(reply, now) {
        return outlived;
    }
    // In scratch memory: the callers have little of the 512 bytes of stack to spare.
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = forward_key(zone, reply, proto);
    succession::forward_over(get(&scratch.reply_key).as_deref(), reply, now)
}

/// Enters a new pending entry. `FlowCollision`: there is one with this key, or another CPU was entering one.
#[inline(always)]
pub(crate) fn enter(key: &FlowKey, flow: &Flow) -> Result<(), DropReason> {
    match flow_lines::put_new(key, flow) {
        New::Done => Ok(()),
        New::Taken => Err(DropReason::FlowCollision),
        New::Not => Err(DropReason::FlowTableFull),
    }
}

/// Enters a pending entry, in the place of one with this key if that is pending, too.
#[inline(always)]
pub(crate) fn put_pending(key: &FlowKey, flow: &Flow) -> Result<(), DropReason> {
    if flow_lines::put(key, flow) { Ok(()) } else { Err(DropReason::FlowTableFull) }
}

/// Removes an entry of the connection with this forward key.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey, forward_key: &FlowKey) {
    shares::count_flow(forward_key, take_out(key));
}

/// The same, not counted: what it changes, see [`shares::taken_out`].
#[inline(always)]
fn take_out(key: &FlowKey) -> i64 {
    // In both while a sweep moves it back: it was counted once.
    -i64::from(flow_lines::remove(key)) | lines_map::take_out_spilled::<Translated>(key)
}

/// The same for the entry that was found with this [`Flow::created`]. Of several CPUs that try, one takes it out; the
/// others get `None`.
#[inline(always)]
pub(crate) fn take_out_found(key: &FlowKey, created: u64) -> Option<i64> {
    match flow_lines::remove_found(key, created) {
        Some(established) => Some(-i64::from(established) | lines_map::take_out_spilled::<Translated>(key)),
        None => Some(lines_map::take_out_spilled::<Translated>(key)).filter(|change| *change != 0),
    }
}

/// Forgets a connection by its forward key and entry. Where it has ended, its backend may keep it in TIME-WAIT: then
/// the reply entry stays and holds its key, until `outlived` or the sweep finds it old enough.
#[inline(always)]
pub(crate) fn forget(forward_key: &FlowKey, forward: &Flow) {
    // Counted beside the global function, not by it: the stack has no room for both frames below a program's.
    shares::count_flow(forward_key, flow_forget(forward_key, forward));
}

/// Global, see [`crate::global`]; returns what it changes, see [`shares::taken_out`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_forget(forward_key: *const FlowKey, forward: *const Flow) -> i64 {
    // SAFETY: `forget` passes references.
    let given = unsafe { (forward_key.as_ref(), forward.as_ref()) };
    let (Some(forward_key), Some(forward), Ok(scratch)) = (given.0, given.1, scratch()) else { return 0 };
    scratch.key = *forward_key;
    let (key, reply_key) = (&scratch.key, &mut scratch.reply_key);
    *reply_key = connection::reply_key(key.zone, forward, key.proto);
    let mut change = 0;
    if key.proto == ipproto::TCP && ending::ended(forward) {
        if let Some(reply) = get(reply_key)
            && answers(reply, key)
        {
            reply.flags |= flag::ENDED;
        }
    } else {
        change = take_out(reply_key);
    }
    change + take_out(key)
}
