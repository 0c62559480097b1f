//! Damaged packets, and checksums looked at the slow way.

use proptest::prelude::*;

use super::icmp::sum;

/// Where bytes are changed: headers, not payload.
const HEADERS: usize = 110;
/// Lengths of an Ethernet header, and of a tunnel's headers behind it.
const ETH: usize = 14;
const TUNNEL: usize = 20 + 8 + 8;

/// What happens to one of some packets.
#[derive(Clone, Debug)]
pub struct Damage {
    seed: prop::sample::Index,
    bytes: Vec<(usize, u8)>,
    cut: Option<prop::sample::Index>,
    /// Whether checksums are those of what comes out.
    summed: bool,
}

/// Up to three bytes of the headers, the end, or both.
pub fn damage() -> impl Strategy<Value = Damage> {
    // Bytes that mean something somewhere: flags, lengths, versions, the extremes.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(vec![0, 1, 4, 6, 17, 0x20, 0x40, 0x45, 0x46, 0x4f, 0xff])];
    (
        any::<prop::sample::Index>(),
        prop::collection::vec((12..HEADERS, byte), 0..4),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
        any::<bool>(),
    )
        .prop_map(|(seed, bytes, cut, summed)| Damage { seed, bytes, cut, summed })
}

impl Damage {
    /// One of `seeds`, damaged.
    pub fn of(&self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut packet = self.seed.get(seeds).clone();
        for (offset, byte) in &self.bytes {
            if let Some(at) = packet.get_mut(*offset) {
                *at = *byte;
            }
        }
        if let Some(cut) = self.cut {
            packet.truncate(ETH + cut.index(packet.len() - ETH + 1));
        }
        if self.summed {
            // The innermost first: those around it may cover it.
            for layer in layers(&packet).into_iter().rev() {
                layer.repair(&mut packet);
            }
        }
        packet
    }
}

/// An IPv4 packet whose checksums can be looked at.
struct Layer {
    net: usize,
    l4: usize,
    end: usize,
    /// Of the transport: where its checksum is, and what it covers besides.
    transport: Option<(usize, Vec<u8>)>,
}

impl Layer {
    fn at(packet: &[u8], net: usize) -> Option<Self> {
        let header = packet.get(net..net + 20)?;
        let l4 = net + usize::from(header[0] & 15) * 4;
        let end = net + usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || l4 < net + 20 || end < l4 || end > packet.len() {
            return None;
        }
        let whole = u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
        let len = ((end - l4) as u16).to_be_bytes();
        let pseudo = [&header[12..20], &[0, header[9]], &len].concat();
        let place = match header[9] {
            6 if end - l4 >= 20 => Some((l4 + 16, pseudo)),
            17 if end - l4 >= 8 && packet[l4 + 6..l4 + 8] != [0, 0] => Some((l4 + 6, pseudo)),
            1 if end - l4 >= 8 => Some((l4 + 2, Vec::new())),
            _ => None,
        };
        Some(Self { net, l4, end, transport: place.filter(|_| whole) })
    }

    /// Where the IPv4 packet in its tunnel begins. The outer length may be anything: what came over the wire counts.
    fn inside(&self, packet: &[u8]) -> Option<usize> {
        let inner = self.net + TUNNEL;
        let tunnel = packet[self.net + 9] == 17 && self.l4 == self.net + 20 && packet.len() >= inner + ETH + 20;
        let ports = packet.get(self.l4 + 2..self.l4 + 4)?;
        (tunnel && ports == 4789u16.to_be_bytes() && packet[inner + 12..inner + 14] == [8, 0]).then_some(inner + ETH)
    }

    fn repair(&self, packet: &mut [u8]) {
        if let Some((at, covered)) = &self.transport {
            packet[*at..at + 2].copy_from_slice(&[0, 0]);
            let valid = match !sum(&[covered, &packet[self.l4..self.end]].concat()) {
                // Which would mean that there is none.
                0 => 0xffff,
                valid => valid,
            };
            packet[*at..at + 2].copy_from_slice(&valid.to_be_bytes());
        }
        packet[self.net + 10..self.net + 12].copy_from_slice(&[0, 0]);
        let valid = !sum(&packet[self.net..self.l4]);
        packet[self.net + 10..self.net + 12].copy_from_slice(&valid.to_be_bytes());
    }

    fn wrong(&self, packet: &[u8]) -> Option<String> {
        if sum(&packet[self.net..self.l4]) != 0xffff {
            return Some(format!("IPv4 header at {}", self.net));
        }
        let (_, covered) = self.transport.as_ref()?;
        (sum(&[covered, &packet[self.l4..self.end]].concat()) != 0xffff).then(|| format!("what is at {}", self.l4))
    }
}

/// The IPv4 packets of a frame, the outermost first.
fn layers(packet: &[u8]) -> Vec<Layer> {
    let mut found = Vec::new();
    let mut next = (packet.get(12..14) == Some(&[8, 0])).then_some(ETH);
    while let Some(layer) = next.and_then(|net| Layer::at(packet, net)) {
        next = layer.inside(packet);
        found.push(layer);
    }
    found
}

/// Which checksum of the frame is wrong, of those that can be looked at.
pub fn wrong_checksum(packet: &[u8]) -> Option<String> {
    layers(packet).iter().find_map(|layer| layer.wrong(packet))
}
