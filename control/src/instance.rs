//! One agent per network namespace.
//!
//! Two things say so. The lock is a byte of a file that only root may open, at the number of the network namespace:
//! agents of several namespaces share the file, and the kernel gives the byte back however a process ends. The sign is
//! an abstract unix socket, whose name space is the network namespace itself: it is how an agent without the lock is
//! noticed (one of a version before it, or one that sees another `/run`), and how its process is named. Anybody may
//! hold the sign, so nobody's sign but an agent's own user's or root's keeps an agent away. Anybody may also fill the
//! sign's queue, so that it says nothing of its holder: then the kernel is asked whose it is.

mod sign;

use std::{
    fs::{self, File},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    unistd::geteuid,
};

use self::sign::Holder;
use crate::private;

const NAME: &[u8] = b"hiveway-agent";
const DIRECTORY: &str = "/run/hiveway";
const LOCK: &str = "agents.lock";
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Proof that no other agent runs in this network namespace, for as long as it is held.
#[derive(Debug)]
pub struct Instance {
    /// With its byte locked.
    _lock: File,
    /// `None` where a stranger has the name.
    _sign: Option<UnixListener>,
}

/// Why there can be no agent here.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// There is one already.
    #[error("an agent is already running in this network namespace{}: stop it first", pid(.0))]
    Running(Option<i32>),
    /// The lock cannot be used.
    #[error("cannot find out whether another agent runs in this network namespace: {path}: {source}")]
    Lock {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error(
        "cannot find out whether another agent runs in this network namespace: {0}; run it as root, with /proc mounted and \
         descriptors left"
    )]
    Kernel(#[from] io::Error),
}

fn pid(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl Instance {
    /// Takes the place.
    ///
    /// # Errors
    /// [`InstanceError::Running`] names the process that has it; [`InstanceError::Lock`] what is wrong with
    /// `/run/hiveway` or the lock in it.
    pub fn take() -> Result<Self, InstanceError> {
        Self::take_in(Path::new(DIRECTORY))
    }

    /// [`Instance::take`] with the lock in another directory.
    ///
    /// # Errors
    /// As there.
    pub fn take_in(directory: &Path) -> Result<Self, InstanceError> {
        let lock = lock(directory)?;
        let sign = match UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?) {
            Ok(listener) => Some(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match sign::holder(NAME)? {
                Some(Holder { pid, uid }) if uid == 0 || uid == geteuid().as_raw() => {
                    return Err(InstanceError::Running(pid));
                }
                stranger => {
                    let who = stranger.map(|Holder { pid, uid }| match pid {
                        Some(pid) => format!("process {pid} of user {uid}"),
                        None => format!("a process of user {uid}"),
                    });
                    tracing::warn!(
                        "{} has the name of the agent's socket in this network namespace and is no agent; ignored",
                        who.as_deref().unwrap_or("a process that does not listen")
                    );
                    None
                }
            },
            Err(error) => return Err(error.into()),
        };
        Ok(Self { _lock: lock, _sign: sign })
    }
}

/// The file of locks, with this namespace's byte locked.
fn lock(directory: &Path) -> Result<File, InstanceError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| InstanceError::Lock { path, source }
    };
    if private::make_directory(directory).map_err(failed(directory))? {
        // Made by an earlier version, or by a service manager.
        private::close_directory(directory).map_err(failed(directory))?;
    }
    let path = directory.join(LOCK);
    let file = private::open_lock(&path).map_err(failed(&path))?;
    let namespace = fs::metadata(NAMESPACE).map_err(failed(Path::new(NAMESPACE)))?.ino();
    let number = i64::try_from(namespace).map_err(|error| failed(&path)(io::Error::other(error)))?;
    let byte = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: number,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte)) {
        Ok(_) => Ok(file),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
            Err(InstanceError::Running(sign::holder(NAME).ok().flatten().and_then(|holder| holder.pid)))
        }
        Err(errno) => Err(failed(&path)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_place_and_it_names_its_holder() {
        let scratch = tempfile::tempdir().unwrap();
        let first = Instance::take_in(scratch.path()).unwrap();
        match Instance::take_in(scratch.path()) {
            Err(InstanceError::Running(pid)) => assert_eq!(pid, Some(std::process::id() as i32)),
            other => panic!("{other:?}"),
        }
        drop(first);
        Instance::take_in(scratch.path()).unwrap();
    }
}
