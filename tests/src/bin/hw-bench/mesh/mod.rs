//! `bench mesh`: what forwarding one packet of a published port costs at its ingress node.

mod contestants;
mod hiveway;
mod order;
mod programs;
mod report;
mod stack;
mod stage;
mod traffic;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dataplane_common::traffic::far_end;
use hiveway_tests::lab::Lab;

use self::{
    contestants::{CASES, Case, Contestant, Site},
    order::{Flows, Protocol, Stage as Of, order},
    report::{Report, Sample},
    stage::{Instance, Stage},
    traffic::{Traffic, pin},
};
use crate::quiet::undisturbed;

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How often each is repeated; the medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of each frame, 64 to 1500, without the four of its checksum. What does not fit the tunnel (1464) is no fair
    /// comparison: Hiveway answers it with an ICMP error
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1500))]
    size: u16,
    /// Of the established flows
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// What a packet's time is taken with
    #[arg(long, value_enum, default_value = "wall")]
    clock: Clock,
    /// Only these contestants; the floor is always measured
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
        let wanted = |who: &Contestant| self.only.is_empty() || *who == Contestant::Floor || self.only.contains(who);
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
    let cases = options.cases();
    let mut sites: Vec<Site> = cases.iter().map(|case| case.site).collect();
    sites.sort_unstable();
    sites.dedup();
    let mut traffic = Traffic::load(core)?;
    let stage = Stage::build(lab, &mut traffic, &options.contestants(), &sites, options.protocol)?;
    let mut report = Report::new(options, core);
    for round in 0..options.rounds {
        for case in &cases {
            let contestants = options.contestants();
            for turn in 0..contestants.len() {
                // Another one comes first each time: whoever follows a slow one may find the caches cold.
                let contestant = contestants[(round + turn) % contestants.len()];
                let Some(instance) = stage.instance_of(contestant, case.site) else { continue };
                let sample = one(&mut traffic, &stage, instance, *case, round, options)
                    .with_context(|| format!("{}: {}", case.title(), contestant.title()))?;
                eprintln!("bench: round {}/{}, {sample}", round + 1, options.rounds);
                report.add(sample);
            }
        }
    }
    Ok(report)
}

/// One measurement of one contestant.
fn one(
    traffic: &mut Traffic,
    stage: &Stage,
    instance: &Instance,
    case: Case,
    round: usize,
    options: &Options,
) -> Result<Sample> {
    let protocol = case.protocol(options.protocol);
    let frame = usize::from(options.size);
    let opened = match case.flows {
        0 => Opened { answered: 1.0, bytes_per_flow: None },
        flows => open(traffic, stage, instance, flows, protocol, frame)?,
    };
    let (of, flows) = match case.flows {
        0 => (Of::Open, Flows::Random),
        flows => (Of::Middle, Flows::Scattered(flows)),
    };
    let order = order(&instance.target, protocol, of, flows, frame);
    traffic.set_far_end(far_end::COUNT)?;
    // Caches and, after so many packets, the processor's idea of the branches are warm.
    traffic.send(&stage.generator, instance.port, order, u64::from(case.flows).clamp(100_000, 1_000_000))?;
    let length = Duration::from_secs_f64(options.seconds);
    let traffic = std::cell::RefCell::new(traffic);
    let (sent, disturbed) = undisturbed(Duration::from_secs(options.patience), || {
        traffic.borrow_mut().measure(&stage.generator, instance.port, order, length)
    })?;
    ensure!(sent.delivered > 0, "nothing arrives at the far end: {sent:?}");
    let short = length.min(Duration::from_millis(300));
    let (watched, programs) =
        programs::timed(|| traffic.borrow_mut().measure(&stage.generator, instance.port, order, short))?;
    let programs_ns = programs.as_secs_f64() * 1e9 / watched.delivered.max(1) as f64;
    Ok(Sample::new((instance.contestant, case, round), opened, &sent, programs_ns, (options.clock, disturbed)))
}

/// What opening flows has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Opened {
    /// Part of the flows that was answered.
    answered: f64,
    /// Map memory for each of them, if enough were new to tell.
    bytes_per_flow: Option<f64>,
}

/// Opens the flows, which a real conversation does: both ends are heard of.
fn open(
    traffic: &mut Traffic,
    stage: &Stage,
    instance: &Instance,
    flows: u32,
    protocol: Protocol,
    frame: usize,
) -> Result<Opened> {
    const ENOUGH: u64 = 1000;
    /// Flows that are opened before they are answered for good: Hiveway has room for 65,536 of them.
    const AT_ONCE: usize = 16_384;
    if matches!(instance.contestant, Contestant::Floor | Contestant::Push) {
        return Ok(Opened { answered: 1.0, bytes_per_flow: None });
    }
    let before = instance.established()?;
    let opening = order(&instance.target, protocol, Of::Open, Flows::InTurn(flows), frame);
    let mut answered = 0;
    // Packets may be lost on the way; what is open already is not harmed by being opened again.
    for _ in 0..3 {
        answered = 0;
        for first in (0..flows).step_by(AT_ONCE) {
            let some = u64::from(flows - first).min(AT_ONCE as u64);
            let opening = (order::from(opening.0, first), opening.1);
            traffic.set_far_end(far_end::ANSWER)?;
            answered += traffic.send(&stage.generator, instance.port, opening, some)?.answered;
            // The second packet of a client that was answered; TCP's was the acknowledgement of the SYN-ACK.
            if protocol == Protocol::Udp {
                traffic.set_far_end(far_end::COUNT)?;
                traffic.send(&stage.generator, instance.port, opening, some)?;
            }
        }
        if answered >= flows.into() {
            break;
        }
    }
    ensure!(answered > 0, "no flow was answered");
    let mut bytes_per_flow = None;
    if let (Some(before), Some(after)) = (before, instance.established()?) {
        // Since the start; the flows of a smaller case are among those of a larger one.
        ensure!(after.flows >= answered.min(flows.into()), "{} of {flows} flows are established", after.flows);
        let new = after.flows - before.flows;
        let bytes = after.map_bytes.saturating_sub(before.map_bytes);
        bytes_per_flow = (new >= ENOUGH).then(|| bytes as f64 / new as f64);
    }
    Ok(Opened { answered: answered as f64 / f64::from(flows), bytes_per_flow })
}
