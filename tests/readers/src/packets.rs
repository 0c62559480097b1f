//! The target `packets`: a frame as the programs read and rewrite it, against what etherparse reads, and against what a
//! rewriting must leave alone.

use dataplane_common::{
    config::Config,
    flow::{Flow, MESH_ZONE},
    headers::{ETH_LEN, ICMP_LEN, INNER_NET, IPV4_LEN, ipproto, tcpflag},
};
use dataplane_core::{
    headers::{ATOMIC, Headers, fragmentable},
    host::Bytes,
    mss,
    nat::{self, Translation},
    options::{self, Room},
    parse::{self, Fragment, Packet},
    quote::{self, Quote},
    timestamp::{self, Walk},
};
use etherparse::{Ethernet2HeaderSlice, Ipv4HeaderSlice, SlicedPacket, TcpHeaderSlice, TransportSlice, UdpHeaderSlice};

/// What stands in front of the frame: the size that segments have to fit, a translation, metadata.
const PARAMETERS: usize = 16;

const IP_CHECKSUM: usize = 10;
const IP_ADDRESSES: usize = 12;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

/// An input of these parameters and this frame.
pub(crate) fn input(room: u16, to: &Translation, frame: &[u8]) -> Vec<u8> {
    let parameters = [&room.to_be_bytes()[..], &to.src, &to.dst, &to.sport, &to.dport, &[0, 0], frame];
    parameters.concat()
}

/// Reads a frame, and rewrites it in every way that the programs do.
pub(crate) fn packets(data: &[u8]) {
    let Some((parameters, bytes)) = data.split_first_chunk::<PARAMETERS>() else { return };
    let [r1, r2, a, b, c, d, e, f, g, h, s1, s2, d1, d2, gso, _] = *parameters;
    let to = Translation { src: [a, b, c, d], dst: [e, f, g, h], sport: [s1, s2], dport: [d1, d2] };
    headers(&to, u16::from_be_bytes([r1, r2]), gso);

    let Some(packet) = read(bytes) else { return };
    // BIG TCP: nothing but the length differs.
    let mut big = Bytes::new(bytes);
    big.gso_size = u32::from(gso);
    let mut again = Packet::default();
    assert_eq!(parse::ipv4(&big, ETH_LEN, &mut again).map(|()| again), Ok(packet), "changed by gso_size");

    source_route(bytes, &packet);
    let bytes = summed(bytes, &packet);
    translate(&bytes, &packet, &to);
    if packet.proto == ipproto::TCP && packet.fragment == Fragment::Whole {
        clamp(&bytes, &packet, u16::from_be_bytes([r1, r2]));
        forget_time(&bytes, &packet);
    }
    if packet.proto == ipproto::ICMP && packet.fragment == Fragment::Whole {
        follow(&bytes, &packet, &to);
    }
}

/// What the programs and etherparse read of a frame, which is the same. `None`: the programs take it for no IPv4
/// packet.
fn read(bytes: &[u8]) -> Option<Packet> {
    let frame = Bytes::new(bytes);
    let mut packet = Packet::default();
    let read = parse::ipv4(&frame, ETH_LEN, &mut packet);
    if let Ok(eth) = parse::eth(&frame, 0) {
        let theirs = Ethernet2HeaderSlice::from_slice(bytes).expect("an Ethernet header");
        assert_eq!((eth.dst, eth.src), (theirs.destination(), theirs.source()));
        assert_eq!(u16::from_be_bytes(eth.ethertype), theirs.ether_type().0);
    }
    let ip = bytes.get(ETH_LEN..)?;
    if read.is_err() {
        let sliced = SlicedPacket::from_ip(ip);
        let transport = sliced.ok().filter(|_| ip[0] >> 4 == 4).and_then(|sliced| sliced.transport);
        let refused = matches!(transport, Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)));
        assert!(!refused, "{read:?}, but a well-formed packet: {ip:02x?}");
        return None;
    }
    let theirs = Ipv4HeaderSlice::from_slice(ip).expect("an IPv4 header");
    assert_eq!((packet.src, packet.dst), (theirs.source(), theirs.destination()));
    assert_eq!((packet.proto, packet.ttl), (theirs.protocol().0, theirs.ttl()));
    assert_eq!(packet.tos, theirs.dcp().value() << 2 | theirs.ecn().value());
    assert_eq!((packet.total_len, u16::from_be_bytes(packet.id)), (theirs.total_len(), theirs.identification()));
    assert_eq!(packet.dont_fragment, theirs.dont_fragment());
    assert_eq!((packet.net, packet.l4), (ETH_LEN, ETH_LEN + theirs.slice().len()));
    let offset = theirs.fragments_offset().value();
    assert_eq!(packet.fragment == Fragment::Whole, !theirs.is_fragmenting_payload());
    assert_eq!(packet.fragment == Fragment::Later, offset != 0);
    let end = ETH_LEN + usize::from(packet.total_len);
    assert!(packet.l4 <= end && end <= bytes.len(), "{packet:?} is not in {} bytes", bytes.len());
    transport(&bytes[packet.l4..end], &packet);
    Some(packet)
}

