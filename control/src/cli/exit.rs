//! Exit codes: a documented, stable interface.

use std::process::ExitCode;

/// Done.
pub const OK: u8 = 0;
/// Failed, or what was checked is invalid.
pub const FAILED: u8 = 1;
/// Wrong usage: unknown flags and values (clap's own code).
pub const USAGE: u8 = 2;

/// `code` as the standard library wants it.
pub fn code(code: u8) -> ExitCode {
    ExitCode::from(code)
}
