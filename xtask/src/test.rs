//! `cargo xtask test`: runs the suites with plain `cargo test` and adds up their results.

#![allow(clippy::print_stdout, reason = "the results are what it was run for")]

mod tally;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::lab::ENGINE_VARIABLE;
use crate::setup::engine::{self, Wanted};
pub(crate) use crate::test::tally::Tally;
use crate::{build_ebpf, setup, sh, verify};

/// Each lab has a switch, three agents and a dozen namespaces: the kernel's own locks (RTNL) are shared by all of them.
const MOST_LABS: usize = 6;

/// What a suite needs, from nothing to root and network namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Unit and property tests of all crates, no privilege needed
    Unit,
    /// Golden packets through the programs, with BPF_PROG_TEST_RUN (root)
    Packets,
    /// Scenarios with real agents in network namespaces (root)
    Netns,
    /// Stories on a real Docker Swarm (root, a Docker Engine); only when asked for by name
    Swarm,
}

/// `--xdp` of agents in scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Xdp {
    /// In the stack
    Generic,
    /// In the driver
    Native,
}

/// Runs one suite, or all, after setting up what is missing. Returns an error if any test failed.
pub(crate) fn run(only: Option<Suite>, xdp: Option<Xdp>, engine: Option<Wanted>, arguments: &[String]) -> Result<()> {
    if xdp.is_some() && only != Some(Suite::Netns) {
        bail!("--xdp is for the suite netns");
    }
    if engine.is_some() && only != Some(Suite::Swarm) {
        bail!("--engine is for the suite swarm");
    }
    // Whoever only wants the unit tests need not be root.
    if only == Some(Suite::Unit) { setup::for_build() } else { setup::run() }?;
    build_ebpf::run()?;
    let mut tally = Tally::default();
    if only == Some(Suite::Swarm) {
        swarm(&engine.unwrap_or(Wanted::Newest), arguments, &mut tally)?;
    } else if only == Some(Suite::Netns) && (xdp.is_some() || !arguments.is_empty()) {
        scenarios(xdp, arguments, &mut tally)?;
    } else if !arguments.is_empty() {
        bail!("only the suites swarm and netns take names of tests; use cargo test for the others");
    } else {
        all_of(only, &mut tally)?;
    }
    // The last line is for people and for CI to find; the names of what failed stand just before it.
    println!("{tally}");
    if tally.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

fn all_of(only: Option<Suite>, tally: &mut Tally) -> Result<()> {
    for suite in [Suite::Unit, Suite::Packets, Suite::Netns] {
        if only.is_none_or(|only| only == suite) {
            suite.run(tally)?;
        }
    }
    Ok(())
}

/// Scenarios by name, or all, with agents' `--xdp`.
fn scenarios(xdp: Option<Xdp>, names: &[String], tally: &mut Tally) -> Result<()> {
    setup::need_root("making network namespaces")?;
    sh::run(sh::cargo().args(["build", "--package", "control", "--package", "hiveway-tests", "--bins"]))?;
    let labs = labs();
    let mut harness = vec![labs.as_str()];
    harness.extend(names.iter().map(String::as_str));
    let environment = xdp.map(|xdp| match xdp {
        Xdp::Generic => ("HIVEWAY_TEST_XDP", "generic"),
        Xdp::Native => ("HIVEWAY_TEST_XDP", "native"),
    });
    cargo_test_with(&["--package", "hiveway-tests", "--test", "netns"], &harness, environment, tally)
}

/// How many scenarios share the cores. A scenario waits more than it computes; one that measures takes the machine for
/// itself (`lab::scenario_alone`).
fn labs() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("--test-threads={}", (2 * cores).min(MOST_LABS))
}

