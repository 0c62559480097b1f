//! Routing mesh, ingress node: how a packet updates the entry of its connection. TC and XDP share it.

use dataplane_common::{
    addr::Ip4,
    flow::{Affinity, flag},
};

use crate::{age, ending, proof, segment::Segment};

/// Updates the entry with a client's packet at `now`. Returns whether the packet proves the connection, if it
/// `is_pending`.
///
/// The caller handles the client's FIN afterwards, see [`ending::client_ends_at_ingress`].
#[inline(always)]
pub fn of_client(known: &mut Affinity, is_pending: bool, packet: &impl Segment, now: u64) -> bool {
    age::note_at(&mut known.last_seen, &mut known.flags, flag::SEEN, now);
    if !is_pending {
        return false;
    }
    // Among pending entries the one that was seen least recently is displaced.
    known.last_seen = now;
    proof::client_proves_at_ingress(packet, known)
}

/// Updates the entry with a packet from the backend, likewise.
#[inline(always)]
pub fn of_backend(known: &mut Affinity, is_pending: bool, packet: &impl Segment, now: u64) -> bool {
    ending::of_backend_at_ingress(known, packet);
    age::note_at(&mut known.last_seen, &mut known.flags, flag::REPLIED, now);
    if !is_pending {
        return false;
    }
    known.last_seen = now;
    match proof::expected_ack(packet) {
        Some(expected) => {
            known.tcp_number = expected;
            false
        }
        None => proof::server_proves(packet),
    }
}

/// Whether the connection was given to the task with the ingress address `task` behind `vtep`. A reply from anywhere
/// else is dropped.
#[inline(always)]
#[must_use]
pub fn was_given_to(known: &Affinity, task: Ip4, vtep: Ip4) -> bool {
    known.flags & flag::OWN == 0 && word(task) == word(known.ip) && word(vtep) == word(known.vtep)
}

/// One word, because LLVM compares arrays byte by byte.
#[inline(always)]
const fn word(ip: Ip4) -> u32 {
    u32::from_ne_bytes(ip)
}

#[cfg(test)]
mod tests {
    use dataplane_common::headers::{
        IPV4_LEN, TCP_LEN, ipproto,
        tcpflag::{ACK, FIN, RST, SYN},
    };

    use super::*;
    use crate::parse::Packet;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 100 * SECOND;
    const TASK: Ip4 = [10, 0, 0, 6];
    const VTEP: Ip4 = [192, 0, 2, 2];

    fn tcp(flags: u8, payload: usize) -> Packet {
        let total_len = (IPV4_LEN + TCP_LEN + payload) as u16;
        let at = Packet { l4: IPV4_LEN, tcp_len: TCP_LEN as u8, total_len, ..Packet::default() };
        Packet { proto: ipproto::TCP, flags, sequence: 1000, acknowledgement: 2001, ..at }
    }

    fn udp() -> Packet {
        Packet { proto: ipproto::UDP, ..Packet::default() }
    }

    fn entry(flags: u8, last_seen: u64) -> Affinity {
        Affinity { ip: TASK, vtep: VTEP, flags, last_seen, ..Affinity::default() }
    }

    #[test]
    fn an_established_entry_is_touched_now_and_then_a_pending_one_by_each_packet() {
        let young = NOW - SECOND / 10;
        for (last_seen, is_pending, wanted) in
            [(young, false, young), (NOW - SECOND, false, NOW), (young, true, NOW), (NOW - SECOND, true, NOW)]
        {
            let (mut one, mut other) = (entry(0, last_seen), entry(0, last_seen));
            of_client(&mut one, is_pending, &udp(), NOW);
            of_backend(&mut other, is_pending, &udp(), NOW);
            assert_eq!((one.last_seen, one.flags), (wanted, flag::SEEN), "{last_seen} {is_pending}");
            assert_eq!((other.last_seen, other.flags), (wanted, flag::REPLIED), "{last_seen} {is_pending}");
        }
    }

    #[test]
    fn a_handshake_proves_a_connection_once() {
        let mut known = entry(0, NOW);
        let syn_ack = Packet { sequence: 2000, ..tcp(SYN | ACK, 0) };
        assert!(!of_client(&mut known, true, &tcp(SYN, 0), NOW));
        assert!(!of_client(&mut known, true, &tcp(ACK, 0), NOW), "before the SYN-ACK");
        assert!(!of_backend(&mut known, true, &syn_ack, NOW));
        assert!(!of_client(&mut known, true, &Packet { acknowledgement: 2000, ..tcp(ACK, 0) }, NOW));
        let mut established = known;
        assert!(!of_client(&mut established, false, &tcp(ACK, 0), NOW), "it is established");
        assert!(of_client(&mut known, true, &tcp(ACK, 0), NOW));
        // The server's data, or its FIN.
        for (packet, wanted) in
            [(tcp(ACK, 0), false), (tcp(ACK, 1), true), (tcp(ACK | FIN, 0), true), (tcp(RST, 0), false)]
        {
            assert_eq!(of_backend(&mut entry(0, NOW), true, &packet, NOW), wanted, "{packet:?}");
            assert!(!of_backend(&mut entry(0, NOW), false, &packet, NOW), "{packet:?}");
        }
    }

    #[test]
    fn a_datagram_after_an_answer_proves_a_connection() {
        let mut known = entry(0, NOW);
        assert!(!of_client(&mut known, true, &udp(), NOW) && !of_backend(&mut known, true, &udp(), NOW));
        let mut own = Affinity { flags: known.flags | flag::OWN, ..known };
        assert!(of_client(&mut known, true, &udp(), NOW));
        assert!(!of_client(&mut own, true, &udp(), NOW), "this node's own stays pending");
    }

    #[test]
    fn a_reply_leaves_only_from_where_its_connection_was_given_to() {
        let known = entry(flag::SEEN, NOW);
        assert!(was_given_to(&known, TASK, VTEP));
        assert!(!was_given_to(&known, [10, 0, 0, 7], VTEP) && !was_given_to(&known, TASK, [192, 0, 2, 3]));
        assert!(!was_given_to(&entry(flag::OWN, NOW), TASK, VTEP));
    }
}
