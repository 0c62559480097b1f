//! What the engine says of the node itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::Path,
};

use bollard::models::{LocalNodeState, SwarmInfo, SystemInfo};
use serde::Deserialize;

use super::{EngineView, Membership};
use crate::bounded;

/// What the engine has started its part in the swarm with. The API does not show it.
const STATE: &str = "docker-state.json";

/// The part of it that we read. 20.10 to 28 write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    /// As an address; empty: the node's address.
    data_path_addr: String,
    /// The node's own; empty on nodes that have joined.
    local_addr: String,
}

/// Brings `view` up to date; its containers stay.
pub(super) fn apply(view: &mut EngineView, info: &SystemInfo, swarm_dir: &Path) {
    view.firewall_backend = info.firewall_backend.as_ref().and_then(|backend| backend.driver.clone());
    apply_swarm(view, &info.swarm.clone().unwrap_or_default(), swarm_dir);
}

fn apply_swarm(view: &mut EngineView, swarm: &SwarmInfo, swarm_dir: &Path) {
    use LocalNodeState as State;
    view.membership = match swarm.local_node_state {
        Some(State::ACTIVE) => Membership::Member,
        Some(State::INACTIVE) => Membership::None,
        // Joining, or a manager that waits to be unlocked; or it could not start its part in the swarm, and that may
        // pass.
        Some(State::PENDING | State::LOCKED | State::ERROR | State::EMPTY) | None => Membership::Unknown,
    };
    if view.membership == Membership::Unknown {
        return;
    }
    view.manager = swarm.control_available == Some(true);
    let node = swarm.node_id.clone().filter(|id| !id.is_empty());
    if view.membership == Membership::None || view.local.node != node {
        // In another swarm, others are its managers.
        (view.managers, view.manager_ids) = Default::default();
    }
    view.local.node = node;
    let state = state(swarm_dir);
    let announced = || swarm.node_addr.as_ref()?.parse().ok();
    view.local.vtep = state.data_path_addr.parse().ok().or_else(announced);
    view.local_addr = state.local_addr.parse().ok();
    let port = swarm.cluster.as_ref().and_then(|cluster| cluster.data_path_port);
    view.data_path_port = port.and_then(|port| NonZeroU16::new(u16::try_from(port).ok()?));
    // An engine that has just started may name none, or an address without a node: what it said before still holds.
    let managers = managers(swarm);
    if !managers.is_empty() {
        view.managers = managers;
    }
    view.manager_ids = manager_ids(swarm).or(view.manager_ids.take());
}

fn managers(swarm: &SwarmInfo) -> BTreeMap<IpAddr, String> {
    let address = |text: &str| text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let remote = swarm.remote_managers.iter().flatten();
    remote.filter_map(|peer| Some((address(peer.addr.as_ref()?)?, peer.node_id.clone().unwrap_or_default()))).collect()
}

/// `None` without any, and where one is an address only: the one that the node has joined at, until managers have
/// answered.
fn manager_ids(swarm: &SwarmInfo) -> Option<BTreeSet<String>> {
    let ids = swarm.remote_managers.iter().flatten().map(|peer| peer.node_id.clone().filter(|id| !id.is_empty()));
    ids.collect::<Option<BTreeSet<_>>>().filter(|ids| !ids.is_empty())
}

