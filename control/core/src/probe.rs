//! When to probe which path, and what the answers say about it. Pure: time comes in as nanoseconds of
//! `CLOCK_MONOTONIC`, what the programs have noted as [`Probed`].
//!
//! Each other node is sent a small probe every second, and where there are more than [`SMALL_PER_SECOND`] nodes less
//! often; and a probe as large as the path is taken to carry every half minute. A path fails after [`FAILS`] small
//! probes in a row without an answer, and passes again after [`PASSES`] with one, so that a single lost packet changes
//! nothing. Before the first answer it is waited for, and that is not passing; only a node that joins while others pass
//! is given a moment.
//!
//! If large probes get no answer where small ones do, no router has said why: the size that passes is searched for (as
//! RFC 8899 does), to the byte; every ten minutes the search goes on from there, in case more passes now.

mod large;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC, Ip4},
    headers::{ENCAP_LEN, ETH_LEN, IPV4_LEN, ethertype, ipproto},
    probe::{OUTER_LEN, PORT, Probe, Probed, VERSION, kind},
};

use large::Large;

/// Small probes that a node sends in a second at most.
pub const SMALL_PER_SECOND: u64 = 50;
/// Large ones.
pub const LARGE_PER_SECOND: u64 = 4;
/// Small probes in a row without an answer until a path that has passed traffic fails.
pub const FAILS: u32 = 3;
/// The same for a path that never has: the other node's agent may start later than this one.
pub const FAILS_AT_FIRST: u32 = 10;
/// For so long a node that has just joined is waited for without a word, if the paths to others pass or there have been
/// none for [`ALONE`]. Its first probe is due at once; longer than a path takes to fail it must not go unnoticed.
pub const JOINS: Duration = Duration::from_secs(3);
/// A node that has been alone for so long has not merely started and not heard of the others yet.
pub const ALONE: Duration = Duration::from_secs(10);
/// Answered small probes in a row until a path that has failed passes.
pub const PASSES: u32 = 2;

const SECOND: u64 = 1_000_000_000;
/// How long an answer is waited for.
const TIMEOUT: u64 = SECOND;
/// How often a path is probed with a small packet.
const SMALL: u64 = SECOND;
/// How often with a large one.
const LARGE: u64 = 30 * SECOND;
/// Requests of another node that are younger than this say that its packets arrive here; where it sends them seldom,
/// those that are younger than [`HEARD_PERIODS`] times their distance.
const HEARD: Duration = Duration::from_secs(30);
const HEARD_PERIODS: u32 = 3;
/// A request that came in where no tunnel is expected is forgotten once so many in a row have come in as they should:
/// where a node's packets take several ways, one of them may still lead there.
const STRAY_PERIODS: u32 = 5;
/// How many of the last small probes the loss is reckoned over.
const WINDOW: u32 = 60;

/// Whether a path works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No probe was answered yet.
    Waiting,
    /// Probes are answered.
    Passing,
    /// Probes are not answered.
    Failing,
}

/// A probe to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// To this node.
    pub vtep: Ip4,
    /// Its number.
    pub sequence: u32,
    /// Length of the outer IP packet.
    pub size: u16,
}

/// What a probe carries besides [`Due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// So that answers to another agent's probes do not count.
    pub nonce: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub now: u64,
    /// The longest outer packet that the data plane sends there.
    pub mtu: u16,
}

/// The frame that goes into the host link, from end to end. UDP without a checksum (RFC 768); its
/// source port differs from probe to probe, so that all ways are tried where the underlay has several.
pub fn frame(own: Ip4, due: &Due, stamp: &Stamp) -> Vec<u8> {
    let len = usize::from(due.size).max(OUTER_LEN) - ENCAP_LEN;
    let sport = 49152 | (due.sequence & 0x3fff) as u16;
    let probe = Probe {
        version: VERSION,
        kind: kind::REQUEST,
        size: due.size.to_be_bytes(),
        mtu: stamp.mtu.to_be_bytes(),
        nonce: stamp.nonce.to_ne_bytes(),
        sent: stamp.now.to_ne_bytes(),
        sequence: due.sequence.to_ne_bytes(),
        ..Probe::default()
    };
    let mut ip = [0u8; IPV4_LEN];
    (ip[0], ip[6], ip[8], ip[9]) = (0x45, 0x40, 64, ipproto::UDP);
    ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&own);
    ip[16..20].copy_from_slice(&due.vtep);
    let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    let udp_len = ((len - IPV4_LEN) as u16).to_be_bytes();
    let mut frame = Vec::with_capacity(ETH_LEN + len);
    frame.extend(HOST_PEER_MAC);
    frame.extend(HOST_MAC);
    frame.extend(ethertype::IPV4);
    frame.extend(ip);
    frame.extend(sport.to_be_bytes());
    frame.extend(PORT);
    frame.extend(udp_len);
    frame.extend([0; 2]);
    frame.extend(probe.to_bytes());
    frame.resize(ETH_LEN + len, 0);
    frame
}

