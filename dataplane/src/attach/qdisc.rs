//! What aya does not offer of the clsact qdisc: reading which program a filter runs, and removing the qdisc that the
//! agent added once no filter is left. A few netlink messages (`<linux/rtnetlink.h>`, `<linux/pkt_cls.h>`).

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
/// `struct tcmsg`, which begins the message of a filter.
const TCMSG: usize = 20;
/// Attributes of a filter: its options, and among those of a BPF filter the tag of its program.
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_TAG: u16 = 10;

/// The tag (a digest of the instructions, see `bpf_prog_info`) of the program that the filter with this priority and
/// handle runs, at the ingress or egress hook of a device of this thread's network namespace. `None`: there is no such
/// filter, or it is no BPF filter.
///
/// # Errors
/// The kernel's. No clsact qdisc, or no such device any more, is `None`.
pub(crate) fn filter_tag(ifindex: u32, egress: bool, priority: u16, handle: u32) -> io::Result<Option<[u8; 8]>> {
    let socket = open()?;
    let mut found = None;
    let read = dump(&socket, ifindex, HOOKS[usize::from(egress)], |message| {
        let word =
            |at: usize| message.body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        // Handle, parent, then priority and protocol in one word.
        if word(8) == Some(handle) && word(16).is_some_and(|info| info >> 16 == u32::from(priority)) {
            let options = message.body.get(TCMSG..).and_then(|attributes| attribute(attributes, TCA_OPTIONS));
            let tag = options.and_then(|options| attribute(options, TCA_BPF_TAG));
            found = tag.and_then(|tag| tag.try_into().ok()).or(found);
        }
    });
    match read {
        Ok(()) => Ok(found),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value of the first attribute of that kind (`struct nlattr`) in a sequence of attributes.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`: the two highest bits are flags.
    const KIND: u16 = 0x3fff;
    loop {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        let value = bytes.get(4..length)?;
        if kind & KIND == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

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
    match answers(&socket)?.next().map(|message| message.errno) {
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
    let mut empty = true;
    dump(socket, ifindex, hook, |_| empty = false)?;
    Ok(empty)
}

/// Shows every filter of the hook to `each`.
fn dump(socket: &OwnedFd, ifindex: u32, hook: u32, mut each: impl FnMut(&Message)) -> io::Result<()> {
    send(socket, libc::RTM_GETTFILTER, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, ifindex, 0, hook)?;
    loop {
        for message in answers(socket)? {
            match i32::from(message.kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error(message.errno)),
                _ => each(&message),
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

/// A netlink message.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    kind: u16,
    /// The error number where it is an error (0 is an acknowledgement); 0 otherwise.
    errno: i32,
    /// What follows `struct nlmsghdr`.
    body: Vec<u8>,
}

/// The messages of one datagram.
fn answers(socket: &OwnedFd) -> io::Result<std::vec::IntoIter<Message>> {
    let mut buffer = vec![0u8; 64 * 1024];
    // SAFETY: the buffer is valid for its length.
    let received = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(messages(&buffer[..received as usize]).into_iter())
}

fn messages(mut bytes: &[u8]) -> Vec<Message> {
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
        found.push(Message { kind, errno, body: bytes[HEADER..length].to_vec() });
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
        let found = messages(&bytes);
        let heads: Vec<_> = found.iter().map(|message| (message.kind, message.errno)).collect();
        assert_eq!(heads, [(44, 0), (2, 17), (3, 0)]);
        assert_eq!(found[0].body, [1, 2]);
        assert_eq!(messages(&bytes[..17]), []);
        assert_eq!(messages(&message(3, 44, &[])), []);
    }

    #[test]
    fn finds_an_attribute_among_others() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let bytes = [attribute(7, b"abcde"), attribute(0x8002, b"xy"), attribute(10, &[])].concat();
        assert_eq!(super::attribute(&bytes, 7), Some(&b"abcde"[..]));
        assert_eq!(super::attribute(&bytes, TCA_OPTIONS), Some(&b"xy"[..]), "with a flag");
        assert_eq!(super::attribute(&bytes, 10), Some(&b""[..]));
        assert_eq!(super::attribute(&bytes, 11), None);
        assert_eq!(super::attribute(&[2, 0, 1, 0, 9], 1), None, "shorter than its header");
    }
}
