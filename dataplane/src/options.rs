//! What a caller may choose when it opens the data plane.

use std::{path::PathBuf, str::FromStr};

use dataplane_common::{
    flow::{MAX_FLOWS, MAX_PENDING},
    line,
};

use crate::{MapName, PerTable};

/// How to open the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory on a BPF file system that maps and links are pinned under; made if missing. One agent each.
    pub bpffs: PathBuf,
    /// How programs are attached.
    pub tc_hook: TcHook,
    /// Room in the connection tables if they are made. Pinned ones of another size are adopted as they are.
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
    /// `FLOWS` and `AFFINITY`, and so many entries are established: of translated connections (two each), and of
    /// clients'. Each half of `FLOWS_SEGMENTS` and `AFFINITY_SEGMENTS` grows to twice as many.
    pub max_flows: u32,
    /// Each half of `FLOWS_SEGMENTS` and `AFFINITY_SEGMENTS` at first.
    pub max_pending: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { max_flows: MAX_FLOWS, max_pending: MAX_PENDING }
    }
}

impl Sizes {
    pub(crate) fn by_map(self) -> [(MapName, u32); 2] {
        [(MapName::Flows, self.max_flows), (MapName::Affinity, self.max_flows)]
    }

    /// Buckets in each half of a table of lines: at first, and at most.
    pub(crate) fn buckets(self) -> (u32, u32) {
        let first = line::buckets(self.max_pending);
        (first, line::buckets(self.max_flows.saturating_mul(2)).max(first))
    }
}

impl From<Sizes> for PerTable<u32> {
    fn from(sizes: Sizes) -> Self {
        let lines = sizes.buckets().0 * line::SLOTS as u32;
        Self {
            flows: sizes.max_flows,
            affinity: sizes.max_flows,
            flows_pending: lines,
            affinity_pending: lines,
            flows_pending_other: lines,
            affinity_pending_other: lines,
        }
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
