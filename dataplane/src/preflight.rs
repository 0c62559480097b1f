//! What must be true of the machine before anything is done to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use aya::programs::{TcAttachType, tc};
use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    statvfs::FsFlags,
};

use crate::{
    Program, TcHook,
    load::{self, Maps},
    sys,
};

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_NET_RAW: u64 = 1 << 13;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// This machine, or this way of starting, will not do.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The process lacks capabilities.
    #[error("missing {0}: run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN")]
    Privilege(String),
    /// TCX was asked for, and the kernel has none.
    #[error("the kernel ({found}) has no TCX, which came with 6.6: leave the choice of the hook to the agent")]
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
    /// Nothing can be pinned in the directory.
    #[error("{path} is on a BPF file system that is mounted read-only: `mount -o remount,rw` it")]
    ReadOnlyBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel has no place for programs that it should have.
    #[error("the kernel refuses to say what is attached to an interface: {0}")]
    Hook(#[source] io::Error),
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
    let missing = missing_capabilities(own_capabilities()?);
    if missing.is_empty() { Ok(()) } else { Err(PreflightError::Privilege(missing.join(" and "))) }
}

/// Whether this process may see whose a socket is that another process holds (`CAP_SYS_PTRACE`). The data plane does
/// without.
pub fn sees_owners() -> bool {
    own_capabilities().is_ok_and(|own| own & CAP_SYS_PTRACE != 0)
}

fn privileges() -> Result<String, PreflightError> {
    check_privilege()?;
    Ok(if sees_owners() {
        "enough capabilities".to_owned()
    } else {
        "enough capabilities; without CAP_SYS_PTRACE it cannot be told which processes listen on published ports"
            .to_owned()
    })
}

fn own_capabilities() -> Result<u64, PreflightError> {
    read(Path::new("/proc/self/status")).map(|status| effective_capabilities(&status))
}

/// Whether this process on this machine could open a data plane under `bpffs`: privileges, kernel, file system. Changes
/// nothing; for callers who want to know before they do anything else.
pub fn preflight(bpffs: &Path) -> Result<(), PreflightError> {
    check_machine(TcHook::Auto)?;
    check_bpffs(bpffs)
}

/// Privileges and hook. Returns whether TCX is to be used. Whether the programs load is seen by loading them: a version
/// says little about a kernel with backports.
pub(crate) fn check_machine(hook: TcHook) -> Result<bool, PreflightError> {
    check_privilege()?;
    match hook {
        TcHook::Clsact => Ok(false),
        TcHook::Auto => has_tcx(),
        TcHook::Tcx if has_tcx()? => Ok(true),
        TcHook::Tcx => Err(PreflightError::NoTcx { found: release() }),
    }
}

/// Whether programs can be attached as TCX links: the kernel is asked for those of the loopback.
///
/// # Errors
/// The kernel's, where it does not say.
pub fn has_tcx() -> Result<bool, PreflightError> {
    /// The same in every network namespace.
    const LOOPBACK: u32 = 1;
    match sys::tcx_links(LOOPBACK, TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        // No such kind of hook.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(PreflightError::Hook(error)),
    }
}

/// The kernel's version as it calls itself.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// One thing that was tried, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What, in a word.
    pub name: &'static str,
    /// What was found; or what is missing, with the remedy.
    pub result: Result<String, String>,
}

/// Tries what the data plane needs of this machine: privileges, a BPF file system for `bpffs`, the way to attach, and
/// with `programs` all maps and programs, which takes seconds. Nothing of it stays.
pub fn checks(bpffs: &Path, programs: bool) -> Vec<Check> {
    let said = |result: Result<String, PreflightError>| result.map_err(|error| error.to_string());
    let tcx = |tcx| if tcx { "TCX links" } else { "clsact filters (no TCX before 6.6)" };
    let mut checks = vec![
        Check { name: "privileges", result: said(privileges()) },
        Check { name: "bpffs", result: said(check_bpffs(bpffs).map(|()| bpffs.display().to_string())) },
    ];
    if checks[0].result.is_err() {
        // What the kernel refuses now says nothing about the kernel.
        return checks;
    }
    checks.push(Check { name: "hook", result: said(has_tcx().map(|found| tcx(found).to_owned())) });
    if programs {
        checks.push(Check { name: "programs", result: try_programs() });
    }
    checks
}

/// Loads everything into maps of its own.
fn try_programs() -> Result<String, String> {
    let started = Instant::now();
    match load::load(&Maps::Private(&[]), 0) {
        Ok(_) => {
            Ok(format!("kernel {} takes all {} ({} ms)", release(), Program::ALL.len(), started.elapsed().as_millis()))
        }
        Err(error) => Err(format!(
            "{}; kernel {} lacks what the programs need (tried: 6.1 and newer; BPF JIT, CONFIG_DEBUG_INFO_BTF): boot \
             another one, or report this",
            shortened(&error.to_string()),
            release()
        )),
    }
}

