//! One agent per directory: an flock on the directory itself, which ends with the process that holds it.

use std::{
    fs::{self, File},
    io,
    os::linux::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// The directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{path} is in use by another agent{}: stop that one, or give this one its own --bpffs directory",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The other process, where the kernel tells.
        pid: Option<u32>,
    },
    /// Something else went wrong.
    #[error("cannot lock {path}: {source}")]
    Failed {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Held as long as the value lives.
pub(crate) struct Lock(Flock<File>);

impl Lock {
    /// The directory that is locked, wherever it is by now.
    pub(crate) fn directory(&self) -> &File {
        &self.0
    }

    /// Whether it is this directory's.
    pub(crate) fn is_of(&self, directory: &fs::Metadata) -> bool {
        let own = self.0.metadata();
        own.is_ok_and(|own| (own.st_dev(), own.st_ino()) == (directory.st_dev(), directory.st_ino()))
    }

    /// Locks the directory, or says who has it.
    pub(crate) fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Failed { path: path.to_owned(), source };
        let dir = File::open(path).map_err(failed)?;
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((dir, nix::Error::EWOULDBLOCK)) => {
                let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
                let pid = dir.metadata().ok().and_then(|meta| holder(&locks, meta.st_dev(), meta.st_ino()));
                Err(LockError::Busy { path: path.to_owned(), pid })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

/// The process that holds an flock on that inode, from `/proc/locks`. Lines look like
/// `1: FLOCK  ADVISORY  WRITE 1234 00:1c:5678 0 EOF`, with device numbers in hexadecimal.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            // 0 is a process that this PID namespace does not show.
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok().filter(|pid| *pid != 0),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_lock_names_directory_and_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let Err(LockError::Busy { path, pid }) = Lock::take(dir.path()) else { panic!("locked twice") };
        assert_eq!((path.as_path(), pid), (dir.path(), Some(std::process::id())));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn finds_the_holder_among_other_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 fe:00:43 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 fe:00:42 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 14 fe:00:42 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 fe:00:44 0 EOF\n";
        assert_eq!(holder(locks, libc::makedev(0xfe, 0), 42), Some(14));
        assert_eq!(holder(locks, libc::makedev(0xfe, 1), 42), None);
        assert_eq!(holder(locks, libc::makedev(0xfe, 0), 44), None);
    }
}
