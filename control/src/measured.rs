//! What `hiveway preflight --xdp` has measured, kept in the state directory for `--xdp auto`.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use dataplane_common::addr::Mac;
use hiveway_core::observed::{Kind, Link};
use serde::{Deserialize, Serialize};

use crate::{
    bounded, cli,
    netlink::Socket,
    private,
    state_dir::{StateDir, XDP_MEASURED},
};

/// The file's layout; another number is not read.
const VERSION: u32 = 1;

/// Whether XDP is worth what attaching it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Attaching costs nothing that can be seen.
    Pays,
    /// It is refused, or costs something.
    DoesNotPay,
}

/// One interface, as it was when it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The interface's name.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// The kernel's release.
    pub kernel: String,
    /// Its MAC.
    pub mac: String,
    /// Whether XDP pays.
    pub verdict: Verdict,
    /// The reason.
    pub why: String,
    /// RFC 3339.
    pub when: String,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// One entry per name.
    interfaces: Vec<Measured>,
}

impl Default for Record {
    fn default() -> Self {
        Self { version: VERSION, interfaces: Vec::new() }
    }
}

impl Record {
    /// Reads it from the state directory; it is empty where there is no file.
    ///
    /// # Errors
    /// Why the file cannot be used, naming it.
    pub fn read(state_dir: &Path) -> Result<Self, String> {
        let path = path(state_dir);
        let bytes = match bounded::read(&path, bounded::SMALL) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => Err(error.to_string()),
        };
        bytes.and_then(|bytes| parse(&bytes)).map_err(|why| format!("{} cannot be used: {why}", path.display()))
    }

    fn put(&mut self, measured: Measured) {
        self.interfaces.retain(|other| other.name != measured.name);
        self.interfaces.push(measured);
    }

    /// The entry of that interface.
    pub fn of(&self, name: &str) -> Option<&Measured> {
        self.interfaces.iter().find(|measured| measured.name == name)
    }
}

fn parse(bytes: &[u8]) -> Result<Record, String> {
    /// What every layout has.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("its layout is {version}, not {VERSION}"));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Where the record is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(XDP_MEASURED)
}

/// Adds an entry, in place of the interface's former one. Returns why a former file could not be used, if so: it is
/// replaced.
///
/// # Errors
/// Why the file cannot be written.
pub fn keep(state_dir: &Path, measured: Measured) -> Result<Option<String>, String> {
    StateDir::open(state_dir).map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("{} cannot be written: {error}", path(state_dir).display());
    // Another `preflight --xdp` reads and writes the file as well. The agent's own lock is on a file in the directory.
    let directory = File::open(state_dir).map_err(failed)?;
    directory.lock().map_err(failed)?;
    let (mut record, replaced) = match Record::read(state_dir) {
        Ok(record) => (record, None),
        Err(why) => (Record::default(), Some(why)),
    };
    record.put(measured);
    let mut bytes = serde_json::to_vec_pretty(&record).map_err(|error| failed(error.into()))?;
    bytes.push(b'\n');
    private::replace_synced(&path(state_dir), &bytes).map_err(failed)?;
    Ok(replaced)
}

/// The command that measures an interface for an agent with this state directory.
pub fn command(name: &str, state_dir: &Path) -> String {
    if state_dir == Path::new(cli::DEFAULT_STATE_DIR) {
        format!("`hiveway preflight --xdp {name}`")
    } else {
        format!("`hiveway preflight --xdp {name} --state-dir {}`", state_dir.display())
    }
}

/// The driver of an interface; where it does not say, the kind of interface, as the kernel calls it.
///
/// # Errors
/// The kernel's.
pub fn driver(socket: &Socket, name: &str, link: &Link) -> Result<String, String> {
    match (socket.driver(name), &link.kind) {
        (Err(error), Kind::Other(kind)) if error.errno() == Some(libc::EOPNOTSUPP) && !kind.is_empty() => {
            Ok(kind.clone())
        }
        (driver, _) => driver.map_err(|error| error.to_string()),
    }
}

/// An interface as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its MAC.
    pub mac: Mac,
    /// The kernel's release.
    pub kernel: &'a str,
}

/// Whether `--xdp auto` may turn XDP on, which takes a measurement of this very interface that says that it pays. The
/// driver is asked for only if there is a measurement; `command` makes one.
///
/// # Errors
/// What is missing, or why XDP does not pay.
pub fn allows(
    record: &Record,
    now: Now<'_>,
    driver: impl FnOnce() -> Result<String, String>,
    command: &str,
) -> Result<(), String> {
    let Some(measured) = record.of(now.name) else {
        return Err(format!("not measured on this interface yet: {command} does"));
    };
    let again = |before: &str, is: &str| Err(format!("measured with {before}, this is {is}: {command} measures again"));
    let driver = driver()?;
    if measured.driver != driver {
        return again(&format!("driver {}", measured.driver), &driver);
    }
    let mac = shown(now.mac);
    if measured.mac != mac {
        return again(&format!("MAC {}", measured.mac), &mac);
    }
    if measured.kernel != now.kernel {
        return again(&format!("kernel {}", measured.kernel), now.kernel);
    }
    match measured.verdict {
        Verdict::Pays => Ok(()),
        Verdict::DoesNotPay => Err(format!("{} (measured {})", measured.why, measured.when)),
    }
}

