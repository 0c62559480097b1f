//! The binary `hiveway`.

use std::process::ExitCode;

use clap::Parser;
use control::{
    cli::{Cli, exit, run},
    log, say,
};

fn main() -> ExitCode {
    let code = told();
    log::finish();
    code
}

/// Runs the command, and says what could not be said.
fn told() -> ExitCode {
    let code = run::run(Cli::parse());
    let Some(error) = say::unprinted() else { return exit::code(code) };
    say::err(format_args!("error: stdout: {error}; not all was printed\n"));
    exit::code(exit::FAILED)
}
