//! Maps `AFFINITY_SEGMENTS` and `AFFINITY_HEAD`: buckets of four cache lines, each of which holds one connection, or
//! nothing.
//!
//! A key and a secret seed give two buckets. A connection begins as pending: it takes the first free line; if none is
//! free, it displaces the pending entry that was last seen before all others. Once both ends have proved that they are
//! there it is established, in the same line, and never displaced (ADR 31). In a sparse table a look-up that hits
//! mostly reads the head and one line (ADR 29). The agent reads, inserts and frees through its mapping.
//!
//! The table is in two halves, one for TCP and one for all else (see [`crate::flow::pending`]), so that neither
//! displaces the other's. A half's buckets are in segments of [`SEGMENT`], each an array map; it grows by twice as many
//! while programs use it (ADR 30).

use crate::flow::{Affinity, AffinityKey};

/// Words of eight bytes in a line of 64, native byte order.
pub const WORDS: usize = 8;
/// A connection, or nothing.
pub type Line = [u64; WORDS];
/// Lines in a bucket.
pub const SLOTS: usize = 4;
/// Established entries in a bucket at most: one line stays for pending ones, so that a connection can always begin.
pub const MOST_ESTABLISHED: usize = SLOTS - 1;

/// Value of a segment.
// A struct: the kernel refuses BTF of an array of arrays as a value.
#[repr(C)]
pub struct Bucket {
    /// Its lines.
    pub lines: [Line; SLOTS],
}

/// Value of map `AFFINITY_HEAD`, an array of one: numbers as [`head`] says.
#[repr(C)]
pub struct Head {
    /// Its words, two cache lines.
    pub words: [u64; head::WORDS],
}

/// Words of the [`Head`].
pub mod head {
    /// A secret: without it, keys that share buckets cannot be computed.
    pub const SEED: usize = 0;
    /// How large the first half is, see [`geometry`]; the second half's is behind it.
    pub const GEOMETRY: usize = 1;
    /// The most buckets that either half may have.
    pub const MOST: usize = 3;
    /// Whether connections are established in their lines; 0 while programs of a version may be attached that does not
    /// know of it. What proves itself then goes to map `AFFINITY`.
    pub const ESTABLISHES: usize = 4;
    /// From here on: words that programs write, in a cache line of their own. How many established entries they have
    /// put into `AFFINITY`; they look there only while this and the next word differ.
    pub const SPILLED: usize = 8;
    /// Set by the agent to the value of [`SPILLED`] that it read before it found `AFFINITY` empty.
    pub const RETURNED: usize = 9;
    /// All of them.
    pub const WORDS: usize = 16;
}

/// How large a half is: the number of buckets in which connections are entered, a power of two, 0: not ready; and above
/// 32 bits the number before it, while connections are moved from there, 0: none are.
pub mod geometry {
    /// Both in one.
    #[must_use]
    pub const fn of(count: u32, old: u32) -> u64 {
        (old as u64) << 32 | count as u64
    }

    /// In which connections are entered.
    #[inline(always)]
    #[must_use]
    pub const fn count(geometry: u64) -> u32 {
        geometry as u32
    }

    /// From which connections are moved.
    #[inline(always)]
    #[must_use]
    pub const fn old(geometry: u64) -> u32 {
        (geometry >> 32) as u32
    }
}

/// Buckets in a segment; in memory a MiB, however few of them are used.
pub const SEGMENT: u32 = 1 << SEGMENT_BITS;
const SEGMENT_BITS: u32 = 12;
/// The most segments of a half. Those of the second half are behind these in `AFFINITY_SEGMENTS`.
pub const SEGMENTS: u32 = 1 << 10;
/// The most buckets in a half.
pub const MOST_BUCKETS: u32 = SEGMENT * SEGMENTS;

/// A bucket's number.
#[inline(always)]
#[must_use]
pub const fn number(half: u32, index: u32) -> u32 {
    half * MOST_BUCKETS + index
}

/// Where a bucket is: which element of `AFFINITY_SEGMENTS`, and which of that.
#[inline(always)]
#[must_use]
pub const fn place(number: u32) -> (u32, u32) {
    (number >> SEGMENT_BITS, number & (SEGMENT - 1))
}

/// Buckets in a half with room for so many connections.
#[must_use]
pub const fn buckets(connections: u32) -> u32 {
    let buckets = connections.div_ceil(SLOTS as u32);
    // Not more than there may be, and the next power of two below that.
    if buckets >= MOST_BUCKETS { MOST_BUCKETS } else { buckets.next_power_of_two() }
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
    /// Set in both of the next two.
    pub const USED: u64 = 2 << 40;
    /// A pending connection is here.
    pub const PENDING: u64 = USED;
    /// An established connection is here.
    pub const ESTABLISHED: u64 = PENDING | PROVED;
    /// What tells the two apart.
    pub const PROVED: u64 = 4 << 40;
    /// The agent is writing here. Unlike a program it may be ended before it is done.
    pub const CLAIMED_BY_AGENT: u64 = 8 << 40;
    /// One of these five.
    pub const BITS: u64 = 0xff << 40;
    /// How often the line was claimed; wraps.
    pub const VERSION: u64 = 0xffff << 48;
    /// One claim.
    pub const ONE_CLAIM: u64 = 1 << 48;
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<AffinityKey>() + size_of::<Affinity>() == size_of::<Line>());
    assert!(offset_of!(AffinityKey, proto) == 12 && offset_of!(Affinity, last_seen) == 0);
    assert!(size_of::<Bucket>() == 64 * SLOTS && align_of::<Bucket>() == 8 && size_of::<Head>() == 128);
    assert!(number(1, 0) == MOST_BUCKETS && place(number(1, 0)).0 == SEGMENTS);
    // The state lies in the key's padding.
    assert!(cfg!(target_endian = "little"));
};
