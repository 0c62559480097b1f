//! What becomes of a client's packet at the ingress node: [`ingress::decide`] in worlds that are plain values.

#[path = "cases/ingress.rs"]
mod cases;

use dataplane_common::{
    addr::Ip4,
    flow::{Affinity, flag},
    headers::{ipproto, tcpflag},
    service::{NOWHERE, PublishedPort, port_flag},
};
use dataplane_core::{
    connection,
    ingress::{self, Decision, World},
    parse::Packet,
    succession,
};
use proptest::prelude::*;

use self::cases::{Became, CLIENT, Case, HOST_LINK, NODE, Node, PORT, VTEP, syn};

impl Node {
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
fn all(cases: &[Case]) {
    for (name, node, wanted) in cases {
        assert_eq!(node.decide(), *wanted, "{name}");
    }
}

#[test]
fn what_opens_a_connection() {
    all(&cases::what_opens_a_connection());
}

#[test]
fn whom_it_is_for() {
    all(&cases::whom_it_is_for());
}

#[test]
fn where_a_port_is_bound_connections_are_opened_at_its_addresses_only() {
    all(&cases::where_a_port_is_bound_connections_are_opened_at_its_addresses_only());
}

#[test]
fn where_no_connection_begins() {
    all(&cases::where_no_connection_begins());
}

#[test]
fn who_may_open_connections_to_a_restricted_port() {
    all(&cases::who_may_open_connections_to_a_restricted_port());
}

#[test]
fn what_is_left_to_the_host() {
    all(&cases::what_is_left_to_the_host());
}

#[test]
fn what_belongs_to_a_known_connection() {
    all(&cases::what_belongs_to_a_known_connection());
}

#[test]
fn whose_time_has_come() {
    all(&cases::whose_time_has_come());
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
