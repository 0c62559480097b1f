//! A netlink socket that reads what its kernel says as far as it can be read. Names of interfaces, aliases and labels
//! of addresses are any bytes to the kernel, and the crate that decodes messages takes none but UTF-8: it skips the
//! whole message. A container with `CAP_NET_ADMIN` could so hide its interface from the agent, and let a question about
//! it alone go without an answer for ever.

use std::{
    cell::RefCell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::BufMut;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    packet_core::{NLM_F_MULTIPART, NetlinkMessage},
    sys::{AsyncSocket, Socket, SocketAddr, TokioSocket},
};

/// More than the kernel puts into one datagram.
const MOST: usize = 64 * 1024;
/// `struct nlmsghdr`: length (4 bytes), type (2), flags (2), number (4), port (4).
const HEADER: usize = 16;
/// `NLMSG_ERROR`, whose body begins with a negative error number.
const ERROR: u16 = 2;
/// `struct nlattr`: length (2 bytes), type (2).
const ATTRIBUTE: usize = 4;
/// A type that no attribute has. What carries it is kept as bytes.
const UNKNOWN: u16 = 0x3fff;

/// A socket that hands over messages that can be decoded: attributes that cannot are taken out of the others' way. The
/// answer to a question for one thing that cannot be decoded even so becomes the error `EBADMSG`.
pub(super) struct Lenient {
    socket: TokioSocket,
    buffer: RefCell<Vec<u8>>,
    unread: Arc<AtomicU64>,
}

impl Lenient {
    /// How many messages could not be read, or not all of it, so far.
    pub(super) fn unread(&self) -> Arc<AtomicU64> {
        self.unread.clone()
    }
}

impl AsyncSocket for Lenient {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        let buffer = RefCell::new(Vec::with_capacity(MOST));
        Ok(Self { socket: TokioSocket::new(protocol)?, buffer, unread: Arc::default() })
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, bytes)
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, bytes: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, bytes, to)
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, into: &mut B) -> Poll<io::Result<()>> {
        self.poll_recv_from(cx, into).map_ok(drop)
    }

    fn poll_recv_from<B: BufMut>(&self, cx: &mut Context<'_>, into: &mut B) -> Poll<io::Result<SocketAddr>> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        buffer.reserve(MOST);
        let from = ready!(self.socket.poll_recv_from(cx, &mut *buffer))?;
        self.unread.fetch_add(make_readable(&mut buffer), Ordering::Relaxed);
        into.put_slice(&buffer);
        Poll::Ready(Ok(from))
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let (mut bytes, from) = ready!(self.socket.poll_recv_from_full(cx))?;
        self.unread.fetch_add(make_readable(&mut bytes), Ordering::Relaxed);
        Poll::Ready(Ok((bytes, from)))
    }
}

/// Changes a datagram's messages, each in its place, so that they can be decoded. Returns how many could not be before.
fn make_readable(mut bytes: &mut [u8]) -> u64 {
    let mut unread = 0;
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if !(HEADER..=bytes.len()).contains(&length) {
            break;
        }
        let message = &mut bytes[..length];
        if is_looked_at(message) && !is_readable(message) {
            unread += 1;
            set_aside(message);
            if !is_readable(message) {
                refuse(message);
            }
        }
        let next = length.next_multiple_of(4).min(bytes.len());
        bytes = &mut bytes[next..];
    }
    unread
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn is_multipart(message: &[u8]) -> bool {
    number(message, 6) & NLM_F_MULTIPART != 0
}

/// Bytes between header and attributes, of the kinds of messages that are asked for.
fn fixed(kind: u16) -> Option<usize> {
    match kind {
        // Links; addresses; routes, neighbours and rules.
        16..=19 => Some(16),
        20..=23 => Some(8),
        24..=35 => Some(12),
        _ => None,
    }
}

/// Lists of routes and neighbours may be very long, and carry no text: they are not decoded twice.
fn is_looked_at(message: &[u8]) -> bool {
    let kind = number(message, 4);
    fixed(kind).is_some() && !(is_multipart(message) && (24..=31).contains(&kind))
}

fn is_readable(message: &[u8]) -> bool {
    NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).is_ok()
}

