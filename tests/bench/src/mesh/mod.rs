//! `bench mesh`: what forwarding one packet of a published port costs at its ingress node.

mod aims;
mod contestants;
mod hiveway;
mod opening;
mod order;
mod programs;
mod report;
mod runs;
mod stack;
mod stage;
mod traffic;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dataplane_common::traffic::far_end;
use hiveway_tests::lab::Lab;

use self::{
    contestants::{CASES, Case, Contestant, Direction},
    opening::Opened,
    order::{Flows, Frames, Protocol, Stage as Of, requests},
    report::{Report, Sample},
    stage::{Instance, Stage},
    traffic::{Traffic, pin},
};
use crate::quiet::undisturbed;

/// Packets of which the kernel's clock takes the programs' time.
const WATCHED: u32 = 1 << 18;

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// How often each is repeated; medians and lower quartiles count
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Bytes of each frame, 64 to 1500, without the four of its checksum. What does not fit the tunnel (1464) is no
    /// fair comparison: Hiveway answers it with an ICMP error
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1500))]
    size: u16,
    /// Of the established flows
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// What a packet's time is taken with
    #[arg(long, value_enum, default_value = "wall")]
    clock: Clock,
    /// Only these contestants; the floors are always measured, with a tunnel if one of these has one
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Contestant>,
    /// Only cases with these numbers of flows; 0: the flood
    #[arg(long, value_delimiter = ',')]
    flows: Vec<u32>,
    /// The core that does everything that is measured [default: the last one]
    #[arg(long)]
    core: Option<usize>,
    /// Seconds to wait, for each measurement, until nobody else uses the machine
    #[arg(long, default_value_t = 10)]
    patience: u64,
    /// Only to see whether it works: one round of a fifth of a second, no million flows, no waiting
    #[arg(long)]
    quick: bool,
    /// Where to write the figures [default: bench-results/mesh-<time>.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What a packet's time is taken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Clock {
    /// The time that passes: right if nobody else uses the core.
    Wall,
    /// The time that the core works for us: for a machine that others use, too. Their traces in the caches remain.
    Cpu,
}

impl Options {
    fn cases(&self) -> Vec<Case> {
        let wanted = |case: &Case| match self.flows.is_empty() {
            true => !(self.quick && case.flows > 100_000),
            false => self.flows.contains(&case.flows),
        };
        CASES.into_iter().filter(wanted).collect()
    }

    fn contestants(&self) -> Vec<Contestant> {
        let tunnels = self.only.iter().any(|who| who.has_tunnel());
        let wanted = |who: &Contestant| {
            let floor = who.is_floor() && (tunnels || *who == Contestant::Floor);
            self.only.is_empty() || floor || self.only.contains(who)
        };
        Contestant::ALL.into_iter().filter(wanted).collect()
    }
}

/// Measures, prints the table, writes the JSON.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        (options.rounds, options.seconds, options.patience) = (1, 0.2, 0);
    }
    ensure!(options.seconds > 0.0 && options.rounds > 0, "--seconds and --rounds must not be 0");
    let cores = std::thread::available_parallelism()?.get();
    let core = options.core.unwrap_or(cores - 1);
    ensure!(core < cores, "there is no core {core}");
    // Agents and all else get the other cores.
    let others: Vec<usize> = (0..cores).filter(|other| *other != core).collect();
    if !others.is_empty() {
        pin(&others)?;
    }
    crate::outcome::measured(|lab| measure(lab, &options, core), |report| report.write(options.json.as_deref()))
}

fn measure(lab: &Lab, options: &Options, core: usize) -> Result<Report> {
    let _room = stack::make_room()?;
    let (cases, contestants) = (options.cases(), options.contestants());
    let mut traffic = Traffic::load(core)?;
    let stage = Stage::build(lab, &mut traffic, &contestants, &cases, options.protocol)?;
    let mut report = Report::new(options, core);
    for round in 0..options.rounds {
        for cases in cases.chunk_by(Case::shares_flows) {
            for turn in 0..contestants.len() {
                // Another one comes first each time: whoever follows a slow one may find the caches cold.
                let contestant = contestants[(round + turn) % contestants.len()];
                let Some(instance) = stage.instance_of(contestant, cases[0].site) else { continue };
                let mut bench = Bench { traffic: &mut traffic, stage: &stage, instance, options };
                for sample in bench.samples(cases, round)? {
                    eprintln!("bench: round {}/{}, {sample}", round + 1, options.rounds);
                    report.add(sample);
                }
            }
        }
    }
    Ok(report)
}

/// A contestant's turn.
struct Bench<'a> {
    traffic: &'a mut Traffic,
    stage: &'a Stage,
    instance: &'a Instance,
    options: &'a Options,
}

impl Bench<'_> {
    /// One measurement in each of these cases, which are of the same flows.
    fn samples(&mut self, cases: &[Case], round: usize) -> Result<Vec<Sample>> {
        let contestant = self.instance.contestant;
        let cases: Vec<Case> = cases.iter().copied().filter(|case| contestant.takes_part(*case)).collect();
        let Some(first) = cases.first() else { return Ok(Vec::new()) };
        let about = |case: &Case| format!("{}: {}", case.title(), contestant.title());
        let opened = self.open(*first).with_context(|| about(first))?;
        let sample = |case: &Case| self.sample(*case, opened, round).with_context(|| about(case));
        cases.iter().map(sample).collect()
    }

    /// What the generator sends.
    fn frames(&self, case: Case, opened: Opened) -> Frames {
        let (target, size) = (&self.instance.target, usize::from(self.options.size));
        let protocol = case.protocol(self.options.protocol);
        match (case.direction, case.flows) {
            (Direction::Replies, _) => order::replies(target, protocol, opened.answers, size, self.instance.tunnel()),
            (_, 0) => requests(target, protocol, Of::Open, Flows::Random, size),
            (_, flows) => requests(target, protocol, Of::Middle, Flows::Scattered(flows), size),
        }
    }

    fn sample(&mut self, case: Case, opened: Opened, round: usize) -> Result<Sample> {
        let (frames, instance, generator) = (self.frames(case, opened), self.instance, &self.stage.generator);
        self.traffic.set_far_end(far_end::COUNT)?;
        // Caches and, after so many packets, the processor's idea of the branches are warm.
        let warm = case.flows.clamp(100_000, 1_000_000);
        let length = Duration::from_secs_f64(self.options.seconds);
        let traffic = std::cell::RefCell::new(&mut *self.traffic);
        let measure = |warm, length| traffic.borrow_mut().measure(generator, instance.port, &frames, (warm, length));
        let (sent, disturbed) = undisturbed(Duration::from_secs(self.options.patience), || measure(warm, length))?;
        ensure!(sent.delivered > 0, "nothing arrives at the far end: {sent:?}");
        let programs = programs::timed(|| traffic.borrow_mut().send(generator, instance.port, &frames, WATCHED))?;
        let (watched, programs) = programs;
        let programs_ns = programs.as_secs_f64() * 1e9 / watched.delivered.max(1) as f64;
        Ok(Sample::new((instance.contestant, case, round), opened, &sent, programs_ns, (self.options.clock, disturbed)))
    }
}
