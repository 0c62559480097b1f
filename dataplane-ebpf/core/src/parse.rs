//! Headers out of a packet. Everything is copied to the stack, in the programs through `bpf_skb_load_bytes`, which
//! checks bounds against the whole skb (not only its linear part), so no pull is needed and offsets may vary. Copies
//! are aligned: LLVM would read them byte by byte otherwise.

use dataplane_common::{
    addr::{Ip4, Mac, Port},
    drop_reason::DropReason,
    headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, SCTP_LEN, TCP_LEN, UDP_LEN, ipproto},
};
use zerocopy::FromBytes;

use crate::{PACKET_HOST, View};

/// Ethernet header.
#[repr(C, align(2))]
#[derive(Clone, Copy, FromBytes)]
pub struct Eth {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// As on the wire.
    pub ethertype: [u8; 2],
}

impl Eth {
    /// Broadcast or multicast.
    #[inline(always)]
    pub fn is_group(&self) -> bool {
        self.dst[0] & 1 != 0
    }
}

/// The Ethernet header at `offset`.
///
/// # Errors
/// The frame ends before it does.
#[inline(always)]
pub fn eth(frame: &impl View, offset: usize) -> Result<Eth, DropReason> {
    frame.load(offset).map_err(|_| DropReason::Truncated)
}

/// The VLAN identifier (VID) in a tag, IEEE 802.1Q.
const VID: u16 = 0x0fff;

/// Whether the frame carries the tag of a VLAN; it looks like any other one otherwise. A tag with VID 0 names a
/// priority and no VLAN.
#[inline(always)]
pub fn in_vlan(frame: &impl View) -> bool {
    frame.vlan_tci().is_some_and(|tci| tci & VID != 0)
}

/// Whether a frame from outside is for this very interface. What is for another MAC (the interface is promiscuous, or
/// has macvlan devices on top) and what is in a VLAN are the stack's, which drops it or gives it to the device it
/// belongs to; that has its own hook. Group frames are the stack's too: it forwards no unicast packet that came in one.
#[inline(always)]
pub fn is_own(frame: &impl View) -> bool {
    frame.pkt_type() == PACKET_HOST && !in_vlan(frame)
}

/// IPv4 header without options.
#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    proto: u8,
    _checksum: [u8; 2],
    src: Ip4,
    dst: Ip4,
}

const _: () = assert!(size_of::<Eth>() == ETH_LEN && size_of::<Ipv4Header>() == IPV4_LEN);

/// Bytes of a packet, copied to where words begin.
#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes)]
pub struct Copied<const N: usize>(pub [u8; N]);

/// Where a packet stands in its datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    #[default]
    Whole,
    /// First fragment: ports are there, the rest of the payload is not.
    First,
    /// Later fragment: no ports.
    Later,
}

/// What decisions need of an IPv4 packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Offset of the IPv4 header.
    pub net: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// Source address.
    pub src: Ip4,
    /// Destination address.
    pub dst: Ip4,
    /// Identification, big endian: which datagram a fragment belongs to.
    pub id: [u8; 2],
    /// Protocol number.
    pub proto: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Length of IP header and payload in bytes as the header has it; 0 on BIG TCP.
    pub total_len: u16,
    /// The DF bit.
    pub dont_fragment: bool,
    /// Whether it is a whole datagram.
    pub fragment: Fragment,
    /// TCP, UDP and SCTP ports; identifier of ICMP echo in both; zero otherwise.
    pub sport: Port,
    /// See `sport`.
    pub dport: Port,
    /// TCP flags, ICMP type, or type of the first SCTP chunk.
    pub flags: u8,
    /// TCP header length in bytes.
    pub tcp_len: u8,
    /// TCP sequence and acknowledgement numbers; zero otherwise.
    pub sequence: u32,
    /// See `sequence`.
    pub acknowledgement: u32,
}

impl Packet {
    /// IPv4 options are present.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.l4 - self.net != IPV4_LEN
    }
}

/// ICMP type (RFC 792).
pub const ICMP_ECHO_REPLY: u8 = 0;
/// ICMP type (RFC 792).
pub const ICMP_ECHO_REQUEST: u8 = 8;

