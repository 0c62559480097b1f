//! Map `REVERSE`: the reverse-path filters of the interfaces where clients arrive.

use std::collections::BTreeMap;

use dataplane_common::reverse::ReversePath;

use crate::table::{Entries as _, MapFault, Table};

/// The map's one writer.
pub struct ReversePaths {
    table: Table<u32, ReversePath>,
}

impl ReversePaths {
    pub(crate) fn new(table: Table<u32, ReversePath>) -> Self {
        Self { table }
    }

    /// Keeps these filters, by interface index ([`dataplane_common::reverse::EVERY_INTERFACE`] for the others), and no
    /// more. Returns whether the map held something else.
    ///
    /// # Errors
    /// When the map cannot be read or written. What is left to do is done by the next call.
    pub fn keep(&mut self, filters: &BTreeMap<u32, ReversePath>) -> Result<bool, MapFault> {
        let found = self.table.read()?;
        for (interface, filter) in filters.iter().filter(|(interface, filter)| found.get(interface) != Some(filter)) {
            self.table.put(*interface, *filter)?;
        }
        for interface in found.keys().filter(|interface| !filters.contains_key(interface)) {
            self.table.remove(interface)?;
        }
        Ok(found != *filters)
    }
}
