//! What is left to the host's own path, in the form in which packets ask for it.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    judge::{Closed, Port},
    ranges::Ranges,
};

/// More prefixes than these are made fewer. First clients that several ports or interfaces have in common are kept
/// once, for all of them; if that is not enough prefixes are made shorter: what shares them with a closed address is
/// left to the host, too.
pub const MOST_PREFIXES: usize = 200_000;
/// Clients are kept for all ports only if they are at most this many addresses, all such together: a quarter. Else a
/// port that is open to a few would close all others.
const MOST_SHARED: u64 = 1 << 30;
/// The lengths that are tried, the longest first.
const LENGTHS: [u8; 7] = [28, 24, 20, 16, 12, 8, 0];

/// Clients whose packets to published ports are left to the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// To all ports at all interfaces.
    pub everywhere: Ranges,
    /// To all ports at one interface, beyond those.
    pub by_interface: BTreeMap<String, Ranges>,
    /// To one port at all interfaces, beyond those. Ports that are treated alike have the same value.
    pub by_port: BTreeMap<Port, Arc<Ranges>>,
    /// To one port at one interface, beyond those.
    pub by_both: BTreeMap<(String, Port), Arc<Ranges>>,
    /// There were too many prefixes: some clients of single ports are in `everywhere` instead.
    pub for_all_ports: bool,
    /// Prefixes longer than this were too many.
    pub widened: Option<u8>,
}

impl Left {
    /// `interfaces`: all where clients arrive; `ports`: all that are published.
    pub fn of(closed: &Closed, interfaces: usize, ports: usize) -> Self {
        let exact = Self::split(&closed.clients, interfaces, ports).shared();
        if exact.prefixes() <= MOST_PREFIXES {
            return exact;
        }
        let mut shorter = exact;
        for length in LENGTHS {
            let clients: Vec<_> = closed
                .clients
                .iter()
                .map(|(ports, interface, clients)| (ports.clone(), interface.clone(), clients.widened(length)))
                .collect();
            shorter = Self { widened: Some(length), ..Self::split(&clients, interfaces, ports).shared() };
            if shorter.prefixes() <= MOST_PREFIXES {
                break;
            }
        }
        shorter
    }

    fn split(clients: &[(Vec<Port>, String, Ranges)], interfaces: usize, ports: usize) -> Self {
        // What is closed in all of `wanted` parts that there are: of those that are named here, if they are all.
        let common = |parts: &BTreeMap<&Ranges, usize>, wanted: usize| {
            let named: usize = parts.values().sum();
            let met = parts.keys().fold(Ranges::all(), |met, part| met.and(part));
            if named == wanted { met } else { Ranges::NONE }
        };
        let mut all = BTreeMap::<&Ranges, usize>::new();
        let mut of_interface = BTreeMap::<&str, BTreeMap<&Ranges, usize>>::new();
        let mut of_ports = BTreeMap::<&[Port], BTreeMap<&Ranges, usize>>::new();
        for (group, interface, clients) in clients {
            *all.entry(clients).or_default() += group.len();
            *of_interface.entry(interface).or_default().entry(clients).or_default() += group.len();
            *of_ports.entry(group).or_default().entry(clients).or_default() += 1;
        }
        let everywhere = common(&all, interfaces * ports);
        let beyond = |ranges: Ranges| Some(ranges.minus(&everywhere)).filter(|ranges| !ranges.is_empty());
        let by_interface: BTreeMap<String, Ranges> = of_interface
            .into_iter()
            .filter_map(|(name, parts)| Some((name.to_owned(), beyond(common(&parts, ports))?)))
            .collect();
        let at_all: BTreeMap<&[Port], Ranges> = of_ports
            .into_iter()
            .filter_map(|(group, parts)| Some((group, beyond(common(&parts, interfaces))?)))
            .collect();
        let by_port = at_all.iter().flat_map(|(group, ranges)| {
            let shared = Arc::new(ranges.clone());
            group.iter().map(move |port| (*port, shared.clone()))
        });
        let by_port = by_port.collect();
        let mut by_both = BTreeMap::new();
        for (group, interface, clients) in clients {
            let Some(mut rest) = beyond(clients.clone()) else { continue };
            for known in [by_interface.get(interface), at_all.get(group.as_slice())].into_iter().flatten() {
                rest = rest.minus(known);
            }
            if !rest.is_empty() {
                let shared = Arc::new(rest);
                by_both.extend(group.iter().map(|port| ((interface.clone(), *port), shared.clone())));
            }
        }
        Self { everywhere, by_interface, by_port, by_both, for_all_ports: false, widened: None }
    }

    /// Keeps clients of several ports once, for all ports, the most costly first, until everything fits.
    fn shared(mut self) -> Self {
        let mut total = self.prefixes();
        if total <= MOST_PREFIXES {
            return self;
        }
        let mut parts: Vec<(usize, usize, Arc<Ranges>)> = self
            .parts()
            .into_values()
            .map(|(ranges, copies)| (ranges.prefixes().count(), copies, ranges))
            .filter(|(_, copies, _)| *copies > 1)
            .collect();
        parts.sort_by_key(|(prefixes, copies, _)| std::cmp::Reverse(prefixes * copies));
        let mut moved = Ranges::NONE;
        for (prefixes, copies, ranges) in parts {
            if total <= MOST_PREFIXES {
                break;
            }
            let all = moved.or(&ranges);
            if all.addresses() > MOST_SHARED {
                continue;
            }
            moved = all;
            total -= prefixes * (copies - 1);
            self.by_port.retain(|_, other| !Arc::ptr_eq(other, &ranges));
            self.by_both.retain(|_, other| !Arc::ptr_eq(other, &ranges));
            self.for_all_ports = true;
        }
        self.everywhere = self.everywhere.or(&moved);
        self
    }

    /// The values of ports, each once, and how many ports and interfaces have it.
    fn parts(&self) -> BTreeMap<*const Ranges, (Arc<Ranges>, usize)> {
        let mut parts = BTreeMap::new();
        for ranges in self.by_port.values().chain(self.by_both.values()) {
            parts.entry(Arc::as_ptr(ranges)).or_insert_with(|| (ranges.clone(), 0)).1 += 1;
        }
        parts
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.everywhere.is_empty() && self.by_interface.is_empty() && self.by_port.is_empty() && self.by_both.is_empty()
    }

    /// How many prefixes there are in all.
    pub fn prefixes(&self) -> usize {
        let whole = [&self.everywhere].into_iter().chain(self.by_interface.values());
        let whole: usize = whole.map(|ranges| ranges.prefixes().count()).sum();
        whole + self.parts().values().map(|(ranges, copies)| ranges.prefixes().count() * copies).sum::<usize>()
    }
}
