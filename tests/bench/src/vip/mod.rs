//! `bench vip`: connections per second and latency of requests, from outside through a published port, and from
//! container to container through a virtual address; against nftables and without anything in between.

mod agents;
mod report;
mod stage;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::lab::Lab;
use serde::Serialize;

use self::{
    report::Report,
    stage::{PATHS, Path, Stage},
};
use crate::{quiet::undisturbed, rr::Latency};

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of each measurement: half for connections, half for requests
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often each path is measured; medians and lower quartiles count
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// `--xdp` of the agents, except in the rows that say native XDP
    #[arg(long, default_value = "auto")]
    xdp: String,
    /// Only these paths, by their names in the JSON; what they are compared with is always measured
    #[arg(long, value_delimiter = ',', value_parser = PATHS.each_ref().map(|path| path.name))]
    only: Vec<String>,
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

impl Options {
    fn paths(&self) -> Vec<&'static Path> {
        let asked = |path: &&Path| self.only.is_empty() || self.only.iter().any(|name| name == path.name);
        let reference =
            |path: &Path| PATHS.iter().filter(asked).any(|of| [of.direct, of.nftables].contains(&path.name));
        PATHS.iter().filter(|path| asked(path) || reference(path)).collect()
    }
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
    let paths = options.paths();
    let stage = Stage::build(lab, &paths, &options.xdp)?;
    // Every path must work, and be what it says, before minutes are spent on it.
    for path in &paths {
        stage.connections(path, 0.1).and_then(|_| stage.check(path)).context(path.title)?;
    }
    let mut report = Report::new(options);
    for round in 0..options.rounds {
        for turn in 0..paths.len() {
            // Another path comes first each time: whoever follows a slow one may find the caches cold.
            let path = paths[(round + turn) % paths.len()];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn names(line: &[&str]) -> Vec<&'static str> {
        let line = <Line as clap::Parser>::try_parse_from([&["vip"], line].concat()).unwrap();
        line.options.paths().iter().map(|path| path.name).collect()
    }

    #[test]
    fn references_are_measured_with_what_was_asked_for() {
        assert_eq!(names(&["--only", "mesh_dsr"]), ["outside_direct", "mesh_dsr", "outside_nftables"]);
        assert_eq!(names(&["--only", "vip"]), ["direct", "vip", "nftables"]);
        assert_eq!(names(&[]).len(), PATHS.len());
    }
}
