//! `cargo xtask vm-test`: suites on Debian's kernels in a VM, for what the machine's own kernel lacks or never meets.
//!
//! The VM's root is this machine's, read-only, with a tmpfs over it: what was built and installed here runs there, and
//! nothing of what it does there stays. Software emulation, so figures of speed mean nothing.

#![allow(clippy::print_stdout, reason = "the results are what it was run for")]

mod initramfs;
mod kernel;
mod qemu;
mod suite;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub(crate) use suite::Suite;

use crate::setup::engine::Wanted;
use crate::test::Tally;
use crate::{build_ebpf, setup, sh};

/// Debian 12's kernel, the newer one of its backports, and the newest that Debian has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// linux-image-amd64: no TCX, the oldest that Hiveway runs on
    #[value(name = "6.1")]
    V6_1,
    /// linux-image-6.12-amd64
    #[value(name = "6.12")]
    V6_12,
    /// linux-image-amd64 of Debian's unstable suite: 7.x
    #[value(name = "newest")]
    Newest,
}

/// Runs one suite or all, each on the kernels that it is for or on the one asked for.
pub(crate) fn run(
    kernel: Option<Kernel>,
    engine: Option<&Wanted>,
    suite: Option<Suite>,
    arguments: &[String],
) -> Result<()> {
    if suite.is_none() && !arguments.is_empty() {
        bail!("arguments need a suite");
    }
    if engine.is_some() && suite != Some(Suite::Swarm) {
        bail!("--engine is for the suite swarm");
    }
    setup::need_root("a VM with this machine's files")?;
    setup::run()?;
    setup::for_vm()?;
    build_ebpf::run()?;
    let mut tally = Tally::default();
    let suites = suite.map_or_else(|| vec![Suite::Packets, Suite::Links, Suite::Swarm], |suite| vec![suite]);
    for suite in suites {
        let script = suite.script(engine, arguments)?;
        let kernels = kernel.map_or_else(|| suite.kernels().to_vec(), |kernel| vec![kernel]);
        for kernel in kernels {
            let kernel = kernel::fetch(kernel)?;
            println!("vm-test: {suite:?} on {}", kernel.release);
            let (passed, failed) = (tally.passed, tally.failed);
            let place = format!("{suite:?} on {}", kernel.release);
            let code = qemu::run(&kernel, suite, &script, |line| tally.count(&place, line))?;
            if code != 0 && tally.failed == failed {
                println!("vm-test: ended with {code} without naming a test");
                tally.unnamed(format!("{place} ended with {code} without naming a test"));
            }
            if code == 0 && suite != Suite::Run && tally.passed == passed {
                println!("vm-test: no test was run");
                tally.unnamed(format!("{place}: no test was run"));
            }
        }
    }
    if suite != Some(Suite::Run) {
        println!("{tally}");
    }
    if tally.failed > 0 {
        bail!("failed in the VM");
    }
    Ok(())
}

/// Where kernels are kept and what a run needs is put.
fn directory() -> Result<PathBuf> {
    let directory = sh::target_dir().join("vm");
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    // The guest sees it under the same path.
    directory.canonicalize().with_context(|| directory.display().to_string())
}
