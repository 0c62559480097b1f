//! Medians, differences and ratios within rounds, what was aimed at, and the JSON.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::{
    Clock, Options, aims,
    contestants::{CASES, Case, Contestant},
    opening::Opened,
    order::Protocol,
    traffic::Sent,
};
use crate::{
    figures::{Chart, Figures, Group, Table},
    report::said,
    stats::{lower_quartile, median},
};

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    contestant: Contestant,
    case: Case,
    round: usize,
    /// Part of the flows that were answered before.
    opened: f64,
    /// Map memory for each of them, if enough were new to tell.
    bytes_per_flow: Option<f64>,
    sent: u64,
    delivered: u64,
    /// Without the generator's fixed cost.
    seconds: f64,
    cpu_seconds: f64,
    /// Runs of the generator, and what each costs without a packet.
    runs: u32,
    fixed_ms: f64,
    /// Per packet that arrived: generator, cable, node, counter.
    pub(super) ns: f64,
    /// Of the node's BPF programs, by the kernel's clock in a run of its own.
    programs_ns: f64,
    /// Somebody else used the machine meanwhile.
    disturbed: bool,
}

impl Sample {
    pub(super) fn new(
        (contestant, case, round): (Contestant, Case, usize),
        opened: Opened,
        measured: &Sent,
        programs_ns: f64,
        (clock, disturbed): (Clock, bool),
    ) -> Self {
        let (seconds, cpu_seconds) = (measured.times.elapsed.as_secs_f64(), measured.times.busy.as_secs_f64());
        let (sent, delivered) = (measured.sent, measured.delivered);
        let time = if clock == Clock::Wall { seconds } else { cpu_seconds };
        let ns = time * 1e9 / delivered as f64;
        let Opened { answered: opened, bytes_per_flow, .. } = opened;
        Self {
            contestant,
            case,
            round,
            opened,
            bytes_per_flow,
            sent,
            delivered,
            seconds,
            cpu_seconds,
            runs: measured.runs,
            fixed_ms: measured.fixed.elapsed.as_secs_f64() * 1e3,
            ns,
            programs_ns,
            disturbed,
        }
    }

    /// Part of the packets that did not arrive. Agents' probes arrive as well, a few in each measurement.
    fn lost(&self) -> f64 {
        self.sent.saturating_sub(self.delivered) as f64 / self.sent as f64
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {:.0} ns", self.case.title(), self.contestant.title(), self.ns)?;
        if self.lost() > 0.001 {
            write!(f, ", {:.1} % lost", 100.0 * self.lost())?;
        }
        if self.opened < 0.999 {
            write!(f, ", {:.1} % of the flows open", 100.0 * self.opened)?;
        }
        if self.disturbed { write!(f, "  disturbed") } else { Ok(()) }
    }
}

/// Everything that was measured in a run.
pub(super) struct Report {
    options: Options,
    core: usize,
    samples: Vec<Sample>,
}

/// Medians, and some lower quartiles, of a contestant in a case.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Medians {
    ns: f64,
    ns_low: f64,
    mpps: f64,
    /// The floor that the next three refer to.
    floor: Contestant,
    /// Over that of the same round.
    pub(super) over_floor_ns: f64,
    /// Between both lower quartiles.
    pub(super) over_floor_low_ns: f64,
    of_floor: f64,
    /// The node's BPF programs over the bare floor's empty one.
    programs_ns: f64,
    /// Rate over nftables' of the same round; 0 where that was not measured.
    pub(super) of_nftables: f64,
    /// Rate over plain routing's, likewise.
    pub(super) of_routing: f64,
    lost: f64,
    opened: f64,
    /// Where it could be told.
    pub(super) bytes_per_flow: Option<f64>,
}

impl Report {
    pub(super) fn new(options: &Options, core: usize) -> Self {
        Self { options: options.clone(), core, samples: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    fn of(&self, contestant: Contestant, case: Case) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.contestant == contestant && sample.case == case)
    }

    /// Median over the rounds of what `relate` makes of both measurements of a round: drift cancels out.
    pub(super) fn within_rounds(
        &self,
        (contestant, case): (Contestant, Case),
        (reference, reference_case): (Contestant, Case),
        relate: impl Fn(&Sample, &Sample) -> f64,
    ) -> f64 {
        let other = |round| self.of(reference, reference_case).find(|sample| sample.round == round);
        let pairs = self.of(contestant, case).filter_map(|sample| Some((sample, other(sample.round)?)));
        median(pairs.map(|(is, reference)| relate(is, reference)))
    }

    fn low(&self, contestant: Contestant, case: Case) -> f64 {
        lower_quartile(self.of(contestant, case).map(|sample| sample.ns))
    }

