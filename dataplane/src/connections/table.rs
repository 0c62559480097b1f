//! A table of connections: lines that programs look into first, and a map for established entries that found none.

use std::ops::ControlFlow;

use super::{Earlier, Stage};
use crate::{
    line_table::{Contents, Entry as _, LineTable},
    table::{Entries as _, MapFault, Table},
};

/// Handles of its maps.
pub(crate) struct ConnectionTable<T: Contents> {
    pub(crate) lines: LineTable<T>,
    /// Established entries that found no line.
    pub(crate) spilled: Table<T::Key, T::Entry>,
    pub(crate) earlier: Earlier<T>,
}

/// An entry: its key, how far it has come, and its value.
pub(crate) type Found<T> = (<T as Contents>::Key, Stage, <T as Contents>::Entry);

/// Entries that return to the lines at once, at most: so many are in both.
const MOST_RETURNING: usize = 1 << 14;

impl<T: Contents> ConnectionTable<T> {
    /// More handles of the same maps.
    pub(crate) fn try_clone(&self) -> Result<Self, MapFault> {
        let spilled = self.spilled.try_clone()?;
        Ok(Self { lines: self.lines.clone(), spilled, earlier: self.earlier.clone() })
    }

    /// Goes on where the agent before was ended, and has the programs look where those of an earlier version may have
    /// put entries. The caller holds the lock: there is no other agent.
    pub(crate) fn recover(&mut self) -> Result<(), MapFault> {
        self.lines.reclaim();
        // They do not count what they put there.
        self.lines.look_there();
        self.establish();
        if self.earlier.are_there() {
            // After a step back: what has begun there since is in force.
            let _ = self.spilled.for_each(&|| (), |key, entry| {
                self.lines.remove_if(&key, |_, known| known.made() < entry.made());
                Ok(ControlFlow::Continue(()))
            })?;
        }
        // What is pending in maps of an earlier version wants as much room as there.
        let least = if self.earlier.are_there() { self.lines.for_pending() } else { 0 };
        // A table that is still growing works, and sweeps make room: better than no agent.
        if let Err(error) = self.grow_lines([0; _], least, &|| ()) {
            tracing::warn!("a table of connections is still growing: {error}; it is tried again");
        }
        self.lines.free_misplaced();
        Ok(())
    }

    /// See [`Earlier::hand_over`].
    pub(crate) fn hand_over(&self, remove: bool) -> Result<(), MapFault> {
        self.earlier.hand_over(&self.lines, &self.spilled, remove)
    }

    /// Has connections established in their lines, unless programs of an earlier version may look for them.
    pub(crate) fn establish(&self) {
        self.lines.establish(!self.earlier.are_there());
    }

    /// What is in force under a key. As programs do, it looks into the map only while something may be there: that is a
    /// system call here.
    pub(crate) fn get(&self, key: &T::Key) -> Result<Option<(Stage, T::Entry)>, MapFault> {
        match self.lines.get(key) {
            None if self.lines.spilled().0 => Ok(self.spilled.get(key)?.map(|entry| (Stage::Established, entry))),
            found => Ok(found),
        }
    }

    /// Removes what is in force under a key if `is_meant` accepts it as it is now. Whether it did.
    pub(super) fn remove_if(
        &mut self,
        key: &T::Key,
        is_meant: impl Fn(Stage, &T::Entry) -> bool,
    ) -> Result<bool, MapFault> {
        if self.lines.remove_if(key, &is_meant) {
            return Ok(true);
        }
        if self.lines.get(key).is_some()
            || !self.spilled.get(key)?.is_some_and(|now| is_meant(Stage::Established, &now))
        {
            return Ok(false);
        }
        self.spilled.remove(key)?;
        Ok(true)
    }

    /// Hands on what is in force, in any order. What changes meanwhile may be missing or come twice.
    pub(super) fn for_each(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(Found<T>) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        let lines = self.lines.for_each_as_it_grows(progress, |found| each((found.key, found.stage, found.entry)))?;
        if lines.is_break() {
            return Ok(lines);
        }
        // Behind the lines: what programs move from there is seen twice rather than not at all; what a sweep moves back
        // may be missing.
        self.spilled.for_each(progress, |key, entry| match self.lines.get(&key) {
            Some(_) => Ok(ControlFlow::Continue(())),
            None => each((key, Stage::Established, entry)),
        })
    }

