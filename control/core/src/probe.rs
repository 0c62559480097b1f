//! When to probe which path, and what the answers say about it. Pure: time comes in as nanoseconds of `CLOCK_MONOTONIC`,
//! what the programs have noted as [`Probed`].
//!
//! Each other node is sent a small probe every second, and where there are more than [`SMALL_PER_SECOND`] nodes less often;
//! and a probe as large as the path is taken to carry every half minute. A path fails after [`FAILS`] small probes in a row
//! without an answer, and passes again after [`PASSES`] with one, so that a single lost packet changes nothing. Before the
//! first answer it is waited for, and that is not passing; only a node that joins while others pass is given a moment.
//!
//! If large probes get no answer where small ones do, no router has said why: the size that passes is searched for (as
//! RFC 8899 does), to the byte; every ten minutes the search goes on from there, in case more passes now.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC, Ip4},
    headers::{ENCAP_LEN, ETH_LEN, IPV4_LEN, ethertype, ipproto},
    probe::{OUTER_LEN, PORT, Probe, Probed, VERSION, kind},
};

/// Small probes that a node sends in a second at most.
pub const SMALL_PER_SECOND: u64 = 50;
/// Large ones.
pub const LARGE_PER_SECOND: u64 = 4;
/// Small probes in a row without an answer until a path that has passed traffic fails.
pub const FAILS: u32 = 3;
/// The same for a path that never has: the other node's agent may start later than this one.
pub const FAILS_AT_FIRST: u32 = 10;
/// For so long a node that has just joined is waited for without a word, if the paths to others pass. Its first probe is due at
/// once; longer than a path takes to fail it must not go unnoticed.
pub const JOINS: Duration = Duration::from_secs(3);
/// Answered small probes in a row until a path that has failed passes.
pub const PASSES: u32 = 2;

const SECOND: u64 = 1_000_000_000;
/// How long an answer is waited for.
const TIMEOUT: u64 = SECOND;
/// How often a path is probed with a small packet.
const SMALL: u64 = SECOND;
/// How often with a large one.
const LARGE: u64 = 30 * SECOND;
/// After how long it is tried whether a path that probes have found to be narrow takes more.
const RAISE: u64 = 600 * SECOND;
/// Large probes in a row without an answer until a smaller size is looked for, and each size's chances then.
const LARGE_FAILS: u32 = 3;
const SEARCH_FAILS: u32 = 2;
/// The search begins with this size and never goes below.
const LEAST: u16 = 552;
/// Requests of another node that are younger than this say that its packets arrive here; where it sends them seldom, those
/// that are younger than [`HEARD_PERIODS`] times their distance.
const HEARD: u64 = 30 * SECOND;
const HEARD_PERIODS: u64 = 3;
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
    /// Share of the last small probes without an answer, and how many those were.
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
    /// For how long after such a probe its packets are taken to arrive here.
    pub heard_for: Duration,
    /// The port that the other node uses for VXLAN, if it was seen to be another one.
    pub port: Option<u16>,
    /// The node has joined less than [`JOINS`] ago, while other paths passed.
    pub joining: bool,
}

impl PathView {
    /// A path that has not been probed.
    pub fn unknown(joining: bool) -> Self {
        Self { joining, ..Path::new(0, 0, 0).view(0) }
    }

    /// The other node's packets arrive here, which says which direction it is that fails: what has arrived before a path
    /// began to fail says nothing.
    pub fn is_heard(&self) -> bool {
        let counts = if self.state == State::Failing { self.heard_for.min(self.since) } else { self.heard_for };
        self.heard.is_some_and(|heard| heard < counts)
    }
}

/// Probes of all paths.
#[derive(Debug, Default)]
pub struct Prober {
    paths: BTreeMap<Ip4, Path>,
    small: Bucket,
    large: Bucket,
}

