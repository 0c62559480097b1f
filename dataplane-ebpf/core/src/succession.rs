//! Whether a packet may open another connection in the place of one that is known: under the same addresses, or under
//! the key that its backend's answers have.
//!
//! At once only where the one that is known has ended (see [`crate::ending`]), and its backend will not mind: one in
//! TIME-WAIT takes a SYN by its sequence number. Otherwise once it has been silent for so long that the backend keeps
//! nothing of it.

use dataplane_common::{
    addr::{Ip4, Tag},
    flow::{Affinity, Flow, flag},
    headers::ipproto,
};

use crate::{age, connection, ending, parse::Packet};

/// The packet opens another connection in the place of this one, which has ended.
#[inline(always)]
pub fn replaces(packet: &Packet, known: &Flow) -> bool {
    packet.proto == ipproto::TCP && connection::is_syn(packet) && ending::ended(known)
}

/// Whether a packet of the client's opens another connection in the place of its established or pending one, at the
/// ingress node.
///
/// Not where the backend has only sent an RST since the client has proved itself. A backend that has not accepted yet
/// (a full queue, `TCP_DEFER_ACCEPT`) answers so to anybody who acknowledges what it never sent, and keeps the
/// connection (RFC 9293 section 3.10.7.4, SYN-RECEIVED): it is asked again, with the SYN.
#[inline(always)]
pub fn makes_room(known: &Affinity, packet: &Packet, now: impl FnOnce() -> u64) -> bool {
    const FINS: u8 = flag::FIN | flag::BACKEND_FIN;
    packet.proto == ipproto::TCP
        && known.flags & flag::ENDED != 0
        && known.unspoken == 0
        && connection::is_syn(packet)
        && (known.flags & FINS != FINS || age::is_quiet(known.last_seen, now()))
}

/// No sequence number has so many bits.
pub const NO_SEQUENCE: u64 = u64::MAX;

/// The sequence number of a SYN; [`NO_SEQUENCE`] of any other packet.
#[inline(always)]
pub fn initial_sequence(packet: &Packet) -> u64 {
    if packet.proto == ipproto::TCP && connection::is_syn(packet) { packet.sequence.into() } else { NO_SEQUENCE }
}

/// Whether a SYN with the sequence number `isn` opens a new connection at a backend that keeps the one of this
/// established reply entry in TIME-WAIT. As Linux has it (RFC 9293 section 3.10.7.4; RFC 6191): its number lies behind
/// all that the backend has received. Both sides' FIN must have been seen, and nothing since.
#[inline(always)]
pub fn succeeds(reply: &Flow, isn: u64, now: impl FnOnce() -> u64) -> bool {
    let [a, b, c] = reply.tcp_number;
    let end = u32::from_be_bytes([0, a, b, c]);
    let ahead = (isn as u32 >> 8).wrapping_sub(end) & 0xff_ffff;
    let both = flag::FIN | flag::ENDED;
    let behind = isn != NO_SEQUENCE && ahead != 0 && ahead < 0x80_0000;
    reply.flags & both == both && behind && age::is_quiet(reply.last_seen, now())
}

/// Whether the connection of a reply entry has ended, and so long ago that its key may be used again. `None`: if its
/// [`forward_over`].
#[inline(always)]
pub fn outlived(reply: &Flow, now: u64) -> Option<bool> {
    if !age::is_silent(reply.last_seen, now) {
        return Some(false);
    }
    // A direct connection that was only noted has no forward entry. Of a client that has gone without a word the
    // backend's FIN is all there is.
    let alone = reply.flags & flag::DIRECT != 0;
    if ending::ended(reply) || alone { Some(ending::ended(reply) || reply.flags & flag::FIN != 0) } else { None }
}

/// Whether the forward entry of a reply entry is gone, has seen the end, or is silent after the backend has finished.
#[inline(always)]
pub fn forward_over(forward: Option<&Flow>, reply: &Flow, now: u64) -> bool {
    let finished = reply.flags & flag::FIN != 0;
    forward.is_none_or(|forward| ending::ended(forward) || (finished && age::is_silent(forward.last_seen, now)))
}

