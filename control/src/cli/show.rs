//! The commands that ask a running agent and print what it says.
#![expect(clippy::print_stdout, reason = "stdout is these commands' result")]

use super::{ShowArgs, exit, table_text};
use crate::status::{client::ask, protocol::Request};

/// Asks and prints; returns the exit code.
pub(super) fn show(request: Request, args: &ShowArgs) -> u8 {
    let value = match ask(&args.socket, request) {
        Ok(value) => value,
        Err(error) => {
            eprintln!("error: {error}");
            return exit::FAILED;
        }
    };
    if args.json {
        println!("{value:#}");
    } else {
        print!("{}", table_text::render(request, &value));
    }
    exit::OK
}
