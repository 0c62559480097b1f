//! What the agent must remember across restarts, as small JSON files that are replaced atomically.
//!
//! What is to be undone is remembered before it is done: a file has its new content before the sysctl or the offload is
//! changed, and an agent that dies in between leaves it to the next one. It need not be on the disk for that, and
//! rounds do not wait for the disk: sysctls, offloads, and the addresses of containers are gone after a crash of the
//! machine, so there is nothing to undo then, and a file that the crash has left empty is as good as none. The last
//! table is to outlive the machine: it is synced, by the thread that writes it (`behind.rs`).

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

use crate::{bounded, private, source::Base};

const ADDRESSES: &str = "gateway-addresses.json";
const SYSCTLS: &str = "sysctls.json";
const OFFLOADS: &str = "offloads.json";
const LAST_TABLE: &str = "last-table.bin";
/// Held by the agent that uses the directory; holds its process number.
const LOCK: &str = "agent.lock";
/// The last reports of other nodes' agents (managers).
pub const RELAY_REPORTS: &str = "relay-reports.json";
/// Whom teardown says goodbye to.
pub const RELAY_CONTACTS: &str = "relay-contacts.json";

/// All that is ours in it.
const FILES: [&str; 7] = [ADDRESSES, SYSCTLS, OFFLOADS, LAST_TABLE, RELAY_REPORTS, RELAY_CONTACTS, LOCK];

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
pub struct StateDir {
    path: PathBuf,
    /// While it is this process's alone.
    _lock: Option<Arc<File>>,
}

impl StateDir {
    /// Makes the directory if it is missing, for this user alone. One that was open to others is closed, unless there is
    /// something else in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let open_to_others = private::make_directory(path).map_err(|error| StateError::file(path, error))?;
        let state = Self { path: path.to_owned(), _lock: None };
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
        path.is_dir().then(|| Self { path: path.to_owned(), _lock: None })
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another process has it; when it cannot be made.
    pub fn locked(self) -> Result<Self, StateError> {
        let path = self.path.join(LOCK);
        let failed = |error| StateError::file(&path, error);
        let mut file = private::open_lock(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let said = bounded::read_text(&path, bounded::SMALL).unwrap_or_default();
                return Err(StateError::InUse { path: self.path, pid: said.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // A full disk is no reason to do without the lock.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _lock: Some(Arc::new(file)), ..self })
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
        match base {
            Some(base) => {
                let path = self.path.join(LAST_TABLE);
                private::replace_synced(&path, &last_table::encode(base))
                    .map_err(|error| StateError::file(&path, error))
            }
            None => match fs::remove_file(self.path.join(LAST_TABLE)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(StateError::file(&self.path.join(LAST_TABLE), source))
                }
                _ => Ok(()),
            },
        }
    }

    /// Removes our files, and the directory if nothing else is in it. Returns what could not be removed.
    pub fn remove(&self) -> Vec<StateError> {
        let mut failures = Vec::new();
        for name in FILES {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    failures.push(StateError::file(&path, source))
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.path) {
            Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                failures.push(StateError::file(&self.path, source));
            }
            _ => {}
        }
        failures
    }

    fn read<T: Default + DeserializeOwned>(&self, name: &str) -> Result<T, StateError> {
        let path = self.path.join(name);
        match bounded::read(&path, bounded::STATE) {
            // What file systems make of a file that was not synced.
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => {
                tracing::info!("state file {} is empty, as after a power cut: nothing is remembered", path.display());
                Ok(T::default())
            }
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| StateError::file(&path, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(source) => Err(StateError::file(&path, source)),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(value);
        let mut bytes = bytes.map_err(|error| StateError::file(&self.path.join(name), error))?;
        bytes.push(b'\n');
        let path = self.path.join(name);
        private::replace(&path, &bytes).map_err(|source| StateError::file(&path, source))
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

    /// Lets every call that waits for a disk fail, for this thread.
    fn without_a_disk_to_wait_for() {
        let allow = libc::SECCOMP_RET_ALLOW;
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EIO as u32;
        let statement = |code: u32, k| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
        let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
        for call in [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync] {
            let is = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32);
            filter.push(libc::sock_filter { jf: 1, ..is });
            filter.push(statement(libc::BPF_RET | libc::BPF_K, refuse));
        }
        filter.push(statement(libc::BPF_RET | libc::BPF_K, allow));
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the filter is read during the call only, and concerns this thread alone.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    /// What rounds write.
    #[test]
    fn a_round_does_not_wait_for_the_disk_and_an_empty_file_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDir::open(scratch.path()).unwrap();
        let sysctls = SysctlState { reserved_ports: BTreeSet::from([80]), ..SysctlState::default() };
        let addresses = GatewayAddresses::from([("t1".to_owned(), [172, 18, 0, 2].into())]);
        std::thread::scope(|scope| {
            let round = scope.spawn(|| {
                without_a_disk_to_wait_for();
                state.set_sysctls(&sysctls).unwrap();
                state.set_offloads(&BTreeSet::new()).unwrap();
                state.set_gateway_addresses(&addresses).unwrap();
                let synced = private::replace_synced(&scratch.path().join("synced"), b"").unwrap_err();
                assert_eq!(synced.raw_os_error(), Some(libc::EIO), "nothing would have been noticed");
            });
            round.join().unwrap();
        });
        assert_eq!((state.sysctls().unwrap(), state.gateway_addresses().unwrap()), (sysctls, addresses));
        for left in [&b""[..], &[0; 100]] {
            for name in [SYSCTLS, OFFLOADS, ADDRESSES] {
                fs::write(scratch.path().join(name), left).unwrap();
            }
            assert_eq!(state.sysctls().unwrap(), SysctlState::default());
            assert_eq!((state.offloads().unwrap().len(), state.gateway_addresses().unwrap().len()), (0, 0));
        }
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

    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_second_agent_on_one_directory_is_refused_by_name() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state");
        let first = StateDir::take(&path).unwrap();
        let clone = first.clone();
        drop(first);
        let why = StateDir::take(&path).unwrap_err().to_string();
        let want = format!("is the state directory of another agent (pid {})", std::process::id());
        assert!(why.contains(&want), "{why}");
        drop(clone);
        StateDir::take(&path).unwrap();
        assert!(StateDir::take(&path).unwrap().remove().is_empty());
        assert!(!path.exists(), "the lock goes with the directory");
    }

    #[test]
    fn what_an_earlier_version_has_left_open_is_closed() {
        let scratch = tempfile::tempdir().unwrap();
        let (ours, foreign) = (scratch.path().join("ours"), scratch.path().join("foreign"));
        for path in [&ours, &foreign] {
            fs::create_dir(path).unwrap();
            fs::write(path.join(SYSCTLS), "{}").unwrap();
            set_mode(&path.join(SYSCTLS), 0o644);
            set_mode(path, 0o755);
        }
        fs::write(foreign.join("notes.txt"), "mine").unwrap();
        set_mode(&foreign.join("notes.txt"), 0o644);
        for path in [&ours, &foreign] {
            StateDir::open(path).unwrap().set_offloads(&BTreeSet::new()).unwrap();
            assert_eq!((mode(&path.join(SYSCTLS)), mode(&path.join(OFFLOADS))), (0o600, 0o600));
        }
        assert_eq!((mode(&ours), mode(&foreign), mode(&foreign.join("notes.txt"))), (0o700, 0o755, 0o644));
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
