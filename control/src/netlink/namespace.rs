//! Opens what is said to be a network namespace. What the path leads to is looked at first: a pipe would keep its
//! opener waiting for ever, and a device may do something when it is opened.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use nix::sys::statfs::fstatfs;

use crate::bounded::{describe, peek, reopen};

/// File system of namespaces (`NSFS_MAGIC` of `<linux/magic.h>`).
const NSFS: i64 = 0x6e73_6673;
/// `NS_GET_NSTYPE` of `<linux/nsfs.h>`: the `CLONE_NEW…` flag of a namespace.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Opens a network namespace, whichever it is.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when nothing is there; what is there, if that is no network namespace; the kernel's.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let found = peek(path)?;
    let kind = found.metadata()?.file_type();
    // Namespaces look like regular files; `ip netns add` makes an empty one first and mounts the namespace over it.
    if fstatfs(&found)?.filesystem_type().0 as i64 != NSFS {
        return Err(io::Error::other(format!("it is {}, not a network namespace (yet)", describe(kind))));
    }
    let file = reopen(&found)?;
    match namespace_type(file.as_raw_fd())? {
        libc::CLONE_NEWNET => Ok(file),
        other => Err(io::Error::other(format!("it is {}, not a network namespace", named(other)))),
    }
}

fn namespace_type(namespace: RawFd) -> io::Result<i32> {
    // SAFETY: this request takes no argument and writes nowhere; the descriptor is open for the length of the call.
    let answer = unsafe { libc::ioctl(namespace, NS_GET_NSTYPE) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn named(kind: i32) -> String {
    let name = match kind {
        libc::CLONE_NEWPID => "PID",
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWUTS => "UTS",
        libc::CLONE_NEWIPC => "IPC",
        libc::CLONE_NEWCGROUP => "cgroup",
        _ => return format!("a namespace of kind {kind:#x}"),
    };
    format!("a {name} namespace")
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn why(path: &Path) -> String {
        let (said, answer) = mpsc::channel();
        let path = path.to_owned();
        thread::spawn(move || said.send(open(&path).map(drop)));
        let answer = answer.recv_timeout(Duration::from_secs(5)).expect("an answer within five seconds");
        answer.expect_err("refused").to_string()
    }

    #[test]
    fn what_is_no_network_namespace_is_named_and_never_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let (fifo, file) = (scratch.path().join("fifo"), scratch.path().join("file"));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        std::fs::write(&file, "").unwrap();
        let not = |what: &str| format!("it is {what}, not a network namespace");
        assert_eq!(why(&fifo), not("a pipe") + " (yet)");
        assert_eq!(why(&file), not("a regular file") + " (yet)");
        assert_eq!(why(scratch.path()), not("a directory") + " (yet)");
        assert_eq!(why(Path::new("/dev/zero")), not("a device") + " (yet)");
        assert_eq!(why(Path::new("/proc/self/ns/uts")), not("a UTS namespace"));
        assert_eq!(why(Path::new("/proc/self/ns/mnt")), not("a mount namespace"));
        open(Path::new("/proc/self/ns/net")).unwrap();
        let missing = open(&scratch.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
