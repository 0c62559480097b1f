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