impl Suite {
    fn run(self, tally: &mut Tally) -> Result<()> {
        match self {
            Self::Unit => {
                // These are pure, so their integration and documentation tests belong here as well.
                let pure = ["hiveway-core", "dataplane-common", "dataplane-core"];
                let packages: Vec<_> = pure.iter().flat_map(|name| ["--package", name]).collect();
                cargo_test(&packages, &[], tally)?;
                let mut arguments = vec!["--workspace", "--lib", "--bins", "--exclude", "dataplane-ebpf"];
                arguments.extend(pure.iter().flat_map(|name| ["--exclude", name]));
                cargo_test(&arguments, &[], tally)
            }
            Self::Packets => {
                setup::need_root("loading BPF programs for the golden packets")?;
                has_tests("dataplane")?;
                // Old kernels refuse what this one takes: the budget knows them, the golden packets do not.
                verify::judge()?;
                cargo_test(&["--package", "dataplane", "--test", "*"], &[], tally)
            }
            Self::Netns => {
                setup::need_root("making network namespaces")?;
                has_tests("tests")?;
                // The scenarios start these; cargo builds only a package's own binaries for its tests.
                sh::run(sh::cargo().args(["build", "--package", "control", "--package", "hiveway-tests", "--bins"]))?;
                // One at a time: they wait for answers by the clock.
                let packages = ["--package", "control", "--test", "*"];
                cargo_test(&packages, &["--test-threads=1"], tally)?;
                let packages = ["--package", "hiveway-tests", "--test", "netns", "--test", "model"];
                cargo_test(&packages, &[&labs()], tally)
            }
            // Not among the ones that run one after the other.
            Self::Swarm => swarm(&Wanted::Newest, &[], tally),
        }
    }
}

/// The stories; one swarm for all.
fn swarm(wanted: &Wanted, stories: &[String], tally: &mut Tally) -> Result<()> {
    setup::need_root("a swarm of engines")?;
    setup::for_swarm()?;
    let root = engine::fetch(wanted)?;
    sh::run(sh::cargo().args(["build", "--package", "control", "--package", "hiveway-tests", "--bins"]))?;
    let stories: Vec<_> = stories.iter().map(String::as_str).collect();
    let root = root.to_str().context("the target directory's path is not plain text")?;
    let packages = ["--package", "hiveway-tests", "--test", "swarm"];
    cargo_test_with(&packages, &stories, Some((ENGINE_VARIABLE, root)), tally)
}

/// A suite that found nothing to run has not passed.
fn has_tests(package: &str) -> Result<()> {
    let directory = sh::root().join(package).join("tests");
    let is_test = |path: &Path| path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file();
    let found = directory.read_dir().is_ok_and(|entries| entries.flatten().any(|entry| is_test(&entry.path())));
    if !found {
        bail!("no tests in {}", directory.display());
    }
    Ok(())
}

/// Runs `cargo test`, shows its output as it comes and counts its results.
fn cargo_test(arguments: &[&str], harness: &[&str], tally: &mut Tally) -> Result<()> {
    cargo_test_with(arguments, harness, None, tally)
}

fn cargo_test_with(
    arguments: &[&str],
    harness: &[&str],
    environment: Option<(&str, &str)>,
    tally: &mut Tally,
) -> Result<()> {
    let mut cargo = sh::cargo();
    cargo.envs(environment);
    cargo.arg("test").args(arguments).arg("--no-fail-fast").stdout(Stdio::piped());
    if !harness.is_empty() {
        cargo.arg("--").args(harness);
    }
    eprintln!("test: {}", sh::line(&cargo));
    let suite = arguments.join(" ");
    let counted = tally.failed;
    let success = tee(&mut cargo, |line| tally.count(&suite, line))?;
    if !success && tally.failed == counted {
        // It did not build, or a test process died before it could say what failed.
        tally.unnamed(format!("{} failed without naming a test", sh::line(&cargo)));
    }
    Ok(())
}

fn tee(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.spawn().with_context(|| format!("cannot start {}", sh::line(command)))?;
    let stdout = child.stdout.take().context("no pipe from cargo")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        on_line(&line);
    }
    Ok(child.wait()?.success())
}
