use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
};

use dataplane_common::{
    flow::{Flow, FlowKey, MESH_ZONE},
    headers::ipproto,
};
use proptest::prelude::*;

use super::*;
use crate::connections::pairs::{is_reply, pair, reply_key};

const TAG: Tag = [7; 8];
const NOW: u64 = 1_000_000_000_000_000;

type Entry = (FlowKey, (Stage, Flow));

fn ago(seconds: u64) -> u64 {
    NOW - seconds * 1_000_000_000
}

/// A connection's two entries, both last seen so many seconds ago.
fn connection(proto: u8, port: u16, flags: u8, reply_flags: u8, seconds: u64) -> [(FlowKey, Flow); 2] {
    let (client, node, task) = ([192, 0, 2, 1], [192, 0, 2, 9], [172, 18, 0, 2]);
    let sport = port.to_be_bytes();
    let dport = 8080u16.to_be_bytes();
    let key = FlowKey { zone: MESH_ZONE, src: client, dst: node, sport, dport, proto, _pad: [0; 3] };
    let base = Flow { last_seen: ago(seconds), created: ago(seconds), tag: TAG, ..Flow::default() };
    let forward = Flow { src: client, dst: task, sport, dport: 80u16.to_be_bytes(), flags: flags | flag::SEEN, ..base };
    let reply =
        Flow { src: node, dst: client, sport: key.dport, dport: sport, flags: reply_flags | flag::REPLY, ..base };
    [(key, forward), (reply_key(&key, &forward), reply)]
}

fn at(stage: Stage, entries: &[(FlowKey, Flow)]) -> Vec<Entry> {
    entries.iter().map(|(key, flow)| (*key, (stage, *flow))).collect()
}

/// What is removed of these, the forward entry of a connection first.
fn flows(all: &HashMap<FlowKey, (Stage, Flow)>, rules: &Rules<'_>) -> Vec<(FlowKey, Stage, Reason)> {
    let pairs = all.iter().filter_map(|(key, (stage, flow))| {
        pair((*key, *stage, *flow), |key| Ok::<_, Infallible>(all.get(key).copied())).unwrap()
    });
    let decided = pairs.filter_map(|pair| Some((pair, flow(&pair, rules)?)));
    decided.flat_map(|(pair, why)| pair.halves().map(move |(key, stage, _)| (key, stage, why))).collect()
}

fn swept_by(entries: &[Entry], live: &[Tag], as_of: u64) -> Vec<(FlowKey, Stage, Reason)> {
    let live = live.iter().copied().collect();
    let rules = Rules { live: &live, as_of, timeouts: &Timeouts::default(), now: NOW };
    flows(&entries.iter().copied().collect(), &rules)
}

fn swept(stage: Stage, entries: &[(FlowKey, Flow)]) -> Vec<(FlowKey, Reason)> {
    swept_by(&at(stage, entries), &[TAG], NOW).into_iter().map(|(key, _, reason)| (key, reason)).collect()
}

/// (protocol, flags forward, flags reply, seconds that it may be idle)
type Case = (u8, u8, u8, u64);

fn times(stage: Stage, cases: &[Case]) {
    for (proto, flags, reply_flags, seconds) in cases.iter().copied() {
        let on_time = connection(proto, 1, flags, reply_flags, seconds);
        assert_eq!(swept(stage, &on_time), [], "{proto} {flags:#x} {reply_flags:#x} at {seconds} s");
        let late = connection(proto, 1, flags, reply_flags, seconds + 1);
        let [(forward, _), (reply, _)] = late;
        assert_eq!(
            swept(stage, &late),
            [(forward, Reason::Expired), (reply, Reason::Expired)],
            "{proto} {flags:#x} {reply_flags:#x} after {seconds} s"
        );
    }
}

const TCP: u8 = ipproto::TCP;
const UDP: u8 = ipproto::UDP;

#[test]
fn every_state_of_an_established_connection_has_its_own_time() {
    times(
        Stage::Established,
        &[
            (TCP, 0, 0, 4 * 3600),
            (TCP, 0, flag::SEEN, 4 * 3600),
            // A client's FIN may be anybody's.
            (TCP, flag::FIN, flag::SEEN, 4 * 3600),
            (TCP, 0, flag::SEEN | flag::FIN, 120),
            (TCP, flag::FIN, flag::SEEN | flag::FIN, 120),
            (TCP, flag::FIN | flag::ENDED, flag::SEEN | flag::FIN | flag::ENDED, 66),
            (TCP, flag::ENDED, flag::SEEN, 66),
            (TCP, 0, flag::SEEN | flag::ENDED, 66),
            (UDP, 0, flag::SEEN, 180),
            (ipproto::ICMP, 0, flag::SEEN, 30),
            (ipproto::SCTP, 0, flag::SEEN, 180),
        ],
    );
}