/// A token bucket of a second's probes.
#[derive(Debug, Default)]
struct Bucket {
    /// Nanoseconds that are saved up.
    saved: u64,
    last: u64,
    /// The first path since the last [`Bucket::fill`] that got no probe. The next look begins with it, or paths that are
    /// probed again and again would take all probes from those behind them.
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
    /// Other paths passed when this one came.
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

/// Probes of a path's MTU.
#[derive(Debug, Default)]
struct Large {
    next: u64,
    waits: Option<(u32, u64, u16)>,
    missed: u32,
    passed: u16,
    search: Option<Search>,
    /// What the search has found; 0: nothing limits it.
    limit: u16,
    /// When the next search for more begins.
    raise_at: u64,
}

/// A search for the largest size that passes.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// Largest size that is known to pass; 0: not even [`LEAST`] is.
    passes: u16,
    /// Smallest size that is taken not to pass.
    fails: u16,
    /// [`Search::passes`] when it began.
    bottom: u16,
    /// [`Search::fails`] when it began. The search asks for nothing larger.
    top: u16,
}

/// What a search has found.
enum Found {
    /// Its top passes.
    All,
    /// This much passes, and no byte more.
    Most(u16),
    /// Not even the least size passes.
    Nothing,
}

impl Search {
    fn new(passes: u16, top: u16) -> Self {
        Self { passes, fails: top, bottom: passes, top }
    }

    /// What is tried next. Before the search ends the smallest size that does not pass is tried once more: what was lost by
    /// chance, there or where the search began, must not limit the path for ten minutes.
    fn next(&self) -> u16 {
        match (self.passes, self.fails - self.passes) {
            (0, _) => LEAST,
            (_, 1) => self.fails,
            // As a rule nothing has changed since the last search, and one byte more tells.
            (passes, _) if passes == self.bottom && self.fails == self.top => passes + 1,
            (passes, apart) => passes + apart / 2,
        }
    }

    /// Takes note of what became of a probe of that size. Says what the search has found, if that ends it.
    fn note(&mut self, size: u16, passed: bool) -> Option<Found> {
        match (passed, size == self.fails) {
            (true, false) => self.passes = size,
            (true, true) if size == self.top => return Some(Found::All),
            (true, true) => (self.passes, self.fails) = (size, self.top),
            (false, true) if self.passes == 0 => return Some(Found::Nothing),
            (false, true) => return Some(Found::Most(self.passes)),
            (false, false) => self.fails = size,
        }
        None
    }
}

impl Prober {
    /// Probes the paths to these nodes from now on, and forgets the others.
    pub fn follow(&mut self, nodes: &BTreeSet<Ip4>, now: u64) {
        self.paths.retain(|vtep, _| nodes.contains(vtep));
        let joined = self.paths.values().any(|path| path.state == State::Passing);
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

    /// How often each path is probed with a small packet.
    fn period(&self) -> u64 {
        SMALL.max(self.paths.len() as u64 * SECOND / SMALL_PER_SECOND)
    }

    /// What is to be sent now. `mtus`: the longest outer packet that the data plane sends to each node, or `interface`.
    pub fn due(&mut self, now: u64, mtus: &BTreeMap<Ip4, u16>, interface: u16) -> Vec<Due> {
        let mut due = Vec::new();
        let period = self.period();
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
            path.judge_large(now);
        }
    }

