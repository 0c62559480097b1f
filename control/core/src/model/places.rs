//! At which of a node's addresses published ports answer.

use std::{fmt, str::FromStr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{AllowEntry, AllowList};

/// The service label that says at which addresses of a node the service's published ports answer.
pub const ADDRESSES_LABEL: &str = "hiveway.addresses";

/// Longest name of an interface (`IFNAMSIZ` less the zero at its end).
const MAX_INTERFACE_NAME: usize = 15;

/// Some of a node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Those in a CIDR.
    Net(Ipv4Net),
    /// Those that an interface carries, by its name.
    Interface(String),
    /// IPv6 addresses; published ports have none yet.
    V6(Ipv6Net),
}

impl FromStr for Place {
    type Err = String;

    /// A CIDR without host bits, a bare address, or the name of an interface.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let address = text.contains(['/', ':']) || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if address && !text.is_empty() {
            return text.parse().map(|entry| match entry {
                AllowEntry::V4(net) => Self::Net(net),
                AllowEntry::V6(net) => Self::V6(net),
            });
        }
        let sane = !text.is_empty()
            && text.len() <= MAX_INTERFACE_NAME
            && !text.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control());
        if sane {
            Ok(Self::Interface(text.to_owned()))
        } else {
            Err(match text {
                "" => "an entry is empty; expected CIDRs and interfaces like 192.0.2.0/24,eth1".into(),
                _ => format!("{text:?} is no CIDR like 192.0.2.0/24, no address, and no interface's name"),
            })
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Interface(name) => name.fmt(f),
            Self::V6(net) => net.fmt(f),
        }
    }
}

/// Some of a node's addresses; without an entry none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Places(Vec<Place>);

impl Places {
    /// These.
    pub fn new(places: impl IntoIterator<Item = Place>) -> Self {
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort();
        places.dedup();
        Self(places)
    }

    /// The entries of a comma-separated list.
    ///
    /// # Errors
    /// The first entry that is nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<Vec<_>, _>>().map(Self::new)
    }

    /// All entries, sorted.
    pub fn all(&self) -> &[Place] {
        &self.0
    }

    /// As CIDRs, on a node whose interfaces carry `addresses`.
    pub fn nets(&self, addresses: &dyn Fn(&str) -> Vec<Ipv4Net>) -> AllowList {
        let of = |place: &Place| match place {
            Place::Net(net) => vec![*net],
            Place::Interface(name) => addresses(name),
            Place::V6(_) => Vec::new(),
        };
        AllowList::of(self.0.iter().flat_map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_addresses_and_interfaces_are_told_apart() {
        let places = Places::parse("eth1, 192.0.2.0/24,198.51.100.7,eth0.100,fd00::/8,eth1").unwrap();
        let shown: Vec<_> = places.all().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.0/24", "198.51.100.7/32", "eth0.100", "eth1", "fd00::/8"]);
        let own: Ipv4Net = "203.0.113.5/32".parse().unwrap();
        let nets = places.nets(&|name| if name == "eth1" { vec![own] } else { vec![] });
        assert_eq!(nets.nets().len(), 3);
        assert!(nets.contains(own.addr()) && !nets.contains([203, 0, 113, 6].into()));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for (text, hint) in [
            ("", "is empty"),
            ("eth0,", "is empty"),
            ("192.0.2.1/24", "did you mean 192.0.2.0/24 or 192.0.2.1?"),
            ("192.0.2", "is no CIDR"),
            ("eth0 eth1", "no interface's name"),
            ("an-interface-with-a-long-name", "no interface's name"),
        ] {
            let why = Places::parse(text).unwrap_err();
            assert!(why.contains(hint), "{text}: {why}");
        }
    }
}
