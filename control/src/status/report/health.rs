//! Whether a node is healthy: one answer for `status` and for the metrics.

use super::{fill::nearly_full, paths::Known};
use crate::{
    agent::shared::{Shared, Snapshot},
    engine::EngineView,
    engine_mesh::{DeadPorts, dead_ports},
};

/// Whether a node is healthy, with what is found out on the way to the answer.
#[derive(Clone, Debug)]
pub struct Health {
    /// Ready, nothing failing, all parts of the agent at work, no table refused, source and engine reachable, every
    /// path seen to pass, no dead ports, no table of established connections nearly full. A client or a service that
    /// has had its share of one is no reason: whoever can connect could make a node unhealthy.
    pub healthy: bool,
    /// Published ports that neither Hiveway nor the engine serves here.
    pub dead_ports: Option<DeadPorts>,
    /// The engine answers in a version that the agent speaks; `None` with tables from files.
    pub engine_reachable: Option<bool>,
}

impl Health {
    /// As the last reconciliation and the prober have left the node.
    pub fn new(shared: &Shared, snapshot: &Snapshot) -> Self {
        Self::with(shared, snapshot, &Known::new(shared, snapshot))
    }

    pub(super) fn with(shared: &Shared, snapshot: &Snapshot, paths: &Known) -> Self {
        let engine = shared.about.engine.as_ref().map(|view| view.borrow().clone());
        let backend = engine.as_ref().and_then(|view| view.firewall_backend.as_deref());
        let reading = shared.about.host_firewall.borrow().reading.clone();
        let dead = dead_ports(&snapshot.model, &snapshot.published, backend, reading.as_ref());
        let mut health = Self::of(snapshot, engine.as_deref(), paths.passing(), dead);
        // Who hangs does not notice what fails.
        health.healthy &= shared.about.liveness.overdue(std::time::Instant::now()).is_empty();
        health.healthy &= nearly_full(shared).is_empty();
        health
    }

    /// `engine`: with live sources; `passing`: [`Known::passing`].
    fn of(snapshot: &Snapshot, engine: Option<&EngineView>, passing: bool, dead_ports: Option<DeadPorts>) -> Self {
        let engine_reachable = engine.map(|view| view.lost.is_none());
        let healthy = snapshot.ready
            && snapshot.failing.is_empty()
            && snapshot.refused.is_none()
            && snapshot.live.as_ref().is_none_or(|live| live.lost.is_none())
            // What an engine starts while it does not answer is not known.
            && engine_reachable != Some(false)
            && passing
            && dead_ports.is_none();
        Self { healthy, dead_ports, engine_reachable }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use super::*;
    use crate::{
        agent::shared::{OpenItem, Refused},
        source::{Live, Lost},
    };

    fn lost() -> Option<Lost> {
        Some(Lost { since: Instant::now(), why: "nothing answers".into() })
    }

    #[test]
    fn each_of_these_alone_makes_a_node_unhealthy() {
        let good = Snapshot { ready: true, ..Snapshot::default() };
        let engine = EngineView::default();
        assert!(Health::of(&good, None, true, None).healthy, "tables from files");
        assert!(Health::of(&good, Some(&engine), true, None).healthy);
        let open = OpenItem { item: "maps".into(), why: "full".into(), attempts: 1, retry: None };
        let snapshots = [
            ("not ready", Snapshot::default()),
            ("failing", Snapshot { failing: vec![open], ..good.clone() }),
            ("refused", Snapshot { refused: Some(Refused { at: Instant::now(), problems: vec![] }), ..good.clone() }),
            ("source", Snapshot { live: Some(Arc::new(Live { lost: lost(), ..Live::default() })), ..good.clone() }),
        ];
        for (what, snapshot) in snapshots {
            assert!(!Health::of(&snapshot, Some(&engine), true, None).healthy, "{what}");
        }
        assert!(!Health::of(&good, Some(&engine), false, None).healthy, "paths");
        let dead = DeadPorts { ports: vec!["8080/tcp".into()], why: "no IPVS".into() };
        assert!(!Health::of(&good, Some(&engine), true, Some(dead)).healthy, "dead ports");
    }

    #[test]
    fn an_engine_that_does_not_answer_is_told_apart_from_none() {
        let good = Snapshot { ready: true, ..Snapshot::default() };
        assert_eq!(Health::of(&good, None, true, None).engine_reachable, None);
        assert_eq!(Health::of(&good, Some(&EngineView::default()), true, None).engine_reachable, Some(true));
        let silent = Health::of(&good, Some(&EngineView { lost: lost(), ..EngineView::default() }), true, None);
        assert_eq!((silent.engine_reachable, silent.healthy), (Some(false), false));
    }
}