/// Whether filters of the clsact qdisc can be attached in this thread's network namespace: adds the qdisc to its
/// loopback. For namespaces that are thrown away.
///
/// # Errors
/// The kernel's.
pub fn try_clsact() -> io::Result<()> {
    tc::qdisc_add_clsact("lo").map_err(io::Error::other)
}

/// The beginning and the end of a verifier's log.
fn shortened(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let [first, .., before, last] = lines[..] else { return text.to_owned() };
    format!("{first} … {before} {last}")
}

/// Whether `path`, or the closest directory above it that exists, is on a BPF file system.
pub(crate) fn check_bpffs(path: &Path) -> Result<(), PreflightError> {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let unreadable = |errno: nix::Error| PreflightError::Unreadable { path: nearest.to_owned(), source: errno.into() };
    let found = statfs(nearest).map_err(unreadable)?;
    if found.filesystem_type() != BPF_FS_MAGIC {
        return Err(PreflightError::NoBpffs { path: path.to_owned() });
    }
    // As containers see /sys that are not given it otherwise.
    if found.flags().contains(FsFlags::ST_RDONLY) {
        return Err(PreflightError::ReadOnlyBpffs { path: path.to_owned() });
    }
    Ok(())
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
    if effective & CAP_NET_ADMIN == 0 {
        missing.push("CAP_NET_ADMIN");
    }
    // For probes of the paths, which leave through packet sockets.
    if effective & CAP_NET_RAW == 0 {
        missing.push("CAP_NET_RAW");
    }
    // To enter the tasks' network namespaces. It includes CAP_BPF and CAP_PERFMON.
    if effective & CAP_SYS_ADMIN == 0 {
        missing.push("CAP_SYS_ADMIN");
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_that_is_asked_for_is_the_one() {
        assert!(!check_machine(TcHook::Clsact).unwrap(), "as root");
        let tcx = has_tcx().unwrap();
        assert_eq!(check_machine(TcHook::Auto).unwrap(), tcx);
        assert_eq!(check_machine(TcHook::Tcx).is_ok(), tcx);
        let refused = PreflightError::NoTcx { found: "6.1.0-31-amd64".to_owned() }.to_string();
        assert!(refused.contains("6.1.0-31-amd64") && refused.contains("6.6"), "{refused}");
    }

    #[test]
    fn everything_is_tried_and_what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let checks = checks(dir.path(), true);
        let names: Vec<_> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names, ["privileges", "bpffs", "hook", "programs"]);
        let failed: Vec<_> = checks.iter().filter(|check| check.result.is_err()).map(|check| check.name).collect();
        assert_eq!(failed, ["bpffs"], "{checks:?}");
        let all = format!("takes all {} ", Program::ALL.len());
        assert!(checks[3].result.as_ref().unwrap().contains(&all), "{checks:?}");
    }

    #[test]
    fn of_a_verifiers_log_the_ends_are_shown() {
        assert_eq!(shortened("one\ntwo"), "one\ntwo");
        assert_eq!(shortened("refused\n0: r1\n1: r2\nR1 invalid\nprocessed 2"), "refused … R1 invalid processed 2");
    }

    #[test]
    fn names_missing_capabilities() {
        let status = "Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n";
        assert!(missing_capabilities(effective_capabilities(status)).is_empty());
        assert_eq!(
            missing_capabilities(effective_capabilities("CapEff:\t0000000000000000\n")),
            ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]
        );
        assert_eq!(missing_capabilities(CAP_NET_ADMIN | CAP_NET_RAW), ["CAP_SYS_ADMIN"]);
        assert_eq!(missing_capabilities(CAP_SYS_ADMIN | CAP_NET_ADMIN), ["CAP_NET_RAW"]);
    }

    #[test]
    fn other_file_systems_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_bpffs(&dir.path().join("not/there")).unwrap_err();
        assert!(matches!(error, PreflightError::NoBpffs { .. }));
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"));
    }

    #[test]
    fn a_read_only_one_is_refused_with_the_remedy() {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        // In a mount namespace of its own, which ends with the thread.
        let thread = std::thread::spawn(move || {
            let none = None::<&str>;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none).unwrap();
            let writable = check_bpffs(&path.join("not/there")).map_err(|error| error.to_string());
            mount(none, &path, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none).unwrap();
            (writable, check_bpffs(&path.join("not/there")).unwrap_err())
        });
        let (writable, error) = thread.join().unwrap();
        assert_eq!(writable, Ok(()));
        assert!(matches!(error, PreflightError::ReadOnlyBpffs { .. }));
        assert!(error.to_string().contains("read-only: `mount -o remount,rw`"), "{error}");
    }
}
