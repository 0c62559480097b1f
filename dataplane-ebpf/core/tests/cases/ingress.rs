//! Test cases for the decision about a client's packet at the ingress node: a node, a packet and the expected decision,
//! as plain values. `tests/ingress.rs` passes them to `ingress::decide`; `dataplane/tests/golden_ingress.rs` writes
//! them into maps and sends the packets through the loaded programs of both hooks.
#![allow(dead_code, reason = "a module of two test crates, of which each uses its part")]

use dataplane_common::{
    addr::Ip4,
    flow::{Affinity, flag},
    headers::{ipproto, sctpchunk, tcpflag},
    service::{CLASSES, NOWHERE, PublishedPort, port_flag},
};
use dataplane_core::parse::Packet;

pub(crate) const CLIENT: Ip4 = [198, 51, 100, 7];
/// An address of the node's.
pub(crate) const NODE: Ip4 = [192, 0, 2, 1];
/// The node's address on the host link.
pub(crate) const HOST_LINK: Ip4 = [192, 0, 2, 250];
/// The node of the backend that a known connection was given to.
pub(crate) const VTEP: Ip4 = [192, 0, 2, 2];
/// The published one.
pub(crate) const PORT: [u8; 2] = 8080_u16.to_be_bytes();

/// A node that publishes [`PORT`] at [`NODE`], and a packet that has arrived there.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) packet: Packet,
    /// It came in through the host link.
    pub(crate) on_host_link: bool,
    /// Its flags and its class.
    pub(crate) port: PublishedPort,
    /// Those of [`NODE`].
    pub(crate) classes: u32,
    /// The entry of its connection.
    pub(crate) known: Option<Affinity>,
    /// What that remembers of earlier packets holds.
    pub(crate) remembers: bool,
    /// The host's rules may close the port to it.
    pub(crate) left: bool,
    /// The lists of the port let its client in.
    pub(crate) allowed: bool,
    /// The reverse-path filter refuses its source.
    pub(crate) refused: bool,
    /// Hiveway was taken down at [`VTEP`].
    pub(crate) stock: bool,
    /// The port has a backend.
    pub(crate) served: bool,
    /// Whoever is asked does not know.
    pub(crate) no_answers: bool,
}

/// A client's SYN; nothing is known, everything is in order.
pub(crate) fn syn() -> Node {
    let packet = Packet {
        proto: ipproto::TCP,
        flags: tcpflag::SYN,
        ttl: 64,
        src: CLIENT,
        dst: NODE,
        sport: [0x80, 1],
        dport: PORT,
        ..Packet::default()
    };
    Node {
        packet,
        on_host_link: false,
        port: PublishedPort::default(),
        classes: 0,
        known: None,
        remembers: false,
        left: false,
        allowed: true,
        refused: false,
        stock: false,
        served: true,
        no_answers: false,
    }
}

impl Node {
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Its connection has an entry with these flags.
    pub(crate) fn known(self, flags: u8) -> Self {
        self.with(|node| node.known = Some(Affinity { vtep: VTEP, flags, ..Affinity::default() }))
    }

