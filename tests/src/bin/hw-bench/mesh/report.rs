//! Medians, differences and ratios within rounds, what was aimed at, and the JSON.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::{
    Clock, Opened, Options,
    contestants::{CASES, Case, Contestant, Site},
    order::Protocol,
    traffic::Sent,
};
use crate::{
    figures::{Aim, Chart, Figures, Group, Table},
    report::said,
    stats::median,
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
    seconds: f64,
    cpu_seconds: f64,
    /// Per packet that arrived: generator, cable, node, counter.
    ns: f64,
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
        let (seconds, cpu_seconds) = (measured.elapsed.as_secs_f64(), measured.busy.as_secs_f64());
        let (sent, delivered) = (measured.sent, measured.delivered);
        let time = if clock == Clock::Wall { seconds } else { cpu_seconds };
        let ns = time * 1e9 / delivered as f64;
        let Opened { answered: opened, bytes_per_flow } = opened;
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
            ns,
            programs_ns,
            disturbed,
        }
    }

    /// Part of the packets that did not arrive.
    fn lost(&self) -> f64 {
        1.0 - self.delivered as f64 / self.sent as f64
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

/// Medians of a contestant in a case.
#[derive(Clone, Copy, Debug, Serialize)]
struct Medians {
    ns: f64,
    mpps: f64,
    /// Over the floor of the same round.
    over_floor_ns: f64,
    of_floor: f64,
    /// Of that, the node's BPF programs over the floor's empty one.
    programs_ns: f64,
    /// Rate over nftables' of the same round; 0 where that was not measured.
    of_nftables: f64,
    lost: f64,
    opened: f64,
    /// Where it could be told.
    bytes_per_flow: Option<f64>,
}

/// Most nanoseconds over the floor: native XDP, backend remote.
const OVER_FLOOR: &[(u32, f64)] = &[(1, 60.0), (10_000, 90.0), (1_000_000, 280.0)];
/// Least ratio to nftables' rate.
const OF_NFTABLES: &[(u32, f64)] = &[(1, 4.0), (100, 3.0), (10_000, 3.0), (1_000_000, 3.0), (0, 3.0)];
/// Most that 10,000 published ports may cost over one.
const MANY_PORTS: f64 = 1.05;
/// Most bytes of map memory for each flow.
const BYTES_PER_FLOW: f64 = 128.0;

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
    fn within_rounds(
        &self,
        (contestant, case): (Contestant, Case),
        (reference, reference_case): (Contestant, Case),
        relate: impl Fn(&Sample, &Sample) -> f64,
    ) -> f64 {
        let other = |round| self.of(reference, reference_case).find(|sample| sample.round == round);
        let pairs = self.of(contestant, case).filter_map(|sample| Some((sample, other(sample.round)?)));
        median(pairs.map(|(is, reference)| relate(is, reference)))
    }

    fn medians(&self, contestant: Contestant, case: Case) -> Option<Medians> {
        self.of(contestant, case).next()?;
        let to = |reference, relate: fn(&Sample, &Sample) -> f64| {
            self.within_rounds((contestant, case), (reference, case), relate)
        };
        let ns = median(self.of(contestant, case).map(|sample| sample.ns));
        Some(Medians {
            ns,
            mpps: 1e3 / ns,
            over_floor_ns: to(Contestant::Floor, |is, floor| is.ns - floor.ns),
            of_floor: to(Contestant::Floor, |is, floor| is.ns / floor.ns),
            programs_ns: to(Contestant::Floor, |is, floor| {
                if is.programs_ns > 0.0 { is.programs_ns - floor.programs_ns } else { 0.0 }
            }),
            of_nftables: to(Contestant::Nftables, |is, nftables| nftables.ns / is.ns),
            lost: median(self.of(contestant, case).map(Sample::lost)),
            opened: median(self.of(contestant, case).map(|sample| sample.opened)),
            // Only the first round opens them anew.
            bytes_per_flow: self.of(contestant, case).find_map(|sample| sample.bytes_per_flow),
        })
    }

    /// Of native XDP: that is what they are for.
    fn aims(&self) -> Vec<Aim> {
        let (mut aims, who) = (Vec::new(), Contestant::HivewayXdp);
        let remote = |flows| Case { site: if flows == 0 { Site::Flooded } else { Site::Remote }, flows };
        for &(flows, aim) in OVER_FLOOR {
            if let Some(medians) = self.medians(who, remote(flows)) {
                let what = format!("{}, {flows} flows: ns over the floor", who.title());
                aims.push(Aim::at_most(what, medians.over_floor_ns, aim));
            }
        }
        for &(flows, aim) in OF_NFTABLES {
            if let Some(medians) = self.medians(who, remote(flows)).filter(|medians| medians.of_nftables > 0.0) {
                let what = if flows == 0 { "SYN flood".to_owned() } else { format!("{flows} flows") };
                let what = format!("{}, {what}: times nftables' rate", who.title());
                aims.push(Aim::at_least(what, medians.of_nftables, aim));
            }
        }
        if let Some(is) = self.medians(who, remote(1_000_000)).and_then(|medians| medians.bytes_per_flow) {
            aims.push(Aim::at_most(format!("{}: bytes of maps per flow", who.title()), is, BYTES_PER_FLOW));
        }
        let [many, one] = [Site::ManyPorts, Site::Remote].map(|site| Case { site, flows: 10_000 });
        let is = self.within_rounds((who, many), (who, one), |many, one| many.ns / one.ns);
        if is > 0.0 {
            aims.push(Aim::at_most(format!("{}, 10,000 ports / one", who.title()), is, MANY_PORTS));
        }
        aims
    }

    fn tables(&self) -> Vec<Table> {
        let head = [
            "",
            "ns/packet",
            "Mpps",
            "over floor",
            "programs",
            "x floor",
            "x nftables",
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
                        format!("{:.2}", m.mpps),
                        format!("{:.0}", m.over_floor_ns),
                        format!("{:.0}", m.programs_ns),
                        format!("{:.2}", m.of_floor),
                        if m.of_nftables > 0.0 { format!("{:.2}", m.of_nftables) } else { String::new() },
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
                "{protocol}, frames of {size} bytes, one core, medians of {rounds} rounds of {seconds} s{clock}."
            ),
            measurements: self.samples.len(),
            disturbed: self.samples.iter().filter(|sample| sample.disturbed).count(),
            tables: self.tables(),
            charts: vec![self.chart()],
            aims: self.aims(),
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.figures())
    }
}
