//! What the agent must remember across restarts, as small JSON files that are replaced atomically.
//!
//! What is to be undone is remembered before it is done: a file has its new content before the sysctl or the offload is
//! changed, and an agent that dies in between leaves it to the next one. It need not be on the disk for that, and
//! rounds do not wait for the disk: sysctls, offloads, and the addresses of containers are gone after a crash of the
//! machine, so there is nothing to undo then, and a file that the crash has left empty is as good as none. The last
//! table is to outlive the machine: it is synced, by the thread that writes it (`behind.rs`).
//!
//! Whatever changes a file of a directory that was taken makes sure first that no other agent has taken it since
//! (`StateDir::hold`).
//!
//! An agent knows what the files say without reading them again: what another process removes or damages while the
//! agent runs is written again. Rounds look after addresses, sysctls and offloads ([`StateDir::keep`]), the threads
//! that write them after the others (`behind.rs`).

mod kept;
mod last_table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use hiveway_core::GatewayAddresses;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{behind::Occasion, bounded, private, source::Base};
use kept::{Kept, Seen};

const ADDRESSES: &str = "gateway-addresses.json";
const SYSCTLS: &str = "sysctls.json";
const OFFLOADS: &str = "offloads.json";
const LAST_TABLE: &str = "last-table.bin";
/// Held by the agent that uses the directory; holds its process number.
const LOCK: &str = "agent.lock";
/// The last reports of other nodes' agents (managers).
pub const RELAY_REPORTS: &str = "relay-reports.json";
/// Where teardown deregisters.
pub const RELAY_CONTACTS: &str = "relay-contacts.json";

/// What `hiveway preflight --xdp` has measured, see [`crate::measured`].
pub const XDP_MEASURED: &str = "xdp-measured.json";

/// All that is ours in it.
const FILES: [&str; 8] = [ADDRESSES, SYSCTLS, OFFLOADS, LAST_TABLE, RELAY_REPORTS, RELAY_CONTACTS, XDP_MEASURED, LOCK];

/// The state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// One of its files, or itself.
    #[error("state file {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has it.
    #[error(
        "{path} is the state directory of another agent{}, which runs",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other agent's process, where it has said.
        pid: Option<u32>,
    },
}

impl StateError {
    fn file(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File { path: path.to_owned(), source: source.into() }
    }
}

/// What sysctls were before us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlState {
    /// Original values by name.
    pub originals: BTreeMap<String, String>,
    /// Ports that we added to `net.ipv4.ip_local_reserved_ports`.
    pub reserved_ports: BTreeSet<u16>,
}

/// An offload that was on before us, of an interface that an engine has made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Offload {
    /// The container's task. Empty where a version has written it that did not remember the task: such a one is given
    /// back, and turned off anew where that is still needed.
    #[serde(default)]
    pub task: String,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// Inode of the namespace: a path may be another one's later.
    pub inode: u64,
    /// The interface in it.
    pub interface: String,
    /// As ethtool names it.
    pub feature: String,
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    /// While it is this process's alone.
    kept: Option<Arc<Kept>>,
}

