//! Secret seeds.

use std::io;

/// A number that nobody can guess, and that is not zero.
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0; size_of::<u64>()];
    // SAFETY: the buffer is that long.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few bytes come at once or not at all (getrandom(2)).
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from_ne_bytes(bytes) | 1) }
}
