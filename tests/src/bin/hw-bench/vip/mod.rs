//! `bench vip`: connections per second and latency of requests, from outside through a published port, and from container to
//! container through a virtual address; against nftables and without anything in between.

mod report;
mod stage;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::Lab;
use serde::Serialize;

use self::{
    report::Report,
    stage::{PATHS, Stage},
};
use crate::{quiet::undisturbed, rr::Latency};

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each measurement: half for connections, half for requests
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// How often each path is measured; the medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// `--xdp` of the agents
    #[arg(long, default_value = "auto")]
    xdp: String,
    /// Seconds to wait, for each path, until nobody else uses the machine
    #[arg(long, default_value_t = 10)]
    patience: u64,
    /// Only to see whether it works
    #[arg(long)]
    quick: bool,
    /// Where to write the figures [default: bench-results/vip-<time>.json]
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measurement of one path.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    path: &'static str,
    round: usize,
    connections: Latency,
    requests: Latency,
    /// Somebody else used the machine meanwhile.
    disturbed: bool,
}

/// Measures, prints the table, writes the JSON.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.quick {
        (options.rounds, options.seconds, options.patience) = (1, 0.4, 0);
    }
    ensure!(options.seconds > 0.0 && options.rounds > 0, "--seconds and --rounds must not be 0");
    crate::outcome::measured(|lab| measure(lab, &options), |report| report.write(options.json.as_deref()))
}

fn measure(lab: &Lab, options: &Options) -> Result<Report> {
    eprintln!("bench: building the lab");
    let stage = Stage::build(lab, &options.xdp)?;
    // Every path must work before minutes are spent on it.
    for path in &PATHS {
        stage.connections(path, 0.1).context(path.title)?;
    }
    let mut report = Report::new(options);
    for round in 0..options.rounds {
        for turn in 0..PATHS.len() {
            // Another path comes first each time: whoever follows a slow one may find the caches cold.
            let path = &PATHS[(round + turn) % PATHS.len()];
            let ((connections, requests), disturbed) = undisturbed(Duration::from_secs(options.patience), || {
                let half = options.seconds / 2.0;
                Ok((stage.connections(path, half)?, stage.requests(path, half)?))
            })
            .context(path.title)?;
            let (rate, p50, mark) = (connections.rate, requests.p50_us, if disturbed { "  disturbed" } else { "" });
            eprintln!(
                "bench: round {}/{}, {:<42} {rate:8.0} connections/s {p50:6.1} us{mark}",
                round + 1,
                options.rounds,
                path.title
            );
            report.add(Sample { path: path.name, round, connections, requests, disturbed });
        }
    }
    Ok(report)
}
