//! When a connection has proved that both its ends are there, and is established.
//!
//! * TCP: the client acknowledges the SYN-ACK's sequence number, which a sender of invented addresses never saw; or the
//!   server sends data or a FIN, which it does only when its own TCP calls the connection established. A plain ACK of
//!   the server's proves nothing: one in SYN-RECEIVED answers any second SYN with another sequence number so.
//! * Everything else: the client sends again after it was answered. An answer alone proves nothing: an echo service
//!   answers a flood, too. Single questions and answers (DNS) so stay pending.

use dataplane_common::{
    flow::{Affinity, Flow, flag},
    headers::{ipproto, tcpflag},
};

use crate::{ending, segment::Segment};

/// A TCP segment with ACK and neither SYN nor RST.
#[inline(always)]
fn is_plain_ack(flags: u8) -> bool {
    flags & (tcpflag::ACK | tcpflag::SYN | tcpflag::RST) == tcpflag::ACK
}

/// A TCP segment with SYN and ACK.
#[inline(always)]
pub fn is_syn_ack(packet: &impl Segment) -> bool {
    packet.proto() == ipproto::TCP && packet.flags() & (tcpflag::SYN | tcpflag::ACK) == tcpflag::SYN | tcpflag::ACK
}

/// The lower 24 bits of a number, big endian.
#[inline(always)]
fn lower(number: u32) -> [u8; 3] {
    let [_, a, b, c] = number.to_be_bytes();
    [a, b, c]
}

/// What the client's packet must acknowledge after this one of the server, if it is a SYN-ACK.
#[inline(always)]
pub fn expected_ack(packet: &impl Segment) -> Option<[u8; 3]> {
    is_syn_ack(packet).then(|| lower(packet.sequence().wrapping_add(1)))
}

/// Whether a client's packet proves the pending connection with this reply entry.
#[inline(always)]
pub fn client_proves_flow(packet: &impl Segment, reply: &Flow) -> bool {
    client_proves(packet, reply.tcp_number, reply.flags & flag::SEEN != 0)
}

/// The same at the ingress node. What this node has opened itself stays pending: its packets are the stack's.
#[inline(always)]
pub fn client_proves_at_ingress(packet: &impl Segment, known: &Affinity) -> bool {
    known.flags & flag::OWN == 0 && client_proves(packet, known.tcp_number, known.flags & flag::REPLIED != 0)
}

/// Whether the client's packet proves that it has seen an answer. `expected`: of the SYN-ACK, zero if there was none;
/// `answered`: something came back.
#[inline(always)]
fn client_proves(packet: &impl Segment, expected: [u8; 3], answered: bool) -> bool {
    if packet.proto() != ipproto::TCP {
        return answered;
    }
    expected != [0; 3] && is_plain_ack(packet.flags()) && lower(packet.acknowledgement()) == expected
}

/// Notes in a pending entry, in its `tcp_number`, what a SYN-ACK of the backend's lets the client prove itself with.
#[inline(always)]
pub fn note_syn_ack(tcp_number: &mut [u8; 3], packet: &impl Segment) {
    if let Some(expected) = expected_ack(packet) {
        *tcp_number = expected;
    }
}

/// Whether the server's packet proves that its side of the handshake is complete.
#[inline(always)]
pub fn server_proves(packet: &impl Segment) -> bool {
    let speaks = packet.flags() & tcpflag::FIN != 0 || packet.has_data();
    packet.proto() == ipproto::TCP && is_plain_ack(packet.flags()) && speaks
}

/// Makes a reply entry what it is once established. `acknowledged`: of TCP, the sequence number that the backend waits
/// for.
#[inline(always)]
pub fn establish_reply(reply: &mut Flow, acknowledged: u32) {
    // What the backend may have said to a stranger's segment meanwhile.
    reply.flags &= !(flag::ENDED | flag::KEPT);
    reply.tcp_number = ending::upper(acknowledged);
}

/// Makes a forward entry what it is once established.
#[inline(always)]
pub fn establish_forward(forward: &mut Flow) {
    forward.flags &= !flag::ENDED;
}

/// What a client's entry is once it is established.
#[inline(always)]
pub fn establish_at_ingress(known: &mut Affinity, proto: u8) {
    // As above.
    known.flags &= !(flag::ENDED | flag::AFFINITY_KEPT);
    known.unspoken = u8::from(proto == ipproto::TCP);
}

#[cfg(test)]
mod tests {
    use dataplane_common::headers::{
        IPV4_LEN, TCP_LEN, sctpchunk,
        tcpflag::{ACK, FIN, RST, SYN},
    };

    use super::*;
    use crate::parse::Packet;

