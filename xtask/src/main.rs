//! `cargo xtask`: everything a developer or CI does with this repository.
//!
//! Depends on no other crate of the workspace, because those embed the BPF object that `build-ebpf` makes: commands
//! that need them (`test`, `demo`, `verify`, `bench`) build the object first and then start cargo.

mod build_ebpf;
mod check;
mod fuzz;
mod lab;
mod setup;
mod sh;
mod test;
mod toolchain;
mod verify;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Hiveway's development commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the BPF objects into target/bpfel-unknown-none/release: dataplane-ebpf, and traffic for the bench
    BuildEbpf,
    /// Installs what is missing to build and test (as root, on Debian)
    Setup,
    /// Formatting, lints, licences, dependency direction, files
    Check,
    /// Shows the three-node demo: overlay, VIP, published port, live scaling (as root)
    Demo {
        /// Passed on: --keep leaves it up, --help lists the rest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A real Docker Swarm on this machine with Hiveway on its nodes: up, down, exec, status, hiveway (as root)
    Swarm {
        /// Passed on: `up --help` lists what there is
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Runs the tests, all or one suite, after setting up what is missing; ends with `N passed, N failed`
    Test {
        suite: Option<test::Suite>,
        /// For `netns`: all agents run with this, except where a scenario says otherwise
        #[arg(long)]
        xdp: Option<test::Xdp>,
        /// For `swarm`: the nodes' Docker Engine, such as 20.10, 26.1 or 28.5; `newest` unless said otherwise
        #[arg(long)]
        engine: Option<setup::engine::Wanted>,
        /// For `swarm` and `netns`: the names of the stories to run
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures against what the kernel offers (as root): `bench overlay`, `mesh`, `vip`, `churn`, `all`, each with
    /// `--help`; `bench report` makes tables and a chart of what they have written
    Bench {
        /// What to measure and how; passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Fuzzes the readers of tables, answers, messages and rules, beginning with the tests' captures
    Fuzz {
        /// How long each target runs
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1440))]
        minutes: u32,
        /// Which targets (`Target` in tests/readers/src/lib.rs); all of them unless some are named
        targets: Vec<String>,
    },
    /// Loads every program and compares what the verifier says with the budget (as root)
    Verify,
    /// Runs suites on Debian's kernels in a VM: golden packets, links, and a swarm with IPVS and ESP (as root)
    VmTest {
        /// Which kernel; without it those that the suite is for
        #[arg(long)]
        kernel: Option<vm::Kernel>,
        /// For `swarm`: the nodes' Docker Engine, such as 26.1 or 28.5; without it the machine's own
        #[arg(long)]
        engine: Option<setup::engine::Wanted>,
        /// `packets`, `links` and `swarm` without it
        suite: Option<vm::Suite>,
        /// For `packets`: test files, or `all`. For `links`: names of scenarios, for `swarm` of stories. For `run`: the
        /// command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not `{error:?}`: with RUST_BACKTRACE set that buries the message under a backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::BuildEbpf => build_ebpf::run(),
        Command::Setup => setup::run().and_then(|()| setup::for_swarm()),
        Command::Fuzz { minutes, targets } => fuzz::run(minutes, &targets),
        Command::Verify => verify::run(),
        Command::Check => check::run(),
        Command::Demo { arguments } => lab::run("hw-demo", &arguments),
        Command::Swarm { arguments } => lab::swarm(&arguments),
        Command::Bench { arguments } => lab::bench(&arguments),
        Command::Test { suite, xdp, engine, arguments } => test::run(suite, xdp, engine, &arguments),
        Command::VmTest { kernel, engine, suite, arguments } => vm::run(kernel, engine.as_ref(), suite, &arguments),
    }
}
