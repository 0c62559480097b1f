//! What the generator is to send: one frame's headers, and what differs between frames.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use dataplane_common::{
    addr::{NODE_MAC_PREFIX, TASK_MAC_PREFIX},
    headers::{ENCAP_LEN, ETH_LEN, IPV4_LEN, TCP_LEN, UDP_LEN, VXLAN_FLAG_VNI, VXLAN_LEN, ethertype, ipproto, tcpflag},
    traffic::{HEADERS, Order, TUNNELLED_HEADERS, sequence},
};
use serde::Serialize;

const DF: u16 = 0x4000;
const TTL: u8 = 64;
const PUSH: u8 = 0x08;

/// Of the packets that are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    Udp,
    Tcp,
}

/// Which packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Those that open it.
    Open,
    /// The client's of an established one.
    Middle,
    /// The server's of an established one.
    Reply,
}

/// What the generator is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frames {
    /// Which of its programs.
    pub(super) program: &'static str,
    pub(super) order: Order,
    /// Bytes of each frame.
    pub(super) length: usize,
}

/// Where packets go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) dst_mac: [u8; 6],
    pub(super) src_mac: [u8; 6],
    pub(super) address: Ipv4Addr,
    pub(super) first_port: u16,
    pub(super) ports: u16,
    /// Backends that new flows are given to in turn: a power of two. Flows to the same one have different source ports,
    /// so that a masquerade need not look for free ones.
    pub(super) backends: u32,
}

/// Which flows, in which order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flows {
    /// One after the other.
    InTurn(u32),
    /// Each as often as every other, but never one beside the one before: entries that were made one after the other
    /// are neighbours in memory, and would come into the cache together.
    Scattered(u32),
    /// Each packet from a client of its own.
    Random,
}

/// Clients' packets. `frame`: bytes of each.
pub(super) fn requests(target: &Target, protocol: Protocol, stage: Stage, flows: Flows, frame: usize) -> Frames {
    let (order, length) = order(target, protocol, stage, flows, frame);
    Frames { program: "generate", order, length }
}

/// A tunnel from a backend's node to the node under test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel {
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) vni: u32,
}

/// Servers' packets of so many flows that were opened before. `frame`: bytes of each, without the tunnel.
pub(super) fn replies(target: &Target, protocol: Protocol, flows: u32, frame: usize, tunnel: Option<Tunnel>) -> Frames {
    // Addresses and ports are all the generator's: they are not known before a node has chosen.
    let nobody = Target { address: Ipv4Addr::UNSPECIFIED, ..*target };
    let (mut order, mut length) = order(&nobody, protocol, Stage::Reply, Flows::Scattered(flows), frame);
    let Some(tunnel) = tunnel else { return Frames { program: "replay", order, length } };
    let (outer, ethernet) = outer(target, length, tunnel);
    let inner = order.headers;
    order.headers[..ENCAP_LEN].copy_from_slice(&outer);
    order.headers[ENCAP_LEN..].copy_from_slice(&inner[..HEADERS]);
    order.headers[ENCAP_LEN..ENCAP_LEN + ETH_LEN].copy_from_slice(&ethernet);
    length += ENCAP_LEN;
    Frames { program: "replay_tunnel", order, length }
}

/// Headers in front of an inner frame of `length` bytes, and the Ethernet header of that.
fn outer(target: &Target, length: usize, tunnel: Tunnel) -> (Vec<u8>, Vec<u8>) {
    const VXLAN_PORT: u16 = 4789;
    const FROM_PORT: u16 = 50_000;
    let datagram = (UDP_LEN + VXLAN_LEN + length) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((IPV4_LEN as u16 + datagram).to_be_bytes());
    ip.extend([[0, 0], DF.to_be_bytes(), [TTL, ipproto::UDP], [0, 0]].concat());
    ip.extend([tunnel.from.octets(), tunnel.to.octets()].concat());
    let sum = sum(&ip);
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    // Without a checksum, as in every tunnel.
    let udp = [FROM_PORT, VXLAN_PORT, datagram, 0].map(u16::to_be_bytes).concat();
    let vxlan = [u32::from(VXLAN_FLAG_VNI) << 24, tunnel.vni << 8].map(u32::to_be_bytes).concat();
    let outer = [&target.dst_mac[..], &target.src_mac, &ethertype::IPV4, &ip, &udp, &vxlan].concat();
    let [node, task] = [(NODE_MAC_PREFIX, tunnel.to.octets()), (TASK_MAC_PREFIX, [0; 4])]
        .map(|(prefix, address)| [&prefix[..], &address].concat());
    (outer, [&node[..], &task, &ethertype::IPV4].concat())
}

