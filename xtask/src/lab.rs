//! Programs of the lab: the demo and the swarm (`hiveway-tests`), the bench (`hiveway-bench`).

use std::{env, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    build_ebpf,
    setup::{self, engine},
    sh,
};

/// Tells the lab's programs where the engine is that the nodes run; without it they run the machine's own.
pub(crate) const ENGINE_VARIABLE: &str = "HIVEWAY_LAB_ENGINE";

/// Becomes `hw-swarm`. Only `up` sets up and builds first: the others are typed often, and are to work on what is up.
pub(crate) fn swarm(arguments: &[String]) -> Result<()> {
    setup::need_root("a swarm of engines")?;
    let program = env::current_exe()?.with_file_name("hw-swarm");
    if program.exists() && !arguments.iter().any(|word| word == "up") {
        return sh::become_program(sh::command(program).args(arguments));
    }
    let help = arguments.iter().any(|word| matches!(word.as_str(), "-h" | "--help"));
    let mut variables = Vec::new();
    if !help {
        setup::for_swarm()?;
        let wanted = engine_wanted(arguments)?;
        variables.push((ENGINE_VARIABLE, engine::fetch(&wanted)?));
    }
    prepare()?;
    start("hw-swarm", arguments, &variables)
}

/// The value of `--engine`, which `hw-swarm` reads as well: it says there what it is for.
fn engine_wanted(arguments: &[String]) -> Result<engine::Wanted> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if let Some(value) = word.strip_prefix("--engine=") {
            return value.parse();
        }
        if word == "--engine" {
            return words.next().context("--engine needs a version such as 28.5, or `newest`")?.parse();
        }
    }
    Ok(engine::Wanted::Newest)
}

/// `cargo xtask bench`. `churn` measures the agent itself, so it gets one as users do; `all` has it among the others.
/// `report` measures nothing and needs nobody's leave.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let what = arguments.first().map_or("", String::as_str);
    if what == "report" {
        let run = ["run", "--quiet", "--package", "hiveway-bench", "--bin", "hw-bench", "--"];
        return sh::run(sh::cargo().args(run).args(arguments));
    }
    prepare()?;
    if !matches!(what, "churn" | "all") {
        return start("hw-bench", arguments, &[]);
    }
    sh::run(sh::cargo().args(["build", "--quiet", "--release", "--package", "control"]))?;
    start("hw-bench", arguments, &[("HIVEWAY_BIN", sh::target_dir().join("release/hiveway"))])
}

/// Sets up what is missing, builds the agent and the lab's programs, and becomes the program `name`.
pub(crate) fn run(name: &str, arguments: &[String]) -> Result<()> {
    prepare()?;
    start(name, arguments, &[])
}

fn prepare() -> Result<()> {
    setup::need_root("making network namespaces and loading BPF programs")?;
    setup::run()?;
    build_ebpf::run()
}

fn start(name: &str, arguments: &[String], variables: &[(&str, PathBuf)]) -> Result<()> {
    let packages = ["control", "hiveway-tests", "hiveway-bench"].into_iter().flat_map(|name| ["--package", name]);
    sh::run(sh::cargo().args(["build", "--quiet", "--bins"]).args(packages))?;
    // Next to ourselves, wherever the target directory is.
    let program = env::current_exe()?.with_file_name(name);
    sh::become_program(sh::command(program).args(arguments).envs(variables.iter().cloned()))
}
