//! `bench all`: every bench in one run, and what it makes for the docs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{render, report::said};

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Only to see whether it works
    #[arg(long)]
    quick: bool,
    /// Rounds of each bench [default: each bench's own]
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the figures, the report and the chart go [default: bench-results/all-<time>]
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// In this order: those that need a quiet machine most come first.
const BENCHES: [&str; 4] = ["mesh", "vip", "overlay", "churn"];

pub(crate) fn run(options: &Options) -> Result<()> {
    let default = || format!("bench-results/all-{}", said("date", &["-u", "+%Y%m%dT%H%M%SZ"])).into();
    let directory = options.directory.clone().unwrap_or_else(default);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut files = Vec::new();
    for bench in BENCHES {
        eprintln!("bench: {bench}");
        let file = directory.join(format!("{bench}.json"));
        one(bench, options, &file).with_context(|| format!("bench {bench}"))?;
        files.push(file);
    }
    let (report, chart) = (directory.join("report.md"), directory.join("chart.svg"));
    std::fs::write(&report, render::EMPTY)?;
    render::run(&render::Options { files, into: Some(report), svg: Some(chart) })
}

/// As if it had been asked for alone, in a process of its own: some choose their cores.
fn one(bench: &str, options: &Options, file: &Path) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(bench).arg("--json").arg(file);
    command.args(options.rounds.iter().flat_map(|rounds| ["--rounds".to_owned(), rounds.to_string()]));
    command.args(options.quick.then_some("--quick"));
    let status = command.status()?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}
