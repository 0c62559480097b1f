//! `bench churn`: how long a change of the table takes until packets see it, and what the agent needs for that.
//!
//! Measured from outside: the clock starts when the new table takes its name, and stops when the pinned maps that the
//! programs read show what is written last: a port's number of backends, or the last published port of all. Reading and
//! checking a whole file is in that, which a live source need not do; so the agent's own account is taken, too: how
//! long it took from knowing the new table until its last entry was written.

mod report;
mod swarm;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, wait_for},
};
use serde::Serialize;

use self::{report::Report, swarm::Swarm};
use crate::maps::{self, Published};

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Sizes of the swarm, in tasks; five to a service, each service with a VIP and a published port
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000, 50_000])]
    tasks: Vec<u32>,
    /// Single changes of each size; the median counts
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// How often everything is programmed; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only to see whether it works: 10 and 1,000 tasks, few changes
    #[arg(long)]
    quick: bool,
    /// Where to write the figures [default: bench-results/churn-<time>.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured with a swarm of one size.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    tasks: u32,
    services: u32,
    /// From an empty table to the last published port.
    full_ms: f64,
    full_cpu_ms: f64,
    /// Of that, from knowing the table to its last entry.
    full_programming_ms: f64,
    /// From each change to its port's new number of backends.
    changes_ms: Vec<f64>,
    /// Of that, from knowing the table to its last entry.
    programming_ms: Vec<f64>,
    change_cpu_ms: f64,
    /// Part of a core, while nothing changes.
    idle_cpu: f64,
    resident_mib: f64,
    peak_mib: f64,
    /// Of maps, more than with an empty table, per task.
    map_bytes_per_task: f64,
}

/// Measures, prints the table, writes the JSON.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        (options.tasks, options.changes, options.rounds) = (vec![10, 1000], 5, 1);
    }
    let swarm::Limits { least, most } = swarm::LIMITS;
    ensure!(options.tasks.iter().all(|n| (least..=most).contains(n)), "--tasks: {least} to {most}");
    ensure!(options.changes > 0 && options.rounds > 0, "--changes and --rounds must not be 0");
    crate::outcome::measured(|lab| measure(lab, &options), |report| report.write(options.json.as_deref()))
}

fn measure(lab: &Lab, options: &Options) -> Result<Report> {
    let mut report = Report::new(options);
    for round in 0..options.rounds {
        for &tasks in &options.tasks {
            let sample = one(lab, options, tasks, round).with_context(|| format!("{tasks} tasks"))?;
            eprintln!("bench: round {}/{}, {sample}", round + 1, options.rounds);
            report.add(sample);
        }
    }
    Ok(report)
}

