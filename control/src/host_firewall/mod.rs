//! The host's own packet filters: read here, judged in [`hiveway_core::firewall`].

mod notified;
mod read;
mod watch;

use std::sync::Arc;

use hiveway_core::firewall::Ruleset;
use serde_json::Value;

pub use read::read;
pub use watch::{LastReading, watch};

/// What the host's packet filters hold.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// All rules that may matter.
    pub rules: Arc<Ruleset>,
    /// Everything that `nft -j` lists, without elements of sets.
    pub listing: Arc<Value>,
    /// iptables' nat table has an engine's rules that could not be printed: what they say is unknown.
    pub nat_unread: bool,
}