impl StateDir {
    /// Makes the directory if it is missing, for this user alone. One that was open to others is closed, unless there
    /// is something else in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let open_to_others = private::make_directory(path).map_err(|error| StateError::file(path, error))?;
        let state = Self { path: path.to_owned(), kept: None };
        if open_to_others {
            state.close().map_err(|error| StateError::file(path, error))?;
        }
        Ok(state)
    }

    /// [`StateDir::open`] for an agent: no other one may use the directory while a clone of the result is there.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another process has it; when it cannot be made or locked.
    pub fn take(path: &Path) -> Result<Self, StateError> {
        Self::open(path)?.locked()
    }

    /// The directory if it exists; for teardown.
    pub fn existing(path: &Path) -> Option<Self> {
        path.is_dir().then(|| Self { path: path.to_owned(), kept: None })
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another process has it; when it cannot be made.
    pub fn locked(self) -> Result<Self, StateError> {
        let kept = Kept::new(self.lock()?);
        Ok(Self { kept: Some(Arc::new(kept)), ..self })
    }

    fn lock(&self) -> Result<File, StateError> {
        let path = self.path.join(LOCK);
        let failed = |error| StateError::file(&path, error);
        let mut file = private::open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let said = bounded::read_text(&path, bounded::SMALL).unwrap_or_default();
                return Err(StateError::InUse { path: self.path.clone(), pid: said.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // A full disk is no reason to do without the lock.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(file)
    }

    /// Writes again what another process has removed or damaged: the lock, and files that this one has read or written.
    ///
    /// # Errors
    /// The first file that cannot be written; [`StateError::InUse`] when another process has taken the directory since.
    pub fn keep(&self) -> Result<(), StateError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        self.hold()?;
        let mut done = Ok(());
        for (name, bytes) in kept.files() {
            let path = self.path.join(name);
            if bounded::read(&path, bounded::STATE).is_ok_and(|there| there == *bytes) {
                continue;
            }
            match self.put(name, &bytes) {
                Ok(()) => written_again(&path),
                // The others are written all the same.
                Err(error) => done = done.and(Err(error)),
            }
        }
        done
    }

    /// Makes sure that the directory is still this agent's: every change of a file in it asks here first. A lock that
    /// was removed is taken again, unless another process has taken the directory since. Without a lock there is
    /// nothing to lose.
    fn hold(&self) -> Result<(), StateError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        kept.keep_lock(&self.path.join(LOCK), || {
            private::make_directory(&self.path).map_err(|error| StateError::file(&self.path, error))?;
            self.lock()
        })
    }

    /// Replaces a file as a whole. The last table alone is on the disk once this returns.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.hold()?;
        let path = self.path.join(name);
        let replace = if name == LAST_TABLE { private::replace_synced } else { private::replace };
        replace(&path, bytes).map_err(|source| StateError::file(&path, source))
    }

    /// Writes one of the files that rounds do not look after. On [`Occasion::Look`], only what another process has
    /// removed or changed since.
    ///
    /// # Errors
    /// Those of `bytes`; when the file cannot be written; [`StateError::InUse`].
    pub(crate) fn write_behind(
        &self,
        name: &'static str,
        occasion: Occasion,
        bytes: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<(), StateError> {
        let path = self.path.join(name);
        let seen = self.kept.as_ref().and_then(|kept| kept.seen(name));
        if occasion == Occasion::Look && (self.kept.is_none() || seen.is_some() && seen == Seen::at(&path)) {
            return Ok(());
        }
        let bytes = bytes().map_err(|error| StateError::file(&path, error))?;
        // Others may have touched it without changing a byte: a backup's hard link, new permissions.
        if occasion == Occasion::Look && bounded::read(&path, bytes.len() as u64).is_ok_and(|there| there == bytes) {
            if let Some(kept) = &self.kept {
                kept.see(name, Seen::at(&path));
            }
            return Ok(());
        }
        self.put(name, &bytes)?;
        if let Some(kept) = &self.kept {
            kept.see(name, Seen::at(&path));
        }
        if occasion == Occasion::Look {
            written_again(&path);
        }
        Ok(())
    }

    /// Removes a file if it is there.
    fn forget(&self, name: &str) -> Result<(), StateError> {
        self.hold()?;
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::file(&path, source)),
            _ => Ok(()),
        }
    }

    /// Takes what earlier versions have left open to others away from them.
    fn close(&self) -> io::Result<()> {
        for name in FILES {
            private::close_file(&self.path.join(name))?;
        }
        let ours = |name: &str| FILES.iter().any(|file| name == *file || name == format!(".{file}.tmp"));
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if !name.to_str().is_some_and(ours) {
                tracing::warn!(
                    "others may look into the state directory {}: it is left as it is because of {}, which is none of \
                     the agent's files",
                    self.path.display(),
                    name.display()
                );
                return Ok(());
            }
        }
        private::close_directory(&self.path)
    }

    /// Addresses of local tasks on the gateway bridge.
    ///
    /// # Errors
    /// When the file exists but cannot be read.
    pub fn gateway_addresses(&self) -> Result<GatewayAddresses, StateError> {
        self.read(ADDRESSES)
    }

    /// Remembers them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_gateway_addresses(&self, addresses: &GatewayAddresses) -> Result<(), StateError> {
        self.write(ADDRESSES, addresses)
    }

    /// What sysctls were before us.
    ///
    /// # Errors
    /// When the file exists but cannot be read.
    pub fn sysctls(&self) -> Result<SysctlState, StateError> {
        self.read(SYSCTLS)
    }

    /// Remembers it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_sysctls(&self, state: &SysctlState) -> Result<(), StateError> {
        self.write(SYSCTLS, state)
    }

    /// Offloads that we have turned off.
    ///
    /// # Errors
    /// When the file exists but cannot be read.
    pub fn offloads(&self) -> Result<BTreeSet<Offload>, StateError> {
        self.read(OFFLOADS)
    }

    /// Remembers them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_offloads(&self, offloads: &BTreeSet<Offload>) -> Result<(), StateError> {
        self.write(OFFLOADS, offloads)
    }

    /// The last table of a live source, for a start without a manager. One that can't be read is none: a manager will
    /// come back.
    pub fn last_table(&self) -> Option<Base> {
        let path = self.path.join(LAST_TABLE);
        let read = match bounded::read(&path, bounded::STATE) {
            Ok(bytes) => last_table::decode(&bytes).ok_or_else(|| "it makes no sense".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        read.inspect_err(|why| tracing::warn!("state file {} can't be read, ignored: {why}", path.display())).ok()
    }

    /// Remembers it; `None` forgets it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_last_table(&self, base: Option<&Base>) -> Result<(), StateError> {
        self.write_last_table(base, Occasion::News)
    }

    /// [`StateDir::set_last_table`], or looks whether it is as it was set.
    pub(crate) fn write_last_table(&self, base: Option<&Base>, occasion: Occasion) -> Result<(), StateError> {
        match base {
            Some(base) => self.write_behind(LAST_TABLE, occasion, || Ok(last_table::encode(base))),
            // Nothing to remove: a file system that became read-only would refuse all the same.
            None if occasion == Occasion::Look && !self.path.join(LAST_TABLE).exists() => Ok(()),
            None => self.forget(LAST_TABLE),
        }
    }

    /// Removes our files, and the directory if nothing else is in it. Returns what could not be removed.
    pub fn remove(&self) -> Vec<StateError> {
        if let Err(error) = self.hold() {
            return vec![error];
        }
        // The lock is the last of them: until then the directory is not another agent's.
        let mut failures: Vec<_> = FILES.iter().filter_map(|name| self.forget(name).err()).collect();
        match fs::remove_dir(&self.path) {
            Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                failures.push(StateError::file(&self.path, source));
            }
            _ => {}
        }
        failures
    }

    fn read<T: Default + DeserializeOwned>(&self, name: &'static str) -> Result<T, StateError> {
        let path = self.path.join(name);
        let known = self.kept.as_ref().and_then(|kept| kept.file(name));
        let read = match known {
            Some(bytes) => Ok(bytes),
            None => bounded::read(&path, bounded::STATE).map(Arc::from),
        };
        match read {
            // What file systems make of a file that was not synced.
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => {
                tracing::info!("state file {} is empty, as after a power cut: nothing is remembered", path.display());
                Ok(T::default())
            }
            Ok(bytes) => {
                let value = serde_json::from_slice(&bytes).map_err(|error| StateError::file(&path, error))?;
                if let Some(kept) = &self.kept {
                    kept.put(name, bytes);
                }
                Ok(value)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(source) => Err(StateError::file(&path, source)),
        }
    }

    fn write<T: Serialize>(&self, name: &'static str, value: &T) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(value);
        let mut bytes = bytes.map_err(|error| StateError::file(&self.path.join(name), error))?;
        bytes.push(b'\n');
        self.put(name, &bytes)?;
        if let Some(kept) = &self.kept {
            kept.put(name, bytes.into());
        }
        Ok(())
    }
}

fn written_again(path: &Path) {
    tracing::warn!("state file {} was removed or changed by another process: it is written again", path.display());
}

#[cfg(test)]
mod tests;
