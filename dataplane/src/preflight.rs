//! What must be true of the machine before anything is done to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::TcHook;

/// The oldest kernel that the programs are tried on.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// The first kernel with TCX.
const FIRST_TCX: (u32, u32) = (6, 6);

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_BPF: u64 = 1 << 39;

/// This machine, or this way of starting, will not do.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The process lacks capabilities.
    #[error("missing {0}: run as root, or with at least CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    Privilege(String),
    /// The kernel is too old.
    #[error("the kernel is {found}, but at least {}.{} is needed: boot a newer one", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    Kernel {
        /// Its version, as the kernel says.
        found: String,
    },
    /// TCX was asked for, and the kernel has none.
    #[error("the kernel ({found}) has no TCX, which came with {}.{}: leave the choice of the hook to the agent", FIRST_TCX.0, FIRST_TCX.1)]
    NoTcx {
        /// Its version, as the kernel says.
        found: String,
    },
    /// The directory is on another kind of file system.
    #[error(
        "{path} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, or pass another directory with --bpffs"
    )]
    NoBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// Something about the machine could not be found out.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// From where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Whether this process may do what we do.
pub(crate) fn check_privilege() -> Result<(), PreflightError> {
    let status = read(Path::new("/proc/self/status"))?;
    let missing = missing_capabilities(effective_capabilities(&status));
    if missing.is_empty() { Ok(()) } else { Err(PreflightError::Privilege(missing.join(" and "))) }
}

/// Whether this process on this machine could open a data plane under `bpffs`: privileges, kernel, file system. Changes
/// nothing; for callers who want to know before they do anything else.
pub fn preflight(bpffs: &Path) -> Result<(), PreflightError> {
    check_machine(TcHook::Auto)?;
    check_bpffs(bpffs)
}

/// Privileges and kernel. Returns whether TCX is to be used.
pub(crate) fn check_machine(hook: TcHook) -> Result<bool, PreflightError> {
    check_privilege()?;
    let release = read(Path::new("/proc/sys/kernel/osrelease"))?;
    let found = release.trim();
    choose(found, hook)
}

fn choose(found: &str, hook: TcHook) -> Result<bool, PreflightError> {
    let Some(version) = version(found).filter(|version| *version >= OLDEST_KERNEL) else {
        return Err(PreflightError::Kernel { found: found.to_owned() });
    };
    match hook {
        TcHook::Auto => Ok(version >= FIRST_TCX),
        TcHook::Clsact => Ok(false),
        TcHook::Tcx if version >= FIRST_TCX => Ok(true),
        TcHook::Tcx => Err(PreflightError::NoTcx { found: found.to_owned() }),
    }
}

/// Whether `path`, or the closest directory above it that exists, is on a BPF file system.
pub(crate) fn check_bpffs(path: &Path) -> Result<(), PreflightError> {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let unreadable = |errno: nix::Error| PreflightError::Unreadable { path: nearest.to_owned(), source: errno.into() };
    if statfs(nearest).map_err(unreadable)?.filesystem_type() == BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(PreflightError::NoBpffs { path: path.to_owned() })
    }
}

fn read(path: &Path) -> Result<String, PreflightError> {
    fs::read_to_string(path).map_err(|source| PreflightError::Unreadable { path: path.to_owned(), source })
}

/// The `CapEff` line of `/proc/self/status`.
fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if effective & (CAP_BPF | CAP_SYS_ADMIN) == 0 {
        missing.push("CAP_BPF");
    }
    if effective & CAP_NET_ADMIN == 0 {
        missing.push("CAP_NET_ADMIN");
    }
    missing
}

/// Major and minor version of a kernel release such as `6.1.0-31-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kernel_releases() {
        assert_eq!(version("6.1.0-31-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("linux"), None);
        assert!(version("5.15.0").unwrap() < OLDEST_KERNEL);
    }

    #[test]
    fn old_kernels_are_refused_and_the_hook_follows_the_kernel() {
        let old = choose("5.15.0-91-generic", TcHook::Auto).unwrap_err().to_string();
        assert!(old.contains("5.15.0-91-generic") && old.contains("6.1"), "{old}");
        assert!(matches!(choose("nonsense", TcHook::Auto), Err(PreflightError::Kernel { .. })));
        assert!(matches!(choose("6.1.0", TcHook::Auto), Ok(false)));
        assert!(matches!(choose("6.6.0", TcHook::Auto), Ok(true)));
        assert!(matches!(choose("6.18.44", TcHook::Clsact), Ok(false)));
        assert!(matches!(choose("6.1.0", TcHook::Tcx), Err(PreflightError::NoTcx { .. })));
    }

    #[test]
    fn names_missing_capabilities() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n";
        assert!(missing_capabilities(effective_capabilities(status)).is_empty());
        assert_eq!(
            missing_capabilities(effective_capabilities("CapEff:\t0000000000000000\n")),
            ["CAP_BPF", "CAP_NET_ADMIN"]
        );
        assert_eq!(missing_capabilities(CAP_BPF), ["CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(CAP_SYS_ADMIN | CAP_NET_ADMIN), [""; 0]);
    }

    #[test]
    fn other_file_systems_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_bpffs(&dir.path().join("not/there")).unwrap_err();
        assert!(matches!(error, PreflightError::NoBpffs { .. }));
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"));
    }
}
