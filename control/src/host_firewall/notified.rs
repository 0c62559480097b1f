//! nftables' own notifications (`NFNLGRP_NFTABLES` in `<linux/netfilter/nfnetlink.h>`): something in it has changed, by
//! whomever. The older iptables and ipset have none.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::{
    socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};

/// `NFNLGRP_NFTABLES`, as a bit of a netlink address's groups.
const GROUP: u32 = 1 << (7 - 1);

/// A socket that hears of every change in the caller's network namespace.
#[derive(Debug)]
pub(super) struct Notified(OwnedFd);

impl Notified {
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket::socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkNetFilter))?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        Ok(Self(socket))
    }

    /// Waits for a change; returns whether there was one in that time.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let time = TimeVal::milliseconds(i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1));
        if socket::setsockopt(&self.0, ReceiveTimeout, &time).is_err() {
            std::thread::sleep(Duration::from_secs(1));
        }
        let came = match socket::recv(self.0.as_raw_fd(), &mut [0; 64], MsgFlags::empty()) {
            Ok(_) => true,
            Err(error) => error == nix::errno::Errno::ENOBUFS,
        };
        self.forget();
        came
    }

    /// Takes what has come so far. More than the socket could hold says the same: something has changed.
    pub(super) fn forget(&self) {
        let mut buffer = [0; 4096];
        loop {
            match socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return,
                Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