/// A node with an agent of its own, from an empty table to a full one, and changes of that.
fn one(lab: &Lab, options: &Options, tasks: u32, round: usize) -> Result<Sample> {
    let node = lab.node(&format!("n{tasks}r{round}"), 11)?;
    let user = lab.namespace(&format!("u{tasks}r{round}"))?;
    let file = lab.directory().join(format!("{}.json", node.label()));
    let mut swarm = Swarm::new(tasks, &user);
    prepare(&file, &swarm.empty())?.put()?;
    let agent = start(lab, &node, &file)?;
    let published = Published::open(agent.bpffs())?;
    let before = maps::memory(agent.bpffs())?;

    let (port, backends) = swarm.last_port();
    let use_before = Use::of(&agent)?;
    let full = prepare(&file, swarm.table())?.put()?.until(|| published.backends(port) == Some(backends))?;
    // The rest of the agent's work (links, neighbours, its own bookkeeping) comes after the maps.
    let after = settled(&agent)?;
    let full_programming = programming(&agent)?.context("the agent does not say how long it took")?;
    let full_cpu = after.cpu.saturating_sub(use_before.cpu);
    let memory = maps::memory(agent.bpffs())?.saturating_sub(before);

    let (mut changes, mut programmed) = (Vec::new(), Vec::new());
    let cpu_before = settled(&agent)?.cpu;
    for number in 0..options.changes {
        let (port, backends) = swarm.change(number);
        let prepared = prepare(&file, swarm.table())?;
        let before = programming(&agent)?;
        let took = prepared.put()?.until(|| published.backends(port) == Some(backends))?;
        changes.push(took.as_secs_f64() * 1e3);
        // It says so when its round is over.
        programmed.push(wait_for("the agent's account", PATIENCE, || {
            let now = programming(&agent)?.filter(|now| Some(*now) != before);
            now.context("the same as before")
        })?);
        std::thread::sleep(Duration::from_millis(200));
    }
    let cpu_after = settled(&agent)?.cpu;

    let (started, idle_before) = (Instant::now(), Use::of(&agent)?.cpu);
    std::thread::sleep(Duration::from_secs(if options.quick { 1 } else { 10 }));
    let idle = Use::of(&agent)?;
    let idle_cpu = (idle.cpu - idle_before).as_secs_f64() / started.elapsed().as_secs_f64();
    agent.terminate()?;
    agent.teardown()?;
    lab.delete_namespace(user);
    lab.delete_namespace(node);
    Ok(Sample {
        tasks,
        services: swarm.services(),
        full_ms: full.as_secs_f64() * 1e3,
        full_cpu_ms: full_cpu.as_secs_f64() * 1e3,
        full_programming_ms: full_programming,
        change_cpu_ms: (cpu_after - cpu_before).as_secs_f64() * 1e3 / changes.len() as f64,
        changes_ms: changes,
        programming_ms: programmed,
        idle_cpu,
        resident_mib: idle.resident_mib,
        peak_mib: idle.peak_mib,
        map_bytes_per_task: memory as f64 / f64::from(tasks),
    })
}

fn start(lab: &Lab, node: &Netns, file: &Path) -> Result<Arc<Agent>> {
    let table = format!("file:{}", file.display());
    Agent::start(lab, node, AgentOptions { node: "n1".to_owned(), table, netns_dir: None, extra: vec![] })
}

/// How long the agent took from knowing the table in force to the last entry of the maps, in milliseconds.
fn programming(agent: &Agent) -> Result<Option<f64>> {
    Ok(agent.json(&["status"])?["reconcile"]["change"]["programming_ms"].as_f64())
}

/// A table that lies beside the one in force.
struct Prepared {
    temporary: PathBuf,
    file: PathBuf,
}

fn prepare(file: &Path, table: &serde_json::Value) -> Result<Prepared> {
    let temporary = file.with_extension("next");
    std::fs::write(&temporary, serde_json::to_string(table)?)?;
    Ok(Prepared { temporary, file: file.to_owned() })
}

/// The moment in which a table came into force.
struct Put(Instant);

impl Prepared {
    fn put(self) -> Result<Put> {
        let now = Instant::now();
        std::fs::rename(&self.temporary, &self.file)?;
        Ok(Put(now))
    }
}

impl Put {
    /// How long it takes until that is so.
    fn until(self, so: impl Fn() -> bool) -> Result<Duration> {
        const LIMIT: Duration = Duration::from_secs(300);
        loop {
            if so() {
                return Ok(self.0.elapsed());
            }
            ensure!(self.0.elapsed() < LIMIT, "the maps do not show the change after {LIMIT:?}");
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
struct Use {
    cpu: Duration,
    resident_mib: f64,
    peak_mib: f64,
}

impl Use {
    fn of(agent: &Agent) -> Result<Self> {
        let pid = agent.pid().context("the agent has ended")?;
        // Of all threads, those that have ended included; in ticks.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100) as u64;
        let cpu = Duration::from_millis((field(11) + field(12)) * 1000 / per_second);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |key: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
        };
        let (resident, peak) = (mib("VmRSS:").unwrap_or(0.0), mib("VmHWM:").unwrap_or(0.0));
        Ok(Self { cpu, resident_mib: resident, peak_mib: peak })
    }
}

/// What the agent has used when it has come to rest.
fn settled(agent: &Agent) -> Result<Use> {
    let mut before = Use::of(agent)?;
    for _ in 0..600 {
        std::thread::sleep(Duration::from_millis(500));
        let now = Use::of(agent)?;
        // Its periodic work goes on.
        if now.cpu - before.cpu < Duration::from_millis(50) {
            return Ok(now);
        }
        before = now;
    }
    Ok(before)
}
