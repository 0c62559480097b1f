//! The rules of a connection's life, against what they are for: whatever strangers send in a client's name.

mod support;

use dataplane_common::headers::{ipproto, tcpflag};
use dataplane_core::{
    age::{QUIET_NS, TIME_WAIT_NS},
    parse::Packet,
};
use proptest::{collection::vec, prelude::*};

use self::support::{Backend, Ingress, packet};

const SYN: u8 = tcpflag::SYN;
const ACK: u8 = tcpflag::ACK;
const RST: u8 = tcpflag::RST;
const FIN: u8 = tcpflag::FIN;

/// Sequence numbers of client and backend before their first byte.
type Numbers = (u32, u32);

/// Both nodes, which see the same packets.
#[derive(Debug, Default)]
struct Nodes {
    backend: Backend,
    ingress: Ingress,
}

impl Nodes {
    /// After a handshake, and a first segment of the backend's if it has `spoken`.
    fn established((client, server): Numbers, spoken: bool) -> Self {
        let mut nodes = Self::default();
        nodes.of_client(&tcp(SYN, client, 0, 0));
        nodes.of_backend(&tcp(SYN | ACK, server, client.wrapping_add(1), 0));
        assert!(!nodes.backend.is_established() && !nodes.ingress.is_established());
        nodes.of_client(&tcp(ACK, client.wrapping_add(1), server.wrapping_add(1), 0));
        assert!(nodes.backend.is_established() && nodes.ingress.is_established());
        if spoken {
            nodes.of_backend(&tcp(ACK, server.wrapping_add(1), client.wrapping_add(1), 0));
        }
        nodes
    }

    fn of_client(&mut self, packet: &Packet) {
        self.backend.of_client(packet);
        self.ingress.of_client(packet);
    }

    fn of_backend(&mut self, packet: &Packet) {
        self.backend.of_backend(packet);
        self.ingress.of_backend(packet);
    }

    fn pass(&mut self, time: u64) {
        self.backend.now += time;
        self.ingress.now += time;
    }

    fn ended(&self) -> (bool, bool) {
        (self.backend.has_ended(), self.ingress.has_ended())
    }

    fn opened(&self) -> (u32, u32) {
        (self.backend.opened, self.ingress.opened)
    }
}

