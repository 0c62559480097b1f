//! When a connection has ended: its key may then be used for another one (see [`crate::succession`]), and is kept for a
//! short time only.
//!
//! What only a client says ends nothing, for anybody may say it with the client's address. The backend's word counts:
//! its RST, or its FIN together with its acknowledgement of the client's. An RST of the client's counts where it stands
//! at the sequence number that the backend waits for, as RFC 5961 section 3.2 has it; at an ingress node, which does
//! not follow the numbers, the backend is asked (see `mesh_backend.rs`). Until then a SYN goes to the connection's own
//! backend, which answers it as RFC 5961 section 4.2 says, or opens a connection anew if it knows of none. So does one
//! that follows both FINs at once: the last segments of the backend may have been lost behind this node.
//!
//! An SCTP association ends by the backend's chunks only, and an INIT goes to its own backend as long as there is an
//! entry: a backend that lives aborts what a stranger's malformed INIT asks for, and one that has ended opens an
//! association anew (RFC 9260 section 5.2).

use dataplane_common::{
    flow::{Affinity, Flow, flag},
    headers::{ipproto, sctpchunk, tcpflag},
};

use crate::{parse::Packet, segment::Segment};

/// An RST of the client's may lie this many times 256 bytes behind what the backend has acknowledged last: what it got
/// meanwhile.
const UNACKNOWLEDGED: u32 = 1;

/// The upper 24 bits of a TCP sequence number, big endian.
#[inline(always)]
pub fn upper(number: u32) -> [u8; 3] {
    let [a, b, c, _] = number.to_be_bytes();
    [a, b, c]
}

/// Whether a segment of the client's has something to say about the connection's end: then [`of_client`] follows, with
/// the connection's established entries.
#[inline(always)]
pub fn client_ends(packet: &Packet) -> bool {
    packet.proto == ipproto::TCP && (packet.flags & tcpflag::RST != 0 || packet.end().is_some())
}

/// What a segment of the client's has to say about it at the ingress node: then [`note_client_fin`] follows.
#[inline(always)]
pub fn client_ends_at_ingress(packet: &impl Segment) -> Option<u32> {
    packet.end()
}

/// The connection has ended; a new SYN may take its place.
#[inline(always)]
pub fn ended(flow: &Flow) -> bool {
    flow.flags & flag::ENDED != 0
}

/// Whether a packet of the backend's, with these [`Packet::flags`], says that the connection is over. SHUTDOWN ACK: it
/// has nothing more to send, and waits for the client's last word.
#[inline(always)]
fn is_over(proto: u8, flags: u8) -> bool {
    match proto {
        ipproto::TCP => flags & tcpflag::RST != 0,
        ipproto::SCTP => {
            matches!(flags, sctpchunk::ABORT | sctpchunk::SHUTDOWN_ACK | sctpchunk::SHUTDOWN_COMPLETE)
        }
        _ => false,
    }
}

/// Whether a packet of the backend's, with these [`Packet::flags`], begins a connection.
#[inline(always)]
pub fn begins(proto: u8, flags: u8) -> bool {
    match proto {
        ipproto::TCP => flags & (tcpflag::SYN | tcpflag::ACK) == tcpflag::SYN | tcpflag::ACK,
        ipproto::SCTP => flags == sctpchunk::INIT_ACK,
        _ => false,
    }
}

/// The bits of `flag` that a connection has after a packet of its backend's. `fin`: the one for a FIN of the backend's.
/// `acknowledged`: whether the packet acknowledges a FIN of the client's.
#[inline(always)]
fn after_backend(bits: u8, fin: u8, proto: u8, flags: u8, acknowledged: bool) -> u8 {
    if begins(proto, flags) {
        return bits & !(fin | flag::FIN | flag::ENDED);
    }
    if is_over(proto, flags) {
        return bits | flag::ENDED;
    }
    let bits = if proto == ipproto::TCP && flags & tcpflag::FIN != 0 { bits | fin } else { bits };
    if bits & fin != 0 && acknowledged {
        bits | flag::ENDED
    } else {
        // An RST or ABORT that was meant for somebody else's segment, or a FIN that the client never sent: the backend
        // goes on.
        bits & !flag::ENDED
    }
}

