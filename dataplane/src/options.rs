//! What a caller may choose when it opens the data plane.

use std::{path::PathBuf, str::FromStr};

use dataplane_common::{
    flow::{MAX_FLOWS, MAX_PENDING},
    line::{self, SLOTS},
};

use crate::MapName;

/// How to open the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory on a BPF file system that maps and links are pinned under; made if missing. One agent each.
    pub bpffs: PathBuf,
    /// How programs are attached.
    pub tc_hook: TcHook,
    /// Room in the connection tables. Pinned maps of another size are adopted as they are.
    pub sizes: Sizes,
    /// How much the programs log through the `log` crate; `None`: nothing, and the programs spend nothing on it.
    pub log_level: Option<LogLevel>,
}

impl Options {
    /// Defaults with that directory: the best hook the kernel has, no debug output.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self { bpffs: bpffs.into(), tc_hook: TcHook::Auto, sizes: Sizes::default(), log_level: None }
    }
}

/// Room in the connection tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// So many entries are established: of translated connections (two each), and of clients'. Each half of
    /// `FLOWS_SEGMENTS` and `AFFINITY_SEGMENTS` grows to twice as many lines; `FLOWS` and `AFFINITY` are made with
    /// [`Self::spilled`] places.
    pub max_flows: u32,
    /// So many lines each half of `FLOWS_SEGMENTS` and `AFFINITY_SEGMENTS` has once pending connections need them. It
    /// begins with a segment.
    pub max_pending: u32,
}

/// One in so many established entries may find no line and be in `FLOWS` or `AFFINITY`. Where tables grow in time it is
/// a few in 100,000; where no agent is there to have them grow it is most.
const SPILLED: u32 = 8;
/// Places in `FLOWS` and `AFFINITY` at least, for small tables: there chance has more of a say.
const LEAST_SPILLED: u32 = 4096;

/// Buckets in each half of a table of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    /// At first.
    pub(crate) first: u32,
    /// Once pending connections need them.
    pub(crate) pending: u32,
    /// Once established ones do.
    pub(crate) most: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { max_flows: MAX_FLOWS, max_pending: MAX_PENDING }
    }
}

impl Sizes {
    pub(crate) fn by_map(self) -> [(MapName, u32); 2] {
        [(MapName::Flows, self.spilled()), (MapName::Affinity, self.spilled())]
    }

    /// Places in `FLOWS`, and in `AFFINITY`: for established entries that find no line. The number bounds nobody;
    /// [`Self::max_flows`] does.
    pub fn spilled(self) -> u32 {
        // A half cannot have twice as many lines as the largest tables ask for. What is above half of them goes here.
        let in_lines = self.lines().1 / 2;
        let share = (self.max_flows / SPILLED).max(self.max_flows.min(LEAST_SPILLED));
        share.max(self.max_flows.saturating_sub(in_lines))
    }

    /// Lines in each half of a table: once pending connections need them, and at most.
    pub fn lines(self) -> (u32, u32) {
        let Buckets { pending, most, .. } = self.buckets();
        (pending * SLOTS as u32, most * SLOTS as u32)
    }

    /// Buckets in each half of a table of lines.
    pub(crate) fn buckets(self) -> Buckets {
        let pending = line::buckets(self.max_pending);
        let most = line::buckets(self.max_flows.saturating_mul(2)).max(pending);
        Buckets { first: pending.min(line::SEGMENT), pending, most }
    }
}

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcHook {
    /// TCX where the kernel has it (6.6 and later), clsact otherwise.
    #[default]
    Auto,
    /// BPF links, pinned.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// How much the programs log. The numbers are aya-log's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// What should not happen.
    Error = 1,
    /// What may be wrong.
    Warn = 2,
    /// Every decision worth a line.
    Info = 3,
    /// Every packet.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

/// The text names no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no log level: use error, warn, info, debug or trace")]
pub struct UnknownLevel(pub String);

impl FromStr for LogLevel {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            other => return Err(UnknownLevel(other.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(max_flows: u32, max_pending: u32) -> Sizes {
        Sizes { max_flows, max_pending }
    }

    #[test]
    fn the_overflow_has_an_eighth_of_the_places_and_room_for_what_lines_have_none_for() {
        for (max_flows, spilled) in [
            (MAX_FLOWS, 1 << 17),
            // Never more than there may be entries.
            (1024, 1024),
            (5000, 4096),
            (1 << 16, 8192),
            (1 << 20, 1 << 17),
            (1 << 23, 1 << 20),
            // Lines for 16 million entries in each half are all there may be.
            (1 << 24, 1 << 23),
            (1 << 26, (1 << 26) - (1 << 23)),
        ] {
            let sizes = sizes(max_flows, MAX_PENDING);
            assert_eq!(sizes.spilled(), spilled, "{max_flows}");
            assert_eq!(sizes.by_map(), [(MapName::Flows, spilled), (MapName::Affinity, spilled)]);
        }
    }

    #[test]
    fn a_half_begins_with_a_segment_at_most() {
        assert_eq!(Sizes::default().lines(), (1 << 16, 1 << 21));
        assert_eq!(Sizes::default().buckets(), Buckets { first: 1 << 12, pending: 1 << 14, most: 1 << 19 });
        assert_eq!(sizes(1024, 2000).buckets(), Buckets { first: 512, pending: 512, most: 512 }, "fewer are asked for");
        assert_eq!(sizes(1024, 1 << 26).lines(), (1 << 24, 1 << 24), "more than there may be");
    }
}
