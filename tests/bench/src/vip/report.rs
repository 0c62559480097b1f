//! Medians, ratios within rounds, what was aimed at.

use std::{
    fmt,
    path::{Path as FilePath, PathBuf},
};

use anyhow::Result;
use serde_json::json;

use super::{
    Options, Sample,
    stage::{PATHS, Path},
};
use crate::{
    figures::{Aim, Chart, Figures, Group, Table},
    stats::{lower_quartile, median},
};

/// Least connections per second through a published port, of those that are routed to the container.
const OF_ROUTED: f64 = 0.88;
/// Least connections per second through a VIP, of those straight to the container.
const OF_DIRECT: f64 = 0.98;
/// Least connections per second, over nftables'.
const OF_NFTABLES: f64 = 1.2;

/// Everything that was measured in a run.
pub(super) struct Report {
    options: Options,
    samples: Vec<Sample>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self { options: options.clone(), samples: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    fn of(&self, path: &str, figure: impl Fn(&Sample) -> f64) -> impl Iterator<Item = f64> {
        self.samples.iter().filter(move |sample| sample.path == path).map(figure)
    }

    fn median(&self, path: &str, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.of(path, figure))
    }

    fn low(&self, path: &str, figure: impl Fn(&Sample) -> f64) -> f64 {
        lower_quartile(self.of(path, figure))
    }

    /// Of those that were measured.
    fn paths(&self) -> impl Iterator<Item = &'static Path> {
        PATHS.iter().filter(|path| self.samples.iter().any(|sample| sample.path == path.name))
    }

    /// Median over the rounds of the ratio within a round: drift cancels out.
    fn ratio(&self, path: &str, reference: &str, figure: impl Fn(&Sample) -> f64) -> f64 {
        let of = |path: &str, round| {
            self.samples.iter().find(|sample| sample.path == path && sample.round == round).map(&figure)
        };
        median((0..self.options.rounds).filter_map(|round| Some(of(path, round)? / of(reference, round)?)))
    }

    fn table(&self) -> Table {
        let head = [
            "path",
            "conn/s",
            "x direct",
            "x nftables",
            "conn p50 µs",
            "low",
            "p99",
            "request p50 µs",
            "low",
            "p99",
            "requests/s",
            "x direct",
            "x nftables",
        ];
        let mut table = Table::new("", &head);
        for &Path { name, title, direct, nftables, .. } in self.paths() {
            let connections = |sample: &Sample| sample.connections.rate;
            let requests = |sample: &Sample| sample.requests.rate;
            table.row(
                title,
                [
                    format!("{:.0}", self.median(name, connections)),
                    format!("{:.2}", self.ratio(name, direct, connections)),
                    format!("{:.2}", self.ratio(name, nftables, connections)),
                    format!("{:.1}", self.median(name, |sample| sample.connections.p50_us)),
                    format!("{:.1}", self.low(name, |sample| sample.connections.p50_us)),
                    format!("{:.1}", self.median(name, |sample| sample.connections.p99_us)),
                    format!("{:.1}", self.median(name, |sample| sample.requests.p50_us)),
                    format!("{:.1}", self.low(name, |sample| sample.requests.p50_us)),
                    format!("{:.1}", self.median(name, |sample| sample.requests.p99_us)),
                    format!("{:.0}", self.median(name, requests)),
                    format!("{:.2}", self.ratio(name, direct, requests)),
                    format!("{:.2}", self.ratio(name, nftables, requests)),
                ],
            );
        }
        table
    }

    fn aims(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        for &Path { name, title, direct, nftables, .. } in self.paths() {
            let of = |reference| self.ratio(name, reference, |sample| sample.connections.rate);
            let connections = |reference| format!("connections per second, {title} / {reference}");
            if name.starts_with("mesh") {
                aims.push(Aim::at_least(connections("routed"), of(direct), OF_ROUTED));
            }
            if name == "vip" {
                aims.push(Aim::at_least(connections("direct"), of(direct), OF_DIRECT));
            }
            if ["mesh", "vip"].contains(&name) {
                aims.push(Aim::at_least(connections("nftables"), of(nftables), OF_NFTABLES));
            }
        }
        // Without its reference a ratio is nothing.
        aims.retain(|aim| aim.is > 0.0);
        aims
    }

    fn chart(&self) -> Chart {
        let group = |title: &str, paths: &[(&str, &str)]| Group {
            title: title.to_owned(),
            bars: paths
                .iter()
                .filter(|(path, _)| self.paths().any(|of| of.name == *path))
                .map(|(path, name)| ((*name).to_owned(), self.median(path, |sample| sample.connections.rate) / 1e3))
                .collect(),
        };
        let outside = [
            ("outside_direct", "direct"),
            ("mesh", "Hiveway"),
            ("mesh_native", "Hiveway, native XDP"),
            ("mesh_dsr", "Hiveway, DSR"),
            ("mesh_native_dsr", "Hiveway, native XDP + DSR"),
            ("outside_nftables", "nftables"),
        ];
        let overlay = [
            ("direct", "Hiveway, direct"),
            ("vip", "Hiveway"),
            ("kernel_vxlan", "kernel, direct"),
            ("nftables", "nftables"),
        ];
        Chart {
            title: "Connections with one request each, one core for both ends".into(),
            unit: "1,000 per second; more is better".into(),
            groups: vec![
                group("Published port, from outside", &outside),
                group("VIP, container to container", &overlay),
            ],
        }
    }

    fn figures(&self) -> Figures {
        let Options { rounds, seconds, xdp, .. } = &self.options;
        Figures {
            bench: "vip".into(),
            how: format!(
                "Client and server on one core, medians and lower quartiles (low) of {rounds} rounds of {seconds} s, \
                 agents with `--xdp {xdp}` where the row does not say native."
            ),
            measurements: self.samples.len(),
            disturbed: self.samples.iter().filter(|sample| sample.disturbed).count(),
            tables: vec![self.table()],
            charts: vec![self.chart()],
            aims: self.aims(),
            ..Figures::default()
        }
    }

    /// Writes samples and figures; returns where.
    pub(super) fn write(&self, path: Option<&FilePath>) -> Result<PathBuf> {
        self.figures().write(json!({"samples": self.samples}), path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.figures())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rr::Latency;

    #[test]
    fn each_mode_is_a_share_of_the_routed_floor() {
        let options = Options {
            seconds: 1.0,
            rounds: 2,
            xdp: "auto".into(),
            only: vec![],
            patience: 0,
            quick: false,
            json: None,
        };
        let mut report = Report::new(&options);
        let rates = [("outside_direct", [100.0, 200.0]), ("mesh", [70.0, 140.0]), ("mesh_dsr", [90.0, 190.0])];
        for (path, rates) in rates {
            for (round, rate) in rates.into_iter().enumerate() {
                let connections = Latency { rate, ..Latency::default() };
                report.add(Sample { path, round, connections, requests: connections, disturbed: false });
            }
        }
        let aims = report.aims();
        let shares: Vec<_> = aims.iter().filter(|aim| aim.what.ends_with("/ routed")).collect();
        assert_eq!(shares.len(), 2, "only what was measured");
        assert!((shares[0].is - 0.7).abs() < 1e-9 && !shares[0].met, "{shares:?}");
        assert!((shares[1].is - 0.925).abs() < 1e-9 && shares[1].met, "{shares:?}");
        assert_eq!(report.table().rows.len(), 3);
    }
}
