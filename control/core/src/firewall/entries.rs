//! What is left to the host, as map `LEFT` has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dataplane_common::service::{LEFT_BITS, LeftPrefix, PortKey, port_flag};

use super::{Left, Port, Ranges};

/// Contents of map `LEFT`, and what published ports have to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftEntries {
    /// (prefix length as in map `LEFT`, prefix).
    pub entries: Arc<BTreeSet<(u32, LeftPrefix)>>,
    /// Bits of [`port_flag::LEFT`], by port.
    pub flags: BTreeMap<PortKey, u8>,
}

impl LeftEntries {
    /// What is left while the rules were never read. `before` is what the maps hold: an agent that was restarted goes
    /// on with it. Other ports may be closed to everybody, and are left whole.
    pub fn unread(before: &Self, ports: &BTreeSet<Port>) -> Self {
        let mut entries = BTreeSet::clone(&before.entries);
        let flags = ports.iter().map(|port| {
            let port = key(*port);
            let flags = before.flags.get(&port).copied().unwrap_or_else(|| {
                entries.insert((LEFT_BITS, LeftPrefix { port, ..LeftPrefix::default() }));
                port_flag::LEFT_AT_PORT
            });
            (port, flags)
        });
        let flags = flags.filter(|(_, flags)| *flags != 0).collect();
        Self { entries: Arc::new(entries), flags }
    }
}

impl Left {
    /// `ports`: all that are published; `index`: of an interface by name. Interfaces that are gone are left out.
    pub fn entries(&self, ports: &BTreeSet<Port>, index: impl Fn(&str) -> Option<u32>) -> LeftEntries {
        let mut entries = BTreeSet::new();
        let mut add = |ifindex: u32, port: PortKey, ranges: &Ranges| {
            entries.extend(ranges.prefixes().map(|net| {
                let prefix = LeftPrefix { ifindex: ifindex.to_ne_bytes(), port, ip: net.network().octets() };
                (LEFT_BITS + u32::from(net.prefix_len()), prefix)
            }));
        };
        let any = PortKey::default();
        add(0, any, &self.everywhere);
        for (name, ranges) in &self.by_interface {
            index(name).into_iter().for_each(|ifindex| add(ifindex, any, ranges));
        }
        for (port, ranges) in &self.by_port {
            add(0, key(*port), ranges);
        }
        for ((name, port), ranges) in &self.by_both {
            index(name).into_iter().for_each(|ifindex| add(ifindex, key(*port), ranges));
        }
        let bit = |any: bool, bit: u8| if any { bit } else { 0 };
        let flags = ports.iter().map(|port| {
            let flags = bit(!self.everywhere.is_empty(), port_flag::LEFT_EVERYWHERE)
                | bit(!self.by_interface.is_empty(), port_flag::LEFT_AT_INTERFACE)
                | bit(self.by_port.contains_key(port), port_flag::LEFT_AT_PORT)
                | bit(self.by_both.keys().any(|(_, other)| other == port), port_flag::LEFT_AT_BOTH);
            (key(*port), flags)
        });
        let flags = flags.filter(|(_, flags)| *flags != 0).collect();
        LeftEntries { entries: Arc::new(entries), flags }
    }
}

fn key((proto, port): Port) -> PortKey {
    PortKey { proto, _pad: 0, port: port.to_be_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_rules_close_what_was_not_published_before() {
        let (web, dns) = ((6, 8080), (17, 53));
        let banned = Ranges::net("203.0.113.0/24".parse().unwrap());
        let left = Left { everywhere: banned, ..Left::default() };
        let known = BTreeSet::from([web]);
        let before = left.entries(&known, |_| None);
        assert_eq!(LeftEntries::unread(&before, &known), before, "a restart changes nothing");
        let both = BTreeSet::from([web, dns]);
        let now = LeftEntries::unread(&before, &both);
        assert_eq!(
            now.flags,
            BTreeMap::from([(key(web), port_flag::LEFT_EVERYWHERE), (key(dns), port_flag::LEFT_AT_PORT)])
        );
        let whole = (LEFT_BITS, LeftPrefix { port: key(dns), ..LeftPrefix::default() });
        assert!(now.entries.contains(&whole) && now.entries.is_superset(&before.entries));
        // Published with nothing left of it: as before, and not closed.
        let open = LeftEntries { flags: BTreeMap::from([(key(web), 0)]), ..LeftEntries::default() };
        assert_eq!(LeftEntries::unread(&open, &known), LeftEntries::default());
        assert_eq!(LeftEntries::unread(&LeftEntries::default(), &known).entries.len(), 1, "nothing is taken over");
    }
}
