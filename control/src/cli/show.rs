//! The commands that ask a running agent and print what it says.
use super::{ShowArgs, exit, table_text};
use crate::{
    say::{self, errln, outln},
    status::{client::ask, protocol::Request},
};

/// Asks and prints; returns the exit code.
pub(super) fn show(request: Request, args: &ShowArgs) -> u8 {
    let value = match ask(&args.socket, request) {
        Ok(value) => value,
        Err(error) => {
            errln!("error: {error}");
            return exit::FAILED;
        }
    };
    if args.json {
        outln!("{value:#}");
    } else {
        say::out(format_args!("{}", table_text::render(request, &value)));
    }
    exit::OK
}
