//! What commands and the agent print. A reader that has gone away or a disk that is full ends nothing half-way, as
//! `println!` would by its panic.

use std::{
    fmt,
    io::{self, Write as _},
    sync::Mutex,
};

use crate::log;

/// The first error of stdout; nothing is written to it any more.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints on stdout.
pub fn out(text: fmt::Arguments<'_>) {
    let mut failed = FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if failed.is_none() {
        let mut stdout = io::stdout().lock();
        *failed = stdout.write_fmt(text).and_then(|()| stdout.flush()).err();
    }
}

/// Whether what is printed on stdout still goes anywhere.
pub fn can_print() -> bool {
    FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_none()
}

/// Prints on stderr, where it can; in an agent through its [`log`](crate::log).
pub fn err(text: fmt::Arguments<'_>) {
    if log::take(text.to_string().as_bytes()) {
        return;
    }
    // There is nowhere else to say it.
    let _ = io::stderr().lock().write_fmt(text);
}

/// Why not all could be printed on stdout. A reader that has seen enough and closed its end is no reason.
pub fn unprinted() -> Option<io::Error> {
    let failed = FAILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    failed.filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
}

/// [`out`] with a line of its own.
macro_rules! outln {
    ($($text:tt)*) => { $crate::say::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// [`err`] with a line of its own.
macro_rules! errln {
    ($($text:tt)*) => { $crate::say::err(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {errln, outln};