    /// A TCP segment with so many bytes of payload.
    fn segment(flags: u8, payload: usize) -> Packet {
        let total_len = (IPV4_LEN + TCP_LEN + payload) as u16;
        Packet { proto: ipproto::TCP, flags, total_len, l4: IPV4_LEN, tcp_len: TCP_LEN as u8, ..Packet::default() }
    }

    #[test]
    fn the_client_proves_itself_with_the_number_of_the_syn_ack() {
        let mut reply = Flow::default();
        let syn_ack = Packet { sequence: 0x1234_ffff, ..segment(SYN | ACK, 0) };
        note_syn_ack(&mut reply.tcp_number, &syn_ack);
        let ack = |acknowledgement, flags| Packet { acknowledgement, ..segment(flags, 0) };
        assert!(client_proves_flow(&ack(0x1235_0000, ACK), &reply));
        assert!(client_proves_flow(&ack(0x1235_0000, ACK | FIN), &reply));
        for (number, flags) in [
            (0x1234_ffff, ACK),
            (0x1235_0001, ACK),
            (0x1235_0000, ACK | SYN),
            (0x1235_0000, ACK | RST),
            (0x1235_0000, SYN),
        ] {
            assert!(!client_proves_flow(&ack(number, flags), &reply), "{number:#x} {flags:#x}");
        }
    }

    #[test]
    fn nothing_proves_a_client_before_the_syn_ack() {
        // Not even the number that stands for none.
        let reply = Flow { flags: flag::REPLY | flag::SEEN, ..Flow::default() };
        assert!(!client_proves_flow(&segment(ACK, 100), &reply));
    }

    #[test]
    fn other_packets_of_the_server_are_no_syn_ack() {
        for flags in (0..=u8::MAX).filter(|flags| flags & (SYN | ACK) != SYN | ACK) {
            assert_eq!(expected_ack(&segment(flags, 0)), None, "{flags:#x}");
        }
        assert_eq!(expected_ack(&Packet { proto: ipproto::UDP, ..segment(SYN | ACK, 0) }), None);
    }

    #[test]
    fn the_server_completes_with_data_or_a_fin() {
        assert!(server_proves(&segment(ACK, 1)) && server_proves(&segment(ACK | FIN, 0)));
        // BIG TCP.
        assert!(server_proves(&Packet { total_len: 0, ..segment(ACK, 0) }));
        for flags in [ACK, SYN | ACK, RST | ACK, RST, SYN] {
            assert!(!server_proves(&segment(flags, 0)), "{flags:#x}");
        }
        // Data does not help what a TCP that is not established may send.
        assert!(!server_proves(&segment(SYN | ACK, 10)) && !server_proves(&segment(RST | ACK, 10)));
        assert!(!server_proves(&Packet { proto: ipproto::UDP, ..segment(ACK, 10) }));
    }

    #[test]
    fn without_connections_an_answer_and_another_packet_are_needed() {
        for proto in [ipproto::UDP, ipproto::SCTP] {
            let packet = Packet { proto, flags: sctpchunk::INIT, ..segment(0, 0) };
            assert!(!client_proves_flow(&packet, &Flow::default()) && !server_proves(&packet));
            assert!(client_proves_flow(&packet, &Flow { flags: flag::SEEN, ..Flow::default() }));
            assert!(!client_proves_at_ingress(&packet, &Affinity { flags: flag::SEEN, ..Affinity::default() }));
            let answered = Affinity { flags: flag::REPLIED, ..Affinity::default() };
            assert!(client_proves_at_ingress(&packet, &answered));
            // A connection of this node's own.
            assert!(!client_proves_at_ingress(&packet, &Affinity { flags: flag::REPLIED | flag::OWN, ..answered }));
        }
    }

    #[test]
    fn an_end_before_the_proof_does_not_outlast_it() {
        let ended = Flow { flags: flag::REPLY | flag::ENDED | flag::KEPT, tcp_number: [1; 3], ..Flow::default() };
        let (mut forward, mut reply) = (Flow { flags: flag::SEEN | flag::ENDED, ..Flow::default() }, ended);
        establish_reply(&mut reply, 0x0102_03ff);
        establish_forward(&mut forward);
        assert_eq!((reply.flags, reply.tcp_number), (flag::REPLY, [1, 2, 3]));
        assert_eq!(forward.flags, flag::SEEN);
        let mut known = Affinity { flags: flag::SEEN | flag::ENDED | flag::AFFINITY_KEPT, ..Affinity::default() };
        establish_at_ingress(&mut known, ipproto::TCP);
        assert_eq!((known.flags, known.unspoken), (flag::SEEN, 1));
        establish_at_ingress(&mut known, ipproto::UDP);
        assert_eq!(known.unspoken, 0);
    }
}