#[test]
fn what_has_proved_nothing_goes_soon() {
    times(
        Stage::Pending,
        &[
            (TCP, 0, 0, 60),
            // A SYN-ACK, or a hundred, prove nothing about the client.
            (TCP, 0, flag::SEEN, 60),
            (TCP, flag::ENDED, 0, 66),
            (UDP, 0, 0, 30),
            (UDP, 0, flag::SEEN, 180),
            (ipproto::ICMP, 0, 0, 30),
        ],
    );
}

#[test]
fn one_established_entry_makes_the_connection_established() {
    let [forward, reply] = connection(TCP, 1, 0, flag::SEEN, 3600);
    for (one, other) in [(Stage::Established, Stage::Pending), (Stage::Pending, Stage::Established)] {
        let entries = [at(one, &[forward]), at(other, &[reply])].concat();
        assert_eq!(swept_by(&entries, &[TAG], NOW), []);
    }
}

#[test]
fn traffic_in_one_direction_keeps_both_entries() {
    for direction in [0, 1] {
        let mut entries = connection(UDP, 1, 0, flag::SEEN, 1000);
        entries[direction].1.last_seen = ago(1);
        assert_eq!(swept(Stage::Established, &entries), []);
    }
}

#[test]
fn connections_of_tasks_that_are_gone_go_at_once() {
    for stage in [Stage::Established, Stage::Pending] {
        let gone = swept_by(&at(stage, &connection(TCP, 1, 0, flag::SEEN, 0)), &[], made_at_most(NOW));
        assert_eq!(gone.len(), 2);
        assert!(gone.iter().all(|(_, _, reason)| *reason == Reason::TaskGone));
    }
}

#[test]
fn a_connection_that_is_younger_than_the_list_of_tasks_stays() {
    let entries = at(Stage::Established, &connection(TCP, 1, 0, flag::SEEN, 5));
    assert_eq!(swept_by(&entries, &[], ago(6)), []);
    // It is not known more exactly when it began.
    assert_eq!(swept_by(&entries, &[], made_at_most(ago(5)) - 1), []);
    assert_eq!(swept_by(&entries, &[], made_at_most(ago(5))).len(), 2);
}

#[test]
fn an_established_reply_entry_without_its_forward_entry_goes_once_it_is_no_longer_new() {
    let [_, (key, reply)] = connection(TCP, 1, 0, flag::SEEN, 3);
    assert_eq!(swept(Stage::Established, &[(key, reply)]), [(key, Reason::Orphan)]);
    let [_, young] = connection(TCP, 1, 0, flag::SEEN, 1);
    assert_eq!(swept(Stage::Established, &[young]), []);
}

#[test]
fn what_an_ended_connection_has_left_expires_with_its_time_wait() {
    for flags in [flag::FIN | flag::ENDED, flag::ENDED] {
        let [_, kept] = connection(TCP, 1, 0, flag::SEEN | flags, 66);
        assert_eq!(swept(Stage::Established, &[kept]), []);
        let [_, old] = connection(TCP, 1, 0, flag::SEEN | flags, 67);
        assert_eq!(swept(Stage::Established, &[old]), [(old.0, Reason::Expired)]);
    }
}

#[test]
fn a_pending_entry_stays_for_its_time_without_the_other() {
    for one in [0, 1] {
        let entry = |seconds| connection(TCP, 1, 0, 0, seconds)[one];
        assert_eq!(swept(Stage::Pending, &[entry(60)]), []);
        assert_eq!(swept(Stage::Pending, &[entry(61)]), [(entry(61).0, Reason::Expired)]);
    }
}

#[test]
fn a_direct_connection_needs_one_entry_only() {
    let direct = |flags, seconds| {
        let [_, (key, reply)] = connection(TCP, 1, 0, flags | flag::DIRECT, seconds);
        let identity = Flow { src: key.src, dst: key.dst, sport: key.sport, dport: key.dport, ..reply };
        [(key, identity)]
    };
    for (stage, flags, seconds) in [
        (Stage::Pending, 0, 60),
        (Stage::Established, flag::SEEN, 4 * 3600),
        (Stage::Established, flag::SEEN | flag::FIN, 120),
        (Stage::Established, flag::SEEN | flag::ENDED, 66),
    ] {
        assert_eq!(swept(stage, &direct(flags, seconds)), []);
        let late = direct(flags, seconds + 1);
        assert_eq!(swept(stage, &late), [(late[0].0, Reason::Expired)]);
    }
    let entries = at(Stage::Established, &direct(flag::SEEN, 0));
    assert_eq!(swept_by(&entries, &[], made_at_most(NOW))[0].2, Reason::TaskGone, "its backend's tag counts");
}

#[test]
fn a_forward_entry_whose_reply_key_belongs_to_another_goes_alone() {
    let [(key, forward), (taken, mut other)] = connection(UDP, 1, 0, flag::SEEN, 1000);
    other.dport = [9, 9];
    other.created = ago(1);
    other.last_seen = ago(1);
    assert_eq!(swept(Stage::Established, &[(key, forward), (taken, other)]), [(key, Reason::Expired)]);
}

