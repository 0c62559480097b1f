//! Frames of every kind that the programs look into, made by etherparse.

use dataplane_core::nat::Translation;
use etherparse::{
    Icmpv4Type, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, PacketBuilder, PacketBuilderStep, TcpOptionElement,
    icmpv4,
};

use crate::packets::input;

const CLIENT: [u8; 4] = [192, 0, 2, 7];
const NODE: [u8; 4] = [192, 0, 2, 1];
const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 1]);
const TO: Translation = Translation { src: CLIENT, dst: [10, 0, 1, 3], sport: [0x9c, 0x40], dport: [0, 80] };

/// What a SYN of Linux has behind its header.
fn options() -> [TcpOptionElement; 5] {
    use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgementPermitted, Timestamp, WindowScale};
    [MaximumSegmentSize(1460), SelectiveAcknowledgementPermitted, Timestamp(1, 0), Noop, WindowScale(7)]
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut frames = vec![syn(), odd_syn(), segment(), datagram(), ping(), sctp()];
    frames.extend(errors());
    frames.extend(fragments());
    // A loose source route behind a byte of nothing.
    frames.push(with_options(&[1, 131, 7, 4, 192, 0, 2, 9]));
    frames.push(with_options(&[148, 4, 0, 0]));
    frames.iter().map(|frame| input(1450, &TO, frame)).collect()
}

fn ip() -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(CLIENT, NODE, 64)
}

macro_rules! written {
    ($builder:expr, $payload:expr) => {{
        let (builder, mut frame) = ($builder, Vec::new());
        builder.write(&mut frame, $payload).expect("written to memory");
        frame
    }};
}

fn syn() -> Vec<u8> {
    let builder = ip().tcp(40000, 8080, 1, 64240).syn().options(&options()).expect("room for the options");
    written!(builder, &[])
}

/// With the timestamps and the segment size at odd offsets.
fn odd_syn() -> Vec<u8> {
    use TcpOptionElement::{MaximumSegmentSize, Noop, Timestamp};
    let options = [Noop, Timestamp(0x0102_0304, 5), MaximumSegmentSize(9000)];
    let builder = ip().tcp(40000, 8080, 1, 64240).syn().options(&options).expect("room for the options");
    written!(builder, &[])
}

fn segment() -> Vec<u8> {
    written!(ip().tcp(40000, 8080, 7, 501).ack(9).psh(), b"odd")
}

fn datagram() -> Vec<u8> {
    written!(ip().udp(40000, 53), b"question")
}

fn ping() -> Vec<u8> {
    written!(ip().icmpv4_echo_request(7, 1), b"abcdefgh")
}

/// The common header, and an INIT.
fn sctp() -> Vec<u8> {
    let mut frame = Vec::new();
    let payload = [0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 10, 0, 10];
    ip().write(&mut frame, IpNumber::SCTP, &payload).expect("written to memory");
    frame
}

/// Errors about a connection of the node's, from a router and from the client.
fn errors() -> Vec<Vec<u8>> {
    let quoted = |proto: fn() -> Vec<u8>| {
        let mut quote = proto().split_off(14);
        // The other way, from the node to the client.
        quote[12..16].copy_from_slice(&NODE);
        quote[16..20].copy_from_slice(&CLIENT);
        quote
    };
    let kinds = [
        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 }),
        Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
    ];
    let quotes = [quoted(segment), quoted(datagram), quoted(sctp), quoted(segment)[..28].to_vec()];
    let errors = kinds.into_iter().flat_map(|kind| quotes.iter().map(move |quote| (kind.clone(), quote)));
    errors.map(|(kind, quote)| written!(ip().icmpv4(kind), quote)).collect()
}

fn fragments() -> Vec<Vec<u8>> {
    let piece = |offset: u16, more: bool, payload: &[u8]| {
        let mut header = Ipv4Header::new(payload.len() as u16, 64, IpNumber::UDP, CLIENT, NODE).expect("short enough");
        (header.more_fragments, header.dont_fragment) = (more, false);
        header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ip(IpHeaders::Ipv4(header, Default::default()));
        builder.write(&mut frame, IpNumber::UDP, payload).expect("written to memory");
        frame
    };
    let datagram = [&[0x9c, 0x40, 0, 53, 0, 24, 0x12, 0x34], &[b'x'; 16][..]].concat();
    vec![piece(0, true, &datagram[..16]), piece(2, false, &datagram[16..])]
}

fn with_options(options: &[u8]) -> Vec<u8> {
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, CLIENT, NODE).expect("short enough");
    header.options = options.try_into().expect("words of options");
    let ip = IpHeaders::Ipv4(header, Default::default());
    written!(PacketBuilder::ethernet2(MACS.0, MACS.1).ip(ip).udp(40000, 53), b"question")
}