    /// What is known about each path.
    pub fn views(&self) -> BTreeMap<Ip4, PathView> {
        // The other nodes know about as many nodes as this one does, and probe as often.
        let heard_for = HEARD.max(HEARD_PERIODS * self.period());
        self.paths.iter().map(|(vtep, path)| (*vtep, path.view(heard_for))).collect()
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

impl Large {
    /// Begins to look whether more passes than was found, up to what the interface takes.
    fn raise(&mut self, interface: u16) {
        self.missed = 0;
        if self.limit < interface {
            // The limit is not known to pass if not even the least size did.
            let passes = if self.passed == 0 { 0 } else { self.limit };
            self.search = Some(Search::new(passes, interface));
        } else {
            self.limit = 0;
        }
    }

    fn end(&mut self, found: Option<Found>, now: u64) {
        let Some(found) = found else { return };
        let top = self.search.take().map_or(0, |search| search.top);
        match found {
            // An earlier search's limit holds if this one has not looked beyond it.
            Found::All if top > self.limit => self.limit = 0,
            Found::All => {}
            Found::Most(size) => (self.limit, self.passed) = (size, size),
            Found::Nothing => (self.limit, self.passed) = (LEAST, 0),
        }
        // A limit at which probes are lost as well is looked at again soon.
        self.raise_at = now + if self.passed == 0 { LARGE } else { RAISE };
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
            large: Large { next: large, ..Large::default() },
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
        }
    }

    /// The size of the large probe that is due.
    fn large_due(&mut self, now: u64, taken: u16, interface: u16) -> Option<u16> {
        let large = &mut self.large;
        if self.state != State::Passing || self.missed > 0 || large.waits.is_some() {
            return None;
        }
        if large.search.is_none() && large.limit != 0 && now >= large.raise_at {
            large.raise(interface);
        }
        if let Some(search) = large.search {
            return Some(search.next());
        }
        // Twice at the usual pace would take a minute.
        let again = large.missed > 0 && large.missed < LARGE_FAILS;
        (now >= large.next || again).then_some(taken)
    }

    fn judge_large(&mut self, now: u64) {
        let Some((sequence, sent, size)) = self.large.waits else { return };
        let answered = self.probed.large_size == size && self.probed.large_sequence == sequence;
        if !answered && now < sent + TIMEOUT {
            return;
        }
        let small_passes = self.state == State::Passing && self.missed == 0;
        let large = &mut self.large;
        large.waits = None;
        if answered {
            large.missed = 0;
            large.passed = size;
        } else if small_passes {
            large.missed += 1;
        }
        if let Some(search) = &mut large.search {
            if answered || large.missed >= SEARCH_FAILS {
                large.missed = 0;
                let found = search.note(size, answered);
                large.end(found, now);
            }
        } else if large.missed >= LARGE_FAILS && size > LEAST {
            large.search = Some(Search::new(0, size));
            large.missed = 0;
        }
    }

    fn view(&self, heard_for: u64) -> PathView {
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
            heard_for: Duration::from_nanos(heard_for),
            port: (self.probed.stray != 0 && since(self.probed.stray) < Duration::from_nanos(heard_for))
                .then(|| u16::from_be_bytes(self.probed.stray_port)),
            joining: self.joined && self.state == State::Waiting && since(self.since) < JOINS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ip4 = [192, 0, 2, 2];
    const STEP: u64 = SECOND / 5;

    /// A swarm of nodes behind paths that take so many bytes; 0: nothing comes back.
    struct World {
        prober: Prober,
        now: u64,
        paths: BTreeMap<Ip4, u16>,
        probed: BTreeMap<Ip4, Probed>,
        sent: Vec<Due>,
        /// What this node's interface takes.
        interface: u16,
        /// So many large probes get lost from now on, whatever the path takes.
        unlucky: u32,
    }

    impl World {
        fn new(paths: impl IntoIterator<Item = (Ip4, u16)>) -> Self {
            let paths: BTreeMap<_, _> = paths.into_iter().collect();
            let mut prober = Prober::default();
            prober.follow(&paths.keys().copied().collect(), SECOND);
            let probed = paths.keys().map(|vtep| (*vtep, Probed::default())).collect();
            Self { prober, now: SECOND, paths, probed, sent: Vec::new(), interface: 1500, unlucky: 0 }
        }

        fn run(&mut self, seconds: u64) {
            let end = self.now + seconds * SECOND;
            while self.now < end {
                self.prober.read(self.now, &self.probed);
                let limits = self.prober.limits();
                for due in self.prober.due(self.now, &limits, self.interface) {
                    self.sent.push(due);
                    let large = usize::from(due.size) != OUTER_LEN;
                    if due.size > self.paths[&due.vtep] {
                        continue;
                    }
                    if large && self.unlucky > 0 {
                        self.unlucky -= 1;
                        continue;
                    }
                    let entry = self.probed.get_mut(&due.vtep).unwrap();
                    entry.answered = self.now;
                    if large {
                        (entry.large_sequence, entry.large_size) = (due.sequence, due.size);
                    } else {
                        (entry.sequence, entry.rtt) = (due.sequence, 70);
                    }
                }
                self.now += STEP;
            }
            self.prober.read(self.now, &self.probed);
        }

        fn view(&self) -> PathView {
            self.prober.views().remove(&A).unwrap()
        }
    }

    #[test]
    fn a_path_passes_fails_and_passes_again() {
        let mut world = World::new([(A, 1500)]);
        assert_eq!(world.view().state, State::Waiting);
        world.run(5);
        let view = world.view();
        assert_eq!((view.state, view.loss, view.rtt), (State::Passing, 0.0, Some(Duration::from_micros(70))));
        world.run(40);
        assert_eq!((world.view().passed, world.view().limit), (Some(1500), None));
        world.paths.insert(A, 0);
        world.run(1);
        assert_eq!(world.view().state, State::Passing);
        world.run(5);
        assert_eq!(world.view().state, State::Failing);
        assert!(world.view().loss > 0.0);
        world.paths.insert(A, 1500);
        world.run(4);
        assert_eq!(world.view().state, State::Passing);
    }

    #[test]
    fn a_node_is_given_a_moment_only_if_it_joins_while_others_pass() {
        const B: Ip4 = [192, 0, 2, 3];
        let mut world = World::new([(A, 1500)]);
        assert_eq!((world.view().state, world.view().joining), (State::Waiting, false));
        world.run(1);
        assert_eq!(world.view().state, State::Passing);
        world.paths.insert(B, 0);
        world.probed.insert(B, Probed::default());
        world.prober.follow(&BTreeSet::from([A, B]), world.now);
        let b = |world: &World| (world.prober.views()[&B].state, world.prober.views()[&B].joining);
        assert_eq!(b(&world), (State::Waiting, true));
        world.run(2);
        assert_eq!(b(&world), (State::Waiting, true));
        world.run(2);
        assert_eq!(b(&world), (State::Waiting, false));
        // After all paths have failed there is nothing to go by.
        world.paths.insert(A, 0);
        world.run(10);
        world.prober.follow(&BTreeSet::from([A]), world.now);
        world.prober.follow(&BTreeSet::from([A, B]), world.now);
        assert_eq!(b(&world), (State::Waiting, false));
    }

    #[test]
    fn a_first_probe_that_is_lost_is_followed_by_others_at_once() {
        // Of a thousand paths each is probed every 20 seconds.
        let mut world = World::new((0..1000u32).map(|n| (n.to_be_bytes(), 1500)));
        let vtep = 7u32.to_be_bytes();
        world.paths.insert(vtep, 0);
        world.run(30);
        assert_eq!(world.prober.views()[&vtep].state, State::Failing);
    }

    #[test]
    fn a_single_loss_changes_nothing() {
        let mut world = World::new([(A, 1500)]);
        for _ in 0..20 {
            world.run(4);
            world.paths.insert(A, 0);
            world.run(1);
            world.paths.insert(A, 1500);
            assert_eq!(world.view().state, State::Passing);
        }
        let loss = world.view().loss;
        assert!((0.1..0.4).contains(&loss), "{loss}");
    }

    #[test]
    fn a_node_that_never_answers_fails_after_a_while() {
        let mut world = World::new([(A, 0)]);
        world.run(8);
        assert_eq!(world.view().state, State::Waiting);
        world.run(10);
        assert_eq!((world.view().state, world.view().loss), (State::Failing, 1.0));
        // Only small ones.
        assert!(world.sent.iter().all(|due| usize::from(due.size) == OUTER_LEN));
    }

    #[test]
    fn a_black_hole_is_measured_and_tried_again() {
        let mut world = World::new([(A, 1500)]);
        world.run(40);
        world.paths.insert(A, 1400);
        world.run(90);
        assert_eq!((world.view().limit, world.view().passed), (Some(1400), Some(1400)));
        assert_eq!(world.prober.limits(), BTreeMap::from([(A, 1400)]));
        assert_eq!(world.view().state, State::Passing);
        world.sent.clear();
        world.run(650);
        assert_eq!(world.view().limit, Some(1400));
        let more = world.sent.iter().filter(|due| due.size > 1400).count();
        assert!((1..=4).contains(&more), "{more}");
        world.paths.insert(A, 1500);
        world.run(650);
        assert_eq!(world.view().limit, None);
    }

    #[test]
    fn lost_probes_alone_limit_nothing() {
        let mut world = World::new([(A, 1500)]);
        world.run(40);
        // Three begin a search, more of them lead it astray.
        for unlucky in [3, 5, 8] {
            world.unlucky = unlucky;
            world.run(120);
            assert_eq!((world.unlucky, world.view().limit, world.view().passed), (0, None, Some(1500)), "{unlucky}");
        }
    }

    #[test]
    fn a_lost_probe_does_not_make_a_narrow_path_narrower() {
        let mut world = World::new([(A, 1500)]);
        world.run(40);
        world.paths.insert(A, 1400);
        while world.prober.paths[&A].large.search.is_none() {
            world.run(1);
        }
        world.unlucky = 2;
        world.run(120);
        assert_eq!((world.unlucky, world.view().limit), (0, Some(1400)));
    }

    #[test]
    fn between_interfaces_of_other_sizes_the_smaller_one_is_found() {
        let mut world = World::new([(A, 1500)]);
        world.interface = 8896;
        world.run(120);
        assert_eq!((world.view().limit, world.view().passed), (Some(1500), Some(1500)));
    }

    #[test]
    fn a_narrow_path_that_takes_a_little_more_is_used() {
        let mut world = World::new([(A, 1400)]);
        world.run(120);
        assert_eq!(world.view().limit, Some(1400));
        world.paths.insert(A, 1450);
        world.run(700);
        assert_eq!((world.view().limit, world.view().passed), (Some(1450), Some(1450)));
        // And one that takes less than it did is measured anew.
        world.paths.insert(A, 1300);
        world.run(120);
        assert_eq!(world.view().limit, Some(1300));
    }

    #[test]
    fn what_no_probe_has_shown_to_pass_is_not_said_to() {
        let mut world = World::new([(A, 400)]);
        world.run(120);
        assert_eq!((world.view().state, world.view().passed), (State::Passing, None));
        assert!(world.sent.iter().any(|due| due.size == LEAST));
    }

    #[test]
    fn loss_of_everything_is_no_black_hole() {
        let mut world = World::new([(A, 1500)]);
        world.run(40);
        world.paths.insert(A, 0);
        world.run(60);
        world.paths.insert(A, 1500);
        world.run(60);
        assert_eq!(world.view().limit, None);
    }

    #[test]
    fn a_large_swarm_is_probed_at_a_bounded_rate() {
        let nodes = (0..1000u32).map(|n| (n.to_be_bytes(), 1500));
        let mut world = World::new(nodes);
        world.run(60);
        let small = world.sent.iter().filter(|due| usize::from(due.size) == OUTER_LEN).count() as u64;
        let large = world.sent.len() as u64 - small;
        assert!(small <= 60 * SMALL_PER_SECOND + 60, "{small}");
        assert!(large <= 60 * LARGE_PER_SECOND + 60, "{large}");
        let probed: BTreeSet<_> = world.sent.iter().map(|due| due.vtep).collect();
        assert_eq!(probed.len(), 1000);
    }

    #[test]
    fn paths_in_trouble_do_not_keep_the_others_from_being_probed() {
        // The first hundred answer nothing, the next fifty take no large packets.
        let size = |n: u32| if n < 100 { 0 } else { 1500 - 100 * u16::from(n < 150) };
        let mut world = World::new((0..250u32).map(|n| (n.to_be_bytes(), size(n))));
        world.run(10);
        let tried = |world: &World, large: bool| {
            let sent = world.sent.iter().filter(|due| (usize::from(due.size) != OUTER_LEN) == large);
            sent.map(|due| due.vtep).collect::<BTreeSet<_>>()
        };
        assert_eq!(tried(&world, false).len(), 250);
        world.run(60);
        assert_eq!(tried(&world, true).len(), 150);
    }

    #[test]
    fn in_a_swarm_whose_probes_are_rare_they_are_not_forgotten_in_between() {
        let mut world = World::new((0..2000u32).map(|n| (n.to_be_bytes(), 1500)));
        let vtep = 7u32.to_be_bytes();
        let entry = world.probed.get_mut(&vtep).unwrap();
        (entry.heard, entry.stray, entry.stray_port) = (world.now, world.now, 7789u16.to_be_bytes());
        let mut view_at = |later: u64| {
            world.prober.read(world.now + later * SECOND, &world.probed);
            world.prober.views().remove(&vtep).unwrap()
        };
        let view = view_at(100);
        assert!(view.is_heard(), "{view:?}");
        assert_eq!(view.port, Some(7789));
        let view = view_at(130);
        assert!(!view.is_heard() && view.port.is_none(), "{view:?}");
    }

    #[test]
    fn nodes_that_are_gone_are_forgotten() {
        let mut world = World::new([(A, 1500)]);
        world.run(5);
        world.prober.follow(&BTreeSet::new(), world.now);
        assert!(world.prober.views().is_empty() && world.prober.limits().is_empty());
    }
}
