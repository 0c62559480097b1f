//! Maps `*_SEGMENTS` and `*_HEAD`: buckets of four cache lines, each of which holds one connection of a client
//! (`AFFINITY_*`), one entry of a translated connection (`FLOWS_*`), or nothing. What finds no line goes to a hash, the
//! table's overflow: `AFFINITY` or `FLOWS`.
//!
//! A key and a secret seed give two buckets. A connection begins as pending: it takes the first free line; if none is
//! free, it displaces the pending entry that was last seen before all others. Once both ends have proved that they are
//! there it is established, in the same line, and never displaced (ADR 31). In a sparse table a look-up that hits
//! mostly reads the head and one line (ADR 29). The agent reads, inserts and frees through its mapping.
//!
//! The table is in two halves, one for TCP and one for all else (see [`crate::flow::pending`]), so that neither
//! displaces the other's. A half's buckets are in segments of [`SEGMENT`], each an array map; it becomes larger
//! while programs use it (ADR 30).

use core::mem::offset_of;

use crate::flow::{Affinity, AffinityKey, Flow, FlowKey};

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

/// Value of a head, an array of one: numbers as [`head`] says.
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
    /// know of it. What proves itself then goes to the overflow.
    pub const ESTABLISHES: usize = 4;
    /// From here on: words that programs write, in a cache line of their own. How many established entries they have
    /// put into the overflow; they look there only while this and the next word differ.
    pub const SPILLED: usize = 8;
    /// Set by the agent to the value of [`SPILLED`] that it read before it found the overflow empty.
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
/// The most segments of a half. Those of the second half are behind these.
pub const SEGMENTS: u32 = 1 << 10;
/// The most buckets in a half.
pub const MOST_BUCKETS: u32 = SEGMENT * SEGMENTS;

/// A bucket's number.
#[inline(always)]
#[must_use]
pub const fn number(half: u32, index: u32) -> u32 {
    half * MOST_BUCKETS + index
}

/// Where a bucket is: which segment, and which of its elements.
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

/// First word of the key.
pub const KEY: usize = 0;
/// First word of the value: when a packet was last seen.
pub const VALUE: usize = 2;

/// Word of both kinds of values with the time at which the entry was made, outside of lines.
pub const CREATED: usize = 1;

/// What is where in the lines of a table.
pub trait Layout {
    /// Word of the line's [`state`].
    const STATE: usize;
    /// Which of its bits are of the key.
    const KEY_BITS: u64;
    /// Byte of the value with the connection's flags.
    const FLAGS: usize;
    /// So many bits at the end of the time at which an entry was made are not in a line.
    const COARSE_BITS: u32;

    /// What the state holds of a value.
    fn of_value(value: &[u64; WORDS - VALUE]) -> u64;

    /// When the entry in a line was made, if the state holds that: as in [`crate::flow::Flow::created`], but to 2²² ns
    /// and modulo 2⁵⁴.
    fn created(seen: u64) -> u64;
}

/// Connections of clients: [`AffinityKey`], whose last three bytes, which are padding, hold the state; and
/// [`Affinity`].
#[derive(Clone, Copy, Debug)]
pub struct Clients;

impl Layout for Clients {
    const STATE: usize = 1;
    const KEY_BITS: u64 = state::OTHERS;
    const FLAGS: usize = offset_of!(Affinity, flags);
    const COARSE_BITS: u32 = 0;

    #[inline(always)]
    fn of_value(_: &[u64; WORDS - VALUE]) -> u64 {
        0
    }

    #[inline(always)]
    fn created(_: u64) -> u64 {
        0
    }
}

/// Translated connections: [`FlowKey`] but for its last four bytes; and [`Flow`], where the state takes the place of
/// [`Flow::created`]. Its lower five bytes are the protocol and a number of ticks of 2²² ns, modulo 2³².
#[derive(Clone, Copy, Debug)]
pub struct Translated;

/// Bits of the state that are a protocol's number.
const PROTO_BITS: u32 = 8;
/// Bits of the nanoseconds in a tick.
pub const TICK_BITS: u32 = 22;

impl Layout for Translated {
    const STATE: usize = VALUE + CREATED;
    const KEY_BITS: u64 = (1 << PROTO_BITS) - 1;
    const FLAGS: usize = offset_of!(Flow, flags);
    const COARSE_BITS: u32 = TICK_BITS;

    #[inline(always)]
    fn of_value(value: &[u64; WORDS - VALUE]) -> u64 {
        (ticks(value[Self::STATE - VALUE]) as u64) << PROTO_BITS
    }

    #[inline(always)]
    fn created(seen: u64) -> u64 {
        ((seen >> PROTO_BITS) as u32 as u64) << TICK_BITS
    }
}

/// The time that [`Layout::created`] gives, as it lies no longer before `now` than 208 days, or a second after it:
/// clocks of two CPUs differ by a tick.
#[inline(always)]
#[must_use]
pub const fn before(now: u64, created: u64) -> u64 {
    const AHEAD: u64 = 1 << 30;
    let latest = now.saturating_add(AHEAD) >> TICK_BITS;
    let ago = (latest as u32).wrapping_sub(ticks(created));
    latest.saturating_sub(ago as u64) << TICK_BITS
}

/// The part of a time that the state of a translated connection's line holds.
#[inline(always)]
#[must_use]
pub const fn ticks(time: u64) -> u32 {
    (time >> TICK_BITS) as u32
}

/// Whether a pending connection is in a line with this state. A time in place of one, as an entry outside of lines has
/// it, is taken for either.
#[inline(always)]
#[must_use]
pub const fn is_pending(seen: u64) -> bool {
    seen & state::BITS == state::PENDING
}

/// What word [`Layout::STATE`] holds beside parts of the key or of the value.
pub mod state {
    /// These.
    pub const OTHERS: u64 = (1 << 40) - 1;
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
    assert!(size_of::<AffinityKey>() + size_of::<Affinity>() == size_of::<Line>());
    assert!(offset_of!(AffinityKey, proto) == 12 && offset_of!(Affinity, last_seen) == 0);
    assert!(size_of::<FlowKey>() - 4 + size_of::<Flow>() == size_of::<Line>());
    assert!(offset_of!(FlowKey, proto) == 16 && offset_of!(Flow, last_seen) == 0);
    assert!(offset_of!(Flow, created) == 8 * CREATED && offset_of!(Affinity, created) == 8 * CREATED);
    assert!(size_of::<Bucket>() == 64 * SLOTS && align_of::<Bucket>() == 8 && size_of::<Head>() == 128);
    assert!(number(1, 0) == MOST_BUCKETS && place(number(1, 0)).0 == SEGMENTS);
    // The state lies in the key's padding.
    assert!(cfg!(target_endian = "little"));
};
