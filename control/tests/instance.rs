//! One agent per network namespace, whatever unprivileged processes do. Needs root.

mod support;

use std::os::{
    fd::{AsRawFd, OwnedFd},
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixListener},
};

use control::instance::{Instance, InstanceError};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use support::in_fresh_netns;

/// Makes this thread alone another user's.
fn become_user(uid: u32) {
    // SAFETY: the raw system call takes three numbers and touches no memory; unlike the library's function it changes
    // the calling thread only.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn the_place_is_per_namespace_and_a_stranger_cannot_take_it() {
    in_fresh_netns(|| async {
        let own = Instance::take().unwrap();
        in_fresh_netns(|| async { drop(Instance::take().unwrap()) });
        assert!(matches!(Instance::take(), Err(InstanceError::Running(Some(pid))) if pid as u32 == std::process::id()));
        drop(own);

        become_user(65534);
        let _squatter = UnixListener::bind_addr(&SocketAddr::from_abstract_name(b"hiveway-agent").unwrap()).unwrap();
        let refused = Instance::take().unwrap_err();
        assert!(matches!(refused, InstanceError::Lock { .. }), "{refused}");
        become_user(0);
        let beside = Instance::take().unwrap();
        assert!(matches!(Instance::take(), Err(InstanceError::Running(_))), "a stranger's sign makes no room for two");
        drop(beside);
    });
}

#[test]
fn a_stranger_that_has_the_name_and_does_not_listen_keeps_no_agent_away() {
    in_fresh_netns(|| async {
        become_user(65534);
        let squatter = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(squatter.as_raw_fd(), &UnixAddr::new_abstract(b"hiveway-agent").unwrap()).unwrap();
        become_user(0);
        Instance::take().unwrap();
    });
}

#[test]
fn an_agent_of_a_version_before_the_lock_is_noticed() {
    in_fresh_netns(|| async {
        let _older = UnixListener::bind_addr(&SocketAddr::from_abstract_name(b"hiveway-agent").unwrap()).unwrap();
        let refused = Instance::take();
        assert!(matches!(refused, Err(InstanceError::Running(Some(pid))) if pid as u32 == std::process::id()));
    });
}

/// A socket that has the agent's name and listens, and connections that fill its queue.
fn with_a_full_queue(listener: u32, others: u32) -> (OwnedFd, Vec<OwnedFd>) {
    let name = UnixAddr::new_abstract(b"hiveway-agent").unwrap();
    let new = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    become_user(listener);
    let there = new(SockFlag::empty());
    bind(there.as_raw_fd(), &name).unwrap();
    listen(&there, Backlog::new(2).unwrap()).unwrap();
    become_user(0);
    become_user(others);
    let mut waiting = Vec::new();
    let full = loop {
        let client = new(SockFlag::SOCK_NONBLOCK);
        match connect(client.as_raw_fd(), &name) {
            Ok(()) => waiting.push(client),
            Err(error) => break error,
        }
    };
    assert_eq!((full, waiting.is_empty()), (nix::Error::EAGAIN, false));
    become_user(0);
    (there, waiting)
}

#[test]
fn a_queue_that_somebody_fills_hides_no_agent() {
    in_fresh_netns(|| async {
        let _older = with_a_full_queue(0, 65534);
        let refused = Instance::take();
        assert!(matches!(refused, Err(InstanceError::Running(None))), "{refused:?}");
    });
}

#[test]
fn a_stranger_that_fills_its_own_queue_keeps_no_agent_away() {
    in_fresh_netns(|| async {
        let _squatter = with_a_full_queue(65534, 65534);
        Instance::take().unwrap();
    });
}
