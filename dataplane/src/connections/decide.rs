//! Which connections are to be forgotten: pure decisions on a snapshot of the tables.

use std::time::Duration;

use dataplane_common::{
    addr::Tag,
    flow::{Affinity, AffinityKey, flag},
    headers::ipproto,
};

use super::{
    Live, Stage,
    pairs::Pair,
    state::{Evidence, State},
    timeouts::Timeouts,
};
use crate::line_table::made_at_most;

/// Why a connection is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Idle for too long.
    Expired,
    /// Its task is gone.
    TaskGone,
    /// An established reply entry without its forward entry.
    Orphan,
}

/// What decisions are made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// All endpoints, as they were at `as_of`.
    pub(super) live: &'a Live,
    pub(super) as_of: u64,
    pub(super) timeouts: &'a Timeouts,
    /// A time before the snapshot was taken.
    pub(super) now: u64,
}

impl Rules<'_> {
    fn gone(&self, tag: &Tag, created: u64) -> bool {
        self.live.has_ended(tag, created, self.as_of)
    }

    /// Of what was kept pending (`kept`) the programs note no end of the client's: silence has to do.
    fn expired(&self, proto: u8, state: State, kept: bool, last_seen: u64) -> bool {
        let allowed = self.timeouts.of(proto, state);
        let most = if kept && proto == ipproto::TCP { self.timeouts.tcp_half_closed } else { allowed };
        idle(self.now, last_seen) > allowed.min(most)
    }
}

/// Entries younger than this are not called orphans: the programs write a connection's two entries one after the
/// other, and the snapshot is not taken in an instant.
const ORPHAN_AGE: Duration = Duration::from_secs(2);

/// Why a connection is to be forgotten, with all its entries; `None` if it stays.
pub(super) fn flow(pair: &Pair, rules: &Rules<'_>) -> Option<Reason> {
    let proto = pair.first().0.proto;
    if pair.halves().any(|(_, _, flow)| rules.gone(&flow.tag, made_at_most(flow.created))) {
        Some(Reason::TaskGone)
    } else if is_orphan(pair, rules.now) {
        Some(Reason::Orphan)
    } else if rules.expired(proto, pair.state(), pair.is_kept(), pair.last_seen()) {
        Some(Reason::Expired)
    } else {
        None
    }
}

/// A pending entry may have lost its other half to a flood, and gets it back with the next packet. Established ones
/// come and go in twos, but for direct connections, which need only the one, and for ended ones whose client has begun
/// anew with another backend: what is left keeps the former one's TIME-WAIT from being disturbed, and expires like it.
fn is_orphan(pair: &Pair, now: u64) -> bool {
    match pair {
        Pair::Reply((_, Stage::Established, flow)) => {
            let may_be_alone = flag::DIRECT | flag::FIN | flag::ENDED;
            flow.flags & may_be_alone == 0 && idle(now, flow.created) > ORPHAN_AGE
        }
        _ => false,
    }
}

/// Why a client's entry is to be removed.
pub(super) fn affinity(key: &AffinityKey, stage: Stage, entry: &Affinity, rules: &Rules<'_>) -> Option<Reason> {
    // The node's own connections belong to no task.
    let own = entry.flags & flag::OWN != 0;
    if !own && rules.gone(&entry.tag, entry.created) {
        Some(Reason::TaskGone)
    } else {
        let kept = stage == Stage::Pending && entry.flags & flag::AFFINITY_KEPT != 0;
        let state = affinity_state(key, stage, entry);
        rules.expired(key.proto, state, kept, entry.last_seen).then_some(Reason::Expired)
    }
}

/// State of a client's connection at its ingress node.
pub(super) fn affinity_state(key: &AffinityKey, stage: Stage, entry: &Affinity) -> State {
    let own = entry.flags & flag::OWN != 0;
    if own && key.proto != ipproto::TCP {
        // This node has spoken; whether it was answered is not its tables' business.
        return State::Established;
    }
    let stage = if entry.flags & flag::AFFINITY_KEPT != 0 { Stage::Established } else { stage };
    let reply = if entry.flags & flag::BACKEND_FIN != 0 { flag::FIN } else { 0 };
    Evidence { proto: key.proto, stage, forward: entry.flags, reply }.state()
}

/// How long ago that was; nothing if the entry was touched after the clock was read.
pub(super) fn idle(now: u64, seen: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(seen))
}

#[cfg(test)]
mod tests;
