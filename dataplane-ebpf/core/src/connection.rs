//! Which packets are a connection's: what opens one, the keys of its entries, and which entries belong together.
//!
//! These modules are the rules of a connection's life, without the tables that its entries are in: this one,
//! [`crate::proof`], [`crate::ending`], [`crate::succession`] and [`crate::age`]. TC and XDP programs and tests on the
//! host run them.

use dataplane_common::{
    addr::NetId,
    flow::{AffinityKey, Flow, FlowKey, flag},
    headers::{ipproto, sctpchunk, tcpflag},
};

use crate::parse::Packet;

/// The packet opens a TCP connection or an SCTP association.
#[inline(always)]
pub fn is_syn(packet: &Packet) -> bool {
    opens(packet.proto, packet.flags)
}

/// The same of a packet with these [`Packet::flags`].
#[inline(always)]
pub fn opens(proto: u8, flags: u8) -> bool {
    match proto {
        ipproto::TCP => flags & (tcpflag::SYN | tcpflag::ACK | tcpflag::RST | tcpflag::FIN) == tcpflag::SYN,
        ipproto::SCTP => flags == sctpchunk::INIT,
        _ => false,
    }
}

/// The packet may open a flow: every one of a protocol without connections, or one that opens a connection.
#[inline(always)]
pub fn may_open(packet: &Packet) -> bool {
    (packet.proto != ipproto::TCP && packet.proto != ipproto::SCTP) || is_syn(packet)
}

/// Whether addresses with that first byte are no host's source, so that no connection begins there: "this network",
/// loopback, multicast, and broadcast with its neighbours (RFC 1122 section 3.2.1.3). The rest of what that reserves,
/// 240/4, Linux routes like any other address.
#[inline(always)]
pub fn is_nobodys(first: u8) -> bool {
    first == 0 || first == 127 || first & 0xf0 == 0xe0 || first == 0xff
}

/// Key of the translated entry for the packet as it stands.
#[inline(always)]
pub fn flow_key(zone: NetId, packet: &Packet) -> FlowKey {
    FlowKey::new(zone, (packet.src, packet.sport), (packet.dst, packet.dport), packet.proto)
}

/// Key of the translated entry for the answers to the packet as it stands.
#[inline(always)]
pub fn flow_key_of_answer(zone: NetId, packet: &Packet) -> FlowKey {
    FlowKey::new(zone, (packet.dst, packet.dport), (packet.src, packet.sport), packet.proto)
}

/// Key in the table of clients of a client's packet.
#[inline(always)]
pub fn affinity_key(packet: &Packet) -> AffinityKey {
    AffinityKey::new((packet.src, packet.sport), (packet.dst, packet.dport), packet.proto)
}

/// Key in the table of clients of the connection that a packet towards the client belongs to.
#[inline(always)]
pub fn affinity_key_of_answer(packet: &Packet) -> AffinityKey {
    AffinityKey::new((packet.dst, packet.dport), (packet.src, packet.sport), packet.proto)
}

/// Key of the forward entry that belongs to a reply entry.
#[inline(always)]
pub fn forward_key(zone: NetId, reply: &Flow, proto: u8) -> FlowKey {
    FlowKey::new(zone, (reply.dst, reply.dport), (reply.src, reply.sport), proto)
}

/// Key of the reply entry that belongs to a forward entry.
#[inline(always)]
pub fn reply_key(zone: NetId, forward: &Flow, proto: u8) -> FlowKey {
    // The same turn: both are what the entry makes of its packets, turned round.
    forward_key(zone, forward, proto)
}

/// Has an entry make of its packets what answers those with `key`: an entry that was displaced is made again so from
/// the one of the other direction.
#[inline(always)]
pub fn answer(entry: &mut Flow, key: &FlowKey) {
    entry.src = key.dst;
    entry.dst = key.src;
    entry.sport = key.dport;
    entry.dport = key.sport;
}

/// Whether `reply` turns packets back into answers to packets with key `forward`.
#[inline(always)]
pub fn answers(reply: &Flow, forward: &FlowKey) -> bool {
    reply.flags & flag::REPLY != 0
        && reply.dst == forward.src
        && reply.src == forward.dst
        && reply.dport == forward.sport
        && reply.sport == forward.dport
}

/// The same for a packet instead of its key.
#[inline(always)]
pub fn answers_to(reply: &Flow, packet: &Packet) -> bool {
    reply.flags & flag::REPLY != 0
        && reply.dst == packet.src
        && reply.src == packet.dst
        && reply.dport == packet.sport
        && reply.sport == packet.dport
}