/// Gives attributes that cannot be decoded a type that is none.
fn set_aside(message: &mut [u8]) {
    let Some(mut at) = fixed(number(message, 4)).map(|fixed| HEADER + fixed) else { return };
    let Some(start) = message.get(..at).map(<[u8]>::to_vec) else { return };
    while let Some(length) = message.get(at..at + ATTRIBUTE).map(|found| usize::from(number(found, 0))) {
        let end = at + length;
        if length < ATTRIBUTE || end > message.len() {
            return;
        }
        // A message with this attribute alone.
        let mut alone = [&start, &message[at..end]].concat();
        alone.resize(alone.len().next_multiple_of(4), 0);
        let whole = (alone.len() as u32).to_ne_bytes();
        alone[..4].copy_from_slice(&whole);
        if !is_readable(&alone) {
            message[at + 2..at + 4].copy_from_slice(&UNKNOWN.to_ne_bytes());
        }
        at = end.next_multiple_of(4);
    }
}

/// Makes an error of an answer that cannot be read, lest it be waited for. In a list it is only missing; in what the
/// kernel tells unasked (number 0) too.
fn refuse(message: &mut [u8]) {
    let asked = message[8..12] != [0; 4];
    if asked && !is_multipart(message) && message.len() >= HEADER + 4 {
        message[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        message[6..8].copy_from_slice(&[0; 2]);
        message[HEADER..HEADER + 4].copy_from_slice(&(-libc::EBADMSG).to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        address::AddressAttribute,
        link::{LinkAttribute, LinkMessage},
    };
    use rtnetlink::packet_core::NetlinkPayload;

    use super::*;

    const NEW_LINK: u16 = 16;
    const NEW_ADDRESS: u16 = 20;
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    const ALIAS: u16 = 20;

    fn message(kind: u16, flags: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = [&[0; 4][..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &7u32.to_ne_bytes(), &[0; 4]].concat();
        bytes.extend(fixed);
        for (kind, value) in attributes {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn decoded(bytes: &[u8]) -> NetlinkPayload<RouteNetlinkMessage> {
        NetlinkMessage::deserialize(bytes).unwrap().payload
    }

    fn link(bytes: &[u8]) -> LinkMessage {
        match decoded(bytes) {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => link,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_text_hides_nothing_else() {
        let mtu = 1400u32.to_ne_bytes();
        let attributes: [(u16, &[u8]); 3] = [(NAME, b"eth0\0"), (ALIAS, b"\xff\0"), (MTU, &mtu)];
        let good = message(NEW_LINK, NLM_F_MULTIPART, &[0; 16], &attributes[..1]);
        let bad = message(NEW_LINK, NLM_F_MULTIPART, &[0; 16], &attributes);
        let mut all = [good.clone(), bad, good.clone()].concat();
        assert_eq!(make_readable(&mut all), 1);
        let read = link(&all[good.len()..]);
        assert!(read.attributes.contains(&LinkAttribute::IfName("eth0".into())), "{read:?}");
        assert!(read.attributes.contains(&LinkAttribute::Mtu(1400)), "{read:?}");
        assert_eq!(link(&all), link(&good), "what can be read stays as it is");
        // A label of an address.
        let mut address = message(NEW_ADDRESS, 0, &[2, 24, 0, 0, 1, 0, 0, 0], &[(NAME, b"eth0:\xff\0"), (1, &[10; 4])]);
        assert_eq!(make_readable(&mut address), 1);
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(read)) = decoded(&address) else {
            panic!("{address:?}")
        };
        assert!(matches!(read.attributes[1], AddressAttribute::Address(_)), "{read:?}");
    }

    #[test]
    fn an_answer_that_can_not_be_read_is_an_error() {
        let mut broken = message(NEW_LINK, 0, &[0; 8], &[]);
        assert_eq!(make_readable(&mut broken), 1);
        let NetlinkPayload::Error(error) = decoded(&broken) else { panic!("{broken:?}") };
        assert_eq!(error.to_io().raw_os_error(), Some(libc::EBADMSG));
    }

    #[test]
    fn whatever_comes_ends() {
        let whole = message(NEW_LINK, 0, &[0; 16], &[(ALIAS, b"\xff\0"), (NAME, b"eth0\0")]);
        for at in 0..whole.len() {
            for value in [0, 1, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                make_readable(&mut damaged);
                make_readable(&mut whole.clone()[..at]);
            }
        }
    }
}
