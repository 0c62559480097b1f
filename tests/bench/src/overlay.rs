//! The measurement itself: in turns, so that what slows the machine down for a while slows all paths down.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use hiveway_tests::lab::Lab;

use crate::{
    offloads::Setting,
    paths::Setup,
    quiet::undisturbed,
    report::{Measured, Report, Sample},
};

/// Besides a single one.
pub(crate) const STREAMS: usize = 8;

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each iperf3 run; half of it for each latency run
    #[arg(long, default_value_t = 3)]
    pub(crate) seconds: u32,
    /// How often each path is measured in each setting; the medians count
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Seconds of rest after each path, for whoever else uses the machine
    #[arg(long, default_value_t = 0)]
    pub(crate) pause: u64,
    /// Seconds to wait, for each path, until nobody else uses the machine
    #[arg(long, default_value_t = 10)]
    pub(crate) patience: u64,
    /// Size of the socket buffers, such as 512K [default: the kernel's own tuning]
    #[arg(long)]
    pub(crate) window: Option<String>,
    /// TCP's congestion control [default: this machine's]
    #[arg(long)]
    pub(crate) congestion: Option<String>,
    /// Only to see whether it works: one round of a second
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only this setting of the underlay's offloads
    #[arg(long)]
    pub(crate) offloads: Option<Setting>,
    /// Where to write the figures [default: bench-results/overlay-<time>.json]
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// Measures, prints the table, writes the JSON.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        (options.rounds, options.seconds, options.patience) = (1, 1, 0);
    }
    ensure!(options.seconds > 0 && options.rounds > 0, "--seconds and --rounds must not be 0");
    crate::outcome::measured(|lab| measure(lab, &options), |report| report.write(options.json.as_deref()))
}

fn measure(lab: &Lab, options: &Options) -> Result<Report> {
    eprintln!("bench: building the lab");
    let setup = Setup::start(lab)?;
    let settings = options.offloads.map_or(vec![Setting::On, Setting::NicLike], |only| vec![only]);
    // Every path must work before minutes are spent on it.
    for path in &setup.paths {
        path.latency(0.1)?;
    }
    let mut report = Report::new(options, setup.paths.iter().map(|path| (path.name, path.title)));
    for round in 0..options.rounds {
        for setting in &settings {
            setup.apply(*setting)?;
            for turn in 0..setup.paths.len() {
                // Another path comes first each time: whoever follows a slow one may find the caches cold.
                let path = &setup.paths[(round + turn) % setup.paths.len()];
                let (measured, disturbed) = undisturbed(Duration::from_secs(options.patience), || {
                    Ok(Measured {
                        stream: path.streams(1, options)?,
                        streams: path.streams(STREAMS, options)?,
                        small_kpps: path.small_packets(options)?,
                        latency: path.latency(f64::from(options.seconds) / 2.0)?,
                    })
                })?;
                eprintln!(
                    "bench: round {}/{}, {}: {:<36} {:6.2}, {STREAMS} streams {:6.2} Gbit/s {:7.1} us {:6.0} kpps{}",
                    round + 1,
                    options.rounds,
                    if *setting == Setting::On { "on " } else { "nic" },
                    path.title,
                    measured.stream.gbit,
                    measured.streams.gbit,
                    measured.latency.p50_us,
                    measured.small_kpps,
                    if disturbed { "  disturbed" } else { "" }
                );
                std::thread::sleep(Duration::from_secs(options.pause));
                report.add(Sample { setting: *setting, path: path.name, round, measured, disturbed });
            }
        }
    }
    Ok(report)
}
