//! What becomes of a client's packet at the ingress node: [`ingress::decide`] in worlds that are plain values.

use dataplane_common::{
    addr::Ip4,
    flow::{Affinity, flag},
    headers::{ipproto, sctpchunk, tcpflag},
    service::{CLASSES, NOWHERE, PublishedPort, port_flag},
};
use dataplane_core::{
    connection,
    ingress::{self, Decision, World},
    parse::Packet,
    succession,
};
use proptest::prelude::*;

const CLIENT: Ip4 = [198, 51, 100, 7];
const NODE: Ip4 = [192, 0, 2, 10];
const HOST_LINK: Ip4 = [192, 0, 2, 250];
const VTEP: Ip4 = [192, 0, 2, 11];
const PORT: [u8; 2] = 8080_u16.to_be_bytes();

/// A node that publishes [`PORT`] at [`NODE`], and a packet that has arrived there.
#[derive(Clone, Debug)]
struct Node {
    packet: Packet,
    /// It came in through the host link.
    on_host_link: bool,
    port: PublishedPort,
    /// Those of [`NODE`].
    classes: u32,
    /// The entry of its connection.
    known: Option<Affinity>,
    /// What that remembers of earlier packets holds.
    remembers: bool,
    /// The host's rules may close the port to it.
    left: bool,
    /// The lists of the port let its client in.
    allowed: bool,
    /// The reverse-path filter refuses its source.
    refused: bool,
    /// Hiveway was taken down at [`VTEP`].
    stock: bool,
    /// The port has a backend.
    served: bool,
    /// Whoever is asked does not know.
    no_answers: bool,
}