/// Notes what a segment of the client's that [`client_ends`] says about the end of the connection with these
/// established entries.
#[inline(always)]
pub fn of_client(forward: &mut Flow, reply: &mut Flow, packet: &Packet, now: impl FnOnce() -> u64) {
    if packet.flags & tcpflag::RST != 0 {
        if is_next(packet.sequence, reply.tcp_number) {
            forward.flags |= flag::ENDED;
            reply.flags |= flag::ENDED;
        }
        return;
    }
    if !ended(forward)
        && let Some(end) = packet.end()
    {
        forward.tcp_number = upper(end);
        forward.flags |= flag::FIN;
    }
    // Not only packets of the backend's: see `age::QUIET_NS`.
    reply.last_seen = now();
}

/// The same for an RST of a direct connection that was only noted: its only entry is the reply entry.
#[inline(always)]
pub fn of_lone_client(reply: &mut Flow, packet: &Packet) {
    if is_next(packet.sequence, reply.tcp_number) {
        reply.flags |= flag::ENDED;
    }
}

/// Whether `sequence` is what the backend waits for, that has acknowledged `acknowledged`. Zero: nothing that is known
/// of, as in the entries of versions that did not note it.
#[inline(always)]
fn is_next(sequence: u32, acknowledged: [u8; 3]) -> bool {
    let [a, b, c] = acknowledged;
    let ahead = (sequence >> 8).wrapping_sub(u32::from_be_bytes([0, a, b, c])) & 0xff_ffff;
    ahead <= UNACKNOWLEDGED && acknowledged != [0; 3]
}

/// Notes in the reply entry `reply`, which may be `established`, what a packet of the backend's acknowledges.
/// Whether it has something to say about the connection's end: then [`of_backend`] follows, with the forward entry.
#[inline(always)]
pub fn backend_speaks(reply: &mut Flow, packet: &Packet, established: bool) -> bool {
    let tcp = packet.proto == ipproto::TCP;
    if tcp && established && packet.flags & tcpflag::ACK != 0 {
        let acknowledged = upper(packet.acknowledgement);
        if reply.tcp_number != acknowledged {
            reply.tcp_number = acknowledged;
        }
    }
    let ends = packet.flags & (tcpflag::FIN | tcpflag::RST) != 0;
    let again = established && packet.flags & tcpflag::SYN != 0;
    (tcp && (ends || again || reply.flags & (flag::FIN | flag::ENDED) != 0)) || packet.proto == ipproto::SCTP
}

/// Notes what a packet of the backend's says about the end of the connection with these entries.
#[inline(always)]
pub fn of_backend(reply: &mut Flow, forward: Option<&mut Flow>, packet: &Packet, now: impl FnOnce() -> u64) {
    let acknowledged = forward
        .as_ref()
        .is_some_and(|forward| forward.flags & flag::FIN != 0 && forward.tcp_number == upper(packet.acknowledgement));
    let was = reply.flags;
    reply.flags = after_backend(was, flag::FIN, packet.proto, packet.flags, acknowledged);
    if let Some(forward) = forward {
        if begins(packet.proto, packet.flags) {
            forward.flags &= !(flag::FIN | flag::ENDED);
        } else {
            forward.flags = (forward.flags & !flag::ENDED) | (reply.flags & flag::ENDED);
        }
    }
    if reply.flags & !was & flag::ENDED != 0 {
        // From here on: see `age::QUIET_NS`.
        reply.last_seen = now();
    }
}

/// Notes a FIN of the client's in an established entry; `end`: the number behind it, see [`Segment::end`]. None that
/// comes after the end: it would be another's.
#[inline(always)]
pub fn note_client_fin(known: &mut Affinity, end: u32) {
    if known.flags & flag::ENDED == 0 {
        known.tcp_number = upper(end);
        known.flags |= flag::FIN;
    }
}

/// Notes what a packet of the backend's says about the end of a connection at its ingress node.
#[inline(always)]
pub fn of_backend_at_ingress(known: &mut Affinity, packet: &impl Segment) {
    if may_change(known, packet) {
        change(known, packet);
    }
}

/// Whether the packet may change what the connection `known` has come to. Most do not, and cost no more than this.
#[inline(always)]
fn may_change(known: &Affinity, packet: &impl Segment) -> bool {
    const SPEAKS: u8 = tcpflag::SYN | tcpflag::FIN | tcpflag::RST;
    const CHANGES: u8 = flag::FIN | flag::BACKEND_FIN | flag::ENDED;
    match packet.proto() {
        ipproto::TCP => packet.flags() & SPEAKS != 0 || (known.flags & CHANGES) | known.unspoken != 0,
        ipproto::SCTP => true,
        _ => false,
    }
}

