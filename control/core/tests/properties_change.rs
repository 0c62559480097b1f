//! A small change's shortcut leads where deriving everything leads.

#[path = "support/generate.rs"]
mod generate;
mod support;

use std::{path::Path, sync::Arc};

use dataplane_common::state::{MapChange, MapState};
use generate::table;
use hiveway_core::{
    GatewayAddresses, Model, Settings, change::Programmed, derive, map_state, model::TaskState, table::parse_file,
};
use proptest::prelude::*;
use serde_json::Value;
use support::facts;

fn model(table: &Value) -> Model {
    parse_file(&table.to_string(), Path::new("t.json")).expect("generated tables are valid").model
}

/// The maps of a node, and what a small change of them is told from.
fn program(model: &Arc<Model>, node: &str) -> (MapState, Programmed) {
    let (settings, mut addresses) = (Settings::new(node), GatewayAddresses::new());
    let desired = derive(model, &settings, &mut addresses).expect("the node is in the table");
    let facts = facts(&desired);
    let state = map_state(model, &desired, &settings, &facts);
    (state, Programmed::new(model.clone(), settings, facts, addresses))
}

fn changed(mut state: MapState, change: MapChange) -> MapState {
    for (key, endpoint) in change.endpoints {
        match endpoint {
            Some(endpoint) => drop(state.endpoints.insert(key, endpoint)),
            None => assert!(state.endpoints.remove(&key).is_some(), "only what is there is removed"),
        }
    }
    for (key, set) in change.sets {
        assert!(state.sets.insert(key, set).is_some_and(|_| true), "only sets that are there change");
    }
    state
}

/// What happens to a task.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ends,
    Drains,
    Runs,
    Unhealthy,
    Vanishes,
    Moves(u8),
    ChangesPorts,
}

fn event() -> impl Strategy<Value = Event> {
    use Event::{ChangesPorts, Drains, Ends, Moves, Runs, Unhealthy, Vanishes};
    prop_oneof![
        Just(Ends),
        Just(Drains),
        Just(Runs),
        Just(Unhealthy),
        Just(Vanishes),
        any::<u8>().prop_map(Moves),
        Just(ChangesPorts)
    ]
}

fn happen(model: &mut Model, place: &prop::sample::Index, event: Event) {
    if model.tasks.is_empty() {
        return;
    }
    let id = model.tasks.keys().nth(place.index(model.tasks.len())).expect("in range").clone();
    let nodes: Vec<_> = model.nodes.keys().cloned().collect();
    if matches!(event, Event::Vanishes) {
        model.tasks.remove(&id);
        return;
    }
    let task = Arc::make_mut(model.tasks.get_mut(&id).expect("listed"));
    match event {
        Event::Ends => (task.desired_state, task.state) = (TaskState::Shutdown, TaskState::Shutdown),
        Event::Drains => task.desired_state = TaskState::Shutdown,
        Event::Runs => (task.desired_state, task.state) = (TaskState::Running, TaskState::Running),
        Event::Unhealthy => task.unhealthy = !task.unhealthy,
        Event::Moves(to) => task.node = Some(nodes[usize::from(to) % nodes.len()].clone()),
        Event::ChangesPorts => task.ports = Default::default(),
        Event::Vanishes => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever happens to some tasks: the shortcut declines, or it gives the maps that follow from the whole table.
    #[test]
    fn a_small_change_is_the_difference_of_the_whole(
        table in table(),
        events in prop::collection::vec((any::<prop::sample::Index>(), event()), 1..4),
    ) {
        let before = Arc::new(model(&table));
        let mut now = Model::clone(&before);
        for (place, event) in &events {
            happen(&mut now, place, *event);
        }
        let (state, programmed) = program(&before, "n0");
        if let Some(change) = programmed.change(&now) {
            // The same interfaces are there: those of the node's tasks did not change.
            let (want, _) = program(&Arc::new(now), "n0");
            prop_assert_eq!(changed(state, change), want);
        }
    }
}

const TABLE: &str = r#"
version: 1
nodes: [{id: n1, hostname: n1, address: 192.0.2.1}, {id: n2, hostname: n2, address: 192.0.2.2}]
networks:
  - {id: ingress, name: ingress, ingress: true, subnets: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1, vni: 4096}]}
  - {id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}
services:
  - {id: web, name: web, virtual_ips: {app: 10.0.1.2}, ports: [{target_port: 80, published_port: 80}]}
  - {id: user, name: user}
tasks:
  - {id: u, service_id: user, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.9}}
  - {id: a, service_id: web, node_id: n2, desired_state: running, state: running, addresses: {app: 10.0.1.3, ingress: 10.0.0.3}}
  - {id: b, service_id: web, node_id: n2, desired_state: running, state: running, addresses: {app: 10.0.1.4, ingress: 10.0.0.4}}
"#;

/// What it is there for is not declined.
#[test]
fn a_remote_task_that_ends_or_comes_is_a_small_change() {
    let all = Arc::new(parse_file(TABLE, Path::new("t.yaml")).expect("valid").model);
    let mut fewer = Model::clone(&all);
    fewer.tasks.remove("b");
    let fewer = Arc::new(fewer);
    for (from, to, backends) in [(&all, &fewer, 1), (&fewer, &all, 2)] {
        let change = program(from, "n1").1.change(to).expect("small");
        assert_eq!((change.endpoints.len(), change.sets.len()), (2, 2), "both networks; VIP and port");
        assert!(change.sets.values().all(|set| set.len() == backends));
    }
    assert_eq!(program(&all, "n1").1.change(&all), Some(MapChange::default()));
}

/// This node's own tasks need interfaces, and services ports and addresses: that is for the whole round.
#[test]
fn what_is_not_small_is_declined() {
    let all = Arc::new(parse_file(TABLE, Path::new("t.yaml")).expect("valid").model);
    let (_, programmed) = program(&all, "n1");
    let mut local = Model::clone(&all);
    local.tasks.remove("u");
    let mut service = Model::clone(&all);
    service.services.remove("web");
    let mut node = Model::clone(&all);
    node.nodes.remove("n2");
    for other in [local, service, node] {
        assert_eq!(programmed.change(&other), None);
    }
}
