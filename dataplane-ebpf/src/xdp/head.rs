//! Headers of the packets that this path is for: IPv4 without options, in one piece, TCP or UDP. Anything else, and
//! anything that contradicts itself, is `None`: TC judges it.

use dataplane_common::{
    flow::AffinityKey,
    headers::{ETH_LEN, INNER_ETH, INNER_NET, IPV4_LEN, TCP_LEN, UDP_LEN, ethertype, ipproto, tcpflag},
    service::PortKey,
};

use super::access::Frame;
use crate::{
    connection,
    segment::{self, Segment},
};

/// IPv4, five words of header.
const VERSION_IHL: u8 = 0x45;
/// All of the fragment field but DF.
const FRAGMENTED: u16 = u16::from_le_bytes([0x3f, 0xff]);
const IPV4: u16 = u16::from_le_bytes(ethertype::IPV4);

/// What decisions need of a packet, in little-endian words as it lies there.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub src: u32,
    pub dst: u32,
    /// Source and destination port.
    pub ports: u32,
    pub proto: u8,
    pub tos: u8,
    pub ttl: u8,
    /// Length of IP header and payload.
    pub total_len: u16,
    /// TCP flags; 0 otherwise.
    pub flags: u8,
    /// Length of the TCP header; 0 otherwise.
    pub tcp_len: u8,
}

impl Head {
    #[inline(always)]
    pub(super) fn dport(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// Key of the connection of a client's packet.
    #[inline(always)]
    pub(super) fn key(&self) -> Key {
        Key::of(self.src, self.dst, self.ports, self.proto)
    }

    /// Key of the connection that a packet towards the client belongs to.
    #[inline(always)]
    pub(super) fn key_of_answer(&self) -> Key {
        Key::of(self.dst, self.src, self.ports.rotate_left(16), self.proto)
    }

    /// The published port that a client's packet is for.
    #[inline(always)]
    pub(super) fn port(&self) -> PortKey {
        PortKey { proto: self.proto, _pad: 0, port: self.dport().to_le_bytes() }
    }

    /// As [`connection::is_syn`].
    #[inline(always)]
    pub(super) fn is_syn(&self) -> bool {
        connection::opens(self.proto, self.flags)
    }

    /// As [`connection::may_open`]; there are TCP and UDP only.
    #[inline(always)]
    pub(super) fn may_open(&self) -> bool {
        self.proto == ipproto::UDP || self.is_syn()
    }

    /// A TCP segment with FIN.
    #[inline(always)]
    pub(super) fn is_fin(&self) -> bool {
        self.proto == ipproto::TCP && self.flags & tcpflag::FIN != 0
    }

    /// Bytes behind the TCP header.
    #[inline(always)]
    fn payload(&self) -> u32 {
        (u32::from(self.total_len)).wrapping_sub(IPV4_LEN as u32 + u32::from(self.tcp_len))
    }
}

/// An [`AffinityKey`], written in two words.
#[derive(Clone, Copy)]
pub(super) struct Key([u64; 2]);

impl Key {
    #[inline(always)]
    fn of(client: u32, node: u32, ports: u32, proto: u8) -> Self {
        Self([u64::from(client) | u64::from(node) << 32, u64::from(ports) | u64::from(proto) << 32])
    }

    #[inline(always)]
    pub(super) fn get(&self) -> &AffinityKey {
        const { assert!(size_of::<AffinityKey>() == 16 && align_of::<AffinityKey>() <= align_of::<u64>()) };
        // SAFETY: as many plain bytes, in the order of the fields.
        unsafe { &*self.0.as_ptr().cast() }
    }
}

/// Where the transport header is in a frame, and in one in a tunnel.
const OUTER_L4: usize = ETH_LEN + IPV4_LEN;
const INNER_L4: usize = INNER_NET + IPV4_LEN;

/// The packet in the frame.
#[inline(always)]
pub(super) fn outer(frame: Frame) -> Option<Head> {
    ethernet::<0, ETH_LEN, OUTER_L4>(frame)
}

/// The packet in the frame in its tunnel.
#[inline(always)]
pub(super) fn inner(frame: Frame) -> Option<Head> {
    ethernet::<INNER_ETH, INNER_NET, INNER_L4>(frame)
}

/// What updates a connection's entry. It is read before `bpf_xdp_adjust_head` moves the frame.
pub(super) struct Said {
    head: Head,
    sequence: u32,
    acknowledgement: u32,
}

impl Said {
    /// Of the packet in the frame.
    #[inline(always)]
    pub(super) fn outer(frame: Frame, head: &Head) -> Option<Self> {
        Self::at::<OUTER_L4>(frame, head)
    }

