//! Map `GROUP_RATE` (LRU hash, key: index of the interface, native `u32`; value: native `u64`, when the container's
//! token bucket is full again, nanoseconds of `CLOCK_MONOTONIC`): how much broadcast and multicast a container may
//! send.
//!
//! 2,000 frames per second are far more than discovery protocols and ARP need, and less than what bothers anybody when
//! each is copied to every node of the network. Interfaces that no group frames of containers come through have the
//! same bucket for the "time exceeded" that answers what comes in through them.

/// How many interfaces are watched; the least recently used make room.
pub const MAX_INTERFACES: u32 = 4_096;
/// Time that earns one frame: 2,000 per second.
pub const INTERVAL_NS: u64 = 500_000;
/// How long a full bucket lasts without income: 2,000 frames at once.
pub const BURST_NS: u64 = 2_000 * INTERVAL_NS;