#[test]
fn affinity_expires_by_state() {
    let key = |proto| AffinityKey { proto, ..AffinityKey::default() };
    let own = flag::OWN | flag::SEEN;
    for (stage, proto, flags, seconds) in [
        (Stage::Pending, TCP, flag::SEEN, 60),
        (Stage::Pending, TCP, flag::SEEN | flag::REPLIED, 60),
        (Stage::Established, TCP, flag::SEEN | flag::REPLIED, 4 * 3600),
        (Stage::Established, TCP, flag::SEEN | flag::REPLIED | flag::FIN, 4 * 3600),
        (Stage::Established, TCP, flag::SEEN | flag::REPLIED | flag::BACKEND_FIN, 120),
        (Stage::Established, TCP, flag::SEEN | flag::REPLIED | flag::FIN | flag::BACKEND_FIN, 120),
        (Stage::Established, TCP, flag::SEEN | flag::REPLIED | flag::ENDED, 66),
        (Stage::Pending, UDP, flag::SEEN, 30),
        (Stage::Pending, UDP, flag::SEEN | flag::REPLIED, 180),
        (Stage::Pending, UDP, own, 180),
    ] {
        let is_own = flags & flag::OWN != 0;
        let tag = if is_own { Tag::default() } else { TAG };
        let swept = |seconds, live: &[Tag]| {
            let entry = Affinity { tag, flags, last_seen: ago(seconds), created: ago(seconds), ..Affinity::default() };
            let live = live.iter().copied().collect();
            let rules = Rules { live: &live, as_of: NOW, timeouts: &Timeouts::default(), now: NOW };
            affinity(&key(proto), stage, &entry, &rules)
        };
        assert_eq!(swept(seconds, &[TAG]), None);
        assert_eq!(swept(seconds + 1, &[TAG]), Some(Reason::Expired));
        assert_eq!(swept(0, &[]), (!is_own).then_some(Reason::TaskGone));
    }
}

/// Another node, with the table of a moment ago, may have sent the first packet of a connection just now.
#[test]
fn of_a_task_that_has_just_left_only_what_is_young_goes_on() {
    let mut live = Live::default();
    live.departing(TAG, ago(2));
    let rules = Rules { live: &live, as_of: NOW, timeouts: &Timeouts::default(), now: NOW };
    for (seconds, expected) in [(0, None), (1, None), (2, None), (3, Some(Reason::TaskGone))] {
        for stage in [Stage::Pending, Stage::Established] {
            let all = at(stage, &connection(TCP, 1, flag::SEEN, flag::SEEN, seconds)).into_iter().collect();
            let found: Vec<_> = flows(&all, &rules).into_iter().map(|(_, _, why)| why).collect();
            assert_eq!(found, expected.map_or(vec![], |why| vec![why; 2]), "{stage:?}, {seconds} s");
            let created = ago(seconds);
            let entry = Affinity { tag: TAG, flags: flag::SEEN, last_seen: created, created, ..Affinity::default() };
            let key = AffinityKey { proto: TCP, ..AffinityKey::default() };
            assert_eq!(affinity(&key, stage, &entry, &rules), expected, "{stage:?}, {seconds} s");
        }
    }
}

proptest! {
    #[test]
    fn all_entries_of_a_connection_go_or_stay_together(
        connections in prop::collection::btree_map(
            1u16..2000,
            (
                prop::sample::select(vec![TCP, UDP, ipproto::ICMP]),
                (0u8..16, 0u8..16),
                0u64..20_000,
                // In which table each entry is; neither, for one that was displaced.
                prop::sample::select(vec![Some(Stage::Established), Some(Stage::Pending), None]),
                prop::sample::select(vec![Some(Stage::Established), Some(Stage::Pending), None]),
            ),
            0..40,
        )
    ) {
        let entries: BTreeMap<FlowKey, (Stage, Flow)> = connections
            .iter()
            .flat_map(|(port, (proto, (flags, reply), seconds, first, second))| {
                let [a, b] = connection(*proto, *port, flags & !flag::REPLY, *reply, *seconds);
                let entry = |(key, flow): (FlowKey, Flow), stage: Option<Stage>| stage.map(|stage| (key, (stage, flow)));
                [entry(a, *first), entry(b, *second)].into_iter().flatten()
            })
            .collect();
        let all: Vec<_> = entries.iter().map(|(key, entry)| (*key, *entry)).collect();
        let decided = swept_by(&all, &[TAG], NOW);
        let removed: HashSet<_> = decided.iter().map(|(key, ..)| *key).collect();
        prop_assert_eq!(removed.len(), decided.len(), "something is removed twice");
        for (key, (_, flow)) in entries.iter().filter(|(_, (_, flow))| !is_reply(flow)) {
            let reply = reply_key(key, flow);
            if entries.contains_key(&reply) {
                prop_assert_eq!(removed.contains(key), removed.contains(&reply));
            }
        }
        // What was left is still left when looked at again.
        let rest: Vec<_> = all.into_iter().filter(|(key, _)| !removed.contains(key)).collect();
        prop_assert_eq!(swept_by(&rest, &[TAG], NOW), vec![]);
    }
}
