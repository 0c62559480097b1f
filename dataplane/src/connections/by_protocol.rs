//! The two tables of pending connections of one kind: TCP's, and that of all else.

#[cfg(feature = "testing")]
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use dataplane_common::flow::{FlowKey, pending};

use crate::{
    pod::Plain,
    table::{Entries as _, MapFault, Table},
};

/// Keys of connections.
pub(crate) trait OfProtocol {
    /// IP protocol number.
    fn proto(&self) -> u8;
}

impl OfProtocol for FlowKey {
    fn proto(&self) -> u8 {
        self.proto
    }
}

/// Both tables, used as one.
pub(crate) struct ByProtocol<K, V> {
    pub(crate) tcp: Table<K, V>,
    pub(crate) other: Table<K, V>,
}

impl<K: Plain + Ord + OfProtocol, V: Plain> ByProtocol<K, V> {
    /// Other handles of the same tables.
    pub(crate) fn try_clone(&self) -> Result<Self, MapFault> {
        Ok(Self { tcp: self.tcp.try_clone()?, other: self.other.try_clone()? })
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, MapFault> {
        if is_tcp(key) { self.tcp.get(key) } else { self.other.get(key) }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn put(&mut self, key: K, value: V) -> Result<(), MapFault> {
        self.of(&key).put(key, value)
    }

    /// Removes the entry; it is no error if there is none.
    pub(crate) fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        self.of(key).remove(key)
    }

    /// As [`Table::for_each`].
    pub(crate) fn for_each(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(K, V) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        match self.tcp.for_each(progress, &mut each)? {
            ControlFlow::Break(()) => Ok(ControlFlow::Break(())),
            ControlFlow::Continue(()) => self.other.for_each(progress, each),
        }
    }

    /// Everything that both hold.
    #[cfg(feature = "testing")]
    pub(crate) fn read(&self) -> Result<BTreeMap<K, V>, MapFault> {
        let mut entries = self.tcp.read()?;
        entries.extend(self.other.read()?);
        Ok(entries)
    }

    /// Puts what programs of an earlier version have left in TCP's table, for they knew no other, where today's look for it; with
    /// `remove` it is taken out there, too. While those programs are still attached they look for it there.
    pub(crate) fn sort(&mut self, remove: bool) -> Result<(), MapFault> {
        let mut misplaced = Vec::new();
        let _ = self.tcp.for_each(&|| (), |key, value| {
            if !is_tcp(&key) {
                misplaced.push((key, value));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (key, value) in misplaced {
            if self.other.get(&key)?.is_none() {
                self.other.put(key, value)?;
            }
            if remove {
                self.tcp.remove(&key)?;
            }
        }
        Ok(())
    }

    fn of(&mut self, key: &K) -> &mut Table<K, V> {
        if is_tcp(key) { &mut self.tcp } else { &mut self.other }
    }
}

fn is_tcp(key: &impl OfProtocol) -> bool {
    pending::of(key.proto()) == pending::TCP
}
