//! Programs of the `hiveway-tests` crate that run in the netns lab: the demo and the bench.

use std::env;

use anyhow::Result;

use crate::{build_ebpf, setup, sh};

/// Sets up what is missing, builds the agent and the lab's programs, and becomes the program `name`.
pub(crate) fn run(name: &str, arguments: &[String]) -> Result<()> {
    setup::need_root("making network namespaces and loading BPF programs")?;
    setup::run()?;
    build_ebpf::run()?;
    sh::run(sh::cargo().args(["build", "--quiet", "--package", "control", "--package", "hiveway-tests", "--bins"]))?;
    // Next to ourselves, wherever the target directory is.
    let program = env::current_exe()?.with_file_name(name);
    sh::become_program(sh::command(program).args(arguments))
}