    /// The packet is in the middle of a connection.
    pub(crate) fn segment(self) -> Self {
        self.with(|node| node.packet.flags = tcpflag::ACK)
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    Passes,
    Unpublished,
    Left,
    TimeExceeded,
    Forwarded,
    Own,
    Opens { replaces: bool },
    Refused,
    Anothers,
}

/// What it is about, the node and the packet, and what becomes of it.
pub(crate) type Case = (&'static str, Node, Became);

const OPENS: Became = Became::Opens { replaces: false };
const REPLACES: Became = Became::Opens { replaces: true };

pub(crate) fn what_opens_a_connection() -> Vec<Case> {
    let proto = |proto, flags| syn().with(|node| (node.packet.proto, node.packet.flags) = (proto, flags));
    vec![
        ("SYN", syn(), OPENS),
        ("SYN with ECN", proto(ipproto::TCP, tcpflag::SYN | 0xc0), OPENS),
        ("SYN and ACK", proto(ipproto::TCP, tcpflag::SYN | tcpflag::ACK), Became::Passes),
        ("in the middle", syn().segment(), Became::Passes),
        ("datagram", proto(ipproto::UDP, 0), OPENS),
        ("INIT", proto(ipproto::SCTP, sctpchunk::INIT), OPENS),
        ("another chunk", proto(ipproto::SCTP, 0), Became::Passes),
        // Whose turn it is finds out that it is nobody's.
        ("nobody serves", syn().with(|node| node.served = false), OPENS),
    ]
}

pub(crate) fn whom_it_is_for() -> Vec<Case> {
    let to = |dst, on_host_link| syn().with(|node| (node.packet.dst, node.on_host_link) = (dst, on_host_link));
    vec![
        ("another port", syn().with(|node| node.packet.dport = [0, 80]), Became::Unpublished),
        ("another port of a known one", syn().known(0).with(|node| node.packet.dport = [0, 80]), Became::Unpublished),
        ("another host", to([192, 0, 2, 99], false), Became::Passes),
        ("the host link's address elsewhere", to(HOST_LINK, false), Became::Passes),
        ("the host link's address there", to(HOST_LINK, true), OPENS),
        ("over the host link, from the node", to(HOST_LINK, true).with(|node| node.packet.src = NODE), OPENS),
    ]
}

pub(crate) fn where_a_port_is_bound_connections_are_opened_at_its_addresses_only() -> Vec<Case> {
    let bound = |class, classes| {
        let port = PublishedPort { flags: port_flag::BOUND, class, ..PublishedPort::default() };
        syn().with(|node| (node.port, node.classes) = (port, classes))
    };
    vec![
        ("here", bound(3, 1 << 3), OPENS),
        ("elsewhere", bound(3, !(1 << 3)), Became::Passes),
        ("the last class", bound(CLASSES - 1, 1 << (CLASSES - 1)), OPENS),
        ("nowhere", bound(NOWHERE, u32::MAX >> 1), Became::Passes),
        ("a known one elsewhere", bound(3, 0).known(0).segment(), Became::Forwarded),
        ("without the flag", bound(3, 0).with(|node| node.port.flags = 0), OPENS),
        ("elsewhere, no hop left", bound(3, 0).with(|node| node.packet.ttl = 1), Became::Passes),
    ]
}

pub(crate) fn where_no_connection_begins() -> Vec<Case> {
    let from = |src| syn().with(|node| node.packet.src = src);
    let refused = || syn().with(|node| node.refused = true);
    vec![
        ("from nowhere", from([0, 0, 0, 0]), Became::Passes),
        ("from the loopback", from([127, 0, 0, 1]), Became::Passes),
        ("from a group", from([224, 0, 0, 1]), Became::Passes),
        ("from everybody", from([255; 4]), Became::Passes),
        ("from the node", from(NODE), Became::Passes),
        ("from the host link, elsewhere", from(HOST_LINK), Became::Passes),
        ("from the reserved rest", from([240, 0, 0, 1]), OPENS),
        ("from the loopback, in the middle", from([127, 0, 0, 1]).known(0).segment(), Became::Forwarded),
        ("the reverse-path filter refuses", refused(), Became::Passes),
        ("it does, of a known one", refused().known(0).segment(), Became::Forwarded),
        (
            "over the host link it is not asked",
            refused().with(|node| (node.packet.dst, node.on_host_link) = (HOST_LINK, true)),
            OPENS,
        ),
    ]
}

pub(crate) fn who_may_open_connections_to_a_restricted_port() -> Vec<Case> {
    let restricted = |allowed| syn().with(|node| (node.port.flags, node.allowed) = (port_flag::RESTRICTED, allowed));
    vec![
        ("who may", restricted(true), OPENS),
        ("who may not", restricted(false), Became::Refused),
        ("in the middle of none", restricted(false).segment(), Became::Passes),
        ("of a known one", restricted(false).known(0).segment(), Became::Forwarded),
        ("no hop left", restricted(false).with(|node| node.packet.ttl = 1), Became::Refused),
        ("of a source that nobody has", restricted(false).with(|node| node.packet.src = [127; 4]), Became::Passes),
    ]
}

pub(crate) fn what_is_left_to_the_host() -> Vec<Case> {
    let left = |left| syn().with(|node| (node.port.flags, node.left) = (port_flag::LEFT_AT_PORT, left));
    let restricted = |left: Node| {
        left.with(|node| {
            node.port.flags |= port_flag::RESTRICTED;
            node.allowed = false;
        })
    };
    let over_host_link = |node: &mut Node| (node.packet.dst, node.on_host_link) = (HOST_LINK, true);
    vec![
        ("it", left(true), Became::Left),
        ("another", left(false), OPENS),
        ("of a known one", left(true).known(0).segment(), Became::Left),
        ("over the host link", left(true).with(over_host_link), OPENS),
        ("no hop left", left(true).with(|node| node.packet.ttl = 1), Became::Left),
        ("of who may not", restricted(left(true)), Became::Refused),
        ("of who may not, in the middle", restricted(left(true)).segment(), Became::Left),
        ("of who was let in", restricted(left(true)).known(0), Became::Left),
    ]
}

pub(crate) fn what_belongs_to_a_known_connection() -> Vec<Case> {
    let left_behind = |flags| syn().known(flags).with(|node| node.stock = true);
    vec![
        ("a segment", syn().known(0).segment(), Became::Forwarded),
        ("its SYN again", syn().known(0), Became::Forwarded),
        ("the node's own", syn().known(flag::OWN).segment(), Became::Own),
        ("the node's own, no hop left", syn().known(flag::OWN).with(|node| node.packet.ttl = 1), Became::Passes),
        ("a SYN after the end", syn().known(flag::ENDED), REPLACES),
        ("a segment after the end", syn().known(flag::ENDED).segment(), Became::Forwarded),
        ("Hiveway taken down there", left_behind(0), REPLACES),
        ("taken down there, in the middle", left_behind(0).segment(), Became::Forwarded),
        ("never there", left_behind(flag::STOCK), Became::Forwarded),
    ]
}

pub(crate) fn whose_time_has_come() -> Vec<Case> {
    let spent = |ttl| syn().with(|node| node.packet.ttl = ttl);
    vec![
        ("1", spent(1), Became::TimeExceeded),
        ("0", spent(0), Became::TimeExceeded),
        ("2", spent(2), OPENS),
        ("nobody serves", spent(1).with(|node| node.served = false), Became::Passes),
        ("of a known one", spent(1).known(0).segment(), Became::TimeExceeded),
        ("in the middle of none", spent(1).segment(), Became::Passes),
        ("another port", spent(1).with(|node| node.packet.dport = [0, 80]), Became::Unpublished),
        (
            "over the host link the node is no hop",
            spent(1).with(|node| (node.packet.dst, node.on_host_link) = (HOST_LINK, true)),
            OPENS,
        ),
    ]
}