/// All empty where it cannot be read.
fn state(swarm_dir: &Path) -> State {
    let read = || serde_json::from_slice(&bounded::read(&swarm_dir.join(STATE), bounded::SMALL).ok()?).ok();
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn swarm(text: &str) -> SystemInfo {
        SystemInfo { swarm: serde_json::from_str(text).unwrap(), ..<_>::default() }
    }

    const WORKER: &str = r#"{"NodeID": "w", "NodeAddr": "192.0.2.13", "LocalNodeState": "active",
        "ControlAvailable": false, "Error": "", "RemoteManagers": [{"NodeID": "m", "Addr": "192.0.2.11:2377"}]}"#;
    const OUTSIDE: &str = r#"{"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false,
        "Error": "", "RemoteManagers": null}"#;

    #[test]
    fn a_member_and_what_is_left_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut view = EngineView::default();
        apply(&mut view, &swarm(WORKER), directory.path());
        assert_eq!((&view.membership, view.manager), (&Membership::Member, false));
        assert_eq!((view.local.node.as_deref(), view.local.vtep), (Some("w"), Some([192, 0, 2, 13].into())));
        assert_eq!(view.managers, BTreeMap::from([([192, 0, 2, 11].into(), "m".to_owned())]));
        assert_eq!(view.manager_ids, Some(["m".to_owned()].into()));

        // Behind one NAT address; and just joined, when the engine knows where a manager is, but not which node it is.
        let mut ids = |managers: &str| {
            let text = format!(r#"{{"LocalNodeState": "active", "NodeID": "w", "RemoteManagers": {managers}}}"#);
            apply(&mut view, &swarm(&text), directory.path());
            view.manager_ids.clone()
        };
        let both = r#"[{"NodeID": "m", "Addr": "192.0.2.11:2377"}, {"NodeID": "m2", "Addr": "192.0.2.11:2378"}]"#;
        assert_eq!(ids(both), Some(["m".to_owned(), "m2".to_owned()].into()));
        // It has started anew: what it said before holds.
        for silent in ["null", "[]", r#"[{"NodeID": "m", "Addr": "192.0.2.11:2377"}, {"Addr": "192.0.2.12:2377"}]"#] {
            assert_eq!(ids(silent), Some(["m".to_owned(), "m2".to_owned()].into()), "{silent}");
        }
        assert_eq!(ids(r#"[{"NodeID": "m3", "Addr": "192.0.2.13:2377"}]"#), Some(["m3".to_owned()].into()));

        // Another address carries the data.
        fs::write(
            directory.path().join(STATE),
            r#"{"LocalAddr": "10.0.0.13", "DataPathAddr": "198.51.100.13", "DataPathPort": 0}"#,
        )
        .unwrap();
        apply(&mut view, &swarm(WORKER), directory.path());
        assert_eq!((view.local.vtep, view.local_addr), (Some([198, 51, 100, 13].into()), Some([10, 0, 0, 13].into())));

        // While the engine starts it does not say, and it stays as it was.
        let before = view.clone();
        apply(&mut view, &swarm(r#"{"LocalNodeState": "pending"}"#), directory.path());
        assert_eq!(view, EngineView { membership: Membership::Unknown, ..before });

        apply(&mut view, &swarm(OUTSIDE), &directory.path().join("gone"));
        assert_eq!((&view.membership, view.local.node.as_deref()), (&Membership::None, None));
        assert_eq!((view.managers.len(), &view.manager_ids), (0, &None));
    }

    #[test]
    fn managers_are_remembered_over_an_empty_list_but_not_into_another_swarm() {
        let directory = tempfile::tempdir().unwrap();
        let mut view = EngineView::default();
        let mut after = |node: &str, managers: &str| {
            let text = format!(r#"{{"LocalNodeState": "active", "NodeID": "{node}", "RemoteManagers": {managers}}}"#);
            apply(&mut view, &swarm(&text), directory.path());
            (view.managers.len(), view.manager_ids.clone())
        };
        let (one, m) = (r#"[{"NodeID": "m", "Addr": "192.0.2.11:2377"}]"#, Some(["m".to_owned()].into()));
        assert_eq!(after("w", "null"), (0, None), "it has never said");
        assert_eq!(after("w", r#"[{"Addr": "192.0.2.11:2377"}]"#), (1, None), "it has just joined");
        assert_eq!(after("w", one), (1, m.clone()));
        assert_eq!(after("w", "null"), (1, m.clone()));
        assert_eq!(after("w", "[]"), (1, m));
        assert_eq!(after("another", "null"), (0, None), "it has left, and joined again");
    }

    #[test]
    fn the_firewall_backend_where_the_engine_says_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut view = EngineView::default();
        let mut backend = |text: &str| {
            apply(&mut view, &serde_json::from_str(text).unwrap(), directory.path());
            view.firewall_backend.clone()
        };
        let said = r#"{"FirewallBackend": {"Driver": "nftables", "Info": [["ReloadedAt", "2026-01-01T00:00:00Z"]]}}"#;
        assert_eq!(backend(said).as_deref(), Some("nftables"));
        assert_eq!(backend(r#"{"FirewallBackend": {"Driver": "iptables"}}"#).as_deref(), Some("iptables"));
        assert_eq!(backend("{}"), None, "engines before 28.2");
    }
}
