//! What tests of lines need to run with both layouts.

use dataplane_common::line::{Layout, VALUE};
use dataplane_core::lines::{self, Key, KeyWords, Lines};

/// Nanoseconds: a line of `Translated` holds when its entry was made in whole ticks.
pub(crate) const TICK: u64 = 1 << dataplane_common::line::TICK_BITS;

/// A key of those words that this layout has.
pub(crate) fn key<L: Layout>([low, high, rest]: KeyWords, half: u32) -> Key {
    let high = if L::STATE < VALUE { 0 } else { high };
    Key { words: [low, high, rest & L::KEY_BITS], half }
}

/// Removes a connection as programs do. Whether it was established.
pub(crate) fn remove(lines: &impl Lines, key: &Key) -> bool {
    let mut removed = lines::remove(lines, key);
    if removed != 0 {
        removed |= lines::remove(lines, key);
    }
    lines::is_established(removed)
}

/// Makes two tests of each of these functions, one for each layout.
macro_rules! for_both_layouts {
    ($($test:ident,)*) => {
        mod clients {
            $(#[test] fn $test() { super::$test::<dataplane_common::line::Clients>() })*
        }
        mod translated {
            $(#[test] fn $test() { super::$test::<dataplane_common::line::Translated>() })*
        }
    };
}
