//! The relay: managers' agents hand the table to all nodes' agents, and get reports of what only each node knows.
//!
//! ```text
//! agent on a worker                                  agent on a manager
//! client/link  ──── mutual TLS, one call ───────▶  server/accept, server/session
//!   report (vtep, unhealthy and dead tasks) ─────▶    server/registry ─▶ Hub::reports ─▶ merged table
//!   table of this node ◀── whole, newest only ────    Hub::table, filtered
//! ```
//!
//! Who somebody is says the certificate that swarm has given the node: a client's CN must be a node of the manager's
//! table, now and after every change of it; a server must be a manager.

pub mod client;
pub mod convert;
mod deregister;
pub mod server;
mod start;
mod status;

use std::time::Instant;

pub use deregister::{Told, deregister};
use hiveway_core::path_report::PathReport;
pub use start::{Handle, Options, start};
pub use status::{RelayParts, RelayStatus};

/// What this node's probes have shown, for the managers.
#[derive(Clone, Debug)]
pub struct PathNews {
    /// When it was so.
    pub at: Instant,
    /// What they have shown.
    pub report: PathReport,
}

impl Default for PathNews {
    fn default() -> Self {
        Self { at: Instant::now(), report: PathReport::default() }
    }
}

/// What this agent speaks.
pub const PROTOCOL: u32 = 1;
/// Where managers' agents listen by default.
pub const DEFAULT_PORT: u16 = 4788;
/// This agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
