//! One agent per network namespace: an abstract unix socket, whose name space is the network namespace and which
//! vanishes with its process, however that ends.

use std::{
    io,
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
};

const NAME: &[u8] = b"hiveway-agent";

/// Proof that no other agent runs in this network namespace, for as long as it is held.
#[derive(Debug)]
pub struct Instance(#[expect(dead_code, reason = "held, not used")] Option<UnixListener>);

/// Why there can be no agent here.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// There is one already.
    #[error("an agent is already running in this network namespace{}: stop it first", pid(.0))]
    Running(Option<i32>),
    /// The kernel refused.
    #[error("cannot find out whether another agent runs in this network namespace: {0}")]
    Kernel(#[from] io::Error),
}

fn pid(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

impl Instance {
    /// Takes the place.
    ///
    /// # Errors
    /// [`InstanceError::Running`] names the process that has it.
    pub fn take() -> Result<Self, InstanceError> {
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?) {
            Ok(listener) => Ok(Self(Some(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match holder() {
                // Anybody may listen there, but only a privileged process can be an agent.
                Some((pid, uid)) if uid != 0 && nix::unistd::geteuid().is_root() => {
                    tracing::warn!(
                        "process {pid} of user {uid} has the agent's place in this network namespace; ignored"
                    );
                    Ok(Self(None))
                }
                holder => Err(InstanceError::Running(holder.map(|(pid, _)| pid).filter(|pid| *pid > 0))),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// Process and user that listen there. The process number is 0 if it is outside our PID namespace.
fn holder() -> Option<(i32, u32)> {
    // Nobody accepts, so a connection may have to wait; we don't.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(stream.as_raw_fd(), &UnixAddr::new_abstract(NAME).ok()?).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|peer| (peer.pid(), peer.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_place_and_it_names_its_holder() {
        let first = Instance::take().unwrap();
        match Instance::take() {
            Err(InstanceError::Running(pid)) => assert_eq!(pid, Some(std::process::id() as i32)),
            other => panic!("{other:?}"),
        }
        drop(first);
        Instance::take().unwrap();
    }
}