    /// Of the packet in the frame's tunnel.
    #[inline(always)]
    pub(super) fn inner(frame: Frame, head: &Head) -> Option<Self> {
        Self::at::<INNER_L4>(frame, head)
    }

    #[inline(always)]
    fn at<const L4: usize>(frame: Frame, head: &Head) -> Option<Self> {
        const SEQUENCE: usize = 4;
        const ACKNOWLEDGEMENT: usize = 8;
        let (mut sequence, mut acknowledgement) = (0, 0);
        if head.proto == ipproto::TCP {
            let tcp = frame.part::<L4, TCP_LEN>()?;
            (sequence, acknowledgement) = (tcp.four::<SEQUENCE>(), tcp.four::<ACKNOWLEDGEMENT>());
        }
        Some(Self { head: *head, sequence, acknowledgement })
    }
}

impl Segment for Said {
    #[inline(always)]
    fn proto(&self) -> u8 {
        self.head.proto
    }

    #[inline(always)]
    fn flags(&self) -> u8 {
        self.head.flags
    }

    #[inline(always)]
    fn sequence(&self) -> u32 {
        self.sequence.swap_bytes()
    }

    #[inline(always)]
    fn acknowledgement(&self) -> u32 {
        self.acknowledgement.swap_bytes()
    }

    #[inline(always)]
    fn has_data(&self) -> bool {
        self.head.payload() != 0
    }

    #[inline(always)]
    fn end(&self) -> Option<u32> {
        self.head.is_fin().then(|| segment::behind_fin(self.sequence(), self.head.payload()))
    }
}

/// The maximum segment size (RFC 9293 section 3.7.1) in the first option, where Linux, BSD and Windows put it, of the
/// TCP segment in the frame in its tunnel; 0: there is no room for one. `None`: the options begin with another one.
#[inline(always)]
pub(super) fn inner_mss(frame: Frame, tcp_len: u8) -> Option<u16> {
    const LEN: usize = 4;
    const KIND_AND_LENGTH: u16 = u16::from_le_bytes([2, LEN as u8]);
    if usize::from(tcp_len) < TCP_LEN + LEN {
        return Some(0);
    }
    let option = frame.part::<{ INNER_L4 + TCP_LEN }, LEN>()?;
    (option.two::<0>() == KIND_AND_LENGTH).then(|| option.two::<2>().swap_bytes())
}

#[inline(always)]
fn ethernet<const ETH: usize, const NET: usize, const L4: usize>(frame: Frame) -> Option<Head> {
    const PORTS: usize = IPV4_LEN;
    let ip = frame.part::<NET, { IPV4_LEN + UDP_LEN }>()?;
    if frame.part::<ETH, ETH_LEN>()?.two::<12>() != IPV4 {
        return None;
    }
    let total_len = ip.two::<2>().swap_bytes();
    if ip.byte::<0>() != VERSION_IHL
        || ip.two::<6>() & FRAGMENTED != 0
        || usize::from(total_len) < IPV4_LEN + UDP_LEN
        || NET + usize::from(total_len) > frame.len()
    {
        return None;
    }
    let mut head = Head {
        src: ip.four::<12>(),
        dst: ip.four::<16>(),
        ports: ip.four::<PORTS>(),
        proto: ip.byte::<9>(),
        tos: ip.byte::<1>(),
        ttl: ip.byte::<8>(),
        total_len,
        flags: 0,
        tcp_len: 0,
    };
    match head.proto {
        ipproto::TCP => {
            let tcp = frame.part::<L4, TCP_LEN>()?;
            let len = usize::from(tcp.byte::<12>() >> 4) * 4;
            head.flags = tcp.byte::<13>();
            head.tcp_len = len as u8;
            if len < TCP_LEN || IPV4_LEN + len > usize::from(total_len) {
                return None;
            }
        }
        ipproto::UDP => {}
        _ => return None,
    }
    Some(head)
}
