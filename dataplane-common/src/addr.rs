//! Plain aliases for what a packet carries, all in network byte order.

/// An IPv4 address as it stands in the header.
pub type Ip4 = [u8; 4];
/// An Ethernet address.
pub type Mac = [u8; 6];
/// A TCP or UDP port, big endian.
pub type Port = [u8; 2];
/// A VXLAN network identifier, big endian in 32 bits (the upper byte is zero).
pub type VniBytes = [u8; 4];
/// Identity of a network inside the data plane: the VNI of its first subnet. Endpoints of all its subnets share it.
pub type NetId = [u8; 4];
/// Identity of a task incarnation: 64 bits derived from its id (see `hiveway-core`), the same on every node and after
/// every restart. Flow entries remember it, so that an address used again by another task never inherits flows.
pub type Tag = [u8; 8];

/// Ethernet broadcast.
pub const BROADCAST: Mac = [0xff; 6];

/// First two bytes of the MAC that names a task on the ingress network inside mesh frames (`02:42` + ingress address,
/// Docker's own scheme).
pub const TASK_MAC_PREFIX: [u8; 2] = [0x02, 0x42];
/// First two bytes of the MAC that names a node inside mesh frames (`02:48` + VTEP address).
pub const NODE_MAC_PREFIX: [u8; 2] = [0x02, 0x48];

/// `prefix` followed by the four bytes of `ip`.
#[inline(always)]
pub const fn mac_of(prefix: [u8; 2], ip: Ip4) -> Mac {
    [prefix[0], prefix[1], ip[0], ip[1], ip[2], ip[3]]
}

/// The address inside a MAC made by [`mac_of`], if it carries that prefix.
#[inline(always)]
pub const fn ip_in_mac(prefix: [u8; 2], mac: Mac) -> Option<Ip4> {
    if mac[0] == prefix[0] && mac[1] == prefix[1] { Some([mac[2], mac[3], mac[4], mac[5]]) } else { None }
}

/// The locally administered MAC of the node's own end of the host link (`hw-host`).
pub const HOST_MAC: Mac = [0x02, 0x48, 0x57, 0x00, 0x00, 0x02];
/// The MAC of the host link's other end (`hw-mesh`), where the programs see the node as a client of the routing mesh.
pub const HOST_PEER_MAC: Mac = [0x02, 0x48, 0x57, 0x00, 0x00, 0x03];

/// The locally administered MAC that answers ARP for gateways and VIPs of every network.
pub const VIRTUAL_MAC: Mac = [0x02, 0x48, 0x57, 0x00, 0x00, 0x01];
