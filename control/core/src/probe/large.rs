//! How large packets a path takes, as large probes find out: whether what it is taken to carry passes, and if not, what
//! does.

use dataplane_common::probe::Probed;

use super::{LARGE, SECOND, TIMEOUT};

/// After how long it is tried whether a path that probes have found to be narrow takes more.
const RAISE: u64 = 600 * SECOND;
/// Large probes in a row without an answer until a smaller size is looked for, and each size's chances then.
const LARGE_FAILS: u32 = 3;
const SEARCH_FAILS: u32 = 2;
/// The search begins with this size and never goes below.
pub(super) const LEAST: u16 = 552;

/// Probes of a path's MTU.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// When the next one is due.
    pub(super) next: u64,
    /// Number, time and size of the last one, while it was neither answered nor given up.
    pub(super) waits: Option<(u32, u64, u16)>,
    missed: u32,
    /// The last size that was answered; 0: none.
    pub(super) passed: u16,
    pub(super) search: Option<Search>,
    /// What the search has found; 0: nothing limits it.
    pub(super) limit: u16,
    /// When the next search for more begins.
    raise_at: u64,
}

impl Large {
    pub(super) fn new(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// The size of the one that is due. `taken`: what the path is taken to carry; `interface`: what this node's takes.
    pub(super) fn due(&mut self, now: u64, taken: u16, interface: u16) -> Option<u16> {
        if self.waits.is_some() {
            return None;
        }
        if self.search.is_none() && self.limit != 0 && now >= self.raise_at {
            self.raise(interface);
        }
        if let Some(search) = self.search {
            return Some(search.next());
        }
        // Twice at the usual pace would take a minute.
        let again = self.missed > 0 && self.missed < LARGE_FAILS;
        (now >= self.next || again).then_some(taken)
    }

    /// Takes note of what became of the last one. `small_passes`: small probes are answered.
    pub(super) fn judge(&mut self, now: u64, probed: &Probed, small_passes: bool) {
        let Some((sequence, sent, size)) = self.waits else { return };
        let answered = probed.large_size == size && probed.large_sequence == sequence;
        if !answered && now < sent + TIMEOUT {
            return;
        }
        self.waits = None;
        if answered {
            (self.missed, self.passed) = (0, size);
        } else if small_passes {
            self.missed += 1;
        }
        if let Some(search) = &mut self.search {
            if answered || self.missed >= SEARCH_FAILS {
                self.missed = 0;
                let found = search.note(size, answered);
                self.end(found, now);
            }
        } else if self.missed >= LARGE_FAILS && size > LEAST {
            (self.missed, self.search) = (0, Some(Search::new(0, size)));
        }
    }

    /// Begins to look whether more passes than was found, up to what the interface takes.
    fn raise(&mut self, interface: u16) {
        self.missed = 0;
        if self.limit < interface {
            // The limit is not known to pass if not even the least size did.
            let passes = if self.passed == 0 { 0 } else { self.limit };
            self.search = Some(Search::new(passes, interface));
        } else {
            self.limit = 0;
        }
    }

    fn end(&mut self, found: Option<Found>, now: u64) {
        let Some(found) = found else { return };
        let top = self.search.take().map_or(0, |search| search.top);
        match found {
            // An earlier search's limit holds if this one has not looked beyond it.
            Found::All if top > self.limit => self.limit = 0,
            Found::All => {}
            Found::Most(size) => (self.limit, self.passed) = (size, size),
            Found::Nothing => (self.limit, self.passed) = (LEAST, 0),
        }
        // A limit at which probes are lost as well is looked at again soon.
        self.raise_at = now + if self.passed == 0 { LARGE } else { RAISE };
    }
}

/// A search for the largest size that passes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    /// Largest size that is known to pass; 0: not even [`LEAST`] is.
    passes: u16,
    /// Smallest size that is taken not to pass.
    fails: u16,
    /// [`Search::passes`] when it began.
    bottom: u16,
    /// [`Search::fails`] when it began. The search asks for nothing larger.
    top: u16,
}

/// What a search has found.
enum Found {
    /// Its top passes.
    All,
    /// This much passes, and no byte more.
    Most(u16),
    /// Not even the least size passes.
    Nothing,
}

impl Search {
    fn new(passes: u16, top: u16) -> Self {
        Self { passes, fails: top, bottom: passes, top }
    }

    /// What is tried next. Before the search ends the smallest size that does not pass is tried once more: what was
    /// lost by chance, there or where the search began, must not limit the path for ten minutes.
    fn next(&self) -> u16 {
        match (self.passes, self.fails - self.passes) {
            (0, _) => LEAST,
            (_, 1) => self.fails,
            // As a rule nothing has changed since the last search, and one byte more tells.
            (passes, _) if passes == self.bottom && self.fails == self.top => passes + 1,
            (passes, apart) => passes + apart / 2,
        }
    }

    /// Takes note of what became of a probe of that size. Says what the search has found, if that ends it.
    fn note(&mut self, size: u16, passed: bool) -> Option<Found> {
        match (passed, size == self.fails) {
            (true, false) => self.passes = size,
            (true, true) if size == self.top => return Some(Found::All),
            (true, true) => (self.passes, self.fails) = (size, self.top),
            (false, true) if self.passes == 0 => return Some(Found::Nothing),
            (false, true) => return Some(Found::Most(self.passes)),
            (false, false) => self.fails = size,
        }
        None
    }
}
