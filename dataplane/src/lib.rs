//! Hiveway's data plane as its agent sees it: [`Dataplane`] loads the programs, adopts or makes the pinned maps,
//! attaches the programs and keeps the maps as a [`MapState`](dataplane_common::state::MapState) says. Connections are
//! swept and counted here too. The only crate that knows aya.
//!
//! Everything lies under one directory on a BPF file system and outlives the agent: `maps/<NAME>`,
//! `links/<program>@<interface>` (or `filters/…` on kernels without TCX). [`teardown`] removes it.

mod adopt;
mod apply;
mod attach;
mod changes;
mod clock;
mod compare;
mod connections;
mod dataplane;
mod diff;
mod gate;
mod hops;
mod leave;
mod line_table;
mod load;
mod lock;
mod logger;
mod map_name;
mod mmap_array;
mod object;
mod options;
mod paths;
mod pins;
mod pod;
mod preflight;
pub mod private;
mod probes;
mod program;
mod random;
mod reverse;
mod sandbox;
mod sets;
mod stats;
mod sys;
mod table;
mod tables;
mod teardown;
#[cfg(feature = "testing")]
pub mod testing;
mod trie;
mod verify;
mod xdp_state;

pub use crate::{
    adopt::AdoptError,
    apply::ApplyError,
    attach::{AttachError, AttachFault, Attached, XdpMode, XdpTrial, is_taken},
    changes::{Changes, Delta, Failure},
    clock::monotonic_now,
    connections::{
        ConnectionRow, Connections, Kept, KeptClients, KeptService, Kind, Live, PerTable, Removed, State, SweepReport,
        Timeouts,
    },
    dataplane::{Dataplane, Detached, LeftNow, OpenError},
    hops::Hops,
    leave::{Left, leave},
    load::LoadError,
    lock::LockError,
    logger::LoggerError,
    map_name::MapName,
    options::{LogLevel, Options, Sizes, TcHook, UnknownLevel},
    paths::{Belief, PathLimit, Paths},
    pins::{Mended, PinsError},
    preflight::{Check, PreflightError, checks, has_tcx, preflight, release, sees_owners, try_clsact},
    probes::Probes,
    program::{Direction, Program, UnknownProgram},
    reverse::ReversePaths,
    stats::Counts,
    table::MapFault,
    teardown::{TeardownError, TeardownReport, teardown},
    verify::{Verified, VerifyError, verify},
};
