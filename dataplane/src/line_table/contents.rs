//! What tables of lines hold: connections of clients, and translated ones.

use dataplane_common::{
    flow::{Affinity, AffinityKey, Flow, FlowKey},
    line::{self, Clients, Layout, Translated},
};
use dataplane_core::lines::{KeyWords, Value};
use zerocopy::transmute;

use crate::{MapName, clock::monotonic_now, map_name::retired, pod::Plain};

/// What is in the lines of a table, and which maps belong to it.
pub(crate) trait Contents: Layout + Copy {
    /// Key of an entry.
    type Key: Plain + Ord;
    /// What is known under it.
    type Entry: Entry;

    /// The connections, as messages call them.
    const WHAT: &'static str;
    /// Map of the lines.
    const SEGMENTS: MapName;
    /// Map of what programs have to know of them.
    const HEAD: MapName;
    /// Map of established entries that have found no line.
    const SPILLED: MapName;
    /// Maps in which earlier versions had pending entries.
    const RETIRED: &'static [&'static str];

    /// IP protocol number.
    fn proto(key: &Self::Key) -> u8;

    /// The key as it lies in a line.
    fn words_of(key: &Self::Key) -> KeyWords;

    /// The key that lies in a line so.
    fn key_of(words: KeyWords) -> Self::Key;

    /// The entry as it is written to a line.
    fn value_of(entry: Self::Entry) -> Value;

    /// The entry that was just read from a line so.
    fn entry_of(value: Value) -> Self::Entry;
}

impl Contents for Clients {
    type Key = AffinityKey;
    type Entry = Affinity;

    const WHAT: &'static str = "clients' connections";
    const SEGMENTS: MapName = MapName::AffinitySegments;
    const HEAD: MapName = MapName::AffinityHead;
    const SPILLED: MapName = MapName::Affinity;
    const RETIRED: &'static [&'static str] = &retired::CLIENTS;

    fn proto(key: &AffinityKey) -> u8 {
        key.proto
    }

    fn words_of(key: &AffinityKey) -> KeyWords {
        let [low, high]: [u64; 2] = transmute!(*key);
        [low, 0, high]
    }

    fn key_of([low, _, high]: KeyWords) -> AffinityKey {
        transmute!([low, high])
    }

    fn value_of(entry: Affinity) -> Value {
        transmute!(entry)
    }

    fn entry_of(value: Value) -> Affinity {
        transmute!(value)
    }
}

impl Contents for Translated {
    type Key = FlowKey;
    type Entry = Flow;

    const WHAT: &'static str = "translated connections";
    const SEGMENTS: MapName = MapName::FlowsSegments;
    const HEAD: MapName = MapName::FlowsHead;
    const SPILLED: MapName = MapName::Flows;
    const RETIRED: &'static [&'static str] = &retired::FLOWS;

    fn proto(key: &FlowKey) -> u8 {
        key.proto
    }

    fn words_of(key: &FlowKey) -> KeyWords {
        let ([a, b], [c, d]) = (key.sport, key.dport);
        let [low, high]: [u64; 2] = transmute!([key.zone, key.src, key.dst, [a, b, c, d]]);
        [low, high, key.proto.into()]
    }

    fn key_of([low, high, proto]: KeyWords) -> FlowKey {
        let [zone, src, dst, [a, b, c, d]]: [[u8; 4]; 4] = transmute!([low, high]);
        FlowKey::new(zone, (src, [a, b]), (dst, [c, d]), proto as u8)
    }

    fn value_of(entry: Flow) -> Value {
        transmute!(entry)
    }

    fn entry_of(value: Value) -> Flow {
        let flow: Flow = transmute!(value);
        Flow { created: line::before(monotonic_now(), flow.created), ..flow }
    }
}

/// An entry of either table.
pub(crate) trait Entry: Plain + PartialEq {
    /// When a packet was last seen.
    fn last_seen(&self) -> u64;

    /// When it was made, as exactly as a line tells: what differs between two entries under one key.
    fn made(&self) -> u64;

    /// The entry with what was noted in another one of the same connection.
    fn merged(self, other: Self) -> Self;
}

/// To so many nanoseconds a line tells when a translated connection's entry was made.
const TICK: u64 = 1 << line::TICK_BITS;

/// The latest time at which a translated connection's entry may have been made that was `created` then, as its line
/// tells.
pub(crate) const fn made_at_most(created: u64) -> u64 {
    created | (TICK - 1)
}

macro_rules! entries {
    ($($entry:ty: $precision:expr),*) => {$(
        impl Entry for $entry {
            fn last_seen(&self) -> u64 {
                self.last_seen
            }

            fn made(&self) -> u64 {
                self.created & !($precision - 1)
            }

            fn merged(self, other: Self) -> Self {
                let tcp_number = if self.tcp_number == [0; 3] { other.tcp_number } else { self.tcp_number };
                let last_seen = self.last_seen.max(other.last_seen);
                Self { last_seen, flags: self.flags | other.flags, tcp_number, ..self }
            }
        }
    )*};
}

entries!(Affinity: 1, Flow: TICK);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_key_and_in_ticks_when_the_entry_was_made() {
        let key = FlowKey::new([1, 2, 3, 4], ([5, 6, 7, 8], [9, 10]), ([11, 12, 13, 14], [15, 16]), 17);
        assert_eq!(Translated::key_of(Translated::words_of(&key)), key);
        let client = AffinityKey::new(([5, 6, 7, 8], [9, 10]), ([11, 12, 13, 14], [15, 16]), 17);
        assert_eq!(Clients::key_of(Clients::words_of(&client)), client);
        let now = monotonic_now();
        for created in [0, 1, TICK, now, now.saturating_sub(3600 * 1_000_000_000), now + TICK] {
            let flow = Flow { created, last_seen: now, flags: 3, ..Flow::default() };
            let mut value = Translated::value_of(flow);
            let state = <Translated as Layout>::of_value(&value);
            value[1] = <Translated as Layout>::created(state);
            let read = Translated::entry_of(value);
            assert_eq!(read, Flow { created: flow.made(), ..flow });
            assert!(read.made() == read.created && (read.created..=made_at_most(read.created)).contains(&created));
        }
    }
}
