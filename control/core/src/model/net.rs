//! Networks and what addresses them.

use std::{fmt, net::Ipv4Addr};

use dataplane_common::addr::{Mac, NetId, VniBytes};
use ipnet::Ipv4Net;

use super::Id;

/// MTU of an overlay network when the table has none: 1500 less what VXLAN adds.
pub const DEFAULT_MTU: u32 = 1450;
/// Smallest MTU that IPv4 allows (RFC 791).
pub const MIN_MTU: u32 = 68;
/// Largest MTU that still fits an IPv4 packet once encapsulated.
pub const MAX_MTU: u32 = 65_485;

/// A VXLAN network identifier: 1 to 2^24 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Vni(u32);

impl Vni {
    /// `None` when out of range.
    pub fn new(vni: u32) -> Option<Self> {
        (1..=0xff_ffff).contains(&vni).then_some(Self(vni))
    }

    /// The number, host order.
    pub fn get(self) -> u32 {
        self.0
    }

    /// As in map keys.
    pub fn bytes(self) -> VniBytes {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An overlay network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Engine's network id.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// At least one, sorted by VNI.
    pub subnets: Vec<Subnet>,
    /// The network of the routing mesh.
    pub ingress: bool,
    /// Without a way out: neither gateway bridge nor default route. Never true of the ingress network.
    pub internal: bool,
    /// MTU of the containers' interfaces.
    pub mtu: u32,
    /// Who makes its bridges, tunnels and interfaces.
    pub carrier: Carrier,
    /// Its carrier encrypts it between nodes; only ever with [`Carrier::Engine`].
    pub encrypted: bool,
}

/// Who carries a network: makes its bridges, tunnels and the interfaces in the containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// Hiveway.
    #[default]
    Hiveway,
    /// A Docker engine (a stock network). Hiveway balances VIPs on the containers' own interfaces and answers the
    /// routing mesh beside it, and leaves everything else on it alone.
    Engine,
}

/// A subnet with its VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    /// VNI.
    pub vni: Vni,
    /// Without host bits.
    pub subnet: Ipv4Net,
    /// Its gateway: answers ARP and ping, routes to the network's other subnets.
    pub gateway: Ipv4Addr,
}

impl Subnet {
    /// Whether a host may have this address: inside, and neither the network's nor the broadcast address.
    pub fn usable(&self, ip: Ipv4Addr) -> bool {
        self.subnet.contains(&ip)
            && (self.subnet.prefix_len() >= 31 || (ip != self.subnet.network() && ip != self.subnet.broadcast()))
    }
}

impl Network {
    /// The network's identity: VNI of its first subnet.
    pub fn vni(&self) -> Vni {
        self.subnets.first().map_or(Vni(0), |s| s.vni)
    }

    /// [`Network::vni`] as in map keys.
    pub fn net_id(&self) -> NetId {
        self.vni().bytes()
    }

    /// The subnet that `ip` lies in.
    pub fn subnet_of(&self, ip: Ipv4Addr) -> Option<&Subnet> {
        self.subnets.iter().find(|s| s.subnet.contains(&ip))
    }
}

/// Parses `02:42:0a:00:01:03` (`-` works too) and refuses what can't be an interface's own address.
pub fn parse_mac(text: &str) -> Result<Mac, String> {
    let parts: Vec<_> = text.split([':', '-']).collect();
    let mut mac: Mac = [0; 6];
    if parts.len() != mac.len() {
        return Err(format!("{text:?} is no MAC address; six pairs of hex digits like 02:42:0a:00:01:03"));
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16)
            .ok()
            .filter(|_| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or_else(|| format!("{text:?} is no MAC address; {part:?} is not a pair of hex digits"))?;
    }
    checked_mac(mac).map_err(|why| format!("{text}: {why}"))
}

/// Refuses what can't be an interface's own MAC address.
pub fn checked_mac(mac: Mac) -> Result<Mac, String> {
    match mac {
        [0, 0, 0, 0, 0, 0] => Err("the all-zero MAC address can't be an interface's own".into()),
        [first, ..] if first & 1 == 1 => {
            Err("a multicast MAC address can't be an interface's own; clear the first byte's lowest bit".into())
        }
        mac => Ok(mac),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        assert_eq!(parse_mac("02:42:0a:00:01:03"), Ok([2, 0x42, 10, 0, 1, 3]));
        assert_eq!(parse_mac("02-42-0A-00-01-03"), Ok([2, 0x42, 10, 0, 1, 3]));
        for bad in
            ["", "02:42:0a:00:01", "02:42:0a:00:01:03:04", "02:42:0a:00:01:3", "02:42:0a:00:01:+3", "xx:42:0a:00:01:03"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        assert!(parse_mac("01:00:5e:00:00:01").unwrap_err().contains("multicast"));
        assert!(parse_mac("00:00:00:00:00:00").unwrap_err().contains("all-zero"));
    }

    #[test]
    fn vnis() {
        assert_eq!(Vni::new(0), None);
        assert_eq!(Vni::new(1 << 24), None);
        assert_eq!(Vni::new(4097).map(Vni::bytes), Some([0, 0, 0x10, 1]));
    }
}