    /// Hands on what is in force to `judge`, which removes what is to be forgotten, and moves what found no line to one
    /// if there is one by now.
    pub(super) fn sweep(
        &self,
        progress: &dyn Fn(),
        mut judge: impl FnMut(Found<T>) -> Result<(), MapFault>,
    ) -> Result<(), MapFault> {
        let mut spilled = self.spilled.try_clone()?;
        // An entry that is in both is handed on, and counted, once.
        let _ = self.spilled.for_each(progress, |key, entry| {
            self.is_in_force(&mut spilled, &key, entry)?;
            Ok(ControlFlow::Continue(()))
        })?;
        let _ = self.lines.for_each(progress, |found| {
            judge((found.key, found.stage, found.entry))?;
            Ok(ControlFlow::Continue(()))
        })?;
        let (_, number) = self.lines.spilled();
        let _ = self.spilled.for_each(progress, |key, entry| {
            if self.is_in_force(&mut spilled, &key, entry)? {
                judge((key, Stage::Established, entry))?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let found = self.return_spilled(progress)?;
        // Programs of an earlier version do not say that they put something there.
        if found == 0 && !self.earlier.are_there() {
            self.lines.look_here_only(number);
        }
        Ok(())
    }

    /// Whether an entry of the map of those that found no line, as it was read, is in force. Where a line has one with
    /// its key, too, one of both goes. From here on programs look into the map.
    fn is_in_force(
        &self,
        spilled: &mut Table<T::Key, T::Entry>,
        key: &T::Key,
        entry: T::Entry,
    ) -> Result<bool, MapFault> {
        self.lines.look_there();
        match self.lines.get(key) {
            None => Ok(true),
            // What was in force before it, or what it was before it was promoted; by a program that is about to take it
            // out, or one of an earlier version.
            Some((stage, known))
                if known.made() < entry.made() || (known.made() == entry.made() && stage == Stage::Pending) =>
            {
                self.lines.remove_if(key, |_, now| now.made() == known.made());
                Ok(true)
            }
            // Hidden by the line.
            Some(_) => {
                spilled.remove(key)?;
                Ok(false)
            }
        }
    }

    /// Has the lines grow if they are about to be full with so many established entries, TCP's first. Whether they did.
    pub(crate) fn grow(&mut self, used: [u64; 2], progress: &dyn Fn()) -> Result<bool, MapFault> {
        let grown = self.grow_lines(used, 0, progress)?;
        if grown && self.lines.spilled().0 {
            self.return_spilled(progress)?;
        }
        Ok(grown)
    }

    /// Gives both halves all the lines that pending connections may need.
    #[cfg(feature = "testing")]
    pub(crate) fn grow_for_pending(&mut self) -> Result<bool, MapFault> {
        self.grow_lines([0; _], self.lines.for_pending(), &|| ())
    }

    fn grow_lines(&mut self, used: [u64; 2], least: u32, progress: &dyn Fn()) -> Result<bool, MapFault> {
        let Self { lines, spilled, .. } = self;
        lines.grow(used, least, progress, &mut |key, entry| match entry {
            Some(entry) => spill(lines, spilled, key, entry),
            None => spilled.remove(&key),
        })
    }

    /// Moves entries that found no line to lines, as far as there is room by now. How many there were.
    fn return_spilled(&self, progress: &dyn Fn()) -> Result<usize, MapFault> {
        let mut spilled = self.spilled.try_clone()?;
        let mut found = 0;
        let mut moving = Vec::new();
        let _ = self.spilled.for_each(progress, |key, entry| {
            found += 1;
            if !self.earlier.are_there() && self.lines.get(&key).is_none() && self.lines.put_established(&key, entry) {
                moving.push((key, entry));
                if moving.len() == MOST_RETURNING {
                    self.take_out(&mut spilled, &mut moving)?;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.take_out(&mut spilled, &mut moving)?;
        Ok(found)
    }

    /// Takes entries out of their map that are in lines now, as they were read before.
    fn take_out(
        &self,
        spilled: &mut Table<T::Key, T::Entry>,
        moving: &mut Vec<(T::Key, T::Entry)>,
    ) -> Result<(), MapFault> {
        if moving.is_empty() {
            return Ok(());
        }
        // Programs that found an entry in the map have ended: what they noted is in it.
        self.lines.wait_for_programs()?;
        for (key, copied) in moving.drain(..) {
            match self.spilled.get(&key)? {
                Some(now) if now.made() == copied.made() => {
                    self.lines.merge(&key, copied, now);
                    spilled.remove(&key)?;
                }
                // A program that had not found the line yet took it out, or even made it anew.
                _ => _ = self.lines.remove_if(&key, |_, known| known.made() == copied.made()),
            }
        }
        Ok(())
    }

    /// Puts an established entry where packets put it, in place of another one with this key.
    #[cfg(feature = "testing")]
    pub(crate) fn put_established(&mut self, key: T::Key, entry: T::Entry) -> Result<(), MapFault> {
        self.lines.remove_if(&key, |_, _| true);
        self.spilled.remove(&key)?;
        if self.lines.put_established(&key, entry) {
            return Ok(());
        }
        spill(&self.lines, &mut self.spilled, key, entry)
    }

    /// All established entries.
    #[cfg(feature = "testing")]
    pub(crate) fn established(&self) -> Result<std::collections::BTreeMap<T::Key, T::Entry>, MapFault> {
        let mut entries = self.spilled.read()?;
        entries.extend(self.lines.read(Stage::Established)?);
        Ok(entries)
    }

    /// Forgets all entries.
    #[cfg(feature = "testing")]
    pub(crate) fn clear(&mut self) -> Result<(), MapFault> {
        self.spilled.read()?.keys().try_for_each(|key| self.spilled.remove(key))?;
        let _ = self.lines.for_each(&|| (), |found| {
            found.remove();
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(())
    }
}

/// Puts an established entry into the map of those that find no line.
fn spill<T: Contents>(
    lines: &LineTable<T>,
    spilled: &mut Table<T::Key, T::Entry>,
    key: T::Key,
    entry: T::Entry,
) -> Result<(), MapFault> {
    spilled.put(key, entry)?;
    // Afterwards, as programs do.
    lines.count_spilled();
    Ok(())
}
