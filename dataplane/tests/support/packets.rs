//! Packets, built with etherparse: independent of our own header code.

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpFragOffset,
    IpNumber, Ipv4Header, TcpHeader, TcpOptionElement, UdpHeader,
};

pub type Ip4 = [u8; 4];
pub type Mac = [u8; 6];

/// An IPv4 header's variable parts.
#[derive(Clone, Debug)]
pub struct Ip {
    pub src: Ip4,
    pub dst: Ip4,
    /// DSCP and ECN.
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    pub ttl: u8,
    pub options: Vec<u8>,
}

/// An ordinary packet from `src` to `dst`: DF, TTL 64.
pub fn ip(src: Ip4, dst: Ip4) -> Ip {
    Ip {
        src,
        dst,
        tos: 0,
        id: 0x1234,
        dont_fragment: true,
        more_fragments: false,
        fragment_offset: 0,
        ttl: 64,
        options: Vec::new(),
    }
}

/// The same behind a router.
pub fn hop(ip: &Ip) -> Ip {
    Ip { ttl: ip.ttl - 1, ..ip.clone() }
}

/// What a router makes of an ordinary packet from `src` to `dst`.
pub fn routed(src: Ip4, dst: Ip4) -> Ip {
    hop(&ip(src, dst))
}

/// What the IPv4 packet carries.
#[derive(Clone, Debug)]
pub enum L4 {
    Udp { sport: u16, dport: u16, payload: Vec<u8>, checksum: bool },
    Tcp { sport: u16, dport: u16, flags: &'static str, mss: Option<u16>, payload: Vec<u8> },
    Echo { reply: bool, id: u16, payload: Vec<u8> },
    Raw { proto: u8, payload: Vec<u8> },
}

/// UDP with a checksum and a small payload.
pub fn udp(sport: u16, dport: u16) -> L4 {
    L4::Udp { sport, dport, payload: b"a datagram".to_vec(), checksum: true }
}

/// TCP with the flags named by their first letters (`S`, `A`, `F`, `R`, `P`); `K` is an ACK of a SYN made here, `A` one
/// of something else.
pub fn tcp(sport: u16, dport: u16, flags: &'static str) -> L4 {
    let payload = if flags == "PA" { b"a segment".to_vec() } else { Vec::new() };
    L4::Tcp { sport, dport, flags, mss: None, payload }
}

/// A ping.
pub fn ping(id: u16) -> L4 {
    L4::Echo { reply: false, id, payload: b"abcdefgh".to_vec() }
}

/// The answer to [`ping`].
pub fn pong(id: u16) -> L4 {
    L4::Echo { reply: true, id, payload: b"abcdefgh".to_vec() }
}

/// The IPv4 packet, checksums filled in.
pub fn ipv4(ip: &Ip, l4: &L4) -> Vec<u8> {
    let mut header = Ipv4Header::new(0, ip.ttl, IpNumber(0), ip.src, ip.dst).unwrap();
    header.dscp = (ip.tos >> 2).try_into().unwrap();
    header.ecn = (ip.tos & 3).try_into().unwrap();
    header.identification = ip.id;
    header.dont_fragment = ip.dont_fragment;
    header.more_fragments = ip.more_fragments;
    header.fragment_offset = IpFragOffset::try_new(ip.fragment_offset).unwrap();
    header.options = ip.options.as_slice().try_into().unwrap();
    let (protocol, body) = transport(&header, l4);
    header.protocol = IpNumber(protocol);
    header.set_payload_len(body.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], &body].concat()
}

