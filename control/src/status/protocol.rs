//! Newline-delimited JSON: one request line `{"request": "status"}`, one response line `{"ok": ...}` or `{"error":
//! "..."}`, as often as the client likes. `flows` is answered by as many lines `{"rows": [...]}` as it takes, and
//! `{"end": ...}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::filter::FlowFilter;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    Flows(FlowFilter),
    /// Dropped packets.
    Drops,
    /// Whether the paths to other nodes work.
    Check,
    /// What a round would change now.
    Plan,
}

/// The answer, or a part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// What was asked for.
    Ok(Value),
    /// Some of the rows that were asked for.
    Rows(Vec<Value>),
    /// These were all of them.
    End(End),
    /// Why not.
    Error(String),
}

/// The end of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How many rows there were.
    pub rows: usize,
    /// There are more, which the limit has left out.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_documented() {
        let parse = |text: &str| serde_json::from_str::<Request>(text).map_err(|error| error.to_string());
        assert_eq!(parse(r#"{"request": "status"}"#), Ok(Request::Status));
        assert_eq!(parse(r#"{"request": "flows"}"#), Ok(Request::Flows(FlowFilter::default())));
        let some = FlowFilter { service: Some("web".into()), limit: Some(3), ..FlowFilter::default() };
        assert_eq!(parse(r#"{"request": "flows", "service": "web", "limit": 3}"#), Ok(Request::Flows(some.clone())));
        assert!(
            parse(r#"{"request": "flows", "sevice": "web"}"#).is_err(),
            "a misspelt filter must not show everything"
        );
        let text = serde_json::to_string(&Request::Flows(some)).unwrap();
        assert_eq!(text, r#"{"request":"flows","service":"web","limit":3}"#);
    }
}
