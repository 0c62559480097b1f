//! What the generator is to send: one frame's headers, and what differs between frames.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use dataplane_common::{
    headers::{ETH_LEN, IPV4_LEN, TCP_LEN, UDP_LEN, ethertype, ipproto, tcpflag},
    traffic::{HEADERS, Order, sequence},
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
    /// Those of an established one.
    Middle,
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

/// The order, and the length of its frames.
pub(super) fn order(target: &Target, protocol: Protocol, stage: Stage, flows: Flows, frame: usize) -> (Order, usize) {
    // A SYN carries no data.
    let syn = protocol == Protocol::Tcp && stage == Stage::Open;
    let length = if syn { HEADERS } else { frame.max(HEADERS) };
    let transport_len = (length - ETH_LEN - IPV4_LEN) as u16;
    let (proto, transport, checksum_at) = match protocol {
        Protocol::Udp => (ipproto::UDP, udp(transport_len), ETH_LEN + IPV4_LEN + 6),
        Protocol::Tcp => (ipproto::TCP, tcp(syn), ETH_LEN + IPV4_LEN + 16),
    };
    let mut ip = vec![0x45, 0];
    ip.extend(((length - ETH_LEN) as u16).to_be_bytes());
    ip.extend([[0, 0], DF.to_be_bytes(), [TTL, proto], [0, 0]].concat());
    ip.extend([0; 4]);
    ip.extend(target.address.octets());
    let pseudo = sum(&target.address.octets()) + u32::from(proto) + u32::from(transport_len);
    let parts = [&target.dst_mac[..], &target.src_mac, &ethertype::IPV4, &ip, &transport].concat();
    let mut headers = [0; HEADERS];
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
        port_shift: target.backends.trailing_zeros(),
        first_published: target.first_port,
        published,
        published_stride: (stride % u32::from(published)) as u16,
        published_at: 0,
    };
    (order, length)
}

/// The same order, to begin with that flow.
pub(super) fn from(order: Order, flow: u32) -> Order {
    Order { flow, published_at: (flow % u32::from(order.published)) as u16, ..order }
}

fn udp(length: u16) -> Vec<u8> {
    let header = [[0, 0], [0, 0], length.to_be_bytes(), [0, 0]].concat();
    debug_assert_eq!(header.len(), UDP_LEN);
    header
}

fn tcp(syn: bool) -> Vec<u8> {
    let (number, acknowledged, flags) = if syn {
        (sequence::CLIENT, 0, tcpflag::SYN)
    } else {
        (sequence::CLIENT + 1, sequence::SERVER + 1, tcpflag::ACK | PUSH)
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