fn order(target: &Target, protocol: Protocol, stage: Stage, flows: Flows, frame: usize) -> (Order, usize) {
    // A SYN carries no data.
    let syn = protocol == Protocol::Tcp && stage == Stage::Open;
    let length = if syn { HEADERS } else { frame.max(HEADERS) };
    let transport_len = (length - ETH_LEN - IPV4_LEN) as u16;
    let (proto, transport, checksum_at) = match protocol {
        Protocol::Udp => (ipproto::UDP, udp(transport_len), ETH_LEN + IPV4_LEN + 6),
        Protocol::Tcp => (ipproto::TCP, tcp(stage), ETH_LEN + IPV4_LEN + 16),
    };
    let mut ip = vec![0x45, 0];
    ip.extend(((length - ETH_LEN) as u16).to_be_bytes());
    ip.extend([[0, 0], DF.to_be_bytes(), [TTL, proto], [0, 0]].concat());
    ip.extend([0; 4]);
    ip.extend(target.address.octets());
    let pseudo = sum(&target.address.octets()) + u32::from(proto) + u32::from(transport_len);
    let parts = [&target.dst_mac[..], &target.src_mac, &ethertype::IPV4, &ip, &transport].concat();
    let mut headers = [0; TUNNELLED_HEADERS];
    headers[..parts.len()].copy_from_slice(&parts);
    let (flows, stride) = match flows {
        Flows::InTurn(flows) => (flows, 1 % flows),
        Flows::Scattered(flows) => (flows, stride(flows)),
        Flows::Random => (0, 0),
    };
    let published = u16::try_from(flows).unwrap_or(u16::MAX).clamp(1, target.ports.max(1));
    let order = Order {
        headers,
        checksum_at: checksum_at as u16,
        ip_sum: sum(&ip),
        transport_sum: pseudo + sum(&transport),
        flows,
        stride,
        flow: 0,
        port_shift: target.backends.trailing_zeros() as u16,
        first_published: target.first_port,
        published,
        published_stride: (stride % u32::from(published)) as u16,
        published_at: 0,
    };
    (order, length)
}

/// The same frames, to begin with that flow.
pub(super) fn from(frames: Frames, flow: u32) -> Frames {
    let order = frames.order;
    Frames { order: Order { flow, published_at: (flow % u32::from(order.published)) as u16, ..order }, ..frames }
}

fn udp(length: u16) -> Vec<u8> {
    let header = [[0, 0], [0, 0], length.to_be_bytes(), [0, 0]].concat();
    debug_assert_eq!(header.len(), UDP_LEN);
    header
}

fn tcp(stage: Stage) -> Vec<u8> {
    let (client, server) = (sequence::CLIENT + 1, sequence::SERVER + 1);
    let (number, acknowledged, flags) = match stage {
        Stage::Open => (sequence::CLIENT, 0, tcpflag::SYN),
        Stage::Middle => (client, server, tcpflag::ACK | PUSH),
        Stage::Reply => (server, client, tcpflag::ACK | PUSH),
    };
    let mut header = vec![0; 4];
    header.extend(number.to_be_bytes());
    header.extend(acknowledged.to_be_bytes());
    header.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    debug_assert_eq!(header.len(), TCP_LEN);
    header
}

/// The sum of its 16-bit words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

