//! Which connections are to be forgotten: pure decisions on a snapshot of the tables.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use dataplane_common::{
    addr::Tag,
    flow::{Affinity, AffinityKey, Flow, FlowKey, flag},
};

use super::timeouts::{Progress, Timeouts};

/// Why a connection is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Idle for too long.
    Expired,
    /// Its task is gone.
    TaskGone,
    /// A reply entry without its forward entry.
    Orphan,
}

/// Entries younger than this are not called orphans: the programs write a connection's two entries one after the
/// other, and the snapshot is not taken in an instant.
const ORPHAN_AGE: Duration = Duration::from_secs(2);

/// Entries of `flows` to remove; both entries of a connection or none, the forward entry first.
pub(super) fn flows(
    flows: &BTreeMap<FlowKey, Flow>,
    live: &HashSet<Tag>,
    timeouts: &Timeouts,
    now: u64,
) -> Vec<(FlowKey, Reason)> {
    let mut remove = Vec::new();
    let mut paired = HashSet::new();
    for (key, forward) in flows.iter().filter(|(_, flow)| flow.flags & flag::REPLY == 0) {
        let reply_key = reply_key(key, forward);
        let reply = flows.get(&reply_key).filter(|reply| answers(reply, key));
        if reply.is_some() {
            paired.insert(reply_key);
        }
        let reason = if !live.contains(&forward.tag) {
            Reason::TaskGone
        } else if idle(now, forward.last_seen.max(reply.map_or(0, |r| r.last_seen)))
            > timeouts.of(key.proto, progress(forward, reply))
        {
            Reason::Expired
        } else {
            continue;
        };
        remove.push((*key, reason));
        if reply.is_some() {
            remove.push((reply_key, reason));
        }
    }
    let orphans = flows
        .iter()
        .filter(|(key, flow)| flow.flags & flag::REPLY != 0 && !paired.contains(key))
        .filter(|(_, flow)| idle(now, flow.created) > ORPHAN_AGE);
    remove.extend(orphans.map(|(key, _)| (*key, Reason::Orphan)));
    remove
}

/// Entries of `affinity` to remove.
pub(super) fn affinity(
    affinity: &BTreeMap<AffinityKey, Affinity>,
    live: &HashSet<Tag>,
    timeouts: &Timeouts,
    now: u64,
) -> Vec<(AffinityKey, Reason)> {
    affinity
        .iter()
        .filter_map(|(key, entry)| {
            let progress = Progress {
                replied: entry.flags & flag::REPLIED != 0,
                // One bit for both directions.
                half_closed: entry.flags & flag::FIN != 0,
                closed: entry.flags & flag::RST != 0,
            };
            if !live.contains(&entry.tag) {
                Some((*key, Reason::TaskGone))
            } else if idle(now, entry.last_seen) > timeouts.of(key.proto, progress) {
                Some((*key, Reason::Expired))
            } else {
                None
            }
        })
        .collect()
}

/// Key of the reply entry that belongs to a forward entry: the translated packet, turned round.
pub(super) fn reply_key(key: &FlowKey, forward: &Flow) -> FlowKey {
    FlowKey {
        zone: key.zone,
        src: forward.dst,
        dst: forward.src,
        sport: forward.dport,
        dport: forward.sport,
        proto: key.proto,
        _pad: [0; 3],
    }
}

/// Whether `reply` turns packets back into answers to `forward`: another connection may have taken its key over.
fn answers(reply: &Flow, forward: &FlowKey) -> bool {
    reply.flags & flag::REPLY != 0
        && reply.dst == forward.src
        && reply.src == forward.dst
        && reply.dport == forward.sport
        && reply.sport == forward.dport
}

fn progress(forward: &Flow, reply: Option<&Flow>) -> Progress {
    let reply = reply.map_or(0, |reply| reply.flags);
    let either = forward.flags | reply;
    Progress {
        replied: reply & flag::SEEN != 0,
        half_closed: either & flag::FIN != 0,
        closed: either & flag::RST != 0 || forward.flags & reply & flag::FIN != 0,
    }
}

/// How long ago that was; nothing if the entry was touched after the clock was read.
fn idle(now: u64, seen: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(seen))
}

#[cfg(test)]
mod tests {
    use dataplane_common::{flow::MESH_ZONE, headers::ipproto};
    use proptest::prelude::*;

    use super::*;

    const TAG: Tag = [7; 8];
    const NOW: u64 = 1_000_000_000_000_000;

    fn ago(seconds: u64) -> u64 {
        NOW - seconds * 1_000_000_000
    }

    /// A connection's two entries, both last seen so many seconds ago.
    fn connection(proto: u8, port: u16, flags: u8, reply_flags: u8, seconds: u64) -> [(FlowKey, Flow); 2] {
        let (client, node, task) = ([192, 0, 2, 1], [192, 0, 2, 9], [172, 18, 0, 2]);
        let sport = port.to_be_bytes();
        let key = FlowKey {
            zone: MESH_ZONE,
            src: client,
            dst: node,
            sport,
            dport: 8080u16.to_be_bytes(),
            proto,
            _pad: [0; 3],
        };
        let base = Flow { last_seen: ago(seconds), created: ago(seconds), tag: TAG, ..Flow::default() };
        let forward =
            Flow { src: client, dst: task, sport, dport: 80u16.to_be_bytes(), flags: flags | flag::SEEN, ..base };
        let reply =
            Flow { src: node, dst: client, sport: key.dport, dport: sport, flags: reply_flags | flag::REPLY, ..base };
        [(key, forward), (reply_key(&key, &forward), reply)]
    }

