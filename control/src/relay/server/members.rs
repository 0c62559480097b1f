//! Who may be served: nodes of the manager's table as it is now.

use tonic::Status;

use crate::source::Live;

/// Whether `node` is a member of the swarm, as `live` has it.
///
/// # Errors
/// What to tell a node that is not: `PERMISSION_DENIED` only from a manager that knows for sure.
pub(super) fn admit(live: &Live, node: &str) -> Result<(), Status> {
    if let Some(why) = &live.expelled {
        return Err(Status::unavailable(format!("this manager is no member of the swarm itself: {why}")));
    }
    let Some(table) = &live.table else {
        return Err(Status::unavailable("this manager has no table yet"));
    };
    if table.unplaced.contains(node) {
        // It may say itself where it is.
        return Ok(());
    }
    match (&live.lost, table.model.nodes.contains_key(node)) {
        (_, true) => Ok(()),
        (None, false) => Err(Status::permission_denied(format!("node {node} is not a member of the swarm"))),
        (Some(lost), false) => Err(Status::unavailable(format!(
            "node {node} is not in this manager's table, which is {} s old: {}",
            lost.since.elapsed().as_secs(),
            lost.why
        ))),
    }
}

/// Whether `node` is a member without a tunnel address of its own: it gets no table until it has said where it is.
pub(super) fn is_unplaced(live: &Live, node: &str) -> bool {
    live.table.as_ref().is_some_and(|table| table.unplaced.contains(node))
}

/// What to tell it when it does not.
pub(super) fn nowhere(live: &Live, node: &str) -> Status {
    let why = live.table.as_ref().and_then(|table| table.why_unplaced(node)).unwrap_or("its address is not known yet");
    Status::unavailable(format!("this manager does not know where node {node} is: {why}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hiveway_core::{Model, docker_api::Loaded, table};
    use tonic::Code;

    use super::*;

    fn model() -> Model {
        let text = "version: 1\nnodes: [{id: n1, hostname: n1, address: 192.0.2.1, state: down}]\n";
        table::parse_file(text, std::path::Path::new("t.yaml")).unwrap().model
    }

    #[test]
    fn only_a_current_table_refuses() {
        let table = Arc::new(Loaded { model: model(), ..Loaded::default() });
        let mut live = Live::current(table, "x");
        assert!(admit(&live, "n1").is_ok(), "down is still a member");
        assert_eq!(admit(&live, "n2").unwrap_err().code(), Code::PermissionDenied);
        let unplaced = Loaded { unplaced: ["n2".to_owned()].into(), ..(**live.table.as_ref().unwrap()).clone() };
        let unplaced = Live::current(Arc::new(unplaced), "x");
        assert!(admit(&unplaced, "n2").is_ok() && is_unplaced(&unplaced, "n2"));
        assert!(!is_unplaced(&unplaced, "n1"));
        live.lose("socket gone");
        assert!(admit(&live, "n1").is_ok());
        let why = admit(&live, "n2").unwrap_err();
        assert!(why.code() == Code::Unavailable && why.message().contains("socket gone"), "{why}");
        assert_eq!(admit(&Live::default(), "n1").unwrap_err().code(), Code::Unavailable);
        live.expel("left");
        assert_eq!(admit(&live, "n1").unwrap_err().code(), Code::Unavailable);
    }
}