/// What a client's packet is to a known connection with the same addresses.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It belongs to the connection.
    Own,
    /// It opens another one in its place.
    Anothers,
    /// It would, but the connection is live.
    Taken,
    /// Neither.
    None,
}

/// What a client's packet through the node `ingress` to the task `tag` is to a known connection with the same
/// addresses. The client's port may reach another task (its former backend is gone) or another ingress node (a floating
/// address has moved) under the same addresses: then it is another connection. Where several nodes have the address at
/// once, who came first keeps it. `proved`: the connection has proved itself.
#[inline(always)]
pub fn place_of(
    packet: &Packet,
    known: &Flow,
    proved: bool,
    tag: &Tag,
    ingress: &Ip4,
    now: impl FnOnce() -> u64,
) -> Place {
    let moved = known.peer != *ingress;
    if !moved && known.tag == *tag {
        return if replaces(packet, known) { Place::Anothers } else { Place::Own };
    }
    if !connection::may_open(packet) {
        return Place::None;
    }
    // A handshake that nobody goes on with may be a stranger's, to keep the client out.
    let over = if proved { age::is_silent(known.last_seen, now()) } else { age::is_quiet(known.last_seen, now()) };
    let live = !ending::ended(known) && !over;
    if moved && live && connection::is_syn(packet) { Place::Taken } else { Place::Anothers }
}

#[cfg(test)]
mod tests {
    use dataplane_common::{
        flow::flag::ENDED,
        headers::{
            sctpchunk,
            tcpflag::{ACK, FIN, RST, SYN},
        },
    };

    use super::*;
    use crate::age::{QUIET_NS, TIME_WAIT_NS};

    /// What the backend has acknowledged, and its upper 24 bits.
    const WAITS_FOR: u32 = 0x0102_0380;
    const UPPER: [u8; 3] = [1, 2, 3];

    fn segment(flags: u8, sequence: u32) -> Packet {
        Packet { proto: ipproto::TCP, flags, sequence, ..Packet::default() }
    }

    fn entries() -> (Flow, Flow) {
        let reply = Flow { flags: flag::REPLY | flag::SEEN, tcp_number: UPPER, ..Flow::default() };
        (Flow { flags: flag::SEEN, ..Flow::default() }, reply)
    }

    #[test]
    fn only_a_syn_replaces_and_only_what_has_ended() {
        let (live, _) = entries();
        let over = Flow { flags: live.flags | ENDED, ..live };
        assert!(replaces(&segment(SYN, 0), &over) && !replaces(&segment(SYN, 0), &live));
        assert!([ACK, SYN | ACK, RST, FIN | ACK].iter().all(|flags| !replaces(&segment(*flags, 0), &over)));
    }

    #[test]
    fn at_the_ingress_node_room_is_made_late_after_both_fins() {
        let known = |flags, unspoken| Affinity { flags, unspoken, last_seen: 5, ..Affinity::default() };
        let fins = flag::FIN | flag::BACKEND_FIN;
        let room = |flags, unspoken, now| makes_room(&known(flags, unspoken), &segment(SYN, 0), || now);
        assert!(room(ENDED, 0, 5) && room(ENDED | flag::BACKEND_FIN, 0, 5));
        assert!(!room(ENDED | fins, 0, 5 + QUIET_NS) && room(ENDED | fins, 0, 6 + QUIET_NS));
        // A backend that has said nothing but an RST since the proof is asked again, however long ago.
        assert!(!room(ENDED, 1, u64::MAX) && !room(fins, 0, u64::MAX));
        assert!(!makes_room(&known(ENDED, 0), &segment(ACK, 0), || u64::MAX));
    }

    #[test]
    fn an_init_goes_to_its_own_backend() {
        let init = Packet { proto: ipproto::SCTP, flags: sctpchunk::INIT, ..Packet::default() };
        assert!(!replaces(&init, &Flow { flags: ENDED, ..Flow::default() }));
        assert!(!makes_room(&Affinity { flags: ENDED, ..Affinity::default() }, &init, || u64::MAX));
    }