fn tcp(flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> Packet {
    packet(ipproto::TCP, flags, sequence, acknowledgement, payload)
}

/// A segment of any kind, and how much later than the one before it comes.
fn segments() -> impl Strategy<Value = Vec<(u8, u32, u32, u16, u64)>> {
    let flags = prop_oneof![Just(SYN), Just(ACK), Just(RST), Just(ACK | FIN), Just(RST | ACK), any::<u8>()];
    vec((flags, any::<u32>(), any::<u32>(), 0..1_400_u16, 0..2 * TIME_WAIT_NS), 0..12)
}

fn numbers() -> impl Strategy<Value = Numbers> {
    // Upper (of the client's) and lower 24 bits (of the backend's) that are zero are taken for none.
    (0x100..=u32::MAX - 1, any::<u32>().prop_filter("none", |number| number.wrapping_add(1) & 0xff_ffff != 0))
}

/// `sequence`, but for what an RST may have: see `is_next`.
fn outside_window(sequence: u32, waits_for: u32) -> u32 {
    let ahead = (sequence >> 8).wrapping_sub(waits_for >> 8) & 0xff_ffff;
    if ahead <= 1 { sequence.wrapping_add(0x200) } else { sequence }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_only_sends_in_the_clients_name_ends_and_moves_nothing(
        (client, server) in numbers(), spoken: bool, stranger in segments(),
    ) {
        let waits_for = client.wrapping_add(1);
        let mut nodes = Nodes::established((client, server), spoken);
        for (flags, sequence, acknowledgement, payload, later) in stranger {
            nodes.pass(later);
            nodes.of_client(&tcp(flags, outside_window(sequence, waits_for), acknowledgement, payload));
        }
        prop_assert_eq!((nodes.ended(), nodes.opened()), ((false, false), (1, 1)));
        prop_assert!(nodes.backend.is_established() && nodes.ingress.is_established());
    }

    #[test]
    fn a_backend_that_goes_on_has_not_ended(
        (client, server) in numbers(), before in segments(), strangers in segments(), later in 0..TIME_WAIT_NS,
    ) {
        let mut nodes = Nodes::established((client, server), true);
        for (flags, sequence, acknowledgement, payload, later) in before {
            nodes.pass(later);
            nodes.of_backend(&tcp(flags & !(SYN | FIN) | RST, sequence, acknowledgement, payload));
        }
        for (flags, sequence, acknowledgement, payload, _) in strangers {
            nodes.of_client(&tcp(flags & !SYN, sequence, acknowledgement, payload));
        }
        nodes.pass(later);
        nodes.of_backend(&tcp(ACK, server.wrapping_add(1), client.wrapping_add(1), 1));
        nodes.of_client(&tcp(SYN, client.wrapping_add(0x1000), 0, 0));
        prop_assert_eq!((nodes.ended(), nodes.opened()), ((false, false), (1, 1)));
    }

    #[test]
    fn a_backends_rst_ends_and_a_syn_takes_the_place_once_it_had_spoken(
        (client, server) in numbers(), spoken: bool, (sequence, acknowledgement) in any::<(u32, u32)>(), ack: bool,
    ) {
        let mut nodes = Nodes::established((client, server), spoken);
        nodes.of_backend(&tcp(if ack { RST | ACK } else { RST }, sequence, acknowledgement, 0));
        prop_assert_eq!(nodes.ended(), (true, true));
        nodes.of_client(&tcp(ACK, client, server, 0));
        prop_assert_eq!(nodes.opened(), (1, 1));
        nodes.of_client(&tcp(SYN, sequence, 0, 0));
        prop_assert_eq!(nodes.opened(), (2, if spoken { 2 } else { 1 }));
    }

    #[test]
    fn both_fins_and_their_acknowledgements_end(
        (client, server) in numbers(), sent in 0..1_400_u16, got in 0..1_400_u16, order in 0..3_u8, quiet: bool,
    ) {
        let mut nodes = Nodes::established((client, server), true);
        let (c, s) = (client.wrapping_add(1), server.wrapping_add(1));
        // Behind each one's FIN. What was acknowledged before lies in another block of 256 numbers than the client's.
        let (c_end, s_end) = (c.wrapping_add(u32::from(sent) + 1), s.wrapping_add(u32::from(got) + 1));
        let c_before = c_end.wrapping_sub(0x100);
        let client_fin = |acknowledged| tcp(ACK | FIN, c, acknowledged, sent);
        let backend_fin = |acknowledged| tcp(ACK | FIN, s, acknowledged, got);
        match order {
            0 => {
                nodes.of_client(&client_fin(s));
                nodes.of_backend(&tcp(ACK, s, c_end, 0));
                prop_assert_eq!(nodes.ended(), (false, false));
                nodes.of_backend(&backend_fin(c_end));
            }
            1 => {
                nodes.of_backend(&backend_fin(c_before));
                nodes.of_client(&client_fin(s_end));
                prop_assert_eq!(nodes.ended(), (false, false));
                nodes.of_backend(&tcp(ACK, s_end, c_end, 0));
            }
            _ => {
                nodes.of_client(&client_fin(s));
                nodes.of_backend(&backend_fin(c_before));
                prop_assert_eq!(nodes.ended(), (false, false));
                nodes.of_backend(&tcp(ACK, s_end, c_end, 0));
            }
        }
        prop_assert_eq!(nodes.ended(), (true, true));
        // The client's last acknowledgement. A SYN at once may be for a backend whose last segment was lost.
        nodes.of_client(&tcp(ACK, c_end, s_end, 0));
        nodes.pass(if quiet { QUIET_NS + 1 } else { QUIET_NS });
        nodes.of_client(&tcp(SYN, c_end.wrapping_add(1), 0, 0));
        prop_assert_eq!(nodes.opened(), (2, if quiet { 2 } else { 1 }));
    }

    #[test]
    fn nobody_who_does_not_know_the_syn_acks_number_is_proved(
        (_, server) in numbers(), flood in segments(), answers in vec(prop_oneof![
            Just(SYN | ACK), Just(ACK), Just(RST), Just(RST | ACK)
        ], 12),
    ) {
        let mut nodes = Nodes::default();
        nodes.of_client(&tcp(SYN, 1, 0, 0));
        let expected = server.wrapping_add(1);
        for ((flags, sequence, acknowledgement, payload, later), answer) in flood.into_iter().zip(answers) {
            nodes.pass(later);
            let right = (acknowledgement ^ expected) & 0xff_ffff == 0;
            let guess = if right { acknowledgement ^ 1 } else { acknowledgement };
            nodes.of_client(&tcp(flags, sequence, guess, payload));
            // As a TCP in SYN-RECEIVED or LISTEN answers.
            nodes.of_backend(&tcp(answer, if answer & SYN != 0 { server } else { expected }, sequence, 0));
            prop_assert!(!nodes.backend.is_established() && !nodes.ingress.is_established());
        }
        nodes.of_client(&tcp(SYN, 1, 0, 0));
        nodes.of_backend(&tcp(SYN | ACK, server, 2, 0));
        nodes.of_client(&tcp(ACK, 2, expected, 0));
        prop_assert!(nodes.backend.is_established() && nodes.ingress.is_established());
    }

    #[test]
    fn without_connections_an_answer_and_another_packet_prove(clients in vec(any::<bool>(), 0..8)) {
        let mut nodes = Nodes::default();
        let datagram = packet(ipproto::UDP, 0, 0, 0, 10);
        let (mut opened, mut answered, mut proved) = (false, false, false);
        for client in clients {
            if client {
                nodes.of_client(&datagram);
                proved |= answered;
                opened = true;
            } else {
                nodes.of_backend(&datagram);
                answered |= opened;
            }
            prop_assert_eq!((nodes.backend.is_established(), nodes.ingress.is_established()), (proved, proved));
        }
    }
}