/// The same for the transport header at the beginning of `l4`.
fn transport(l4: &[u8], packet: &Packet) {
    let ports = (u16::from_be_bytes(packet.sport), u16::from_be_bytes(packet.dport));
    match packet.proto {
        _ if packet.fragment == Fragment::Later => assert_eq!(ports, (0, 0), "of a later fragment"),
        ipproto::TCP => {
            let theirs = TcpHeaderSlice::from_slice(l4).expect("a TCP header");
            assert_eq!(ports, (theirs.source_port(), theirs.destination_port()));
            assert_eq!(
                (packet.sequence, packet.acknowledgement),
                (theirs.sequence_number(), theirs.acknowledgment_number())
            );
            assert_eq!(usize::from(packet.tcp_len), theirs.slice().len());
            let flag = |flag| packet.flags & flag != 0;
            assert_eq!(
                (flag(tcpflag::SYN), flag(tcpflag::ACK), flag(tcpflag::FIN), flag(tcpflag::RST)),
                (theirs.syn(), theirs.ack(), theirs.fin(), theirs.rst())
            );
        }
        ipproto::UDP => {
            let theirs = UdpHeaderSlice::from_slice(l4).expect("a UDP header");
            assert_eq!(ports, (theirs.source_port(), theirs.destination_port()));
        }
        ipproto::SCTP => assert!(l4.len() >= 16 && packet.flags == l4[12]),
        ipproto::ICMP => assert!(l4.len() >= ICMP_LEN && packet.flags == l4[0]),
        _ => assert_eq!(ports, (0, 0), "of a protocol without ports"),
    }
}

/// Whether there is a source route among the options (RFC 791 section 3.1), read without the limits of a program.
fn source_route(bytes: &[u8], packet: &Packet) {
    if !packet.has_options() {
        return;
    }
    let mut rest = &bytes[packet.net + IPV4_LEN..packet.l4];
    let expected = loop {
        rest = match *rest {
            [] | [0, ..] => break false,
            [131 | 137, ..] => break true,
            [1, ref rest @ ..] => rest,
            [_, len, ..] if len >= 2 => rest.get(usize::from(len)..).unwrap_or_default(),
            _ => break false,
        };
    };
    let found = options::find_source_route(&Bytes::new(bytes), packet, &mut Room::default());
    assert_eq!(found, expected, "{:02x?}", &bytes[packet.net + IPV4_LEN..packet.l4]);
}

/// The Internet checksum (RFC 1071) over all of `parts`, each of which begins at an even offset; 0 if they hold a valid
/// one.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Where the transport checksum is, and whether it covers a pseudo-header. `None`: it is in another fragment, unknown,
/// or left out.
fn transport_sum(bytes: &[u8], packet: &Packet) -> Option<(usize, bool)> {
    let (offset, pseudo) = match packet.proto {
        _ if packet.fragment != Fragment::Whole => return None,
        ipproto::TCP => (TCP_CHECKSUM, true),
        ipproto::UDP => (UDP_CHECKSUM, true),
        ipproto::ICMP => (ICMP_CHECKSUM, false),
        _ => return None,
    };
    let at = packet.l4 + offset;
    (packet.proto != ipproto::UDP || bytes[at..at + 2] != [0, 0]).then_some((at, pseudo))
}

/// What is left over of the sum of the IP header, and of the transport's: zero where they are valid.
fn sums(bytes: &[u8], packet: &Packet) -> (u16, u16) {
    let segment = &bytes[packet.l4..packet.net + usize::from(packet.total_len)];
    let transport = transport_sum(bytes, packet).map_or(0, |(_, pseudo)| {
        let len = (segment.len() as u16).to_be_bytes();
        let addresses = &bytes[packet.net + IP_ADDRESSES..packet.net + IPV4_LEN];
        if pseudo { sum(&[addresses, &[0, packet.proto], &len, segment]) } else { sum(&[segment]) }
    });
    (sum(&[&bytes[packet.net..packet.l4]]), transport)
}