    #[test]
    fn a_syn_succeeds_a_connection_in_time_wait_with_a_number_behind_its_end() {
        let (_, mut reply) = entries();
        reply.flags |= flag::FIN | ENDED;
        let quiet = || QUIET_NS + 1;
        let isn = |sequence| initial_sequence(&segment(SYN, sequence));
        assert!(succeeds(&reply, isn(0x0102_0400), quiet) && succeeds(&reply, isn(0x8102_02ff), quiet));
        assert!(!succeeds(&reply, isn(WAITS_FOR), quiet) && !succeeds(&reply, isn(0x8102_0300), quiet));
        assert!(!succeeds(&reply, isn(0x0102_0400), || QUIET_NS));
        // No SYN, and an end without both FINs: its backend is not in TIME-WAIT.
        assert!(!succeeds(&reply, initial_sequence(&segment(ACK, 0x0102_0400)), quiet));
        assert!(!succeeds(&Flow { flags: flag::REPLY | ENDED, ..reply }, isn(0x0102_0400), quiet));
    }

    #[test]
    fn a_reply_key_is_used_again_once_its_connection_is_over_and_silent() {
        let (forward, reply) = entries();
        let late = TIME_WAIT_NS + 1;
        let with = |bits, forward: Option<Flow>, now| {
            let reply = Flow { flags: reply.flags | bits, ..reply };
            outlived(&reply, now).unwrap_or_else(|| forward_over(forward.as_ref(), &reply, now))
        };
        let client_ended = Flow { flags: forward.flags | ENDED, ..forward };
        let client_speaks = Flow { last_seen: late, ..forward };
        assert!(with(ENDED, Some(forward), late) && !with(ENDED, Some(forward), TIME_WAIT_NS));
        assert!(with(0, None, late) && with(0, Some(client_ended), late) && !with(0, Some(forward), late));
        assert!(with(flag::FIN, Some(forward), late) && !with(flag::FIN, Some(client_speaks), late));
        // One that was only noted has no forward entry to ask.
        assert!(!with(flag::DIRECT, None, late) && with(flag::DIRECT | flag::FIN, None, late));
    }

    #[test]
    fn another_ingress_node_takes_nothing_from_a_live_connection() {
        let open = segment(SYN, 0);
        let known = Flow { tag: [7; 8], peer: [1; 4], flags: flag::SEEN, ..Flow::default() };
        let place = |packet: &Packet, known: &Flow, proved, ingress, now| {
            place_of(packet, known, proved, &[7; 8], &ingress, || now)
        };
        let ack = segment(ACK, 0);
        assert_eq!(place(&open, &known, true, [1; 4], 0), Place::Own);
        assert_eq!(place(&open, &known, true, [9; 4], TIME_WAIT_NS), Place::Taken);
        assert_eq!(place(&ack, &known, true, [9; 4], u64::MAX), Place::None);
        assert_eq!(place(&open, &known, true, [9; 4], TIME_WAIT_NS + 1), Place::Anothers);
        // A handshake keeps its place for a short time only, and an ended connection for none.
        assert_eq!(place(&open, &known, false, [9; 4], QUIET_NS), Place::Taken);
        assert_eq!(place(&open, &known, false, [9; 4], QUIET_NS + 1), Place::Anothers);
        let ended = Flow { flags: flag::SEEN | flag::ENDED, ..known };
        assert_eq!(place(&open, &ended, true, [9; 4], 0), Place::Anothers);
        assert_eq!(place(&open, &ended, true, [1; 4], 0), Place::Anothers);
        assert_eq!(place(&ack, &ended, true, [1; 4], 0), Place::Own);
        // Datagrams follow the address at once.
        assert_eq!(place(&Packet { proto: ipproto::UDP, ..ack }, &known, true, [9; 4], 0), Place::Anothers);
    }
}