/// About the golden section of `flows`, and without a common divisor: so every flow has its turn, and successive ones
/// are far apart.
fn stride(flows: u32) -> u32 {
    let coprime = |stride: &u32| gcd(*stride, flows) == 1;
    ((f64::from(flows) * 0.618) as u32..flows).find(coprime).unwrap_or(0)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target {
        dst_mac: [2; 6],
        src_mac: [4; 6],
        address: Ipv4Addr::new(192, 168, 77, 11),
        first_port: 20_000,
        ports: 10_000,
        backends: 32,
    };

    #[test]
    fn every_flow_has_its_turn() {
        for flows in [1, 2, 100, 10_000, 1_000_000] {
            let stride = stride(flows);
            assert!(stride < flows && (flows == 1 || gcd(stride, flows) == 1), "{flows}: {stride}");
        }
        assert!(stride(1_000_000) > 500_000, "neighbours");
    }

    #[test]
    fn ports_divide_the_flows() {
        let ports = |flows| order(&TARGET, Protocol::Udp, Stage::Middle, Flows::Scattered(flows), 64).0.published;
        assert_eq!([ports(1), ports(100), ports(10_000), ports(1_000_000)], [1, 100, 10_000, 10_000]);
    }

    #[test]
    fn replies_are_in_the_tunnel() {
        let (from, to) = (Ipv4Addr::new(192, 168, 77, 12), Ipv4Addr::new(192, 168, 77, 11));
        let tunnel = Tunnel { from, to, vni: 0xfffffe };
        let Frames { program, order, length } = replies(&TARGET, Protocol::Tcp, 100, 64, Some(tunnel));
        assert_eq!((program, length, order.flows), ("replay_tunnel", 114, 100));
        let outer = &order.headers[..ENCAP_LEN];
        assert_eq!(outer[..14], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 0]);
        let mut folded = sum(&outer[14..34]);
        folded = (folded & 0xffff) + (folded >> 16);
        assert_eq!((folded, &outer[16..18]), (0xffff, &[0, 100][..]), "the checksum, the length");
        assert_eq!(outer[34..], [0xc3, 0x50, 0x12, 0xb5, 0, 80, 0, 0, 8, 0, 0, 0, 0xff, 0xff, 0xfe, 0]);
        let inner = &order.headers[ENCAP_LEN..];
        assert_eq!(inner[..14], [2, 0x48, 192, 168, 77, 11, 2, 0x42, 0, 0, 0, 0, 8, 0]);
        assert_eq!((&inner[16..18], inner[23], &inner[26..34]), (&[0, 50][..], 6, &[0; 8][..]));
        assert_eq!(inner[38..46], [0, 0, 0x13, 0x89, 0, 0, 0x03, 0xe9], "the server's numbers");
        assert_eq!(order.ip_sum, 0x4500 + 50 + 0x4000 + 0x4006, "without addresses");
        let plain = replies(&TARGET, Protocol::Tcp, 100, 64, None);
        assert_eq!((plain.program, plain.length, plain.order.ip_sum), ("replay", 64, order.ip_sum));
        assert_eq!((&plain.order.headers[..6], plain.order.headers[14]), (&[2; 6][..], 0x45));
    }

    #[test]
    fn headers_and_sums_fit() {
        let (order, length) = order(&TARGET, Protocol::Tcp, Stage::Open, Flows::Random, 1000);
        assert_eq!((length, order.flows, order.published), (54, 0, 1), "a SYN without data");
        assert_eq!(order.headers[16..18], [0, 40]);
        assert_eq!(order.headers[23], 6);
        assert_eq!(order.ip_sum, 0x4500 + 40 + 0x4000 + 0x4006 + 0xc0a8 + 0x4d0b);
        // Protocol, length, destination; sequence number, offset and flags, window.
        assert_eq!(order.transport_sum, 6 + 20 + 0xc0a8 + 0x4d0b + 1000 + 0x5002 + 0xfaf0);
    }
}