fn transport(ip: &Ipv4Header, l4: &L4) -> (u8, Vec<u8>) {
    match l4 {
        L4::Udp { sport, dport, payload, checksum } => {
            let header = if *checksum {
                UdpHeader::with_ipv4_checksum(*sport, *dport, ip, payload).unwrap()
            } else {
                UdpHeader::without_ipv4_checksum(*sport, *dport, payload.len()).unwrap()
            };
            (17, [&header.to_bytes()[..], payload].concat())
        }
        L4::Tcp { sport, dport, flags, mss, payload } => {
            let mut header = TcpHeader::new(*sport, *dport, 1000, 0xfaf0);
            header.syn = flags.contains('S');
            header.ack = flags.contains('A');
            header.fin = flags.contains('F');
            header.rst = flags.contains('R');
            header.psh = flags.contains('P');
            if header.ack {
                header.acknowledgment_number = 2000;
            }
            if flags.contains('K') {
                // All segments have sequence number 1000: this is what completes a handshake.
                header.ack = true;
                header.acknowledgment_number = 1001;
            }
            if let Some(mss) = mss {
                let options = [
                    TcpOptionElement::MaximumSegmentSize(*mss),
                    TcpOptionElement::SelectiveAcknowledgementPermitted,
                    TcpOptionElement::WindowScale(7),
                ];
                header.set_options(&options).unwrap();
            }
            header.checksum = header.calc_checksum_ipv4(ip, payload).unwrap();
            (6, [&header.to_bytes()[..], payload].concat())
        }
        L4::Echo { reply, id, payload } => {
            let echo = IcmpEchoHeader { id: *id, seq: 1 };
            let kind = if *reply { Icmpv4Type::EchoReply(echo) } else { Icmpv4Type::EchoRequest(echo) };
            (1, [&Icmpv4Header::with_checksum(kind, payload).to_bytes()[..], payload].concat())
        }
        L4::Raw { proto, payload } => (*proto, payload.clone()),
    }
}

/// The datagram cut into fragments of `size` bytes of payload (a multiple of 8), as its sender does (RFC 791).
pub fn pieces(ip: &Ip, l4: &L4, size: usize) -> Vec<(Ip, L4)> {
    let whole = ipv4(ip, l4);
    let (proto, payload) = (whole[9], &whole[20 + ip.options.len()..]);
    let count = payload.len().div_ceil(size);
    let piece = |(number, bytes): (usize, &[u8])| {
        let fragment_offset = (number * size / 8) as u16;
        let header = Ip { dont_fragment: false, more_fragments: number + 1 < count, fragment_offset, ..ip.clone() };
        (header, L4::Raw { proto, payload: bytes.to_vec() })
    };
    payload.chunks(size).enumerate().map(piece).collect()
}

/// An Ethernet frame.
pub fn ethernet(src: Mac, dst: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: src, destination: dst, ether_type: EtherType(ether_type) };
    [&header.to_bytes()[..], payload].concat()
}

/// An Ethernet frame with an IPv4 packet.
pub fn frame(src: Mac, dst: Mac, ip: &Ip, l4: &L4) -> Vec<u8> {
    ethernet(src, dst, 0x0800, &ipv4(ip, l4))
}

/// An ARP packet in a frame from its sender.
pub fn arp(operation: ArpOperation, sender: (Mac, Ip4), target: (Mac, Ip4), eth_dst: Mac) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: sender.0,
        sender_ipv4: sender.1,
        target_mac: target.0,
        target_ipv4: target.1,
    };
    ethernet(sender.0, eth_dst, 0x0806, &packet.to_bytes())
}

/// The outer IPv4 packet of a VXLAN tunnel (RFC 7348) as we send it: DF, TTL 64, id 0, no UDP checksum.
pub fn vxlan(src: Ip4, dst: Ip4, sport: u16, vni: u32, inner: &[u8]) -> (Ip, L4) {
    let vni = vni.to_be_bytes();
    let header = [0x08, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    let payload = [&header[..], inner].concat();
    (Ip { id: 0, ..ip(src, dst) }, L4::Udp { sport, dport: 4789, payload, checksum: false })
}

/// A SYN (or SYN ACK) with these raw options, padded to words with ENDs, and some data.
pub fn syn(src: Ip4, dst: Ip4, (sport, dport): (u16, u16), ack: bool, options: &[u8]) -> L4 {
    let payload = [2, 4, 0xff, 0xff];
    let mut tcp = TcpHeader::new(sport, dport, 1000, 0xfaf0);
    (tcp.syn, tcp.ack, tcp.acknowledgment_number) = (true, ack, if ack { 1 } else { 0 });
    tcp.set_options_raw(options).expect("at most 40 bytes");
    let length = u16::try_from(tcp.header_len() + payload.len()).expect("short");
    let pseudo = Ipv4Header::new(length, 64, IpNumber::TCP, src, dst).expect("short");
    tcp.checksum = tcp.calc_checksum_ipv4(&pseudo, &payload).expect("short");
    L4::Raw { proto: 6, payload: [&tcp.to_bytes()[..], &payload].concat() }
}
