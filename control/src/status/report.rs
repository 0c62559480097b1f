//! Answers to requests, as JSON with stable keys (docs/cli.md).

mod drops;
mod fill;
mod flows;
mod health;
mod matrix;
mod paths;
mod starting;
mod status;

use std::sync::Arc;

use hiveway_core::views;
use serde_json::Value;

pub use drops::{DropView, drops};
pub use flows::flows;
pub use health::Health;
pub use matrix::Matrix;
pub use starting::Starting;

use super::protocol::Request;
use crate::{agent::shared::Shared, plain};

/// Who answers.
#[derive(Clone, Debug)]
pub enum Answers {
    /// An agent without a table.
    Starting(Starting),
    /// The agent.
    Agent(Arc<Shared>),
}

/// What a round would change now. The agent's loop looks for it in its turn.
///
/// # Errors
/// Why that is not known.
pub async fn plan(answers: &Answers) -> Result<Value, String> {
    let shared = match answers {
        Answers::Agent(shared) => shared,
        Answers::Starting(starting) => return Err(starting.no_answer()),
    };
    serde_json::to_value(shared.preview().await?).map(plain::bounded).map_err(|error| error.to_string())
}

/// What was asked for, if the answer is one line; see [`flows`] for the other.
///
/// # Errors
/// When maps cannot be read.
pub fn report(answers: &Answers, request: Request) -> Result<Value, String> {
    let shared = match (answers, &request) {
        (Answers::Agent(shared), _) => shared,
        (Answers::Starting(starting), Request::Status) => {
            return serde_json::to_value(starting.status()).map(plain::bounded).map_err(|error| error.to_string());
        }
        (Answers::Starting(starting), _) => return Err(starting.no_answer()),
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
        Request::Flows(_) => return Err("connections are rows".into()),
        Request::Plan => return Err("the agent's loop answers that".into()),
        Request::Drops => serde_json::to_value(drops(shared)?),
        Request::Check => serde_json::to_value(paths::check(shared, &snapshot)),
    };
    value.map(plain::bounded).map_err(|error| error.to_string())
}
