//! What a run showed.

use std::collections::BTreeMap;

use dataplane_common::{
    addr::Ip4,
    counter::{Counter, Stat},
    drop_reason::DropReason,
    mark,
};

/// What a program decided, as it left it in `skb->cb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not ours: handed on.
    Pass,
    /// Left to the kernel's bridge and vxlan device.
    SlowPath,
    /// Into the namespace behind this host-side veth.
    Peer(u32),
    /// Out of this interface.
    Neigh(u32),
    /// Out of this interface as it is.
    Device(u32),
    /// Back out of this interface.
    Reply(u32),
    /// Dropped.
    Drop(DropReason),
    /// For the programs alone.
    Taken,
    /// Dropped, and the sender told so: the packet has become a reset or an ICMP error on its way back.
    Refuse(DropReason),
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `TC_ACT_*`.
    pub verdict: i32,
    /// What the program says it did; `None` if it left nothing that makes sense.
    pub decision: Option<Decision>,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The next hop that the kernel was given with [`Decision::Neigh`]; `None`: it looks for one itself.
    pub next_hop: Option<Ip4>,
    /// Whether the packet has the Ethernet addresses of the next hop that the agent keeps, with [`Decision::Neigh`].
    pub addressed: bool,
    /// `skb->mark` afterwards.
    pub mark: u32,
    /// What was counted under `DROPS`; reasons without change are left out.
    pub drops: BTreeMap<DropReason, Stat>,
    /// What was counted under `COUNTERS`; counters without change are left out.
    pub counters: BTreeMap<Counter, Stat>,
}

/// What a run of an XDP program showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpOutcome {
    /// `XDP_*`.
    pub verdict: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// As in [`Outcome`].
    pub drops: BTreeMap<DropReason, Stat>,
    /// As in [`Outcome`].
    pub counters: BTreeMap<Counter, Stat>,
}

pub(super) fn decision(cb: &[u32; 5]) -> Option<Decision> {
    if cb[0] & 0xffff_0000 != mark::DECISION {
        return None;
    }
    Some(match cb[0] & 0xffff {
        mark::decision::PASS => Decision::Pass,
        mark::decision::SLOW_PATH => Decision::SlowPath,
        mark::decision::PEER => Decision::Peer(cb[1]),
        mark::decision::NEIGH | mark::decision::VIA | mark::decision::ADDRESSED => Decision::Neigh(cb[1]),
        mark::decision::DEVICE => Decision::Device(cb[1]),
        mark::decision::REPLY => Decision::Reply(cb[1]),
        mark::decision::DROP => Decision::Drop(reason(cb[1])?),
        mark::decision::TAKEN => Decision::Taken,
        mark::decision::REFUSE => Decision::Refuse(reason(cb[1])?),
        _ => return None,
    })
}

pub(super) fn next_hop(cb: &[u32; 5]) -> Option<Ip4> {
    (cb[0] == mark::DECISION | mark::decision::VIA).then(|| cb[3].to_ne_bytes())
}

pub(super) fn addressed(cb: &[u32; 5]) -> bool {
    cb[0] == mark::DECISION | mark::decision::ADDRESSED
}

fn reason(number: u32) -> Option<DropReason> {
    DropReason::ALL.iter().copied().find(|reason| *reason as u32 == number)
}

/// What was added between two readings.
pub(super) fn deltas<K: Copy + Ord>(before: &[(K, Stat)], after: &[(K, Stat)]) -> BTreeMap<K, Stat> {
    before
        .iter()
        .zip(after)
        .map(|((key, old), (_, new))| {
            let delta =
                Stat { packets: new.packets.wrapping_sub(old.packets), bytes: new.bytes.wrapping_sub(old.bytes) };
            (*key, delta)
        })
        .filter(|(_, delta)| *delta != Stat::default())
        .collect()
}
