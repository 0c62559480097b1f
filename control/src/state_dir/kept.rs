//! What an agent holds of its state directory: the lock, and what the files say.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::StateError;

#[derive(Debug)]
pub(super) struct Kept {
    lock: Mutex<File>,
    /// By name, as last read or written.
    files: Mutex<BTreeMap<&'static str, Arc<[u8]>>>,
    /// Those that others hold the contents of, as they were when they were written.
    seen: Mutex<BTreeMap<&'static str, Seen>>,
}

/// What tells a file from one that was removed, replaced or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    identity: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Seen {
    /// What is at a path now.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        let identity = (found.dev(), found.ino());
        Some(Self { identity, size: found.size(), changed: (found.ctime(), found.ctime_nsec()) })
    }
}

impl Kept {
    pub(super) fn new(lock: File) -> Self {
        Self { lock: Mutex::new(lock), files: Mutex::default(), seen: Mutex::default() }
    }

    /// Takes the lock with `again` if the file at `path` is another one by now, or gone.
    ///
    /// # Errors
    /// Those of `again`.
    pub(super) fn keep_lock(
        &self,
        path: &Path,
        again: impl FnOnce() -> Result<File, StateError>,
    ) -> Result<(), StateError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_at(&lock, path) {
            *lock = again()?;
        }
        Ok(())
    }

    pub(super) fn file(&self, name: &str) -> Option<Arc<[u8]>> {
        self.all().get(name).cloned()
    }

    pub(super) fn put(&self, name: &'static str, bytes: Arc<[u8]>) {
        self.all().insert(name, bytes);
    }

    /// All that is known.
    pub(super) fn files(&self) -> BTreeMap<&'static str, Arc<[u8]>> {
        self.all().clone()
    }

    pub(super) fn seen(&self, name: &str) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    pub(super) fn see(&self, name: &'static str, seen: Option<Seen>) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Some(seen) => all.insert(name, seen),
            None => all.remove(name),
        };
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Arc<[u8]>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the path leads to this open file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    identity(file.metadata()) == identity(fs::symlink_metadata(path))
}