/// What is known about the path to a node.
#[derive(Clone, Debug, PartialEq)]
pub struct PathView {
    /// Whether it works.
    pub state: State,
    /// Since then it has been so.
    pub since: Duration,
    /// Round trip of the last small probe.
    pub rtt: Option<Duration>,
    /// Share of the last small probes without an answer, since it passes if it does.
    pub loss: f64,
    /// Small probes that the loss is reckoned over.
    pub counted: u32,
    /// Size of the last large probe that was answered: outer IP packet, bytes.
    pub passed: Option<u16>,
    /// What probes have found to be the most that passes, where nothing else says so.
    pub limit: Option<u16>,
    /// What the other node takes the path back to be able to carry.
    pub their_mtu: Option<u16>,
    /// Since the other node's last probe came in.
    pub heard: Option<Duration>,
    /// How often nodes probe each other with a small packet.
    pub period: Duration,
    /// The port that the other node sends its tunnels to, if they come in where none is expected: another one than this
    /// node's, or this node's at an interface that is no uplink.
    pub port: Option<u16>,
    /// The node has joined less than [`JOINS`] ago, while other paths passed or there were none.
    pub joining: bool,
}

impl PathView {
    /// A path that has not been probed.
    pub fn unknown(joining: bool) -> Self {
        Self { joining, ..Path::new(0, 0, 0).view(Duration::ZERO) }
    }

    /// A path in order.
    #[cfg(test)]
    pub(crate) fn passing() -> Self {
        Self {
            state: State::Passing,
            since: Duration::from_secs(12),
            rtt: Some(Duration::from_micros(70)),
            loss: 0.0,
            counted: 60,
            passed: Some(1500),
            limit: None,
            their_mtu: Some(1500),
            heard: Some(Duration::from_secs(1)),
            period: Duration::from_secs(1),
            port: None,
            joining: false,
        }
    }

    /// The other node's packets arrive here, which says which direction it is that fails: what has arrived before a
    /// path began to fail says nothing.
    pub fn is_heard(&self) -> bool {
        let long = heard_for(self.period);
        let counts = if self.state == State::Failing { long.min(self.since) } else { long };
        self.heard.is_some_and(|heard| heard < counts)
    }

    /// The path has failed for so long that a packet of the other node would have arrived: if none has, none does.
    pub fn is_settled(&self) -> bool {
        self.since > settles(self.period)
    }
}

/// For how long after a probe of the other node its packets are taken to arrive here.
fn heard_for(period: Duration) -> Duration {
    HEARD.max(HEARD_PERIODS * period)
}

/// How long after a path began to fail the other node's next probe is in, if it arrives at all, where nodes probe each
/// other that often.
pub fn settles(period: Duration) -> Duration {
    period + 2 * Duration::from_nanos(TIMEOUT)
}

/// How often each path is probed with a small packet where a node has so many.
pub fn period(paths: usize) -> Duration {
    Duration::from_nanos(SMALL.max(paths as u64 * SECOND / SMALL_PER_SECOND))
}

/// Probes of all paths.
#[derive(Debug, Default)]
pub struct Prober {
    paths: BTreeMap<Ip4, Path>,
    /// Since then there have been none.
    alone: Option<u64>,
    small: Bucket,
    large: Bucket,
}

/// A token bucket of a second's probes.
#[derive(Debug, Default)]
struct Bucket {
    /// Nanoseconds that are saved up.
    saved: u64,
    last: u64,
    /// The first path since the last [`Bucket::fill`] that got no probe. The next look begins with it, or paths that
    /// are probed again and again would take all probes from those behind them.
    missed_out: Option<Ip4>,
    /// Where the last look began.
    first: Ip4,
}

