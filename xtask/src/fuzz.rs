//! `cargo xtask fuzz`: the targets of `fuzz/`, each for some minutes, beginning with inputs made of captures.
//!
//! Inputs that reached new code are kept in target/fuzz/corpus, where the next run goes on, and defects in
//! target/fuzz/artifacts.

#![allow(clippy::print_stdout, reason = "the results are what it was run for")]

mod progress;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use self::progress::Progress;
use crate::{build_ebpf, setup, sh};

/// An input that takes longer is a defect.
const PATIENCE: Duration = Duration::from_secs(20);
/// So is one that takes more memory.
const MEMORY_MB: u32 = 2048;
/// Inputs are not made longer than this: `MAX_LEN` of tests/readers.
const MAX_LEN: usize = 64 * 1024;

/// The targets' names: those of the variants of `Target` in tests/readers, which is read and not linked, so that this
/// program needs nothing of the product.
fn all() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/readers/src/lib.rs");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => targets::"));
    Ok(names.filter_map(|(_, call)| Some(call.split_once('(')?.0.to_owned())).collect())
}

/// Those that were named, or all.
fn chosen(named: &[String]) -> Result<Vec<String>> {
    let all = all()?;
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}; there are: {}", all.join(", "));
    }
    Ok(if named.is_empty() { all } else { named.to_vec() })
}

/// Runs these targets, or all, one after the other, each for so long. Returns an error if any found a defect.
pub(crate) fn run(minutes: u32, targets: &[String]) -> Result<()> {
    let targets = chosen(targets)?;
    setup::for_build()?;
    setup::for_fuzz()?;
    // `dataplane` embeds it.
    build_ebpf::run()?;
    sh::run(&mut cargo_fuzz("build"))?;
    let seeds = directory("seeds");
    if seeds.exists() {
        fs::remove_dir_all(&seeds).with_context(|| seeds.display().to_string())?;
    }
    sh::run(sh::cargo().args(["run", "--quiet", "--package", "hiveway-readers", "--", "seeds"]).arg(&seeds))?;

    let mut results = Vec::new();
    for target in &targets {
        eprintln!("fuzz: {target} for {minutes} min");
        results.push((target, one(target, minutes * 60)?));
    }
    println!("{:<13} {:>10} {:>8} {:>9} {:>7}  result", "target", "inputs", "edges", "features", "MB");
    for (target, done) in &results {
        let Progress { inputs, edges, features, rss_mb, .. } = done.progress;
        let result = if done.clean { "clean" } else { done.progress.defect.as_deref().unwrap_or("ended early") };
        println!("{target:<13} {inputs:>10} {edges:>8} {features:>9} {rss_mb:>7}  {result}");
    }
    let failed: Vec<_> = results.iter().filter(|(_, done)| !done.clean).collect();
    for (name, done) in &failed {
        for input in &done.found {
            let input = input.display();
            println!("{name}: {input}\n  again: cargo run --package hiveway-readers -- read {name} {input}");
        }
    }
    if !failed.is_empty() {
        bail!("defects in {}", failed.iter().map(|(target, _)| target.as_str()).collect::<Vec<_>>().join(", "));
    }
    Ok(())
}

/// How a target did.
struct Done {
    clean: bool,
    progress: Progress,
    /// Inputs that showed a defect in this run.
    found: Vec<PathBuf>,
}

/// `cargo fuzz COMMAND`. Stable compilers take the flags for coverage. They have no sanitizers, and this code has
/// hardly anything unsafe.
fn cargo_fuzz(command: &str) -> Command {
    let mut cargo = sh::cargo();
    cargo.args(["fuzz", command, "--sanitizer", "none", "--target-dir"]).arg(directory("build"));
    cargo
}

fn one(target: &str, seconds: u32) -> Result<Done> {
    let of = |what: &str| directory(what).join(target);
    let (corpus, artifacts) = (of("corpus"), of("artifacts"));
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let before: BTreeSet<_> = entries(&artifacts)?.into_iter().collect();
    let mut cargo = cargo_fuzz("run");
    cargo.arg(target).arg(&corpus).arg(of("seeds")).arg("--");
    cargo.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={}", PATIENCE.as_secs()));
    cargo.arg(format!("-rss_limit_mb={MEMORY_MB}")).arg(format!("-max_len={MAX_LEN}"));
    // Reports a slow input when it takes longer than any before; a defect is what exceeds the timeout.
    cargo.arg(format!("-report_slow_units={}", PATIENCE.as_secs())).arg("-print_final_stats=1");
    cargo.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let mut child =
        cargo.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", sh::line(&cargo)))?;
    let mut progress = Progress::default();
    for line in BufReader::new(child.stderr.take().context("no pipe from cargo fuzz")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if !progress.take(&line) {
            eprintln!("{line}");
        }
    }
    let clean = child.wait()?.success();
    let found = entries(&artifacts)?.into_iter().filter(|path| !before.contains(path)).collect();
    Ok(Done { clean, progress, found })
}

fn directory(what: &str) -> PathBuf {
    let directory = sh::target_dir().join("fuzz").join(what);
    std::path::absolute(&directory).unwrap_or(directory)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let readers = fs::read_to_string(root.join("tests/readers/src/lib.rs")).unwrap();
        let targets = all().unwrap();
        for name in &targets {
            assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "{name}");
            let body = fs::read_to_string(root.join("fuzz/targets").join(name).with_extension("rs")).unwrap();
            let variant = name[..1].to_uppercase() + &name[1..];
            assert!(body.contains(&format!("Target::{variant}.read(data)")), "{name}");
            assert!(readers.contains(&format!("Self::{variant} => targets::{name}(data)")), "{name}");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
        assert!(readers.contains(&format!("ALL: [Self; {}]", targets.len())));
        assert_eq!(chosen(&[]).unwrap(), targets);
        let unknown = chosen(&["nonesuch".to_owned()]).unwrap_err().to_string();
        assert!(unknown.contains("no target nonesuch; there are: table, engine"), "{unknown}");
        assert!(readers.contains(&format!("MAX_LEN: usize = {} * 1024;", MAX_LEN / 1024)));
    }
}
