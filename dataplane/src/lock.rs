//! One agent per directory: an flock on the directory itself, which ends with the process that holds it. Whoever may
//! open the directory may lock it, so nobody else may.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::{
        linux::fs::MetadataExt as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

use crate::private;

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
    /// Somebody else made it, and could take everything out of it.
    #[error(
        "{path} belongs to user {user}, not to the agent's: remove it, or give the agent another --bpffs directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        user: u32,
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
        Self::take_as(geteuid().as_raw(), path)
    }

    /// The same for an agent of this user.
    fn take_as(user: u32, path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Failed { path: path.to_owned(), source };
        let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path);
        let dir = dir.map_err(failed)?;
        let found = dir.metadata().map_err(failed)?;
        if found.st_uid() != user {
            return Err(LockError::Foreign { path: path.to_owned(), user: found.st_uid() });
        }
        if found.st_mode() & private::OTHERS != 0 {
            // Made by an earlier version.
            dir.set_permissions(Permissions::from_mode(private::DIRECTORY)).map_err(failed)?;
        }
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
    fn a_locked_directory_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private::make_directory(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join("a"))), (private::DIRECTORY, private::DIRECTORY));
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let _lock = Lock::take(&path).unwrap();
        assert_eq!(mode(&path), private::DIRECTORY);
    }

    #[test]
    fn a_directory_of_somebody_elses_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let own = geteuid().as_raw();
        let refused = Lock::take_as(own + 1, dir.path());
        assert!(matches!(refused, Err(LockError::Foreign { user, .. }) if user == own));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(matches!(Lock::take(&link), Err(LockError::Failed { .. })));
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
