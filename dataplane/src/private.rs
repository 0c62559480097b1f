//! What only the agent's user may open, whatever the umask says.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt as _, path::Path};

/// Mode of directories.
pub const DIRECTORY: u32 = 0o700;
/// What others may do: no bit of these is set in a mode.
pub const OTHERS: u32 = 0o077;

/// Makes a directory, and those above it that are missing, for this user alone. One that is there stays as it is.
///
/// # Errors
/// The kernel's.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(path)
}