impl Bucket {
    fn fill(&mut self, now: u64) {
        self.saved = (self.saved + now.saturating_sub(self.last)).min(SECOND);
        self.last = now;
        self.first = self.missed_out.take().unwrap_or(self.first);
    }

    /// The paths in the order in which they may take.
    fn turn<P>(&self, paths: &BTreeMap<Ip4, P>) -> Vec<Ip4> {
        let (behind, before) = (paths.range(self.first..), paths.range(..self.first));
        behind.chain(before).map(|(vtep, _)| *vtep).collect()
    }

    /// Takes one of `rate` probes per second for this path, if there is one.
    fn take(&mut self, rate: u64, vtep: Ip4) -> bool {
        let price = SECOND / rate;
        let enough = self.saved >= price;
        if enough {
            self.saved -= price;
        } else {
            self.missed_out.get_or_insert(vtep);
        }
        enough
    }
}

#[derive(Debug)]
struct Path {
    state: State,
    since: u64,
    /// It came as [`Prober::joins`] says.
    joined: bool,
    /// When the next small probe is due.
    next: u64,
    sequence: u32,
    /// The last small probe, while it was neither answered nor given up.
    waits: Option<(u32, u64)>,
    missed: u32,
    hits: u32,
    /// Outcomes of small probes, the last one lowest; 1: lost.
    lost: u64,
    counted: u32,
    probed: Probed,
    now: u64,
    large: Large,
}

impl Prober {
    /// Probes the paths to these nodes from now on, and forgets the others.
    pub fn follow(&mut self, nodes: &BTreeSet<Ip4>, now: u64) {
        self.paths.retain(|vtep, _| nodes.contains(vtep));
        let joined = self.joins().is_some_and(|from| from <= now);
        self.alone = nodes.is_empty().then(|| self.alone.unwrap_or(now));
        let mut new = 0..;
        let count = nodes.len().max(1) as u64;
        for (number, vtep) in (0..).zip(nodes) {
            self.paths.entry(*vtep).or_insert_with(|| {
                // Spread, so that they are not sent in one burst each time, but as soon as may be.
                let small = now + new.next().unwrap_or(0) * (SECOND / SMALL_PER_SECOND);
                let large = now + 2 * SECOND + LARGE / 10 * number / count;
                Path { joined, ..Path::new(now, small, large) }
            });
        }
    }

    /// From then on (nanoseconds as `now`) a node that comes joins others that are in order, rather than being one of
    /// all those that this node has just learned of. `None`: not as things are.
    pub fn joins(&self) -> Option<u64> {
        let passing = self.paths.values().any(|path| path.state == State::Passing);
        if passing { Some(0) } else { self.alone.map(|since| since + ALONE.as_nanos() as u64) }
    }

    /// What is to be sent now. `mtus`: the longest outer packet that the data plane sends to each node, or `interface`.
    pub fn due(&mut self, now: u64, mtus: &BTreeMap<Ip4, u16>, interface: u16) -> Vec<Due> {
        let mut due = Vec::new();
        let period = period(self.paths.len()).as_nanos() as u64;
        let large_period = LARGE.max(self.paths.len() as u64 * SECOND / LARGE_PER_SECOND);
        self.small.fill(now);
        self.large.fill(now);
        for vtep in self.small.turn(&self.paths) {
            let Some(path) = self.paths.get_mut(&vtep) else { continue };
            if now >= path.next && path.waits.is_none() && self.small.take(SMALL_PER_SECOND, vtep) {
                // Again soon if the last one was lost, until that is enough to go by.
                path.next = now + if path.missed > 0 && path.state != State::Failing { SMALL } else { period };
                path.sequence = path.sequence.wrapping_add(1).max(1);
                path.waits = Some((path.sequence, now));
                due.push(Due { vtep, sequence: path.sequence, size: OUTER_LEN as u16 });
            }
        }
        for vtep in self.large.turn(&self.paths) {
            let Some(path) = self.paths.get_mut(&vtep) else { continue };
            let taken = mtus.get(&vtep).copied().unwrap_or(interface);
            if let Some(size) = path.large_due(now, taken, interface)
                && self.large.take(LARGE_PER_SECOND, vtep)
            {
                path.large.next = now + large_period;
                path.sequence = path.sequence.wrapping_add(1).max(1);
                path.large.waits = Some((path.sequence, now, size));
                due.push(Due { vtep, sequence: path.sequence, size });
            }
        }
        due
    }