    fn swept(entries: &[(FlowKey, Flow)]) -> Vec<(FlowKey, Reason)> {
        flows(&entries.iter().copied().collect(), &HashSet::from([TAG]), &Timeouts::default(), NOW)
    }

    #[test]
    fn every_state_has_its_own_time() {
        let (tcp, udp, icmp) = (ipproto::TCP, ipproto::UDP, ipproto::ICMP);
        for (proto, flags, reply_flags, seconds) in [
            (tcp, 0, 0, 60),
            (tcp, 0, flag::SEEN, 4 * 3600),
            (tcp, flag::FIN, flag::SEEN, 120),
            (tcp, 0, flag::SEEN | flag::FIN, 120),
            (tcp, flag::FIN, flag::SEEN | flag::FIN, 61),
            (tcp, flag::RST, flag::SEEN, 61),
            (tcp, 0, flag::SEEN | flag::RST, 61),
            (udp, 0, 0, 30),
            (udp, 0, flag::SEEN, 180),
            (icmp, 0, flag::SEEN, 30),
            (ipproto::SCTP, 0, flag::SEEN, 180),
        ] {
            let at = connection(proto, 1, flags, reply_flags, seconds);
            assert_eq!(swept(&at), [], "{proto} {flags:#x} {reply_flags:#x} at {seconds} s");
            let after = connection(proto, 1, flags, reply_flags, seconds + 1);
            let [(forward, _), (reply, _)] = after;
            assert_eq!(
                swept(&after),
                [(forward, Reason::Expired), (reply, Reason::Expired)],
                "{proto} {flags:#x} {reply_flags:#x} after {seconds} s"
            );
        }
    }

    #[test]
    fn traffic_in_one_direction_keeps_both_entries() {
        for direction in [0, 1] {
            let mut entries = connection(ipproto::UDP, 1, 0, flag::SEEN, 1000);
            entries[direction].1.last_seen = ago(1);
            assert_eq!(swept(&entries), []);
        }
    }

    #[test]
    fn connections_of_tasks_that_are_gone_go_at_once() {
        let entries: BTreeMap<_, _> = connection(ipproto::TCP, 1, 0, flag::SEEN, 0).into();
        let gone = flows(&entries, &HashSet::new(), &Timeouts::default(), NOW);
        assert_eq!(gone.len(), 2);
        assert!(gone.iter().all(|(_, reason)| *reason == Reason::TaskGone));
    }

    #[test]
    fn a_reply_entry_without_its_forward_entry_goes_once_it_is_no_longer_new() {
        let [_, (key, reply)] = connection(ipproto::TCP, 1, 0, flag::SEEN, 3);
        assert_eq!(swept(&[(key, reply)]), [(key, Reason::Orphan)]);
        let [_, young] = connection(ipproto::TCP, 1, 0, flag::SEEN, 1);
        assert_eq!(swept(&[young]), []);
    }

    #[test]
    fn a_forward_entry_whose_reply_key_belongs_to_another_goes_alone() {
        let [(key, forward), (taken, mut other)] = connection(ipproto::UDP, 1, 0, flag::SEEN, 1000);
        other.dport = [9, 9];
        other.created = ago(1);
        assert_eq!(swept(&[(key, forward), (taken, other)]), [(key, Reason::Expired)]);
    }

    #[test]
    fn affinity_expires_by_state() {
        let key = AffinityKey { proto: ipproto::TCP, ..AffinityKey::default() };
        let entry = |flags, seconds| Affinity { tag: TAG, flags, last_seen: ago(seconds), ..Affinity::default() };
        for (flags, seconds) in [
            (flag::SEEN, 60),
            (flag::SEEN | flag::REPLIED, 4 * 3600),
            (flag::SEEN | flag::REPLIED | flag::FIN, 120),
            (flag::SEEN | flag::REPLIED | flag::RST, 61),
        ] {
            let swept = |seconds, live: &[Tag]| {
                let table = BTreeMap::from([(key, entry(flags, seconds))]);
                affinity(&table, &live.iter().copied().collect(), &Timeouts::default(), NOW)
            };
            assert_eq!(swept(seconds, &[TAG]), []);
            assert_eq!(swept(seconds + 1, &[TAG]), [(key, Reason::Expired)]);
            assert_eq!(swept(0, &[]), [(key, Reason::TaskGone)]);
        }
    }

    proptest! {
        #[test]
        fn both_entries_of_a_connection_go_or_stay_together(
            connections in prop::collection::btree_map(
                1u16..2000,
                (prop::sample::select(vec![ipproto::TCP, ipproto::UDP, ipproto::ICMP]), 0u8..16, 0u8..16, 0u64..20_000),
                0..40,
            )
        ) {
            let entries: BTreeMap<_, _> = connections
                .iter()
                .flat_map(|(port, (proto, flags, reply, seconds))| {
                    connection(*proto, *port, flags & !flag::REPLY, *reply, *seconds)
                })
                .collect();
            let removed: HashSet<_> =
                flows(&entries, &HashSet::from([TAG]), &Timeouts::default(), NOW).into_iter().map(|(k, _)| k).collect();
            for (key, flow) in entries.iter().filter(|(_, f)| f.flags & flag::REPLY == 0) {
                prop_assert_eq!(removed.contains(key), removed.contains(&reply_key(key, flow)));
            }
            // What was left is still left when looked at again.
            let rest: BTreeMap<_, _> = entries.into_iter().filter(|(key, _)| !removed.contains(key)).collect();
            prop_assert_eq!(flows(&rest, &HashSet::from([TAG]), &Timeouts::default(), NOW), vec![]);
        }
    }
}
