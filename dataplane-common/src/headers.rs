//! Header layouts: lengths and offsets, as the RFCs have them.

/// Ethernet II header.
pub const ETH_LEN: usize = 14;
/// IPv4 header without options (RFC 791).
pub const IPV4_LEN: usize = 20;
/// UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// TCP header without options (RFC 9293).
pub const TCP_LEN: usize = 20;
/// SCTP common header (RFC 9260 section 3.1).
pub const SCTP_LEN: usize = 12;
/// ICMP header (RFC 792).
pub const ICMP_LEN: usize = 8;
/// VXLAN header (RFC 7348).
pub const VXLAN_LEN: usize = 8;
/// ARP for IPv4 over Ethernet (RFC 826).
pub const ARP_LEN: usize = 28;

/// What a VXLAN tunnel adds to an inner IP packet: outer IP, UDP, VXLAN and the inner Ethernet header.
pub const ENCAP_LEN: usize = IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;
/// Offset of the outer UDP header in a frame without IP options.
pub const OUTER_UDP: usize = ETH_LEN + IPV4_LEN;
/// Offset of the VXLAN header.
pub const VXLAN: usize = OUTER_UDP + UDP_LEN;
/// Offset of the inner Ethernet header.
pub const INNER_ETH: usize = VXLAN + VXLAN_LEN;
/// Offset of the inner network header.
pub const INNER_NET: usize = INNER_ETH + ETH_LEN;

/// The VXLAN flag that says the VNI is valid (RFC 7348 section 5).
pub const VXLAN_FLAG_VNI: u8 = 0x08;

/// Ethertypes, big endian as in the frame.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// ARP.
    pub const ARP: [u8; 2] = [0x08, 0x06];
    /// IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// 802.1Q.
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// 802.1ad.
    pub const QINQ: [u8; 2] = [0x88, 0xa8];
}

/// IP protocol numbers.
pub mod ipproto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Types of ICMP messages (RFC 792).
pub mod icmptype {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of ICMP messages (RFC 792).
pub mod icmpcode {
    /// Of [`UNREACHABLE`](super::icmptype::UNREACHABLE): fragmentation needed and DF set.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// SCTP chunk types (RFC 9260 section 3.2).
pub mod sctpchunk {
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// The answer to [`INIT`].
    pub const INIT_ACK: u8 = 2;
    /// Ends it at once.
    pub const ABORT: u8 = 6;
    /// Everything has arrived, and there is nothing more to send.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Ends it in order.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// TCP flag bits (offset 13).
pub mod tcpflag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
}