/// A client's SYN; nothing is known, everything is in order.
fn syn() -> Node {
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
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Its connection has an entry with these flags.
    fn known(self, flags: u8) -> Self {
        self.with(|node| node.known = Some(Affinity { vtep: VTEP, flags, ..Affinity::default() }))
    }

    /// The packet is in the middle of a connection.
    fn segment(self) -> Self {
        self.with(|node| node.packet.flags = tcpflag::ACK)
    }

    fn answer(&self, answer: bool) -> Result<bool, Refusal> {
        if self.no_answers { Err(Refusal::NotHere) } else { Ok(answer) }
    }

    fn decide(&self) -> Became {
        match ingress::decide(self) {
            Ok(Decision::Pass) => Became::Passes,
            Ok(Decision::Own(_)) => Became::Own,
            Ok(Decision::Unpublished) => Became::Unpublished,
            Ok(Decision::Left) => Became::Left,
            Ok(Decision::TimeExceeded) => Became::TimeExceeded,
            Ok(Decision::Forward(..)) => Became::Forwarded,
            Ok(Decision::Open { replaces, .. }) => Became::Opens { replaces },
            Err(Refusal::NotAllowed) => Became::Refused,
            Err(Refusal::NotHere) => Became::Anothers,
        }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
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

enum Refusal {
    NotAllowed,
    NotHere,
}

struct Found(Affinity);

impl ingress::Known for Found {
    fn entry(&self) -> &Affinity {
        &self.0
    }
}

impl World for Node {
    const OPENS: bool = true;
    type Refusal = Refusal;
    type Known = Found;

    fn may_open(&self) -> bool {
        connection::may_open(&self.packet)
    }

    fn is_spent(&self) -> bool {
        self.packet.ttl <= 1
    }

    fn src(&self) -> Ip4 {
        self.packet.src
    }

    fn is_for_host_link(&self) -> bool {
        self.packet.dst == HOST_LINK
    }

    fn is_from_host_link(&self) -> bool {
        self.packet.src == HOST_LINK
    }

    fn is_on_host_link(&self) -> bool {
        self.on_host_link
    }

    fn published(&self) -> Option<&PublishedPort> {
        (self.packet.dport == PORT).then_some(&self.port)
    }

    fn classes(&self) -> Option<u32> {
        [NODE, HOST_LINK].contains(&self.packet.dst).then_some(self.classes)
    }

    fn is_from_node(&self) -> bool {
        [NODE, HOST_LINK].contains(&self.packet.src)
    }

    fn is_left(&self, port: &PublishedPort) -> Result<bool, Refusal> {
        assert_ne!(port.flags & port_flag::LEFT, 0);
        self.answer(self.left)
    }

    fn known(&self) -> Option<Found> {
        self.known.map(Found)
    }

    fn remembered(&self) -> Option<Found> {
        if self.remembers { self.known() } else { None }
    }

    fn makes_room(&self, known: &Affinity) -> Result<bool, Refusal> {
        let makes_room = succession::makes_room(known, &self.packet, || 1 << 50);
        if makes_room { self.answer(true) } else { Ok(false) }
    }

    fn is_stock(&self, vtep: &Ip4) -> bool {
        self.stock && *vtep == VTEP
    }

    fn check_allowed(&self, port: &PublishedPort) -> Result<(), Refusal> {
        assert_ne!(port.flags & port_flag::RESTRICTED, 0);
        if self.answer(self.allowed)? { Ok(()) } else { Err(Refusal::NotAllowed) }
    }

    fn reverse_refuses(&self) -> Result<bool, Refusal> {
        self.answer(self.refused)
    }

    fn is_served(&self, _: &PublishedPort) -> bool {
        self.served
    }
}

/// What became of the packets of a table of cases.
fn all(cases: &[(&str, Node, Became)]) {
    for (name, node, wanted) in cases {
        assert_eq!(node.decide(), *wanted, "{name}");
    }
}

const OPENS: Became = Became::Opens { replaces: false };
const REPLACES: Became = Became::Opens { replaces: true };

#[test]
fn what_opens_a_connection() {
    let proto = |proto, flags| syn().with(|node| (node.packet.proto, node.packet.flags) = (proto, flags));
    all(&[
        ("SYN", syn(), OPENS),
        ("SYN with ECN", proto(ipproto::TCP, tcpflag::SYN | 0xc0), OPENS),
        ("SYN and ACK", proto(ipproto::TCP, tcpflag::SYN | tcpflag::ACK), Became::Passes),
        ("in the middle", syn().segment(), Became::Passes),
        ("datagram", proto(ipproto::UDP, 0), OPENS),
        ("INIT", proto(ipproto::SCTP, sctpchunk::INIT), OPENS),
        ("another chunk", proto(ipproto::SCTP, 0), Became::Passes),
        // Whose turn it is finds out that it is nobody's.
        ("nobody serves", syn().with(|node| node.served = false), OPENS),
    ]);
}

#[test]
fn whom_it_is_for() {
    let to = |dst, on_host_link| syn().with(|node| (node.packet.dst, node.on_host_link) = (dst, on_host_link));
    all(&[
        ("another port", syn().with(|node| node.packet.dport = [0, 80]), Became::Unpublished),
        ("another port of a known one", syn().known(0).with(|node| node.packet.dport = [0, 80]), Became::Unpublished),
        ("another host", to([192, 0, 2, 99], false), Became::Passes),
        ("the host link's address elsewhere", to(HOST_LINK, false), Became::Passes),
        ("the host link's address there", to(HOST_LINK, true), OPENS),
        ("over the host link, from the node", to(HOST_LINK, true).with(|node| node.packet.src = NODE), OPENS),
    ]);
}

#[test]
fn where_a_port_is_bound_connections_are_opened_at_its_addresses_only() {
    let bound = |class, classes| {
        let port = PublishedPort { flags: port_flag::BOUND, class, ..PublishedPort::default() };
        syn().with(|node| (node.port, node.classes) = (port, classes))
    };
    all(&[
        ("here", bound(3, 1 << 3), OPENS),
        ("elsewhere", bound(3, !(1 << 3)), Became::Passes),
        ("the last class", bound(CLASSES - 1, 1 << (CLASSES - 1)), OPENS),
        ("nowhere", bound(NOWHERE, u32::MAX >> 1), Became::Passes),
        ("a known one elsewhere", bound(3, 0).known(0).segment(), Became::Forwarded),
        ("without the flag", bound(3, 0).with(|node| node.port.flags = 0), OPENS),
        ("elsewhere, no hop left", bound(3, 0).with(|node| node.packet.ttl = 1), Became::Passes),
    ]);
}

#[test]
fn where_no_connection_begins() {
    let from = |src| syn().with(|node| node.packet.src = src);
    let refused = || syn().with(|node| node.refused = true);
    all(&[
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
    ]);
}

#[test]
fn who_may_open_connections_to_a_restricted_port() {
    let restricted = |allowed| syn().with(|node| (node.port.flags, node.allowed) = (port_flag::RESTRICTED, allowed));
    all(&[
        ("who may", restricted(true), OPENS),
        ("who may not", restricted(false), Became::Refused),
        ("in the middle of none", restricted(false).segment(), Became::Passes),
        ("of a known one", restricted(false).known(0).segment(), Became::Forwarded),
        ("no hop left", restricted(false).with(|node| node.packet.ttl = 1), Became::Refused),
        ("of a source that nobody has", restricted(false).with(|node| node.packet.src = [127; 4]), Became::Passes),
    ]);
}

#[test]
fn what_is_left_to_the_host() {
    let left = |left| syn().with(|node| (node.port.flags, node.left) = (port_flag::LEFT_AT_PORT, left));
    let restricted = |left: Node| {
        left.with(|node| {
            node.port.flags |= port_flag::RESTRICTED;
            node.allowed = false;
        })
    };
    let over_host_link = |node: &mut Node| (node.packet.dst, node.on_host_link) = (HOST_LINK, true);
    all(&[
        ("it", left(true), Became::Left),
        ("another", left(false), OPENS),
        ("of a known one", left(true).known(0).segment(), Became::Left),
        ("over the host link", left(true).with(over_host_link), OPENS),
        ("no hop left", left(true).with(|node| node.packet.ttl = 1), Became::Left),
        ("of who may not", restricted(left(true)), Became::Refused),
        ("of who may not, in the middle", restricted(left(true)).segment(), Became::Left),
        ("of who was let in", restricted(left(true)).known(0), Became::Left),
    ]);
}

#[test]
fn what_belongs_to_a_known_connection() {
    let left_behind = |flags| syn().known(flags).with(|node| node.stock = true);
    all(&[
        ("a segment", syn().known(0).segment(), Became::Forwarded),
        ("its SYN again", syn().known(0), Became::Forwarded),
        ("the node's own", syn().known(flag::OWN).segment(), Became::Own),
        ("the node's own, no hop left", syn().known(flag::OWN).with(|node| node.packet.ttl = 1), Became::Passes),
        ("a SYN after the end", syn().known(flag::ENDED), REPLACES),
        ("a segment after the end", syn().known(flag::ENDED).segment(), Became::Forwarded),
        ("Hiveway taken down there", left_behind(0), REPLACES),
        ("taken down there, in the middle", left_behind(0).segment(), Became::Forwarded),
        ("never there", left_behind(flag::STOCK), Became::Forwarded),
    ]);
}

#[test]
fn whose_time_has_come() {
    let spent = |ttl| syn().with(|node| node.packet.ttl = ttl);
    all(&[
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
    ]);
}

/// Flags of an entry, so that each matters often enough.
fn entry_flags() -> impl Strategy<Value = u8> {
    const BITS: &[u8] = &[0, flag::OWN, flag::STOCK, flag::ENDED, flag::FIN, flag::BACKEND_FIN, flag::SEEN];
    (prop::sample::select(BITS), prop::sample::select(BITS)).prop_map(|(one, other)| one | other)
}

prop_compose! {
    fn packets()(
        proto in prop::sample::select(&[ipproto::TCP, ipproto::UDP, ipproto::SCTP][..]),
        flags in prop::sample::select(&[tcpflag::SYN, tcpflag::ACK, tcpflag::SYN | tcpflag::ACK, tcpflag::RST][..]),
        ttl in prop::sample::select(&[0_u8, 1, 2, 64][..]),
        src in prop::sample::select(&[CLIENT, CLIENT, NODE, HOST_LINK, [127, 0, 0, 1]][..]),
        dst in prop::sample::select(&[NODE, NODE, HOST_LINK, [192, 0, 2, 99]][..]),
        dport in prop::sample::select(&[PORT, PORT, PORT, [0, 80]][..]),
    ) -> Packet {
        Packet { proto, flags, ttl, src, dst, sport: [0x80, 1], dport, ..Packet::default() }
    }
}

prop_compose! {
    fn nodes()(
        packet in packets(),
        on_host_link in any::<bool>(),
        port_flags in any::<u8>(),
        class in 0..=NOWHERE,
        classes in any::<u32>(),
        known in prop::option::of(entry_flags()),
        answers in any::<[bool; 5]>(),
    ) -> Node {
        let [left, allowed, refused, stock, served] = answers;
        let port = PublishedPort { flags: port_flags, class, ..PublishedPort::default() };
        let known = known.map(|flags| Affinity { vtep: VTEP, flags, ..Affinity::default() });
        Node { packet, on_host_link, port, classes, known, left, allowed, refused, stock, served, remembers: false, no_answers: false }
    }
}

proptest! {
    #[test]
    fn only_what_may_open_opens_and_only_what_is_known_goes_on(node in nodes()) {
        let addressed = node.packet.dport == PORT && [NODE, HOST_LINK].contains(&node.packet.dst);
        match node.decide() {
            Became::Opens { replaces } => {
                prop_assert!(addressed && connection::may_open(&node.packet));
                prop_assert_eq!(replaces, node.known.is_some());
            }
            Became::Forwarded => prop_assert!(addressed && node.known.is_some_and(|known| known.flags & flag::OWN == 0)),
            Became::Refused => prop_assert!(!node.allowed && node.port.flags & port_flag::RESTRICTED != 0),
            Became::TimeExceeded => prop_assert!(node.packet.ttl <= 1 && node.packet.dst != HOST_LINK),
            Became::Left => prop_assert!(node.left && node.port.flags & port_flag::LEFT != 0),
            Became::Own => prop_assert!(node.known.is_some_and(|known| known.flags & flag::OWN != 0)),
            Became::Passes | Became::Unpublished => {}
            Became::Anothers => prop_assert!(false, "all questions have answers"),
        }
    }

    /// XDP asks whom a packet is for once per connection. As long as the agent takes nothing back the answers are those
    /// that another packet of the connection is given, whose flags and TTL may differ. Where Hiveway was taken down
    /// nothing is remembered.
    #[test]
    fn what_is_remembered_of_one_packet_holds_for_the_next(
        node in nodes(), known in entry_flags(), flags in any::<u8>(), ttl in 0_u8..4,
    ) {
        let node = node.known(known & !flag::OWN).with(|node| {
            (node.packet.dst, node.packet.dport, node.packet.ttl) = (NODE, PORT, 64);
            (node.left, node.stock) = (false, false);
        });
        prop_assume!(node.decide() == Became::Forwarded);
        let next = node.with(|node| (node.packet.flags, node.packet.ttl) = (flags, ttl));
        let remembering = next.clone().with(|node| node.remembers = true);
        prop_assert_eq!(remembering.decide(), next.decide());
    }
}

/// As XDP leaves questions to TC: before anything is decided by them.
#[test]
fn a_question_without_an_answer_decides_nothing() {
    let no_answers = |node: Node| node.with(|node| node.no_answers = true);
    all(&[
        ("LEFT", no_answers(syn().with(|node| node.port.flags = port_flag::LEFT_AT_PORT)), Became::Anothers),
        ("RESTRICTED", no_answers(syn().with(|node| node.port.flags = port_flag::RESTRICTED)), Became::Anothers),
        ("reverse path", no_answers(syn()), Became::Anothers),
        ("another in its place", no_answers(syn().known(flag::ENDED)), Became::Anothers),
        ("none is asked", no_answers(syn().known(0).segment()), Became::Forwarded),
    ]);
}
