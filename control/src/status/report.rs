//! Answers to requests, as JSON with stable keys (docs/cli.md).

mod flows;
mod health;
mod matrix;
mod paths;
mod starting;
mod status;

use std::sync::Arc;

use dataplane_common::{counter::Stat, drop_reason::DropReason};
use hiveway_core::views;
use serde::Serialize;
use serde_json::Value;

pub use health::Health;
pub use matrix::Matrix;
pub use starting::Starting;

use super::protocol::Request;
use crate::{agent::shared::Shared, nft};

/// Who answers.
#[derive(Clone, Debug)]
pub enum Answers {
    /// An agent without a table.
    Starting(Starting),
    /// The agent.
    Agent(Arc<Shared>),
}

/// A row of `drops`.
#[derive(Clone, Debug, Serialize)]
pub struct DropView {
    /// Name of the reason.
    pub reason: &'static str,
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// What was asked for.
///
/// # Errors
/// When maps cannot be read.
pub fn report(answers: &Answers, request: Request) -> Result<Value, String> {
    let shared = match (answers, request) {
        (Answers::Agent(shared), _) => shared,
        (Answers::Starting(starting), Request::Status) => {
            return serde_json::to_value(starting.status()).map_err(|error| error.to_string());
        }
        (Answers::Starting(starting), _) => return Err(format!("it waits for {}", starting.why())),
    };
    let snapshot = shared.snapshot();
    let value = match request {
        Request::Status => serde_json::to_value(status::status(shared, &snapshot)?),
        Request::Networks => serde_json::to_value(views::networks(&snapshot.model, &snapshot.node)),
        Request::Services => {
            let about = &shared.about;
            serde_json::to_value(views::services(&snapshot.model, about.mesh_allow.as_ref(), &about.mesh_deny))
        }
        Request::Endpoints => serde_json::to_value(views::endpoints(&snapshot.model, &snapshot.node)),
        Request::Flows => serde_json::to_value(flows::flows(shared, &snapshot)?),
        Request::Drops => serde_json::to_value(drops(shared)?),
        Request::Check => serde_json::to_value(paths::check(shared, &snapshot)),
    };
    value.map_err(|error| error.to_string())
}

fn drops(shared: &Shared) -> Result<Vec<DropView>, String> {
    let drops = shared.dataplane().drops().map_err(|error| error.to_string())?;
    // The firewall drops for the same reasons what the programs do not see. Without its answer the programs' count stands.
    let firewall = nft::drops().unwrap_or_default();
    let view = |(reason, stat): (DropReason, Stat)| {
        let more = match reason {
            DropReason::ForgedTunnel => firewall.forged,
            DropReason::NotAllowed => firewall.closed,
            _ => Stat::default(),
        };
        DropView { reason: reason.name(), packets: stat.packets + more.packets, bytes: stat.bytes + more.bytes }
    };
    Ok(drops.into_iter().map(view).collect())
}
