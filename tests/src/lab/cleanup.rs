//! What must be gone when the process ends, however it ends.
//!
//! Guards remove their own things on drop. For ctrl-c and SIGTERM the same things are also listed here, and a lab whose
//! process was killed outright is swept by the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use anyhow::{Context as _, Result};

/// Prefix of every namespace, bpffs directory and temporary directory of any lab; the owner's pid follows.
const PREFIX: &str = "hwl";

#[derive(Default)]
pub(super) struct Registry {
    /// Children by pid. They stay here until they have been waited for, so that a pid is never another process's.
    pub(super) children: BTreeMap<u32, Child>,
    namespaces: BTreeSet<String>,
    directories: BTreeSet<PathBuf>,
    /// Files of /proc/sys, and what they said before.
    settings: BTreeMap<PathBuf, String>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    children: BTreeMap::new(),
    namespaces: BTreeSet::new(),
    directories: BTreeSet::new(),
    settings: BTreeMap::new(),
});

pub(super) fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(super) fn add_namespace(&mut self, name: &str) {
        self.namespaces.insert(name.to_owned());
    }

    pub(super) fn add_directory(&mut self, path: &Path) {
        self.directories.insert(path.to_owned());
    }

    pub(super) fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.remove(name) {
            delete_namespace(name);
        }
    }

    pub(super) fn remove_directory(&mut self, path: &Path) {
        if self.directories.remove(path) {
            delete_directory(path);
        }
    }

    fn restore_setting(&mut self, path: &Path) {
        if let Some(before) = self.settings.remove(path)
            && let Err(error) = fs::write(path, &before)
        {
            eprintln!("warning: cannot set {} back to {before}: {error}", path.display());
        }
    }

    fn remove_everything(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
        for name in std::mem::take(&mut self.namespaces) {
            delete_namespace(&name);
        }
        for path in std::mem::take(&mut self.directories) {
            delete_directory(&path);
        }
        for path in self.settings.keys().cloned().collect::<Vec<_>>() {
            self.restore_setting(&path);
        }
    }
}

/// A setting of the whole machine that is at least this number for as long as the guard lives.
#[derive(Debug)]
pub struct AtLeast(PathBuf);

impl AtLeast {
    /// Raises the number in a file of /proc/sys, if it is less.
    pub fn set(path: &Path, number: u64) -> Result<Self> {
        let context = || format!("cannot raise {}", path.display());
        let before = fs::read_to_string(path).with_context(context)?.trim().to_owned();
        if before.parse::<u64>().with_context(context)? < number {
            // Under the lock, so that an interrupt finds either nothing to restore or all of it.
            let mut registry = registry();
            fs::write(path, number.to_string()).with_context(context)?;
            registry.settings.insert(path.to_owned(), before);
        }
        Ok(Self(path.to_owned()))
    }
}

impl Drop for AtLeast {
    fn drop(&mut self) {
        registry().restore_setting(&self.0);
    }
}

/// The prefix of one lab of this process.
pub(super) fn prefix(sequence: u32) -> String {
    format!("{PREFIX}{}x{sequence}", std::process::id())
}

/// Lists a directory (or a directory of pins) for removal.
pub(crate) fn register_directory(path: &Path) {
    registry().add_directory(path);
}

/// Removes a listed directory now.
pub(crate) fn remove_directory(path: &Path) {
    registry().remove_directory(path);
}

/// On SIGINT and SIGTERM: removes everything and ends the process with status 130.
pub fn register_ctrl_c() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let installed = ctrlc::set_handler(|| {
            eprintln!("interrupted: cleaning up");
            registry().remove_everything();
            std::process::exit(130);
        });
        if let Err(error) = installed {
            eprintln!("warning: no clean-up on ctrl-c: {error}");
        }
    });
}

/// Removes what labs of processes that no longer exist have left behind.
pub fn sweep_dead_labs() {
    let is_dead = |name: &str| {
        let Some(rest) = name.strip_prefix(PREFIX) else { return false };
        let Some((pid, _)) = rest.split_once('x') else { return false };
        pid.parse::<u32>().is_ok_and(has_ended)
    };
    for entry in list("/run/netns") {
        if entry.file_name().and_then(|name| name.to_str()).is_some_and(is_dead) {
            delete_namespace(&entry.file_name().unwrap_or_default().to_string_lossy());
        }
    }
    let temporary = std::env::temp_dir();
    for entry in list("/sys/fs/bpf").into_iter().chain(list(&temporary)) {
        if entry.file_name().and_then(|name| name.to_str()).is_some_and(is_dead) {
            delete_directory(&entry);
        }
    }
}

/// Gone, or only waiting to be reaped.
pub(crate) fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])))
}

fn list(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    fs::read_dir(directory).map_or_else(|_| Vec::new(), |entries| entries.flatten().map(|entry| entry.path()).collect())
}

fn delete_namespace(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn delete_directory(path: &Path) {
    let _ = fs::remove_dir_all(path);
}