    /// Takes note of what the programs have seen.
    pub fn read(&mut self, now: u64, probed: &BTreeMap<Ip4, Probed>) {
        for (vtep, path) in &mut self.paths {
            path.now = now;
            if let Some(probed) = probed.get(vtep) {
                path.probed = *probed;
            }
            path.judge(now);
            path.large.judge(now, &path.probed, path.small_passes());
        }
    }

    /// What is known about each path.
    pub fn views(&self) -> BTreeMap<Ip4, PathView> {
        // The other nodes know about as many nodes as this one does, and probe as often.
        let period = period(self.paths.len());
        self.paths.iter().map(|(vtep, path)| (*vtep, path.view(period))).collect()
    }

    /// What probes have found to be the most that passes, where they have.
    pub fn limits(&self) -> BTreeMap<Ip4, u16> {
        self.paths
            .iter()
            .filter(|(_, path)| path.large.limit != 0)
            .map(|(vtep, path)| (*vtep, path.large.limit))
            .collect()
    }
}

impl Path {
    fn new(now: u64, next: u64, large: u64) -> Self {
        Self {
            state: State::Waiting,
            since: now,
            joined: false,
            next,
            sequence: 0,
            waits: None,
            missed: 0,
            hits: 0,
            lost: 0,
            counted: 0,
            probed: Probed::default(),
            now,
            large: Large::new(large),
        }
    }

    fn judge(&mut self, now: u64) {
        let Some((sequence, sent)) = self.waits else { return };
        let answered = self.probed.answered != 0 && self.probed.sequence == sequence;
        if !answered && now < sent + TIMEOUT {
            return;
        }
        self.waits = None;
        self.lost = self.lost << 1 | u64::from(!answered);
        self.counted = (self.counted + 1).min(WINDOW);
        (self.hits, self.missed) = if answered { (self.hits + 1, 0) } else { (0, self.missed + 1) };
        let state = match self.state {
            State::Waiting if self.hits > 0 => State::Passing,
            State::Waiting if self.missed >= FAILS_AT_FIRST => State::Failing,
            State::Passing if self.missed >= FAILS => State::Failing,
            State::Failing if self.hits >= PASSES => State::Passing,
            same => same,
        };
        if state != self.state {
            (self.state, self.since) = (state, now);
            if state == State::Passing {
                // What was lost while it did not pass says nothing of how well it passes.
                (self.lost, self.counted) = (0, self.hits.min(WINDOW));
            }
        }
    }

    /// The size of the large probe that is due.
    fn large_due(&mut self, now: u64, taken: u16, interface: u16) -> Option<u16> {
        self.small_passes().then(|| self.large.due(now, taken, interface)).flatten()
    }

    /// Small probes are answered, so that what a large one tells is about its size.
    fn small_passes(&self) -> bool {
        self.state == State::Passing && self.missed == 0
    }

    /// The other node's requests come in where no tunnel is expected.
    fn strays(&self, period: Duration) -> bool {
        let Probed { stray, heard, .. } = self.probed;
        let since = Duration::from_nanos(self.now.saturating_sub(stray));
        let over = heard > stray && since > STRAY_PERIODS * period;
        stray != 0 && since < heard_for(period) && !over
    }

    fn view(&self, period: Duration) -> PathView {
        let since = |at: u64| Duration::from_nanos(self.now.saturating_sub(at));
        let bits = if self.counted == 0 { 0 } else { self.lost & (u64::MAX >> (64 - self.counted)) };
        let some = |value: u16| (value != 0).then_some(value);
        PathView {
            state: self.state,
            since: since(self.since),
            rtt: (self.probed.rtt != 0).then(|| Duration::from_micros(self.probed.rtt.into())),
            loss: if self.counted == 0 { 0.0 } else { f64::from(bits.count_ones()) / f64::from(self.counted) },
            counted: self.counted,
            passed: some(self.large.passed),
            limit: some(self.large.limit),
            their_mtu: some(self.probed.their_mtu),
            heard: (self.probed.heard != 0).then(|| since(self.probed.heard)),
            period,
            port: self.strays(period).then(|| u16::from_be_bytes(self.probed.stray_port)),
            joining: self.joined && self.state == State::Waiting && since(self.since) < JOINS,
        }
    }
}

#[cfg(test)]
mod tests;
