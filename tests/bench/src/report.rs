//! Medians, ratios, and what was aimed at.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::{
    figures::{Aim, Chart, Figures, Group, Table},
    iperf::Stream,
    offloads::Setting,
    overlay::{Options, STREAMS},
    rr::Latency,
    stats::median,
};

/// One measurement of one path.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) setting: Setting,
    pub(crate) path: &'static str,
    pub(crate) round: usize,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    /// Somebody else used the machine meanwhile.
    pub(crate) disturbed: bool,
}

/// What is measured of a path.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) stream: Stream,
    /// Several streams together.
    pub(crate) streams: Stream,
    /// Thousands of UDP packets of 64 bytes that arrive per second.
    pub(crate) small_kpps: f64,
    pub(crate) latency: Latency,
}

/// Everything that was measured in a run.
pub(crate) struct Report {
    seconds: u32,
    rounds: usize,
    congestion: String,
    paths: Vec<(&'static str, &'static str)>,
    samples: Vec<Sample>,
}

/// (what, path, its reference, settings where it counts, ratio of throughputs to reach)
const AIMS: &[(&str, &str, &str, &[Setting], f64)] = &[
    ("across nodes / raw underlay", "across", "raw", &[Setting::On], 0.95),
    ("across nodes / bridge + kernel VXLAN", "across", "kernel_vxlan", &[Setting::On, Setting::NicLike], 1.25),
    ("VIP / across nodes", "vip", "across", &[Setting::On, Setting::NicLike], 0.98),
];

impl Report {
    pub(crate) fn new(options: &Options, paths: impl Iterator<Item = (&'static str, &'static str)>) -> Self {
        let default = || said("sysctl", &["-n", "net.ipv4.tcp_congestion_control"]);
        let congestion = options.congestion.clone().unwrap_or_else(default);
        Self { seconds: options.seconds, rounds: options.rounds, congestion, paths: paths.collect(), samples: vec![] }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    fn settings(&self) -> impl Iterator<Item = Setting> {
        [Setting::On, Setting::NicLike].into_iter().filter(|s| self.samples.iter().any(|sample| sample.setting == *s))
    }

    fn median(&self, setting: Setting, path: &str, figure: impl Fn(&Measured) -> f64) -> f64 {
        let samples = self.samples.iter().filter(|sample| sample.setting == setting && sample.path == path);
        median(samples.map(|sample| figure(&sample.measured)))
    }

    /// Median over the rounds of the ratio within a round: drift cancels out.
    fn ratio(&self, setting: Setting, path: &str, reference: &str, figure: impl Fn(&Measured) -> f64) -> f64 {
        let of = |path: &str, round| {
            let mut samples = self.samples.iter();
            let found = samples.find(|s| s.setting == setting && s.path == path && s.round == round);
            found.map(|sample| figure(&sample.measured))
        };
        median((0..self.rounds).filter_map(|round| Some(of(path, round)? / of(reference, round)?)))
    }

    fn table(&self, setting: Setting) -> Table {
        let eight = format!("{STREAMS} streams");
        let head = [
            "path",
            "Gbit/s",
            "x raw",
            "x kernel",
            "retrans",
            "ms/Gbit",
            &eight,
            "x raw",
            "x kernel",
            "64 B kpps",
            "x raw",
            "x kernel",
            "RR p50 µs",
            "p99",
            "RR/s",
        ];
        let mut table = Table::new(setting.title(), &head);
        for (name, title) in &self.paths {
            let median = |figure: fn(&Measured) -> f64| self.median(setting, name, figure);
            let ratios = |figure: fn(&Measured) -> f64| {
                ["raw", "kernel_vxlan"].map(|other| format!("{:.2}", self.ratio(setting, name, other, figure)))
            };
            let [one, several, small]: [fn(&Measured) -> f64; 3] =
                [|m| m.stream.gbit, |m| m.streams.gbit, |m| m.small_kpps];
            let mut cells = vec![format!("{:.2}", median(one))];
            cells.extend(ratios(one));
            cells.push(format!("{:.0}", median(|m| m.stream.retransmits as f64)));
            cells.push(format!("{:.1}", median(|m| m.stream.cpu_ms)));
            cells.push(format!("{:.2}", median(several)));
            cells.extend(ratios(several));
            cells.push(format!("{:.0}", median(small)));
            cells.extend(ratios(small));
            cells.push(format!("{:.1}", median(|m| m.latency.p50_us)));
            cells.push(format!("{:.1}", median(|m| m.latency.p99_us)));
            cells.push(format!("{:.0}", median(|m| m.latency.rate)));
            table.row(*title, cells);
        }
        table
    }

    fn chart(&self, title: &str, unit: &str, figure: fn(&Measured) -> f64) -> Chart {
        let groups = self.settings().map(|setting| Group {
            title: setting.title().to_owned(),
            bars: self
                .paths
                .iter()
                .map(|(name, title)| ((*title).to_owned(), self.median(setting, name, figure)))
                .collect(),
        });
        Chart { title: title.to_owned(), unit: unit.to_owned(), groups: groups.collect() }
    }

    fn aims(&self) -> Vec<Aim> {
        let of = |setting: Setting| {
            let counts = AIMS.iter().filter(move |(.., settings, _)| settings.contains(&setting));
            counts.map(move |(what, path, reference, _, aim)| {
                let is = self.ratio(setting, path, reference, |m| m.stream.gbit);
                Aim::at_least(format!("{}: {what}", setting.title()), is, *aim)
            })
        };
        self.settings().flat_map(of).collect()
    }

    fn figures(&self) -> Figures {
        let (rounds, seconds, congestion) = (self.rounds, self.seconds, &self.congestion);
        Figures {
            bench: "overlay".into(),
            how: format!("Medians of {rounds} rounds of {seconds} s, {congestion}."),
            measurements: self.samples.len(),
            disturbed: self.samples.iter().filter(|sample| sample.disturbed).count(),
            tables: self.settings().map(|setting| self.table(setting)).collect(),
            charts: vec![
                self.chart("Container to container, one TCP stream", "Gbit/s; more is better", |m| m.stream.gbit),
                self.chart("UDP packets of 64 bytes", "1,000 per second; more is better", |m| m.small_kpps),
            ],
            aims: self.aims(),
            ..Figures::default()
        }
    }

    /// Writes samples and figures; returns where.
    pub(crate) fn write(&self, path: Option<&Path>) -> Result<PathBuf> {
        let more = json!({"iperf3": said("iperf3", &["--version"]), "samples": self.samples});
        self.figures().write(more, path)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.figures())
    }
}

/// First line of what a program says; empty if it does not run.
pub(crate) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