    pub(super) fn medians(&self, contestant: Contestant, case: Case) -> Option<Medians> {
        self.of(contestant, case).next()?;
        let to = |reference, relate: fn(&Sample, &Sample) -> f64| {
            self.within_rounds((contestant, case), (reference, case), relate)
        };
        let (ns, ns_low) = (median(self.of(contestant, case).map(|sample| sample.ns)), self.low(contestant, case));
        let floor = contestant.floor(case);
        Some(Medians {
            ns,
            ns_low,
            mpps: 1e3 / ns,
            floor,
            over_floor_ns: to(floor, |is, floor| is.ns - floor.ns),
            over_floor_low_ns: ns_low - self.low(floor, case),
            of_floor: to(floor, |is, floor| is.ns / floor.ns),
            // A node without programs has only what agents elsewhere did meanwhile, which is less than the empty one's.
            programs_ns: to(Contestant::Floor, |is, floor| (is.programs_ns - floor.programs_ns).max(0.0)),
            of_nftables: to(Contestant::Nftables, |is, nftables| nftables.ns / is.ns),
            of_routing: to(Contestant::Routing, |is, routing| routing.ns / is.ns),
            lost: median(self.of(contestant, case).map(Sample::lost)),
            opened: median(self.of(contestant, case).map(|sample| sample.opened)),
            // Only the first round opens them anew.
            bytes_per_flow: self.of(contestant, case).find_map(|sample| sample.bytes_per_flow),
        })
    }

    fn tables(&self) -> Vec<Table> {
        let head = [
            "",
            "ns/packet",
            "low",
            "Mpps",
            "over floor",
            "low",
            "programs",
            "x floor",
            "x nftables",
            "x routing",
            "lost %",
            "B/flow",
            "flows open %",
        ];
        let cases = CASES.into_iter().filter(|case| self.samples.iter().any(|sample| sample.case == *case));
        let table = |case: Case| {
            let mut table = Table::new(case.title(), &head);
            for contestant in Contestant::ALL {
                let Some(m) = self.medians(contestant, case) else { continue };
                table.row(
                    contestant.title(),
                    [
                        format!("{:.0}", m.ns),
                        format!("{:.0}", m.ns_low),
                        format!("{:.2}", m.mpps),
                        format!("{:.0}", m.over_floor_ns),
                        format!("{:.0}", m.over_floor_low_ns),
                        format!("{:.0}", m.programs_ns),
                        format!("{:.2}", m.of_floor),
                        ratio(m.of_nftables),
                        ratio(m.of_routing),
                        format!("{:.1}", 100.0 * m.lost),
                        m.bytes_per_flow.map_or_else(String::new, |bytes| format!("{bytes:.0}")),
                        format!("{:.1}", 100.0 * m.opened),
                    ],
                );
            }
            table
        };
        cases.map(table).collect()
    }

    fn chart(&self) -> Chart {
        let group = |case: Case| {
            let bars = Contestant::ALL
                .into_iter()
                .filter_map(|who| Some((who.title().to_owned(), self.medians(who, case)?.mpps)));
            Group { title: case.title(), bars: bars.collect() }
        };
        let groups = CASES.into_iter().map(group).filter(|group| !group.bars.is_empty());
        Chart {
            title: "Packets of a published port, one core, generator and counter included".into(),
            unit: "million per second; more is better".into(),
            groups: groups.collect(),
        }
    }

    fn figures(&self) -> Figures {
        let protocol = if self.options.protocol == Protocol::Udp { "UDP" } else { "TCP" };
        let (size, rounds, seconds) = (self.options.size, self.options.rounds, self.options.seconds);
        let clock = if self.options.clock == Clock::Wall { "" } else { ", time of the core's own work" };
        Figures {
            bench: "mesh".into(),
            how: format!(
                "{protocol}, frames of {size} bytes, one core, medians and lower quartiles (low) of {rounds} rounds of \
                 {seconds} s{clock}. The floor of Hiveway with backends elsewhere is XDP_TX with 50 bytes in front, of \
                 replies with 50 bytes taken off; of all others bare XDP_TX."
            ),
            measurements: self.samples.len(),
            disturbed: self.samples.iter().filter(|sample| sample.disturbed).count(),
            tables: self.tables(),
            charts: vec![self.chart()],
            aims: aims::of(self),
            ..Figures::default()
        }
    }

    /// Writes samples, medians and circumstances; returns where.
    pub(super) fn write(&self, path: Option<&Path>) -> Result<PathBuf> {
        let rows = CASES.into_iter().flat_map(|case| Contestant::ALL.map(|who| (case, who)));
        let medians = rows.filter_map(|(case, contestant)| {
            let medians = self.medians(contestant, case)?;
            Some(json!({"case": case, "title": case.title(), "contestant": contestant, "medians": medians}))
        });
        let more = json!({
            "core": self.core, "nft": said("nft", &["--version"]),
            "conntrack_buckets": said("sysctl", &["-n", "net.netfilter.nf_conntrack_buckets"]),
            "frame": self.options.size, "protocol": self.options.protocol, "clock": self.options.clock,
            "medians": medians.collect::<Vec<_>>(), "samples": self.samples,
        });
        self.figures().write(more, path)
    }
}

/// Nothing where there is none.
fn ratio(is: f64) -> String {
    if is > 0.0 { format!("{is:.2}") } else { String::new() }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.figures())
    }
}