/// What [`of_backend_at_ingress`] does.
#[inline(always)]
fn change(known: &mut Affinity, packet: &impl Segment) {
    let acknowledged = known.flags & flag::FIN != 0 && known.tcp_number == upper(packet.acknowledgement());
    let bits = after_backend(known.flags, flag::BACKEND_FIN, packet.proto(), packet.flags(), acknowledged);
    if bits != known.flags {
        known.flags = bits;
    }
    if packet.flags() & (tcpflag::SYN | tcpflag::RST) == 0 && known.unspoken != 0 {
        known.unspoken = 0;
    }
}

#[cfg(test)]
mod tests {
    use dataplane_common::{
        flow::flag::ENDED,
        headers::{
            IPV4_LEN, TCP_LEN,
            tcpflag::{ACK, FIN, RST, SYN},
        },
    };

    use super::*;
    use crate::parse::Fragment;

    /// What the backend has acknowledged, and its upper 24 bits.
    const WAITS_FOR: u32 = 0x0102_0380;
    const UPPER: [u8; 3] = [1, 2, 3];

    fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Packet {
        let total_len = (IPV4_LEN + TCP_LEN) as u16;
        let (l4, tcp_len) = (IPV4_LEN, TCP_LEN as u8);
        Packet { proto: ipproto::TCP, flags, sequence, acknowledgement, total_len, l4, tcp_len, ..Packet::default() }
    }

    fn chunk(kind: u8) -> Packet {
        Packet { proto: ipproto::SCTP, ..segment(kind, 0, 0) }
    }

    fn entries() -> (Flow, Flow) {
        let reply = Flow { flags: flag::REPLY | flag::SEEN, tcp_number: UPPER, ..Flow::default() };
        (Flow { flags: flag::SEEN, ..Flow::default() }, reply)
    }

    #[test]
    fn a_fin_counts_as_one_behind_its_data() {
        let fin = segment(ACK | FIN, 0xffff_fff0, 0);
        assert_eq!(fin.end(), Some(0xffff_fff1));
        assert_eq!(Packet { total_len: fin.total_len + 0x20, ..fin }.end(), Some(0x11));
        // With IP and TCP options.
        let options = Packet { l4: IPV4_LEN + 8, tcp_len: 32, total_len: fin.total_len + 24, ..fin };
        assert_eq!(options.end(), Some(0xffff_fff5));
    }

    #[test]
    fn a_fin_whose_end_is_not_known_says_nothing() {
        let fin = segment(ACK | FIN, 1, 1);
        let others = [
            Packet { fragment: Fragment::First, ..fin },
            Packet { total_len: 0, ..fin },
            Packet { proto: ipproto::UDP, ..fin },
            segment(ACK, 1, 1),
        ];
        assert!(client_ends(&fin) && client_ends_at_ingress(&fin).is_some());
        assert!(others.iter().all(|packet| !client_ends(packet) && client_ends_at_ingress(packet).is_none()));
        // The ingress node does not follow the numbers that an RST of the client's is judged by.
        assert!(client_ends(&segment(RST, 1, 1)) && client_ends_at_ingress(&segment(RST, 1, 1)).is_none());
    }

    #[test]
    fn an_rst_of_the_clients_ends_where_the_backend_waits_for_it() {
        for (sequence, ends) in [
            (WAITS_FOR, true),
            (0x0102_0300, true),
            (0x0102_04ff, true),
            (0x0102_0500, false),
            (0x0102_02ff, false),
            (0x8102_0380, false),
        ] {
            let (mut forward, mut reply) = entries();
            of_client(&mut forward, &mut reply, &segment(RST, sequence, 0), || unreachable!());
            assert_eq!((ended(&forward), ended(&reply)), (ends, ends), "{sequence:#x}");
            let (_, mut lone) = entries();
            of_lone_client(&mut lone, &segment(RST, sequence, 0));
            assert_eq!(ended(&lone), ends, "{sequence:#x}");
        }
    }

    #[test]
    fn an_entry_that_knows_no_number_is_ended_by_no_rst() {
        let (mut forward, mut reply) = entries();
        reply.tcp_number = [0; 3];
        of_client(&mut forward, &mut reply, &segment(RST, 0, 0), || 0);
        assert!(!ended(&forward) && !ended(&reply));
    }

