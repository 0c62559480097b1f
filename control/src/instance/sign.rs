//! Who holds the agent's sign: the abstract unix socket of this network namespace.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, UnixAddr, connect, getsockopt, recv, send,
        setsockopt, socket,
        sockopt::{PeerCredentials, ReceiveTimeout},
    },
    time::{TimeVal, TimeValLike},
};

/// A process that listens at the sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// `None`: it is outside of this PID namespace, or only its user is known.
    pub(super) pid: Option<i32>,
    /// Its user when it made the socket.
    pub(super) uid: u32,
}

/// The process that listens at the abstract name `name`; `None` if none does.
///
/// # Errors
/// When there is one, and the kernel does not tell whose it is.
pub(super) fn holder(name: &[u8]) -> io::Result<Option<Holder>> {
    // The agent accepts no connection, so one may have to wait; this one doesn't.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(stream.as_raw_fd(), &UnixAddr::new_abstract(name)?) {
        Ok(()) => {
            let peer = getsockopt(&stream, PeerCredentials)?;
            Ok(Some(Holder { pid: Some(peer.pid()).filter(|pid| *pid > 0), uid: peer.uid() }))
        }
        // Any user can fill the queue of an agent's sign, and its own queue at a sign that it holds itself.
        Err(nix::Error::EAGAIN) => {
            let owner = owner(name).map_err(|error| {
                let why = "the queue of the agent's socket is full, and the kernel does not tell whose it is";
                io::Error::new(error.kind(), format!("{why} (CONFIG_UNIX_DIAG): {error}"))
            })?;
            Ok(owner.map(|uid| Holder { pid: None, uid }))
        }
        Err(_) => Ok(None),
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const LISTENING: u32 = 1 << 10;
const SHOW_NAME: u32 = 1;
const SHOW_UID: u32 = 0x40;
const NAME: u16 = 0;
const UID: u16 = 7;
/// Lengths of `nlmsghdr`, `unix_diag_req`, `unix_diag_msg` and `nlattr`.
const HEADER: usize = 16;
const REQUEST: usize = 24;
const MESSAGE: usize = 16;
const ATTRIBUTE: usize = 4;
/// The kernel answers at once, with less than this at a time.
const PATIENCE_SECONDS: i64 = 5;
const ROOM: usize = 64 * 1024;

/// The user who made the socket that listens at the abstract name, as `ss -xl` asks for it (`unix_diag.h`).
fn owner(name: &[u8]) -> io::Result<Option<u32>> {
    let diag = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&diag, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
    send(diag.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut found = None;
    while !answer(&diag, name, &mut found)? {}
    Ok(found)
}

fn request() -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [LISTENING, 0, SHOW_NAME | SHOW_UID, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    request
}

/// Reads a part of the answer. Returns whether it was the last one.
fn answer(diag: &OwnedFd, name: &[u8], found: &mut Option<u32>) -> io::Result<bool> {
    let mut buffer = vec![0; ROOM];
    let length = recv(diag.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let mut rest = buffer.get(..length).unwrap_or_default();
    while let Some((kind, message)) = next_message(&mut rest) {
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let errno = message.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            _ => *found = found.or_else(|| owner_if_named(message.get(MESSAGE..)?, name)),
        }
    }
    Ok(length == 0)
}

/// The user of a socket with these attributes, if it has that name.
fn owner_if_named(mut attributes: &[u8], name: &[u8]) -> Option<u32> {
    let (mut same, mut uid) = (false, None);
    while let Some((kind, value)) = next_attribute(&mut attributes) {
        match kind {
            // An abstract name begins with a zero.
            NAME => same = value.split_first() == Some((&0, name)),
            UID => uid = value.first_chunk().map(|number| u32::from_ne_bytes(*number)),
            _ => {}
        }
    }
    uid.filter(|_| same)
}

/// Takes a message off: its type, and what is behind its header.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The same for an attribute.
fn next_attribute<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
    let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
    let value = rest.get(ATTRIBUTE..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, value))
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    #[test]
    fn the_owner_of_a_name_is_told_apart_from_others() {
        let name = |text: &str| format!("hiveway-test-{}-{text}", std::process::id()).into_bytes();
        let listen = |name: &[u8]| UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let (long, own) = (name("longer"), name("long"));
        let _others = (listen(&long), listen(&name("another")));
        assert_eq!(owner(&own).unwrap(), None);
        let _own = listen(&own);
        assert_eq!(owner(&own).unwrap(), Some(nix::unistd::geteuid().as_raw()));
        let holder = holder(&own).unwrap().unwrap();
        assert_eq!(holder.pid, Some(std::process::id().cast_signed()));
    }

    #[test]
    fn what_makes_no_sense_ends_the_reading() {
        for bytes in [&[][..], &[1, 0], &[3, 0, 0, 0], &[0; 4], &[200, 0, 0, 0, 1, 2, 3, 4]] {
            assert_eq!(next_message(&mut &*bytes), None, "{bytes:?}");
            assert_eq!(next_attribute(&mut &*bytes), None, "{bytes:?}");
        }
    }
}
