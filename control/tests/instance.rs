//! One agent per network namespace, whatever unprivileged processes do. Needs root.

mod support;

use std::os::{
    fd::AsRawFd,
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixListener},
};

use control::instance::{Instance, InstanceError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
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