/// A MAC as it is written.
pub fn shown(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn eth0(verdict: Verdict) -> Measured {
        Measured {
            name: "eth0".to_owned(),
            driver: "ice".to_owned(),
            kernel: "6.12.0".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            verdict,
            why: "it costs lro".to_owned(),
            when: "2026-12-01T00:00:00Z".to_owned(),
        }
    }

    fn asked(record: &Record, name: &str, mac: Mac, kernel: &str, driver: &str) -> Result<(), String> {
        allows(record, Now { name, mac, kernel }, || Ok(driver.to_owned()), "`measure`")
    }

    #[test]
    fn only_the_same_interface_with_the_same_driver_mac_and_kernel_is_as_it_was_measured() {
        let mut record = Record::default();
        record.put(eth0(Verdict::Pays));
        assert_eq!(asked(&record, "eth0", MAC, "6.12.0", "ice"), Ok(()));
        for (name, mac, kernel, driver, why) in [
            ("eth1", MAC, "6.12.0", "ice", "not measured on this interface yet: `measure` does"),
            (
                "eth0",
                [2, 0, 0, 0, 0, 2],
                "6.12.0",
                "ice",
                "measured with MAC 02:00:00:00:00:01, this is 02:00:00:00:00:02: `measure` measures again",
            ),
            ("eth0", MAC, "6.18.1", "ice", "measured with kernel 6.12.0, this is 6.18.1: `measure` measures again"),
            ("eth0", MAC, "6.12.0", "ixgbe", "measured with driver ice, this is ixgbe: `measure` measures again"),
        ] {
            assert_eq!(asked(&record, name, mac, kernel, driver), Err(why.to_owned()));
        }
        let unknown = allows(
            &record,
            Now { name: "eth0", mac: MAC, kernel: "6.12.0" },
            || Err("no driver".to_owned()),
            "`measure`",
        );
        assert_eq!(unknown, Err("no driver".to_owned()));
    }

    #[test]
    fn where_it_does_not_pay_the_measured_reason_is_said() {
        let mut record = Record::default();
        record.put(eth0(Verdict::DoesNotPay));
        let why = asked(&record, "eth0", MAC, "6.12.0", "ice").unwrap_err();
        assert_eq!(why, "it costs lro (measured 2026-12-01T00:00:00Z)");
    }

    #[test]
    fn the_file_has_one_entry_per_interface_and_is_roots_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("state");
        assert_eq!(Record::read(&directory).unwrap(), Record::default());
        for verdict in [Verdict::Pays, Verdict::DoesNotPay] {
            assert_eq!(keep(&directory, eth0(verdict)), Ok(None));
        }
        keep(&directory, Measured { name: "eth1".to_owned(), ..eth0(Verdict::Pays) }).unwrap();
        let record = Record::read(&directory).unwrap();
        assert_eq!(record.interfaces.len(), 2);
        assert_eq!(record.of("eth0").unwrap().verdict, Verdict::DoesNotPay);
        assert_eq!(fs::metadata(path(&directory)).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(path(&directory)).unwrap();
        assert!(text.contains("\"version\": 1") && text.contains("\"does_not_pay\""), "{text}");
    }

    #[test]
    fn a_file_that_makes_no_sense_says_so_and_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        for (text, why) in [
            ("{", "EOF"),
            ("\0\0\0", "expected value"),
            (r#"{"version": 2, "interfaces": {}}"#, "its layout is 2, not 1"),
            (r#"{"version": 1, "interfaces": [{"name": "eth0"}]}"#, "missing field"),
        ] {
            fs::write(path(scratch.path()), text).unwrap();
            let refused = Record::read(scratch.path()).unwrap_err();
            assert!(refused.contains("xdp-measured.json cannot be used: ") && refused.contains(why), "{refused}");
            assert_eq!(keep(scratch.path(), eth0(Verdict::Pays)), Ok(Some(refused)));
            assert!(Record::read(scratch.path()).unwrap().of("eth0").is_some());
        }
    }

    #[test]
    fn the_command_names_another_state_directory() {
        assert_eq!(command("eth0", Path::new(cli::DEFAULT_STATE_DIR)), "`hiveway preflight --xdp eth0`");
        assert_eq!(command("eth0", Path::new("/x")), "`hiveway preflight --xdp eth0 --state-dir /x`");
    }
}
