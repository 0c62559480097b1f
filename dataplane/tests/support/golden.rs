//! A golden packet: description, packet in, verdict, whole packet out, exact counters.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Context as _, Result};
use dataplane::{
    Program,
    testing::{Decision, Harness, Input, Outcome},
};
use dataplane_common::{
    counter::{Counter, Stat},
    drop_reason::DropReason,
};

use super::{
    dissect,
    icmp::sum,
    pcap,
    world::{NODE_MAC, PEER, PEER_MAC, ROUTER_MAC},
};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
const REDIRECT: i32 = 7;

/// What is expected.
pub struct Golden {
    what: &'static str,
    program: Program,
    input: Input,
    decision: Decision,
    /// `None`: as it came in.
    packet: Option<Vec<u8>>,
    mark: u32,
    counters: BTreeMap<Counter, Stat>,
}

/// Begins a description: `program` sees `packet` on `ifindex` and comes to `decision`.
pub fn golden(what: &'static str, program: Program, ifindex: u32, packet: Vec<u8>, decision: Decision) -> Golden {
    let input = Input { packet, ifindex, ..Input::default() };
    Golden { what, program, input, decision, packet: None, mark: 0, counters: BTreeMap::new() }
}

impl Golden {
    /// The id that a trampoline has left.
    pub fn of_sandbox(mut self, id: u32) -> Self {
        self.input.sandbox = id;
        self
    }

    /// It is a GSO packet with segments of so many bytes.
    pub fn segments(mut self, gso_size: u32) -> Self {
        self.input.gso_size = gso_size;
        self
    }

    /// `skb->mark` before.
    pub fn marked(mut self, mark: u32) -> Self {
        self.input.mark = mark;
        self
    }

    /// `skb->mark` afterwards (0 unless said).
    pub fn leaves_mark(mut self, mark: u32) -> Self {
        self.mark = mark;
        self
    }

    /// The whole packet afterwards (as it came in unless said).
    pub fn becomes(mut self, packet: Vec<u8>) -> Self {
        self.packet = Some(packet);
        self
    }

    /// One packet of `bytes` is counted. Drops are counted by the decision; all other counters must not move.
    pub fn counts(mut self, counter: Counter, bytes: usize) -> Self {
        self.counters.insert(counter, Stat { packets: 1, bytes: bytes as u64 });
        self
    }

    /// As [`Golden::counts`], for more than one packet of `bytes` each.
    pub fn counts_packets(mut self, counter: Counter, packets: u64, bytes: usize) -> Self {
        self.counters.insert(counter, Stat { packets, bytes: packets * bytes as u64 });
        self
    }

    /// Runs it and compares everything.
    pub fn check(self, harness: &mut Harness) -> Result<()> {
        let outcome = harness.run(self.program, &self.input).context(self.what)?;
        self.compare(&outcome);
        Ok(())
    }

    /// Runs it without comparing, for what is only a step on the way.
    pub fn run(self, harness: &mut Harness) -> Result<Outcome> {
        harness.run(self.program, &self.input).context(self.what)
    }

    /// As [`Golden::check`], but the outer UDP source port, which comes from a hash with a secret, is taken from what
    /// came out, and so is a random identification where DF is not expected. Returns it; it must lie in the dynamic
    /// range.
    pub fn check_tunnelled(mut self, harness: &mut Harness) -> Result<u16> {
        const SOURCE_PORT: std::ops::Range<usize> = 34..36;
        const IDENTIFICATION: std::ops::Range<usize> = 18..20;
        const FLAGS: usize = 20;
        const CHECKSUM: std::ops::Range<usize> = 24..26;
        let outcome = harness.run(self.program, &self.input).context(self.what)?;
        let mut sport = 0;
        if let (Some(expected), Some(actual)) = (&mut self.packet, outcome.packet.get(SOURCE_PORT)) {
            expected[SOURCE_PORT].copy_from_slice(actual);
            sport = u16::from_be_bytes([actual[0], actual[1]]);
            if expected[FLAGS] & 0x40 == 0 {
                let identified = [IDENTIFICATION, CHECKSUM].map(|at| (at.clone(), outcome.packet[at].to_vec()));
                identified.into_iter().for_each(|(at, actual)| expected[at].copy_from_slice(&actual));
                assert_eq!(sum(&expected[14..34]), 0xffff, "{}: the outer header's checksum", self.what);
            }
        }
        self.compare(&outcome);
        assert!(sport >= 49152, "{}: outer source port {sport} is no dynamic port", self.what);
        Ok(sport)
    }

    fn compare(&self, outcome: &Outcome) {
        let mut problems = Vec::new();
        let mut same = |what: &str, want: &dyn Debug, got: &dyn Debug, equal: bool| {
            if !equal {
                problems.push(format!("{what}: expected {want:?}, got {got:?}"));
            }
        };
        same("decision", &Some(self.decision), &outcome.decision, outcome.decision == Some(self.decision));
        let verdict = verdict_of(self.decision);
        same("verdict", &verdict, &outcome.verdict, verdict == outcome.verdict);
        // Nobody sees the mark of a dropped packet, nor the packet, which may have been half rewritten.
        let dropped = matches!(self.decision, Decision::Drop(_));
        same("mark", &self.mark, &outcome.mark, dropped || self.mark == outcome.mark);
        let drops = self.drops();
        same("DROPS", &drops, &outcome.drops, drops == outcome.drops);
        let mut counters = self.counters.clone();
        if self.decision == Decision::SlowPath {
            counters.entry(Counter::SlowPath).or_insert(self.one_packet());
        }
        same("COUNTERS", &counters, &outcome.counters, counters == outcome.counters);
        let mut expected = self.packet.clone().unwrap_or_else(|| self.input.packet.clone());
        // Now, or by the kernel later.
        if outcome.addressed {
            let to_peer = outcome.packet[30..34] == PEER;
            expected.splice(..12, [if to_peer { PEER_MAC } else { ROUTER_MAC }, NODE_MAC].concat());
        }
        let expected = &expected;
        if *expected != outcome.packet && !dropped {
            problems.push(format!("packet:\n{}", dissect::diff(expected, &outcome.packet)));
        }
        if !problems.is_empty() {
            let file = pcap::write(self.what, &[&self.input.packet, expected, &outcome.packet]);
            panic!(
                "{} ({}):\n{}\npacket in:\n  {}\nin, expected and actual packet: {file:?}",
                self.what,
                self.program,
                problems.join("\n"),
                dissect::dissect(&self.input.packet).join("\n  "),
            );
        }
    }

    fn one_packet(&self) -> Stat {
        Stat { packets: 1, bytes: self.input.packet.len() as u64 }
    }

    fn drops(&self) -> BTreeMap<DropReason, Stat> {
        match self.decision {
            Decision::Drop(reason) | Decision::Refuse(reason) => BTreeMap::from([(reason, self.one_packet())]),
            _ => BTreeMap::new(),
        }
    }
}

fn verdict_of(decision: Decision) -> i32 {
    match decision {
        Decision::Pass | Decision::SlowPath => NEXT,
        Decision::Drop(_) | Decision::Taken => SHOT,
        Decision::Peer(_) | Decision::Neigh(_) | Decision::Device(_) | Decision::Reply(_) | Decision::Refuse(_) => {
            REDIRECT
        }
    }
}
