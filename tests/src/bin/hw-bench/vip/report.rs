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
    stats::median,
};

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

    fn median(&self, path: &str, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().filter(|sample| sample.path == path).map(figure))
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
            "p99",
            "request p50 µs",
            "p99",
            "requests/s",
            "x direct",
            "x nftables",
        ];
        let mut table = Table::new("", &head);
        for &Path { name, title, direct, nftables, .. } in &PATHS {
            let connections = |sample: &Sample| sample.connections.rate;
            let requests = |sample: &Sample| sample.requests.rate;
            table.row(
                title,
                [
                    format!("{:.0}", self.median(name, connections)),
                    format!("{:.2}", self.ratio(name, direct, connections)),
                    format!("{:.2}", self.ratio(name, nftables, connections)),
                    format!("{:.1}", self.median(name, |sample| sample.connections.p50_us)),
                    format!("{:.1}", self.median(name, |sample| sample.connections.p99_us)),
                    format!("{:.1}", self.median(name, |sample| sample.requests.p50_us)),
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
        [("mesh", "outside_nftables"), ("vip", "nftables")]
            .map(|(path, nftables)| {
                let is = self.ratio(path, nftables, |sample| sample.connections.rate);
                Aim::at_least(format!("connections per second through {path} / nftables"), is, OF_NFTABLES)
            })
            .to_vec()
    }

    fn chart(&self) -> Chart {
        let group = |title: &str, paths: &[(&str, &str)]| Group {
            title: title.to_owned(),
            bars: paths
                .iter()
                .map(|(path, name)| ((*name).to_owned(), self.median(path, |sample| sample.connections.rate) / 1e3))
                .collect(),
        };
        let outside = [("outside_direct", "direct"), ("mesh", "Hiveway"), ("outside_nftables", "nftables")];
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
                "Client and server on one core, medians of {rounds} rounds of {seconds} s, agents with `--xdp {xdp}`."
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