/// The frame with valid checksums.
fn summed(bytes: &[u8], packet: &Packet) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let put = |bytes: &mut Vec<u8>, at: usize, sum: u16| bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    if let Some((at, _)) = transport_sum(&bytes, packet) {
        // It adds nothing to the sum, as 0 does, which in UDP would mean that there is none.
        put(&mut bytes, at, 0xffff);
        match sums(&bytes, packet).1 {
            0 => {}
            valid => put(&mut bytes, at, valid),
        }
    }
    put(&mut bytes, packet.net + IP_CHECKSUM, 0);
    let valid = sums(&bytes, packet).0;
    put(&mut bytes, packet.net + IP_CHECKSUM, valid);
    assert_eq!(sums(&bytes, packet), (0, 0), "the test's own sums");
    bytes
}

/// Asserts that checksums are still valid, and that nothing has changed but `places`.
fn only(before: &[u8], after: &[u8], packet: &Packet, places: &[std::ops::Range<usize>]) {
    assert_eq!(sums(after, packet), (0, 0), "checksums after a change of {before:02x?} to {after:02x?}");
    assert_eq!(before.len(), after.len());
    for (at, (old, new)) in before.iter().zip(after).enumerate() {
        assert!(
            old == new || places.iter().any(|place| place.contains(&at)),
            "byte {at} of {before:02x?} is {new:02x}"
        );
    }
}

/// The IP header's checksum and addresses, and the transport's checksum and ports.
fn places(bytes: &[u8], packet: &Packet) -> [std::ops::Range<usize>; 3] {
    let sum = transport_sum(bytes, packet).map_or(0..0, |(at, _)| at..at + 2);
    [packet.net + IP_CHECKSUM..packet.net + IPV4_LEN, sum, packet.l4..packet.l4 + 4]
}

fn translate(bytes: &[u8], packet: &Packet, to: &Translation) {
    let ports = matches!(packet.proto, ipproto::TCP | ipproto::UDP) && packet.fragment != Fragment::Later;
    let frame = Bytes::new(bytes);
    nat::rewrite(&frame, packet, to).expect("a frame in memory can be rewritten");
    let after = frame.into_bytes();
    let [ip, sum, of_ports] = places(bytes, packet);
    // A first fragment's checksum is of all of its datagram, which is not here.
    let first = match packet.proto {
        ipproto::TCP => packet.l4 + TCP_CHECKSUM,
        ipproto::UDP => packet.l4 + UDP_CHECKSUM,
        _ => 0,
    };
    let first = if ports && packet.fragment == Fragment::First { first..(first + 2).min(bytes.len()) } else { 0..0 };
    only(bytes, &after, packet, &[ip, sum, first, if ports { of_ports } else { 0..0 }]);
    let mut again = Packet::default();
    parse::ipv4(&Bytes::new(&after), ETH_LEN, &mut again).expect("it can still be read");
    let expected = Packet { src: to.src, dst: to.dst, ..*packet };
    let expected = if ports { Packet { sport: to.sport, dport: to.dport, ..expected } } else { expected };
    assert_eq!(again, expected);
}

fn clamp(bytes: &[u8], packet: &Packet, room: u16) {
    let frame = Bytes::new(bytes);
    mss::clamp(&frame, packet, room).expect("a frame in memory can be rewritten");
    let after = frame.into_bytes();
    let options = packet.l4 + 20..packet.l4 + usize::from(packet.tcp_len);
    let [_, sum, _] = places(bytes, packet);
    only(bytes, &after, packet, &[sum, options.clone()]);
    if bytes[options.clone()] == after[options.clone()] {
        return;
    }
    let limit = room.saturating_sub(40);
    // Exactly one option has changed.
    let changed = options.clone().find(|&at| {
        let value = |bytes: &[u8]| bytes.get(at..at + 2).map(|value| u16::from_be_bytes([value[0], value[1]]));
        bytes[at - 2..at] == [2, 4] && value(&after) == Some(limit) && value(bytes) > Some(limit) && {
            bytes[options.start..at] == after[options.start..at] && bytes[at + 2..] == after[at + 2..]
        }
    });
    assert!(changed.is_some(), "MSS of {limit} in {:02x?}: {:02x?}", &bytes[options.clone()], &after[options]);
}

fn forget_time(bytes: &[u8], packet: &Packet) {
    let frame = Bytes::new(bytes);
    timestamp::remove(&frame, packet, &mut Walk::default());
    let after = frame.into_bytes();
    let options = packet.l4 + 20..packet.l4 + usize::from(packet.tcp_len);
    let [_, sum, _] = places(bytes, packet);
    only(bytes, &after, packet, &[sum, options.clone()]);
    if bytes[options.clone()] != after[options.clone()] {
        let removed = options.clone().any(|at| {
            let (old, new) = (bytes.get(at..at + 10), after.get(at..at + 10));
            old.is_some_and(|old| old[..2] == [8, 10])
                && new == Some(&[1; 10])
                && bytes[options.start..at] == after[options.start..at]
                && bytes[at + 10..] == after[at + 10..]
        });
        assert!(removed, "timestamps in {:02x?}: {:02x?}", &bytes[options.clone()], &after[options]);
    }
}

