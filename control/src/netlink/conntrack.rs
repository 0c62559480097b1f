//! Connections into the host link that connection tracking still knows after their port was unpublished: a UDP socket that
//! never falls silent would be led there for ever. ctnetlink, as in `<linux/netfilter/nfnetlink_conntrack.h>`.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const FAMILY: usize = 4;
/// The bits of an attribute's type that are none.
const NESTED: u16 = 0x8000;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;

/// Makes connection tracking forget connections that were translated to `host`, but for those to ports in `keep`.
/// Returns how many there were.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_connections(host: Ipv4Addr, keep: &BTreeSet<(u8, u16)>) -> io::Result<usize> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkNetFilter))?;
    let stale = stale(&socket, host, keep)?;
    for tuple in &stale {
        send(&socket, DELETE, libc::NLM_F_ACK, tuple)?;
        match receive(&socket, |_, _| ())? {
            // Gone by itself meanwhile.
            Some(0 | libc::ENOENT) | None => {}
            Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
    Ok(stale.len())
}

/// The attributes that name such connections.
fn stale(socket: &OwnedFd, host: Ipv4Addr, keep: &BTreeSet<(u8, u16)>) -> io::Result<Vec<Vec<u8>>> {
    send(socket, GET, libc::NLM_F_DUMP, &[])?;
    let (mut found, mut done) = (Vec::new(), false);
    while !done {
        let error = receive(socket, |kind, body| {
            done |= i32::from(kind) == libc::NLMSG_DONE;
            let attributes = body.get(FAMILY..).unwrap_or_default();
            match destination(attributes) {
                Some((ip, protocol, port)) if ip == host && !keep.contains(&(protocol, port)) => {
                    found.extend(attribute(attributes, TUPLE_ORIGINAL).map(|(whole, _)| whole.to_vec()));
                }
                _ => {}
            }
        })?;
        if let Some(errno) = error {
            return Err(io::Error::from_raw_os_error(errno));
        }
    }
    Ok(found)
}

/// Where a connection leads after translation: its replies come from there.
fn destination(attributes: &[u8]) -> Option<(Ipv4Addr, u8, u16)> {
    let (_, reply) = attribute(attributes, TUPLE_REPLY)?;
    let (_, ip) = attribute(attribute(reply, TUPLE_IP)?.1, IP_V4_SOURCE)?;
    let (_, proto) = attribute(reply, TUPLE_PROTO)?;
    let (_, number) = attribute(proto, PROTO_NUMBER)?;
    let (_, port) = attribute(proto, PROTO_SOURCE_PORT)?;
    let ip: [u8; 4] = ip.try_into().ok()?;
    Some((ip.into(), *number.first()?, u16::from_be_bytes(port.try_into().ok()?)))
}

/// The first attribute of that type: as a whole with its padding, and its payload.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<(&[u8], &[u8])> {
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & !NESTED;
        let payload = bytes.get(4..length)?;
        let whole = length.next_multiple_of(4).min(bytes.len());
        if kind == wanted {
            return Some((&bytes[..whole], payload));
        }
        bytes = &bytes[whole..];
    }
    None
}

fn send(socket: &OwnedFd, kind: u16, flags: i32, attributes: &[u8]) -> io::Result<()> {
    let length = (HEADER + FAMILY + attributes.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend([libc::AF_INET as u8, 0, 0, 0]);
    message.extend(attributes);
    socket::send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    Ok(())
}

/// Hands the messages of one datagram to `take`; the error number if one of them is an error (0 is an acknowledgement).
fn receive(socket: &OwnedFd, mut take: impl FnMut(u16, &[u8])) -> io::Result<Option<i32>> {
    let mut buffer = vec![0; 64 * 1024];
    let received = socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let mut bytes = &buffer[..received];
    let mut error = None;
    while let Some((header, _)) = bytes.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let Some(body) = bytes.get(HEADER..length) else { break };
        if i32::from(kind) == libc::NLMSG_ERROR {
            error = body.first_chunk().map(|code| -i32::from_ne_bytes(*code));
        } else {
            take(kind, body);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(error)
}
