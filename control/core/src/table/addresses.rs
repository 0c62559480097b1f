//! Which network a key means, and who has which address on it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::Ipv4Addr,
};

use super::{place::Entry, tree::Keyed};
use crate::{
    model::{Carrier, Id, Network},
    near::closest,
    problem::{Kind, Problem},
};

/// The file's networks, by id and by name, and the addresses taken on them.
pub(super) struct Addresses<'m> {
    networks: &'m BTreeMap<Id, Network>,
    /// Ids of networks that are in the file but were wrong: no follow-up errors about them.
    broken: BTreeSet<Id>,
    by_name: BTreeMap<&'m str, Vec<&'m Network>>,
    taken: HashMap<(&'m str, Ipv4Addr), Owner>,
}

/// Whose an address is.
enum Owner {
    Gateway,
    Entry(Entry),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("its subnet's gateway"),
            Self::Entry(entry) => entry.fmt(f),
        }
    }
}

/// A value of an item on a network.
pub(super) struct On<'m, T> {
    pub(super) network: &'m Network,
    pub(super) entry: Entry,
    pub(super) value: T,
}

impl<'m> Addresses<'m> {
    /// Gateways are taken from the start.
    pub(super) fn new(networks: &'m BTreeMap<Id, Network>, broken: BTreeSet<Id>) -> Self {
        let mut by_name: BTreeMap<&str, Vec<&Network>> = BTreeMap::new();
        let mut taken = HashMap::new();
        for network in networks.values() {
            by_name.entry(&network.name).or_default().push(network);
            for subnet in &network.subnets {
                taken.insert((network.id.as_str(), subnet.gateway), Owner::Gateway);
            }
        }
        Self { networks, broken, by_name, taken }
    }

    /// Who carries a network of the file.
    pub(super) fn carrier(&self, network: &Id) -> Option<Carrier> {
        self.networks.get(network).map(|network| network.carrier)
    }

    /// The network that an entry's key means: an id, or a name that only one network has.
    fn resolve(&self, entry: &Entry, problems: &mut Vec<Problem>) -> Option<&'m Network> {
        let key = &entry.key;
        if let Some(network) = self.networks.get(key) {
            return Some(network);
        }
        if self.broken.contains(key) {
            return None;
        }
        match self.by_name.get(key.as_str()).map(Vec::as_slice) {
            Some([network]) => Some(network),
            Some(networks) => {
                let ids: Vec<&str> = networks.iter().map(|network| network.id.as_str()).collect();
                let message = format!("network name {key:?} is ambiguous; use one of the ids {}", ids.join(", "));
                problems.push(Problem::error(entry.to_string(), message));
                None
            }
            None => {
                let known = self.networks.keys().map(Id::as_str).chain(self.by_name.keys().copied());
                let hint = closest(key, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                let message = format!("unknown network {key:?}{hint}");
                problems.push(Problem::error(entry.to_string(), message).of(Kind::UnknownId("networks")));
                None
            }
        }
    }

    /// Resolves the keys of a map; a network that is meant twice is reported.
    pub(super) fn by_network<T>(&self, entries: Vec<Keyed<T>>, problems: &mut Vec<Problem>) -> Vec<On<'m, T>> {
        let mut found: Vec<On<'m, T>> = Vec::with_capacity(entries.len());
        for Keyed { entry, value } in entries {
            let Some(network) = self.resolve(&entry, problems) else { continue };
            if let Some(other) = found.iter().find(|other| other.network.id == network.id) {
                problems.push(Problem::error(entry.to_string(), format!("the same network as {}", other.entry)));
                continue;
            }
            found.push(On { network, entry, value });
        }
        found
    }

    /// [`Self::by_network`] for addresses: each must be usable in a subnet of its network.
    pub(super) fn placed(&self, entries: Vec<Keyed<Ipv4Addr>>, problems: &mut Vec<Problem>) -> Vec<On<'m, Ipv4Addr>> {
        let mut placed = self.by_network(entries, problems);
        placed.retain(|On { network, entry, value: ip }| {
            let message = match network.subnet_of(*ip) {
                Some(subnet) if subnet.usable(*ip) => return true,
                Some(subnet) => format!("{ip} is the network or broadcast address of {}", subnet.subnet),
                None => {
                    let subnets: Vec<_> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
                    format!("{ip} is outside network {}'s {}", network.name, subnets.join(" and "))
                }
            };
            problems.push(Problem::error(entry.to_string(), message));
            false
        });
        placed
    }

    /// Notes whose an address is; reports it if it is another's already.
    pub(super) fn take(&mut self, network: &'m Network, ip: Ipv4Addr, who: Entry, problems: &mut Vec<Problem>) {
        match self.taken.get(&(network.id.as_str(), ip)) {
            Some(other) => {
                problems.push(Problem::error(who.to_string(), format!("{ip} is already taken by {other}")));
            }
            None => drop(self.taken.insert((&network.id, ip), Owner::Entry(who))),
        }
    }
}
