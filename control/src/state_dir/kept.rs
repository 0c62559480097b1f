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
}

impl Kept {
    pub(super) fn new(lock: File) -> Self {
        Self { lock: Mutex::new(lock), files: Mutex::default() }
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

    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Arc<[u8]>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the path leads to this open file.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    identity(file.metadata()) == identity(fs::symlink_metadata(path))
}