/// Reads the IPv4 packet whose header starts at `net` into `packet`.
///
/// # Errors
/// It is no IPv4 packet, contradicts itself, or ends before its headers do.
// Not inlined: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub fn ipv4(frame: &impl View, net: usize, packet: &mut Packet) -> Result<(), DropReason> {
    let ip: Ipv4Header = frame.load(net).map_err(|_| DropReason::Truncated)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < IPV4_LEN {
        return Err(DropReason::MalformedIp);
    }
    let total_len = u16::from_be_bytes(ip.total_len);
    let available = frame.frame_len() as usize;
    if total_len == 0 {
        // BIG TCP says 0 for more than 64 kB; anything else that does is broken.
        if frame.gso_size() == 0 {
            return Err(DropReason::MalformedIp);
        }
    } else if usize::from(total_len) < header_len {
        return Err(DropReason::MalformedIp);
    } else if net + usize::from(total_len) > available {
        return Err(DropReason::Truncated);
    }
    let fragment = u16::from_be_bytes(ip.fragment);
    *packet = Packet {
        net,
        l4: net + header_len,
        src: ip.src,
        dst: ip.dst,
        id: ip.id,
        proto: ip.proto,
        tos: ip.tos,
        ttl: ip.ttl,
        total_len,
        dont_fragment: fragment & 0x4000 != 0,
        fragment: match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        },
        sport: [0; 2],
        dport: [0; 2],
        flags: 0,
        tcp_len: 0,
        sequence: 0,
        acknowledgement: 0,
    };
    if packet.fragment != Fragment::Later {
        transport(frame, packet)?;
    }
    Ok(())
}

/// Whether a transport header of `len` bytes lies within what the IP header claims, not in padding behind it.
#[inline(always)]
fn within(packet: &Packet, len: usize) -> Result<(), DropReason> {
    let inside = packet.total_len == 0 || packet.l4 - packet.net + len <= usize::from(packet.total_len);
    if inside { Ok(()) } else { Err(DropReason::Truncated) }
}

#[inline(always)]
fn transport(frame: &impl View, packet: &mut Packet) -> Result<(), DropReason> {
    match packet.proto {
        ipproto::TCP => {
            within(packet, TCP_LEN)?;
            // Ports, sequence and acknowledgement numbers, header length, flags.
            let Copied::<16>(tcp) = frame.load(packet.l4).map_err(|_| DropReason::Truncated)?;
            packet.tcp_len = (tcp[12] >> 4) * 4;
            if usize::from(packet.tcp_len) < TCP_LEN {
                return Err(DropReason::MalformedHeader);
            }
            within(packet, usize::from(packet.tcp_len))?;
            packet.sport = [tcp[0], tcp[1]];
            packet.dport = [tcp[2], tcp[3]];
            packet.sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            packet.acknowledgement = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
            packet.flags = tcp[13];
        }
        ipproto::UDP => {
            within(packet, UDP_LEN)?;
            let Copied::<8>(udp) = frame.load(packet.l4).map_err(|_| DropReason::Truncated)?;
            packet.sport = [udp[0], udp[1]];
            packet.dport = [udp[2], udp[3]];
        }
        ipproto::SCTP => {
            // The common header and the head of the first chunk: without one it is no SCTP packet.
            within(packet, SCTP_LEN + 4)?;
            let Copied::<{ SCTP_LEN + 4 }>(sctp) = frame.load(packet.l4).map_err(|_| DropReason::Truncated)?;
            packet.sport = [sctp[0], sctp[1]];
            packet.dport = [sctp[2], sctp[3]];
            packet.flags = sctp[SCTP_LEN];
        }
        ipproto::ICMP => {
            within(packet, ICMP_LEN)?;
            let Copied::<8>(icmp) = frame.load(packet.l4).map_err(|_| DropReason::Truncated)?;
            packet.flags = icmp[0];
            if icmp[0] == ICMP_ECHO_REQUEST || icmp[0] == ICMP_ECHO_REPLY {
                packet.sport = [icmp[4], icmp[5]];
                packet.dport = packet.sport;
            }
        }
        _ => {}
    }
    Ok(())
}
