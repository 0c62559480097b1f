//! Whose connections have found no share of the established tables: an operator has to know which client or service it
//! is, and there may be any number of both.

use std::net::Ipv4Addr;

use dataplane_common::{
    addr::NetId,
    flow::{AffinityKey, FlowKey},
    shares::is_mesh,
};

/// That many are told apart at a time. What has more than one in so many of all entries is found whatever the rest is
/// (Misra and Gries, 1982).
const MOST: usize = 32;

/// Entries of connections that have proved themselves and found no share of the established tables, or no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// All of them.
    pub entries: usize,
    /// The service that has most of them, if any has a good part.
    pub service: Option<KeptService>,
    /// The same of clients.
    pub clients: Option<KeptClients>,
}

/// What connections that share a place among services go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptService {
    /// A published port: IP protocol number, port.
    Port(u8, u16),
    /// A virtual address on a network.
    Address(NetId, Ipv4Addr),
}

/// Clients that share a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptClients {
    /// This /24.
    Prefix(Ipv4Addr),
    /// A container on a network.
    Container(NetId, Ipv4Addr),
}

/// Counts them, in memory that does not grow with their number.
#[derive(Debug, Default)]
pub(super) struct Count {
    entries: usize,
    services: Frequent<KeptService>,
    clients: Frequent<KeptClients>,
}

impl Count {
    /// A pending entry of the translated connection with this forward key.
    pub(super) fn flow(&mut self, forward: &FlowKey) {
        let [a, b, c, d] = forward.src;
        let (service, clients) = if is_mesh(forward.zone) {
            (port(forward.proto, forward.dport), KeptClients::Prefix([a, b, c, 0].into()))
        } else {
            let service = KeptService::Address(forward.zone, forward.dst.into());
            (service, KeptClients::Container(forward.zone, [a, b, c, d].into()))
        };
        self.add(service, clients);
    }

    /// A client's entry.
    pub(super) fn affinity(&mut self, key: &AffinityKey) {
        let [a, b, c, _] = key.client;
        self.add(port(key.proto, key.port), KeptClients::Prefix([a, b, c, 0].into()));
    }

    fn add(&mut self, service: KeptService, clients: KeptClients) {
        self.entries += 1;
        self.services.add(service);
        self.clients.add(clients);
    }

    pub(super) fn result(&self) -> Kept {
        Kept { entries: self.entries, service: self.services.most(), clients: self.clients.most() }
    }
}

fn port(proto: u8, port: [u8; 2]) -> KeptService {
    KeptService::Port(proto, u16::from_be_bytes(port))
}

/// Items that are frequent, each with what it is ahead of the rest.
#[derive(Debug)]
struct Frequent<T>(Vec<(T, usize)>);

impl<T> Default for Frequent<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Frequent<T> {
    fn add(&mut self, item: T) {
        if let Some((_, count)) = self.0.iter_mut().find(|(known, _)| *known == item) {
            *count += 1;
        } else if self.0.len() < MOST {
            self.0.push((item, 1));
        } else {
            // Takes one of each together with this one: what is frequent is left.
            self.0.iter_mut().for_each(|(_, count)| *count -= 1);
            self.0.retain(|(_, count)| *count > 0);
        }
    }

    fn most(&self) -> Option<T> {
        self.0.iter().max_by_key(|(_, count)| *count).map(|(item, _)| *item)
    }
}

#[cfg(test)]
mod tests {
    use dataplane_common::flow::MESH_ZONE;

    use super::*;

    #[test]
    fn who_has_most_is_named_among_any_number_of_others() {
        let mut count = Count::default();
        assert_eq!(count.result(), Kept::default());
        for n in 0..60_000u32 {
            let [_, _, a, b] = n.to_be_bytes();
            let greedy = n % 10 == 0;
            let client = if greedy { [198, 51, 100, b] } else { [10, a, b, 1] };
            let target = if greedy { [0, 80] } else { [a, b] };
            let key = FlowKey::new(MESH_ZONE, (client, [a, b]), ([192, 0, 2, 1], target), 6);
            count.flow(&key);
        }
        let found = count.result();
        assert_eq!(found.entries, 60_000);
        assert_eq!(found.clients, Some(KeptClients::Prefix([198, 51, 100, 0].into())));
        assert_eq!(found.service, Some(KeptService::Port(6, 80)));
        assert!(count.services.0.len() <= MOST && count.clients.0.len() <= MOST);
    }

    #[test]
    fn inside_a_network_it_is_a_container_and_an_address() {
        let mut count = Count::default();
        count.flow(&FlowKey::new([0, 0, 16, 1], ([10, 0, 1, 7], [1, 1]), ([10, 0, 1, 2], [0, 80]), 17));
        let found = count.result();
        assert_eq!(found.clients, Some(KeptClients::Container([0, 0, 16, 1], [10, 0, 1, 7].into())));
        assert_eq!(found.service, Some(KeptService::Address([0, 0, 16, 1], [10, 0, 1, 2].into())));
    }
}
