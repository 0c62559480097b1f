//! Map `AFFINITY_LINES`: an array of buckets of four cache lines, each of which holds one connection, or nothing.
//!
//! A key and a secret seed give two buckets. A connection takes the first free line; if none is free, it displaces
//! the entry that was last seen before all others. Entries never move. In a sparse table a look-up that hits mostly
//! reads the header and one line (ADR 29). The agent reads, inserts and frees through its mapping.
//!
//! Line 0 of bucket 0 is the [`header`]. The buckets behind it are in two halves, one for TCP and one for all else (see
//! [`crate::flow::pending`]), so that neither displaces the other's.

use crate::flow::{Affinity, AffinityKey};

/// Words of eight bytes in a line of 64, native byte order.
pub const WORDS: usize = 8;
/// A connection, or nothing.
pub type Line = [u64; WORDS];
/// Lines in a bucket.
pub const SLOTS: usize = 4;
/// Value of the map.
// A struct: the kernel refuses BTF of an array of arrays as a value.
#[repr(C)]
pub struct Bucket {
    /// Its lines.
    pub lines: [Line; SLOTS],
}

/// Words of the first line.
pub mod header {
    /// A secret: without it, keys that share buckets cannot be computed.
    pub const SEED: usize = 0;
    /// Buckets in each half; 0: the map is not ready.
    pub const COUNT: usize = 1;
}

/// Word of the lower eight bytes of the key.
pub const KEY: usize = 0;
/// Word of the upper eight bytes of the key, whose last three, which are padding, hold the line's [`state`].
pub const STATE: usize = 1;
/// First word of the value: when a packet was last seen.
pub const VALUE: usize = 2;

/// What word [`STATE`] holds beside the key.
pub mod state {
    /// Of the key.
    pub const KEY_BITS: u64 = (1 << 40) - 1;
    /// Nothing here.
    pub const FREE: u64 = 0;
    /// A program is writing here.
    pub const CLAIMED: u64 = 1 << 40;
    /// A connection is here.
    pub const USED: u64 = 2 << 40;
    /// The agent is writing here. Unlike a program it may be ended before it is done.
    pub const CLAIMED_BY_AGENT: u64 = 3 << 40;
    /// One of these four.
    pub const BITS: u64 = 0xff << 40;
    /// How often the line was claimed; wraps.
    pub const VERSION: u64 = 0xffff << 48;
    /// One claim.
    pub const ONE_CLAIM: u64 = 1 << 48;
}

/// Buckets in a map with room for so many connections in each half.
#[must_use]
pub const fn buckets(connections: u32) -> u32 {
    2 * connections.div_ceil(SLOTS as u32) + 1
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<AffinityKey>() + size_of::<Affinity>() == size_of::<Line>());
    assert!(offset_of!(AffinityKey, proto) == 12 && offset_of!(Affinity, last_seen) == 0);
    assert!(size_of::<Bucket>() == 64 * SLOTS && align_of::<Bucket>() == 8);
    // The state lies in the key's padding.
    assert!(cfg!(target_endian = "little"));
};
