//! Which network a key means, and who has which address on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::tree::{Keyed, closest};
use crate::{model::Network, problem::Problem};

/// The file's networks, by id and by name, and the addresses taken on them.
pub(super) struct Addresses<'m> {
    networks: &'m BTreeMap<String, Network>,
    /// Ids of networks that are in the file but were wrong: no follow-up errors about them.
    broken: BTreeSet<String>,
    by_name: BTreeMap<String, Vec<String>>,
    taken: BTreeMap<(String, Ipv4Addr), String>,
}

impl<'m> Addresses<'m> {
    /// Gateways are taken from the start.
    pub(super) fn new(networks: &'m BTreeMap<String, Network>, broken: BTreeSet<String>) -> Self {
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut taken = BTreeMap::new();
        for network in networks.values() {
            by_name.entry(network.name.clone()).or_default().push(network.id.clone());
            for subnet in &network.subnets {
                taken.insert((network.id.clone(), subnet.gateway), "its subnet's gateway".to_owned());
            }
        }
        Self { networks, broken, by_name, taken }
    }

    /// The network that `key` means: an id, or a name that only one network has.
    fn resolve(&self, path: &str, key: &str, problems: &mut Vec<Problem>) -> Option<&'m Network> {
        if let Some(network) = self.networks.get(key) {
            return Some(network);
        }
        if self.broken.contains(key) {
            return None;
        }
        match self.by_name.get(key).map(Vec::as_slice) {
            Some([id]) => self.networks.get(id),
            Some(ids) => {
                let ids = ids.join(", ");
                let message = format!("network name {key:?} is ambiguous; use one of the ids {ids}");
                problems.push(Problem::error(path, message));
                None
            }
            None => {
                let known = self.networks.keys().chain(self.by_name.keys()).map(String::as_str);
                let hint = closest(key, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                problems.push(Problem::error(path, format!("unknown network {key:?}{hint}")));
                None
            }
        }
    }

    /// Resolves the keys of a map; a network that is meant twice is reported.
    pub(super) fn by_network<T>(
        &self,
        entries: Vec<Keyed<T>>,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<&'m str, (String, T)> {
        let mut found: BTreeMap<&'m str, (String, T)> = BTreeMap::new();
        for Keyed { path, key, value } in entries {
            let Some(network) = self.resolve(&path, &key, problems) else { continue };
            if let Some((other, _)) = found.get(network.id.as_str()) {
                problems.push(Problem::error(path, format!("the same network as {other}")));
                continue;
            }
            found.insert(&network.id, (path, value));
        }
        found
    }

    /// [`Self::by_network`] for addresses: each must be usable in a subnet of its network.
    pub(super) fn placed(
        &self,
        entries: Vec<Keyed<Ipv4Addr>>,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<&'m str, (String, Ipv4Addr)> {
        let mut placed = self.by_network(entries, problems);
        placed.retain(|id, (path, ip)| {
            let Some(network) = self.networks.get(*id) else { return false };
            let message = match network.subnet_of(*ip) {
                Some(subnet) if subnet.usable(*ip) => return true,
                Some(subnet) => format!("{ip} is the network or broadcast address of {}", subnet.subnet),
                None => {
                    let subnets: Vec<_> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
                    format!("{ip} is outside network {}'s {}", network.name, subnets.join(" and "))
                }
            };
            problems.push(Problem::error(path.clone(), message));
            false
        });
        placed
    }

    /// Takes an address for `who` (a path).
    pub(super) fn take(&mut self, network: &str, ip: Ipv4Addr, who: &str, problems: &mut Vec<Problem>) {
        if let Some(other) = self.taken.get(&(network.to_owned(), ip)) {
            problems.push(Problem::error(who, format!("{ip} is already taken by {other}")));
        } else {
            self.taken.insert((network.to_owned(), ip), who.to_owned());
        }
    }
}
