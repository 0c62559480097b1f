//! The binary `hiveway`.

use std::{panic, process::ExitCode};

use clap::Parser;
use control::{
    cli::{Cli, exit, run},
    log, say,
};

/// What std ends with after a panic.
const PANICKED: u8 = 101;

fn main() -> ExitCode {
    // The log has what the panic says, and must be written before the process ends.
    let code = panic::catch_unwind(told);
    log::finish();
    code.unwrap_or(ExitCode::from(PANICKED))
}

/// Runs the command, and says what could not be said.
fn told() -> ExitCode {
    let code = run::run(Cli::parse());
    let Some(error) = say::unprinted() else { return exit::code(code) };
    say::err(format_args!("error: stdout: {error}; not all was printed\n"));
    exit::code(exit::FAILED)
}
