//! The binary `hiveway`.

use std::process::ExitCode;

use clap::Parser;
use control::cli::{Cli, exit, run};

fn main() -> ExitCode {
    exit::code(run::run(Cli::parse()))
}
