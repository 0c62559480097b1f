//! Removing the clsact qdisc that we added, once nobody uses it: three netlink messages that aya does not offer.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// `TC_H_CLSACT` with no minor number: the qdisc itself.
const QDISC: u32 = 0xffff_0000;
/// `TC_H_CLSACT` as a parent.
const CLSACT: u32 = 0xffff_fff1;
/// `TC_H_CLSACT` with the minor numbers of its two hooks.
const HOOKS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// Removes the clsact qdisc of the device, unless somebody's filter is on it. Returns whether it is gone.
pub(super) fn remove_if_unused(ifindex: u32) -> io::Result<bool> {
    let socket = open()?;
    for hook in HOOKS {
        if !is_empty(&socket, ifindex, hook)? {
            return Ok(false);
        }
    }
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    send(&socket, libc::RTM_DELQDISC, flags, ifindex, QDISC, CLSACT)?;
    match answers(&socket)?.next().map(|(_, errno)| errno) {
        None | Some(0) => Ok(true),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the hook has no filter.
fn is_empty(socket: &OwnedFd, ifindex: u32, hook: u32) -> io::Result<bool> {
    send(socket, libc::RTM_GETTFILTER, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, ifindex, 0, hook)?;
    let mut empty = true;
    loop {
        for (kind, errno) in answers(socket)? {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(empty),
                libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error(errno)),
                _ => empty = false,
            }
        }
    }
}

/// Sends a message with a `struct tcmsg`.
fn send(socket: &OwnedFd, kind: u16, flags: i32, ifindex: u32, handle: u32, parent: u32) -> io::Result<()> {
    const LENGTH: u32 = HEADER as u32 + 20;
    // Length; type and flags; sequence; port; then family and padding; device; handle; parent; info.
    let type_and_flags = u32::from_ne_bytes([
        kind.to_ne_bytes()[0],
        kind.to_ne_bytes()[1],
        (flags as u16).to_ne_bytes()[0],
        (flags as u16).to_ne_bytes()[1],
    ]);
    let words = [LENGTH, type_and_flags, 1, 0, 0, ifindex, handle, parent, 0];
    let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The messages of one datagram: type, and the error number where it is an error (0 is an acknowledgement).
fn answers(socket: &OwnedFd) -> io::Result<std::vec::IntoIter<(u16, i32)>> {
    let mut buffer = vec![0u8; 64 * 1024];
    // SAFETY: the buffer is valid for its length.
    let received = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(messages(&buffer[..received as usize]).into_iter())
}

fn messages(mut bytes: &[u8]) -> Vec<(u16, i32)> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if length < HEADER || length > bytes.len() {
            break;
        }
        let errno = match bytes.get(HEADER..HEADER + 4) {
            Some(code) if i32::from(kind) == libc::NLMSG_ERROR => {
                -i32::from_ne_bytes([code[0], code[1], code[2], code[3]])
            }
            _ => 0,
        };
        found.push((kind, errno));
        // Messages are aligned to four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_a_datagram_into_messages() {
        let message = |length: u32, kind: u16, body: &[u8]| {
            let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let bytes = [message(18, 44, &[1, 2]), message(20, 2, &(-17i32).to_ne_bytes()), message(16, 3, &[])].concat();
        assert_eq!(messages(&bytes), [(44, 0), (2, 17), (3, 0)]);
        assert_eq!(messages(&bytes[..17]), []);
        assert_eq!(messages(&message(3, 44, &[])), []);
    }
}