    #[test]
    fn both_fins_and_the_backends_acknowledgement_end() {
        let (mut forward, mut reply) = entries();
        of_client(&mut forward, &mut reply, &segment(ACK | FIN, WAITS_FOR, 0), || 7);
        assert_eq!((forward.flags, reply.last_seen), (flag::SEEN | flag::FIN, 7));
        // The backend's FIN first without an acknowledgement of the client's, then with it.
        for (acknowledged, ends) in [(WAITS_FOR - 0x100, false), (WAITS_FOR + 1, true)] {
            let packet = segment(ACK | FIN, 0, acknowledged);
            assert!(backend_speaks(&mut reply, &packet, true));
            of_backend(&mut reply, Some(&mut forward), &packet, || 9);
            assert_eq!((ended(&forward), ended(&reply)), (ends, ends));
        }
        assert_eq!(reply.last_seen, 9);
        // A later FIN is another's.
        let before = forward;
        of_client(&mut forward, &mut reply, &segment(ACK | FIN, 5, 0), || 10);
        assert_eq!((forward, reply.last_seen), (before, 10));
    }

    #[test]
    fn a_backend_that_goes_on_takes_its_rst_back() {
        let (mut forward, mut reply) = entries();
        for (flags, ends) in [(RST, true), (RST | ACK, true), (ACK, false), (RST, true), (SYN | ACK, false)] {
            let packet = segment(flags, 0, WAITS_FOR);
            assert!(backend_speaks(&mut reply, &packet, true));
            of_backend(&mut reply, Some(&mut forward), &packet, || 0);
            assert_eq!((ended(&forward), ended(&reply)), (ends, ends), "{flags:#x}");
        }
        // Nothing more to say while nothing has happened.
        assert!(!backend_speaks(&mut reply, &segment(ACK, 0, 0x0a0b_0c00), true));
        assert_eq!(reply.tcp_number, [0xa, 0xb, 0xc]);
        // A pending entry has another number there.
        assert!(!backend_speaks(&mut reply, &segment(ACK, 0, 0), false));
        assert_eq!(reply.tcp_number, [0xa, 0xb, 0xc]);
    }

    #[test]
    fn a_syn_ack_begins_anew() {
        let (mut forward, mut reply) = entries();
        forward.flags |= flag::FIN | ENDED;
        reply.flags |= flag::FIN | ENDED;
        of_backend(&mut reply, Some(&mut forward), &segment(SYN | ACK, 0, 0), || 0);
        assert_eq!((forward.flags, reply.flags), (flag::SEEN, flag::REPLY | flag::SEEN));
    }

    #[test]
    fn sctp_ends_by_the_backends_chunks() {
        for (kind, ends) in [
            (sctpchunk::ABORT, true),
            (0, false),
            (sctpchunk::SHUTDOWN_ACK, true),
            (sctpchunk::SHUTDOWN_COMPLETE, true),
            (sctpchunk::INIT_ACK, false),
        ] {
            let (mut forward, mut reply) = entries();
            assert!(backend_speaks(&mut reply, &chunk(kind), true));
            of_backend(&mut reply, Some(&mut forward), &chunk(kind), || 0);
            let mut known = Affinity::default();
            of_backend_at_ingress(&mut known, &chunk(kind));
            assert_eq!((ended(&forward), ended(&reply), known.flags & ENDED != 0), (ends, ends, ends), "{kind}");
        }
    }

    #[test]
    fn at_the_ingress_node_the_backend_speaks_with_anything_but_syn_and_rst() {
        let mut known = Affinity { unspoken: 1, ..Affinity::default() };
        for (flags, unspoken, ends) in [(SYN | ACK, 1, false), (RST, 1, true), (ACK, 0, false), (RST | ACK, 0, true)] {
            of_backend_at_ingress(&mut known, &segment(flags, 0, 0));
            assert_eq!((known.unspoken, known.flags & ENDED != 0), (unspoken, ends), "{flags:#x}");
        }
    }

    #[test]
    fn what_may_change_nothing_changes_nothing() {
        for bits in 0..=u8::MAX {
            for flags in 0..=u8::MAX {
                for proto in [ipproto::TCP, ipproto::UDP] {
                    let known = Affinity { flags: bits, tcp_number: UPPER, ..Affinity::default() };
                    let mut after = known;
                    let packet = Packet { proto, ..segment(flags, 0, WAITS_FOR) };
                    change(&mut after, &packet);
                    let possible = proto == ipproto::TCP || bits & (flag::BACKEND_FIN | ENDED) == 0;
                    assert!(!possible || may_change(&known, &packet) || after == known, "{bits:#x} {flags:#x}");
                }
            }
        }
    }
}
