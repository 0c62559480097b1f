//! What the agent must remember across restarts, as small JSON files that are replaced atomically.

mod last_table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use hiveway_core::GatewayAddresses;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::source::Base;

const ADDRESSES: &str = "gateway-addresses.json";
const SYSCTLS: &str = "sysctls.json";
const OFFLOADS: &str = "offloads.json";
const LAST_TABLE: &str = "last-table.bin";
/// The last reports of other nodes' agents (managers).
pub const RELAY_REPORTS: &str = "relay-reports.json";
/// Whom teardown says goodbye to.
pub const RELAY_CONTACTS: &str = "relay-contacts.json";

/// A file of the state directory could not be used.
#[derive(Debug, thiserror::Error)]
#[error("state file {path}: {source}")]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
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
    /// The container's task. Empty where a version has written it that did not remember the task: such a one is given back,
    /// and turned off anew where that is still needed.
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
pub struct StateDir(PathBuf);

impl StateDir {
    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(path).map_err(|source| StateError { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    /// The directory if it exists; for teardown.
    pub fn existing(path: &Path) -> Option<Self> {
        path.is_dir().then(|| Self(path.to_owned()))
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
        let path = self.0.join(LAST_TABLE);
        let bytes = fs::read(&path).ok()?;
        let read = last_table::decode(&bytes);
        if read.is_none() {
            tracing::warn!("state file {} can't be read; ignored", path.display());
        }
        read
    }

    /// Remembers it; `None` forgets it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_last_table(&self, base: Option<&Base>) -> Result<(), StateError> {
        match base {
            Some(base) => self.replace(LAST_TABLE, &last_table::encode(base)),
            None => match fs::remove_file(self.0.join(LAST_TABLE)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(StateError { path: self.0.join(LAST_TABLE), source })
                }
                _ => Ok(()),
            },
        }
    }

    /// Removes our files, and the directory if nothing else is in it. Returns what could not be removed.
    pub fn remove(&self) -> Vec<StateError> {
        let mut failures = Vec::new();
        for name in [ADDRESSES, SYSCTLS, OFFLOADS, LAST_TABLE, RELAY_REPORTS, RELAY_CONTACTS] {
            let path = self.0.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => failures.push(StateError { path, source }),
                _ => {}
            }
        }
        match fs::remove_dir(&self.0) {
            Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                failures.push(StateError { path: self.0.clone(), source });
            }
            _ => {}
        }
        failures
    }

    fn read<T: Default + DeserializeOwned>(&self, name: &str) -> Result<T, StateError> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| StateError { path, source: error.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(source) => Err(StateError { path, source }),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(value);
        let mut bytes = bytes.map_err(|error| StateError { path: self.0.join(name), source: error.into() })?;
        bytes.push(b'\n');
        self.replace(name, &bytes)
    }

    /// Atomically.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.0.join(name);
        let temporary = self.0.join(format!(".{name}.tmp"));
        let replace = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        replace().map_err(|source| StateError { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.gateway_addresses().unwrap(), GatewayAddresses::new());
        let addresses = GatewayAddresses::from([("t1".to_owned(), [172, 18, 0, 2].into())]);
        state.set_gateway_addresses(&addresses).unwrap();
        assert_eq!(StateDir::open(&path).unwrap().gateway_addresses().unwrap(), addresses);
        assert!(state.remove().is_empty());
        assert!(!path.exists());
        assert!(state.remove().is_empty(), "a second time is no error");
    }

    #[test]
    fn a_broken_file_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join(ADDRESSES), "{").unwrap();
        let error = StateDir::open(scratch.path()).unwrap().gateway_addresses().unwrap_err().to_string();
        assert!(error.contains(ADDRESSES), "{error}");
    }

    #[test]
    fn the_last_table_is_kept_and_forgotten() {
        use crate::source::Origin;
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDir::open(scratch.path()).unwrap();
        assert_eq!(state.last_table(), None);
        let text = "version: 1\nnodes: [{id: n1, hostname: one, address: 192.0.2.1}]\nnetworks: [{id: app, name: app, \
                    subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]\n";
        let model = hiveway_core::table::parse_file(text, Path::new("t.yaml")).unwrap().model;
        let table = hiveway_core::engine::Loaded { model, ..Default::default() };
        let base = Base { table: table.into(), origin: Origin::Relay, node: Some("n1".into()) };
        state.set_last_table(Some(&base)).unwrap();
        assert_eq!(state.last_table(), Some(base));
        fs::write(scratch.path().join(LAST_TABLE), "relay n1\n\u{1}").unwrap();
        assert_eq!(state.last_table(), None);
        state.set_last_table(None).unwrap();
        state.set_last_table(None).unwrap();
        assert!(!scratch.path().join(LAST_TABLE).exists());
    }

    #[test]
    fn foreign_files_stay() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("notes.txt"), "mine").unwrap();
        let state = StateDir::open(scratch.path()).unwrap();
        assert!(state.remove().is_empty());
        assert!(scratch.path().join("notes.txt").exists());
    }
}
