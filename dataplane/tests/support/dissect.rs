//! Packets as text, layer by layer, for people who look at a failed test.

use std::{fmt::Write as _, net::Ipv4Addr};

use etherparse::{LaxPacketHeaders, LinkHeader, NetHeaders, TransportHeader};

/// One line per layer.
pub fn dissect(packet: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    layers(packet, "", &mut lines);
    lines
}

fn layers(packet: &[u8], indent: &str, lines: &mut Vec<String>) {
    let Ok(headers) = LaxPacketHeaders::from_ethernet(packet) else {
        lines.push(format!("{indent}{} bytes, no Ethernet header: {}", packet.len(), hex(packet)));
        return;
    };
    let described = [
        headers.link.as_ref().map(link),
        headers.net.as_ref().map(net),
        headers.transport.as_ref().map(transport),
        headers.stop_err.as_ref().map(|(error, layer)| format!("cannot read {layer}: {error}")),
    ];
    lines.extend(described.into_iter().flatten().map(|line| format!("{indent}{line}")));
    let payload = headers.payload.slice();
    let tunnel = matches!(&headers.transport, Some(TransportHeader::Udp(udp)) if udp.destination_port == 4789);
    match payload.split_at_checked(8) {
        Some((vxlan, inner)) if tunnel => {
            lines.push(format!("{indent}vxlan {}", hex(vxlan)));
            layers(inner, &format!("{indent}  "), lines);
        }
        _ => lines.push(format!("{indent}payload of {} bytes: {}", payload.len(), hex(payload))),
    }
}

fn link(link: &LinkHeader) -> String {
    match link {
        LinkHeader::Ethernet2(eth) => {
            format!("ethernet dst {} src {} type {:?}", hex(&eth.destination), hex(&eth.source), eth.ether_type)
        }
        other => format!("{other:?}"),
    }
}

fn net(net: &NetHeaders) -> String {
    match net {
        NetHeaders::Ipv4(ip, _) => format!(
            "ipv4 {} > {} ihl {} dscp {} ecn {} len {} id {} df {} mf {} offset {} ttl {} proto {} checksum {:#06x}{}",
            Ipv4Addr::from(ip.source),
            Ipv4Addr::from(ip.destination),
            ip.ihl(),
            ip.dscp.value(),
            ip.ecn.value(),
            ip.total_len,
            ip.identification,
            ip.dont_fragment,
            ip.more_fragments,
            ip.fragment_offset.value(),
            ip.time_to_live,
            ip.protocol.0,
            ip.header_checksum,
            if ip.header_checksum == ip.calc_header_checksum() { "" } else { " (WRONG)" },
        ),
        other => format!("{other:?}"),
    }
}

fn transport(transport: &TransportHeader) -> String {
    match transport {
        TransportHeader::Udp(udp) => format!(
            "udp {} > {} len {} checksum {:#06x}",
            udp.source_port, udp.destination_port, udp.length, udp.checksum
        ),
        TransportHeader::Tcp(tcp) => format!(
            "tcp {} > {} syn {} ack {} fin {} rst {} seq {} acked {} checksum {:#06x} options {}",
            tcp.source_port,
            tcp.destination_port,
            tcp.syn,
            tcp.ack,
            tcp.fin,
            tcp.rst,
            tcp.sequence_number,
            tcp.acknowledgment_number,
            tcp.checksum,
            hex(tcp.options.as_slice()),
        ),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    let shown = bytes.len().min(48);
    let mut text = bytes[..shown].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    if shown < bytes.len() {
        text.push('…');
    }
    text
}

/// The layers that differ, both ways; equal ones as they are.
pub fn diff(expected: &[u8], actual: &[u8]) -> String {
    let (expected, actual) = (dissect(expected), dissect(actual));
    let mut text = String::new();
    for i in 0..expected.len().max(actual.len()) {
        match (expected.get(i), actual.get(i)) {
            (Some(want), Some(got)) if want == got => text.push_str(&format!("    {want}\n")),
            (want, got) => {
                let line = |side: Option<&String>| side.map_or("(nothing)", String::as_str).to_owned();
                text.push_str(&format!("  - {}\n  + {}\n", line(want), line(got)));
            }
        }
    }
    text
}
