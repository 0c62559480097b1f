//! Taking the data plane down: everything of ours under the directory, and nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    MapName, Program,
    adopt::pin_path,
    attach::{self, Hook},
    lock::{Lock, LockError},
    map_name::retired,
    preflight::{PreflightError, check_bpffs, check_privilege},
    sandbox,
};

/// What was removed, and what was not.
#[derive(Debug, Default)]
pub struct TeardownReport {
    /// Programs that were detached, with their interfaces.
    pub detached: Vec<(Program, String)>,
    /// Maps that were unpinned.
    pub maps: Vec<MapName>,
    /// Directories that were removed.
    pub directories: Vec<PathBuf>,
    /// What lies in our directories and is not ours; untouched.
    pub foreign: Vec<PathBuf>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// Nothing was taken down.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// The directory cannot be one of ours.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// An agent is running.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Detaches all programs, unpins all maps and removes the directories that are empty then. No error if there is
/// nothing. Must run in the node's network namespace to find clsact filters there (links are found from anywhere).
pub fn teardown(bpffs: &Path) -> Result<TeardownReport, TeardownError> {
    let mut report = TeardownReport::default();
    if !bpffs.exists() {
        return Ok(report);
    }
    check_privilege()?;
    check_bpffs(bpffs)?;
    let _lock = Lock::take(bpffs)?;

    // Programs first: they must not run on maps that are half gone.
    for hook in Hook::ALL {
        match attach::pinned(hook, bpffs) {
            Ok(names) => {
                for name in names {
                    let detached = match name.program.in_sandbox() {
                        true => sandbox::detach(hook, bpffs, &name),
                        false => hook.detach(bpffs, &name),
                    };
                    match detached {
                        Ok(()) => report.detached.push((name.program, name.ifname)),
                        Err(error) => report.failures.push(error.to_string()),
                    }
                }
            }
            Err(error) => report.failures.push(format!("{}: {error}", hook.directory(bpffs).display())),
        }
    }
    for map in MapName::ALL {
        let path = pin_path(bpffs, *map);
        match fs::remove_file(&path) {
            Ok(()) => report.maps.push(*map),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => report.failures.push(format!("{}: {error}", path.display())),
        }
    }
    for path in retired::CLIENTS.iter().chain(&retired::FLOWS).map(|name| bpffs.join("maps").join(name)) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                report.failures.push(format!("{}: {error}", path.display()));
            }
            _ => {}
        }
    }
    let inner = Hook::ALL.map(|hook| hook.directory(bpffs));
    for directory in inner.into_iter().chain([bpffs.join("maps"), bpffs.to_owned()]) {
        remove_directory(directory, &mut report);
    }
    Ok(report)
}

/// Removes an empty directory; names what keeps another from being empty.
fn remove_directory(directory: PathBuf, report: &mut TeardownReport) {
    match fs::remove_dir(&directory) {
        Ok(()) => report.directories.push(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            report.foreign.extend(
                entries.map(|entry| entry.path()).filter(|path| !report.foreign.contains(path)).collect::<Vec<_>>(),
            );
        }
        // The directory is the root of the file system itself: it was there before us.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(error) => report.failures.push(format!("{}: {error}", directory.display())),
    }
}
