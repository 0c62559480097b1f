//! Medians, ratios, what was aimed at, and the JSON.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;

use crate::{iperf::Stream, offloads::Setting, overlay::Options, rr::Latency, stats::median};

/// One measurement of one path.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) setting: Setting,
    pub(crate) path: &'static str,
    pub(crate) round: usize,
    pub(crate) stream: Stream,
    pub(crate) latency: Latency,
    /// Somebody else used the machine meanwhile.
    pub(crate) disturbed: bool,
}

/// Everything that was measured in a run.
pub(crate) struct Report {
    seconds: u32,
    rounds: usize,
    congestion: String,
    paths: Vec<(&'static str, &'static str)>,
    samples: Vec<Sample>,
}

/// Medians of a path in a setting.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Medians {
    gbit: f64,
    retransmits: f64,
    cpu_ms: f64,
    p50_us: f64,
    p99_us: f64,
    rate: f64,
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

    fn medians(&self, setting: Setting, path: &str) -> Medians {
        let samples = || self.samples.iter().filter(move |s| s.setting == setting && s.path == path);
        Medians {
            gbit: median(samples().map(|s| s.stream.gbit)),
            retransmits: median(samples().map(|s| s.stream.retransmits as f64)),
            cpu_ms: median(samples().map(|s| s.stream.cpu_ms)),
            p50_us: median(samples().map(|s| s.latency.p50_us)),
            p99_us: median(samples().map(|s| s.latency.p99_us)),
            rate: median(samples().map(|s| s.latency.rate)),
        }
    }

    /// Median over the rounds of the ratio within a round: drift cancels out.
    fn ratio(&self, setting: Setting, path: &str, reference: &str) -> f64 {
        let gbit = |path: &str, round| {
            let mut samples = self.samples.iter();
            samples.find(|s| s.setting == setting && s.path == path && s.round == round).map(|s| s.stream.gbit)
        };
        median((0..self.rounds).filter_map(|round| Some(gbit(path, round)? / gbit(reference, round)?)))
    }

    /// Writes samples, medians and circumstances; returns where.
    pub(crate) fn write(&self, path: Option<&Path>) -> Result<PathBuf> {
        let now = said("date", &["-u", "+%Y%m%dT%H%M%SZ"]);
        let path = crate::outcome::destination("overlay", &now, path)?;
        let medians: Vec<_> = self
            .settings()
            .flat_map(|setting| self.paths.iter().map(move |(name, _)| (setting, *name)))
            .map(|(setting, name)| {
                json!({
                    "setting": setting, "path": name, "medians": self.medians(setting, name),
                    "of_raw": self.ratio(setting, name, "raw"),
                    "of_kernel_vxlan": self.ratio(setting, name, "kernel_vxlan"),
                })
            })
            .collect();
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let text = serde_json::to_string_pretty(&json!({
            "bench": "overlay", "time": now, "kernel": said("uname", &["-r"]), "cpus": cpus,
            "commit": said("git", &["rev-parse", "--short", "HEAD"]), "iperf3": said("iperf3", &["--version"]),
            "congestion": self.congestion, "seconds": self.seconds, "rounds": self.rounds,
            "aims": self.aims().map(|(what, is, aim)| json!({"what": what, "ratio": is, "aim": aim})).collect::<Vec<_>>(),
            "medians": medians, "samples": self.samples,
        }))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn aims(&self) -> impl Iterator<Item = (String, f64, f64)> {
        self.settings().flat_map(move |setting| {
            AIMS.iter().filter(move |(.., settings, _)| settings.contains(&setting)).map(
                move |(what, path, reference, _, aim)| {
                    (format!("{}: {what}", setting.title()), self.ratio(setting, path, reference), *aim)
                },
            )
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for setting in self.settings() {
            writeln!(
                f,
                "\n{}, {}, medians of {} rounds of {} s",
                setting.title(),
                self.congestion,
                self.rounds,
                self.seconds
            )?;
            let head = ["Gbit/s", "x raw", "x kernel", "retrans", "ms/Gbit", "RR p50 us", "p99 us", "RR/s"];
            writeln!(f, "{:<37}{}", "", head.map(|column| format!("{column:>10}")).concat())?;
            for (name, title) in &self.paths {
                let m = self.medians(setting, name);
                let (raw, kernel) = (self.ratio(setting, name, "raw"), self.ratio(setting, name, "kernel_vxlan"));
                write!(
                    f,
                    "{title:<37}{:>10.2}{raw:>10.2}{kernel:>10.2}{:>10.0}{:>10.1}",
                    m.gbit, m.retransmits, m.cpu_ms
                )?;
                writeln!(f, "{:>10.1}{:>10.1}{:>10.0}", m.p50_us, m.p99_us, m.rate)?;
            }
        }
        writeln!(f)?;
        let disturbed = self.samples.iter().filter(|sample| sample.disturbed).count();
        if disturbed > 0 {
            let all = self.samples.len();
            writeln!(
                f,
                "{disturbed} of {all} measurements were disturbed by others on this machine: not to be trusted\n"
            )?;
        }
        for (what, is, aim) in self.aims() {
            let verdict = if is >= aim { "met" } else { "MISSED" };
            writeln!(f, "{what}: {is:.3}, aim {aim:.2}: {verdict}")?;
        }
        Ok(())
    }
}

/// First line of what a program says; empty if it does not run.
pub(crate) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
