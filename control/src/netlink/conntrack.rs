//! UDP connections of the node's own that connection tracking still knows from before a port was published or
//! unpublished: it translates only what begins, so a socket that never falls silent would be led the old way for ever.
//! ctnetlink, as in `<linux/netfilter/nfnetlink_conntrack.h>`.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use dataplane_common::headers::ipproto;
use ipnet::Ipv4Net;
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
const IP_V4_DESTINATION: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;

/// Which connections are on a way that is not theirs any more.
#[derive(Clone, Debug)]
pub struct Stale {
    /// The address that stands for published ports on the host link.
    pub host: Ipv4Addr,
    /// Published ports: (IP protocol number, port). Connections to other ones lead to `host` no longer.
    pub published: BTreeSet<(u8, u16)>,
    /// Addresses of the node, loopback included.
    pub local: Vec<Ipv4Net>,
    /// Subnets of containers that reach the node's own addresses through the host link.
    pub containers: Vec<Ipv4Net>,
    /// What an engine has translated gets no answer: the kernel cannot balance for it.
    pub unanswered: bool,
    /// Connections that were forgotten as older than their port. A process that still answered one of them has begun it
    /// anew in its own name, and what the client sends would go on being taken for an answer.
    pub forgotten: Vec<Ends>,
}

/// Makes connection tracking forget stale connections. Returns those that were older than their port.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_connections(stale: &Stale) -> io::Result<Vec<Ends>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkNetFilter))?;
    let found = stale.found(&socket)?;
    for (_, tuple) in &found {
        send(&socket, DELETE, libc::NLM_F_ACK, tuple)?;
        match receive(&socket, |_, _| ())? {
            // Gone by itself meanwhile.
            Some(0 | libc::ENOENT) | None => {}
            Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
    Ok(found.into_iter().map(|(ends, _)| ends).filter(|ends| stale.is_published(ends)).collect())
}

impl Stale {
    /// No port is published.
    pub fn unpublished(host: Ipv4Addr) -> Self {
        let (local, containers, forgotten) = (Vec::new(), Vec::new(), Vec::new());
        Self { host, published: BTreeSet::new(), local, containers, unanswered: false, forgotten }
    }

    /// Such connections, as they began, with the attributes that name them.
    fn found(&self, socket: &OwnedFd) -> io::Result<Vec<(Ends, Vec<u8>)>> {
        send(socket, GET, libc::NLM_F_DUMP, &[])?;
        let (mut found, mut done) = (Vec::new(), false);
        while !done {
            let error = receive(socket, |kind, body| {
                done |= i32::from(kind) == libc::NLMSG_DONE;
                let attributes = body.get(FAMILY..).unwrap_or_default();
                let ends = |kind| attribute(attributes, kind).and_then(|(_, tuple)| Ends::of(tuple));
                if let (Some(original), Some(reply)) = (ends(TUPLE_ORIGINAL), ends(TUPLE_REPLY))
                    && (self.left_behind(&reply) || self.older(&original, &reply) || self.answered(&original, &reply))
                    && let Some((whole, _)) = attribute(attributes, TUPLE_ORIGINAL)
                {
                    found.push((original, whole.to_vec()));
                }
            })?;
            if let Some(errno) = error {
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        Ok(found)
    }

    /// Leads to the host link, for a port that is not published any more.
    fn left_behind(&self, reply: &Ends) -> bool {
        reply.source.0 == self.host && !self.published.contains(&(reply.protocol, reply.source.1))
    }

    /// A late answer to a forgotten connection, which is itself taken for the beginning of one.
    fn answered(&self, original: &Ends, reply: &Ends) -> bool {
        *original == reply.turned() && self.forgotten.contains(reply)
    }

    /// Towards a published port.
    fn is_published(&self, original: &Ends) -> bool {
        self.published.contains(&(original.protocol, original.destination.1))
    }

    /// A process or container of the node has begun it before the port was published, and no translation leads it
    /// elsewhere: what an engine has translated stays with the engine if that answers, and what comes from outside is
    /// not of this node. TCP stays where it is: its other end is a process, which would see it end.
    fn older(&self, original: &Ends, reply: &Ends) -> bool {
        let within = |nets: &[Ipv4Net], ip: Ipv4Addr| nets.iter().any(|net| net.contains(&ip));
        original.protocol == ipproto::UDP
            && self.is_published(original)
            && (reply.source == original.destination || self.unanswered && reply.source.0 != self.host)
            && within(&self.local, original.destination.0)
            && (within(&self.local, original.source.0) || within(&self.containers, original.source.0))
    }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    protocol: u8,
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
}

impl Ends {
    /// The other direction, where nothing is translated.
    fn turned(&self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }

    /// `None`: no IPv4, or a protocol without ports.
    fn of(tuple: &[u8]) -> Option<Self> {
        let (_, ip) = attribute(tuple, TUPLE_IP)?;
        let (_, proto) = attribute(tuple, TUPLE_PROTO)?;
        let address = |kind| <[u8; 4]>::try_from(attribute(ip, kind)?.1).ok().map(Ipv4Addr::from);
        let port = |kind| attribute(proto, kind)?.1.try_into().ok().map(u16::from_be_bytes);
        Some(Self {
            protocol: *attribute(proto, PROTO_NUMBER)?.1.first()?,
            source: (address(IP_V4_SOURCE)?, port(PROTO_SOURCE_PORT)?),
            destination: (address(IP_V4_DESTINATION)?, port(PROTO_DESTINATION_PORT)?),
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(protocol: u8, source: &str, destination: &str) -> Ends {
        let end = |text: &str| {
            let end: std::net::SocketAddrV4 = text.parse().unwrap();
            (*end.ip(), end.port())
        };
        Ends { protocol, source: end(source), destination: end(destination) }
    }

    #[test]
    fn only_untranslated_udp_of_the_node_and_its_containers_is_older_than_its_port() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let stale = Stale {
            forgotten: vec![ends(17, "127.0.0.1:40000", "127.0.0.1:514")],
            unanswered: false,
            host: Ipv4Addr::new(169, 254, 72, 1),
            published: [(17, 514), (6, 514)].into(),
            local: nets(&["127.0.0.0/8", "192.0.2.11/32", "172.17.0.1/32"]),
            containers: nets(&["172.17.0.0/16"]),
        };
        let plain = |protocol, source, destination| {
            stale.older(&ends(protocol, source, destination), &ends(protocol, destination, source))
        };
        assert!(plain(17, "127.0.0.1:40000", "127.0.0.1:514"));
        assert!(plain(17, "192.0.2.11:40000", "192.0.2.11:514"));
        assert!(plain(17, "172.17.0.2:40000", "192.0.2.11:514"));
        assert!(!plain(6, "127.0.0.1:40000", "127.0.0.1:514"), "TCP ends by itself");
        assert!(!plain(17, "127.0.0.1:40000", "127.0.0.1:53"), "another port");
        assert!(!plain(17, "127.0.0.1:514", "127.0.0.1:40000"), "the port as a source");
        assert!(!plain(17, "192.0.2.11:40000", "192.0.2.12:514"), "another node's");
        assert!(!plain(17, "192.0.2.99:40000", "192.0.2.11:514"), "from outside");
        let engines = ends(17, "172.18.0.2:514", "192.0.2.11:40000");
        assert!(!stale.older(&ends(17, "192.0.2.11:40000", "192.0.2.11:514"), &engines), "an engine leads it");
        let broken = Stale { unanswered: true, ..stale.clone() };
        assert!(broken.older(&ends(17, "192.0.2.11:40000", "192.0.2.11:514"), &engines));
        let ours = ends(17, "169.254.72.1:514", "192.0.2.11:40000");
        assert!(!broken.older(&ends(17, "192.0.2.11:40000", "192.0.2.11:514"), &ours), "led to the host link");
        let late = |source, destination| stale.answered(&ends(17, source, destination), &ends(17, destination, source));
        assert!(late("127.0.0.1:514", "127.0.0.1:40000"));
        assert!(!late("127.0.0.1:514", "127.0.0.1:40001"), "begun by the process");
        assert!(stale.left_behind(&ends(17, "169.254.72.1:53", "192.0.2.11:40000")));
        assert!(!stale.left_behind(&ends(17, "169.254.72.1:514", "192.0.2.11:40000")));
    }
}
