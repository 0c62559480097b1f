//! The kernel's word that a setting of an IPv4 interface has changed (`RTM_NEWNETCONF`), which rtnetlink does not read.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType},
};
use tokio::io::{Interest, unix::AsyncFd};

/// `RTNLGRP_IPV4_NETCONF`, as a bit of a netlink address's groups.
const GROUP: u32 = 1 << (24 - 1);
const NEW: u16 = 80;
/// `struct nlmsghdr`, and `struct netconfmsg` behind it, with what fills it up to a multiple of four.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// `NETCONFA_IFINDEX` and `NETCONFA_RP_FILTER`.
const IFINDEX: u16 = 1;
const RP_FILTER: u16 = 3;
/// `NETCONFA_IFINDEX_ALL`: `net.ipv4.conf.all`.
pub const EVERY_INTERFACE: i32 = -1;

/// Hears of changes in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Netconf(AsyncFd<OwnedFd>);

impl Netconf {
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkRoute))?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        // SAFETY: the descriptor is the socket's own, and stays open and the same until the socket is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Waits until the reverse-path filter of an interface that `concerns` knows by its index, or of
    /// [`EVERY_INTERFACE`], was set or may have been.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub async fn filter_set(&self, concerns: impl Fn(i32) -> bool) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let heard = ready.try_io(|socket| self.take(socket, &concerns));
            if let Ok(heard) = heard
                && heard?
            {
                return Ok(());
            }
        }
    }

    /// Takes all that has come. Returns whether any of it concerns; what did not fit the socket may.
    fn take(&self, socket: &AsyncFd<OwnedFd>, concerns: &impl Fn(i32) -> bool) -> io::Result<bool> {
        let mut buffer = [0; 8192];
        let mut found = None;
        loop {
            match socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(read) => {
                    let concerning = set(&buffer[..read]).any(concerns);
                    found = Some(found.unwrap_or(false) || concerning);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => found = Some(true),
                // Nothing at all: the caller waits for more.
                Err(Errno::EAGAIN) => return found.ok_or_else(|| io::ErrorKind::WouldBlock.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The interfaces, by index, whose reverse-path filter was set, in a buffer of netlink messages.
fn set(messages: &[u8]) -> impl Iterator<Item = i32> {
    parts(messages, |bytes| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize, HEADER)
        .filter(|message| u16::from_ne_bytes([message[4], message[5]]) == NEW)
        .filter_map(|message| {
            let attributes = message.get(HEADER + FAMILY..)?;
            let of = |kind: u16| {
                let mut all = parts(attributes, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]).into(), 4);
                let value = all.find(|attribute| u16::from_ne_bytes([attribute[2], attribute[3]]) == kind)?;
                Some(i32::from_ne_bytes(value.get(4..8)?.try_into().ok()?))
            };
            of(RP_FILTER).and(of(IFINDEX))
        })
}

/// Pieces that begin with `header` bytes, from which `length` reads how long each is; up to the first that is broken.
fn parts(mut bytes: &[u8], length: fn(&[u8]) -> usize, header: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = length(bytes.get(..header)?);
        let part = bytes.get(..length).filter(|_| length >= header)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type about an interface, with these attributes besides.
    fn message(kind: u16, interface: i32, others: &[(u16, i32)]) -> Vec<u8> {
        let mut attributes = Vec::new();
        for (name, value) in [(IFINDEX, interface)].iter().chain(others) {
            attributes.extend([8u16.to_ne_bytes(), name.to_ne_bytes()].concat());
            attributes.extend(value.to_ne_bytes());
        }
        let length = (HEADER + FAMILY + attributes.len()) as u32;
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &[2, 0, 0, 0]].concat();
        message.extend(attributes);
        message
    }

    #[test]
    fn interfaces_whose_filter_was_set_are_found() {
        let (forwarding, filter) = ((2, 1), (RP_FILTER, 1));
        let messages = [
            message(NEW, 2, &[filter]),
            message(NEW, 3, &[forwarding]),
            message(NEW + 1, 4, &[filter]),
            message(NEW, EVERY_INTERFACE, &[forwarding, filter]),
        ]
        .concat();
        assert_eq!(set(&messages).collect::<Vec<_>>(), [2, EVERY_INTERFACE]);
    }

    #[test]
    fn broken_messages_end_the_search() {
        let whole = message(NEW, 2, &[(RP_FILTER, 1)]);
        for length in 0..whole.len() {
            assert_eq!(set(&whole[..length]).next(), None, "{length} bytes");
        }
        for length in [0u32, 15, u32::MAX] {
            let broken = [&length.to_ne_bytes()[..], &whole[4..]].concat();
            assert_eq!(set(&broken).next(), None, "length {length}");
        }
    }
}
