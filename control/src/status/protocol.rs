//! Newline-delimited JSON: one request line `{"request": "status"}`, one response line `{"ok": ...}` or
//! `{"error": "..."}`, as often as the client likes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// How the agent and its node are doing.
    Status,
    /// Overlay networks.
    Networks,
    /// Services with backends.
    Services,
    /// Tasks with networking.
    Endpoints,
    /// Translated connections.
    Flows,
    /// Dropped packets.
    Drops,
    /// Whether the paths to other nodes work.
    Check,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Error(String),
}