/// Whether packets of the forward entry `forward` are answered under `reply_key`.
#[inline(always)]
pub fn leads_to(forward: &Flow, reply_key: &FlowKey) -> bool {
    forward.flags & flag::REPLY == 0
        && forward.dst == reply_key.src
        && forward.src == reply_key.dst
        && forward.dport == reply_key.sport
        && forward.sport == reply_key.dport
}

#[cfg(test)]
mod tests {
    use dataplane_common::flow::MESH_ZONE;

    use super::*;

    const SYN: u8 = tcpflag::SYN;

    fn packet(proto: u8, flags: u8) -> Packet {
        let (src, dst) = ([192, 0, 2, 1], [10, 0, 0, 5]);
        Packet { proto, flags, src, dst, sport: [0x80, 1], dport: [0, 80], ..Packet::default() }
    }

    /// The two entries that `flow_open` makes for a connection of `packet`'s that its backend sees from port 0x8100.
    fn entries(packet: &Packet) -> ((FlowKey, Flow), (FlowKey, Flow)) {
        let to = ((packet.src, [0x81, 0]), ([10, 0, 0, 9], packet.dport));
        let forward = Flow::new(0, [7; 8], to.0, to.1, [[1; 4], [2; 4]], flag::SEEN);
        let (dst, src) = ((packet.src, packet.sport), (packet.dst, packet.dport));
        let reply = Flow::new(0, [7; 8], src, dst, [[1; 4], [2; 4]], flag::REPLY);
        ((flow_key(MESH_ZONE, packet), forward), (FlowKey::new(MESH_ZONE, to.1, to.0, packet.proto), reply))
    }

    #[test]
    fn a_bare_syn_and_an_init_open() {
        for flags in 0..=u8::MAX {
            // URG, PSH and ECN say nothing about it.
            let bare = flags & 0b1_0111 == SYN;
            assert_eq!(opens(ipproto::TCP, flags), bare, "{flags:#x}");
            assert_eq!(opens(ipproto::SCTP, flags), flags == sctpchunk::INIT);
            assert_eq!(may_open(&packet(ipproto::SCTP, flags)), flags == sctpchunk::INIT);
            assert_eq!(may_open(&packet(ipproto::TCP, flags)), bare);
            assert!(!opens(ipproto::UDP, flags) && may_open(&packet(ipproto::UDP, flags)));
        }
    }

    #[test]
    fn no_connection_begins_at_nobodys_address() {
        let nobodys: std::vec::Vec<u8> = (0..=u8::MAX).filter(|first| is_nobodys(*first)).collect();
        assert_eq!((nobodys[0], nobodys[1], nobodys[18]), (0, 127, 255));
        assert_eq!(nobodys[2..18], (224..240).collect::<std::vec::Vec<_>>());
    }

    #[test]
    fn each_entry_leads_to_the_other() {
        let packet = packet(ipproto::TCP, SYN);
        let ((key, forward), (key_of_reply, reply)) = entries(&packet);
        assert_eq!(reply_key(MESH_ZONE, &forward, packet.proto), key_of_reply);
        assert_eq!(forward_key(MESH_ZONE, &reply, packet.proto), key);
        assert!(answers(&reply, &key) && answers_to(&reply, &packet) && leads_to(&forward, &key_of_reply));
        // Neither is the other's kind, and another port is another connection.
        assert!(!answers(&forward, &key) && !leads_to(&reply, &key_of_reply));
        let another = Packet { sport: [0x80, 2], ..packet };
        assert!(!answers(&reply, &flow_key(MESH_ZONE, &another)) && !answers_to(&reply, &another));
        assert!(!leads_to(&forward, &flow_key_of_answer(MESH_ZONE, &packet)));
    }

    #[test]
    fn an_entry_is_made_again_from_the_others_key() {
        let packet = packet(ipproto::UDP, 0);
        let ((key, forward), (key_of_reply, reply)) = entries(&packet);
        let (mut first, mut second) = (Flow { flags: flag::REPLY, ..forward }, Flow { flags: flag::SEEN, ..reply });
        answer(&mut first, &key);
        answer(&mut second, &key_of_reply);
        assert_eq!((first, second), (reply, forward));
    }

    #[test]
    fn an_answer_has_the_clients_key() {
        let packet = packet(ipproto::TCP, SYN);
        let back = Packet { src: packet.dst, dst: packet.src, sport: packet.dport, dport: packet.sport, ..packet };
        assert_eq!(affinity_key_of_answer(&back), affinity_key(&packet));
        assert_eq!(flow_key(MESH_ZONE, &back), flow_key_of_answer(MESH_ZONE, &packet));
    }
}