/// An ICMP error that follows a translated connection.
fn follow(bytes: &[u8], packet: &Packet, to: &Translation) {
    let (frame, mut quote) = (Bytes::new(bytes), Quote::default());
    let Some(quote) = quote::of(&frame, packet, &MESH_ZONE, &mut quote) else { return };
    assert_eq!(frame.clone().into_bytes(), bytes, "changed by being read");
    let inner = packet.l4 + ICMP_LEN;
    let theirs = Ipv4HeaderSlice::from_slice(&bytes[inner..]).expect("a quoted IPv4 header");
    assert_eq!((quote.key.src, quote.key.dst), (theirs.destination(), theirs.source()));
    assert_eq!(quote.key.dst, packet.dst, "somebody else's packet");
    let l4 = inner + theirs.slice().len();
    // Ports of other protocols are not translated, see `nat`.
    let translated = matches!(theirs.protocol().0, ipproto::TCP | ipproto::UDP);
    let (sport, dport) = if translated { (to.sport, to.dport) } else { (quote.key.sport, quote.key.dport) };
    let flow = Flow { src: to.src, dst: to.dst, sport, dport, ..Flow::default() };
    quote::rewrite(&frame, packet, quote, &flow).expect("a frame in memory can be rewritten");
    let after = frame.into_bytes();
    let [ip, sum, _] = places(bytes, packet);
    let checksum = match theirs.protocol().0 {
        ipproto::TCP => l4 + TCP_CHECKSUM..l4 + TCP_CHECKSUM + 2,
        ipproto::UDP => l4 + UDP_CHECKSUM..l4 + UDP_CHECKSUM + 2,
        _ => 0..0,
    };
    only(bytes, &after, packet, &[ip, sum, inner + IP_CHECKSUM..inner + IPV4_LEN, l4..l4 + 4, checksum]);
    let (before, now) = (self::sum(&[&bytes[inner..l4]]), self::sum(&[&after[inner..l4]]));
    assert!(before != 0 || now == 0, "the quoted header's checksum was valid");
    let quoted = Ipv4HeaderSlice::from_slice(&after[inner..]).expect("a quoted IPv4 header");
    assert_eq!((quoted.source(), quoted.destination()), (to.dst, to.src));
}

/// The headers of a tunnel, as etherparse reads them.
fn headers(to: &Translation, room: u16, tos: u8) {
    let config = Config { vxlan_port: to.dport, ..Config::default() };
    let fragmented = room % 2 == 1;
    let headers = Headers {
        eth: (u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8]), u32::from_le_bytes([9, 10, 11, 12])),
        vtep: u32::from_le_bytes(to.dst),
        tos,
        ip_len: room,
        second: if fragmented { fragmentable(u32::from(room)) } else { ATOMIC },
        sport: u16::from_be_bytes(to.sport),
        vni: u32::from_le_bytes([0, to.src[0], to.src[1], to.src[2]]),
        inner_dst: u64::from_le_bytes([1, 2, 3, 4, 5, 6, 0, 0]),
        inner_src: u64::from_le_bytes([7, 8, 9, 10, 11, 12, 0, 0]),
    };
    let bytes: Vec<u8> =
        headers.words(&config, u32::from_le_bytes(to.src)).iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(bytes.len(), INNER_NET);
    assert_eq!(bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let ip = Ipv4HeaderSlice::from_slice(&bytes[ETH_LEN..]).expect("an outer IPv4 header");
    assert_eq!((ip.source(), ip.destination(), ip.total_len()), (to.src, to.dst, room));
    assert_eq!((ip.ttl(), ip.protocol().0, ip.ecn().value(), ip.dcp().value()), (64, ipproto::UDP, tos & 3, 0));
    assert_eq!((ip.dont_fragment(), ip.is_fragmenting_payload()), (!fragmented, false));
    assert_eq!(sum(&[&bytes[ETH_LEN..ETH_LEN + IPV4_LEN]]), 0, "outer IPv4 checksum");
    let udp = UdpHeaderSlice::from_slice(&bytes[ETH_LEN + IPV4_LEN..]).expect("an outer UDP header");
    assert_eq!((udp.source_port().to_be_bytes(), udp.destination_port().to_be_bytes()), (to.sport, to.dport));
    assert_eq!((udp.length(), udp.checksum()), (room.wrapping_sub(IPV4_LEN as u16), 0));
    assert_eq!(bytes[42..50], [8, 0, 0, 0, to.src[0], to.src[1], to.src[2], 0], "VXLAN header");
    assert_eq!(bytes[50..], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0], "inner Ethernet header");
}
