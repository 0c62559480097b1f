use std::{collections::BTreeMap, path::Path};

use super::*;
use crate::{
    TaskRole,
    model::{Dataplane, Model, NodeState},
};

const TABLE: &str = "
version: 1
nodes:
  - {id: n1, hostname: one, address: 192.0.2.1}
  - {id: n2, hostname: two, address: 192.0.2.2}
  - {id: n3, hostname: three, address: 192.0.2.3, state: down}
networks: [{id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]
services: [{id: web, name: web, virtual_ips: {app: 10.0.1.2}}]
tasks:
  - {id: a, service_id: web, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.3}}
  - {id: b, service_id: web, node_id: n2, desired_state: running, state: running, addresses: {app: 10.0.1.4}}
  - {id: c, service_id: web, node_id: n2, desired_state: running, state: starting, addresses: {app: 10.0.1.5}}
  - {id: d, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.6}}
";

fn table() -> Loaded {
    let model = crate::table::parse_file(TABLE, Path::new("table.yaml")).expect("valid").model;
    Loaded { model, ..Loaded::default() }
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

fn roles(model: &Model) -> Vec<(&str, TaskRole)> {
    model.tasks.values().map(|task| (task.id.as_str(), model.role(task))).collect()
}

fn report(unhealthy: &[&str], dead: &[&str]) -> Report {
    Report { version: "1".into(), unhealthy: ids(unhealthy), dead: ids(dead), ..Report::default() }
}

#[test]
fn only_who_reports_has_hiveway() {
    let reports = Reports::from(["n3", "n9"].map(|id| (id.to_owned(), Report::default())));
    let merged = merge(&table(), &LocalView { node: Some("n1".into()), ..LocalView::default() }, Some(&reports)).model;
    let who: Vec<_> = merged.nodes.values().map(|node| node.dataplane).collect();
    // The third one is down, and its agent is still there.
    assert_eq!(who, [Dataplane::Hiveway, Dataplane::None, Dataplane::Hiveway]);
    // A worker's table comes with all that.
    assert_eq!(merge(&table(), &LocalView::default(), None), table());
}

#[test]
fn tunnel_addresses_are_as_reported_unless_they_are_anothers() {
    let at = |last: u8| Report { vtep: Some([192, 0, 2, last].into()), ..Report::default() };
    let local = LocalView { node: Some("n1".into()), vtep: Some([192, 0, 2, 101].into()), ..LocalView::default() };
    let merged = merge(&table(), &local, Some(&Reports::from([("n2".into(), at(102))])));
    let vteps: Vec<_> = merged.model.nodes.values().map(|node| node.vtep.octets()[3]).collect();
    assert_eq!((vteps, merged.left_out.len()), (vec![101, 102, 3], 0));

    let merged = merge(&table(), &local, Some(&Reports::from([("n2".into(), at(3))])));
    assert_eq!(merged.model.nodes["n2"].vtep, merged.model.nodes["n2"].address);
    assert_eq!(merged.left_out[0].what, "tunnel address 192.0.2.3 that node two (n2) reports");
    assert_eq!(merged.left_out[0].why, "it is node three's; 192.0.2.2 is used");
}

/// Of nodes with a data path address of their own, which no manager has seen.
#[test]
fn a_tunnel_address_stays_with_the_node_that_has_claimed_it_first() {
    let mut table = table();
    table.model.nodes.get_mut("n3").unwrap().state = NodeState::Ready;
    table.joined = [("n2", "2026-01-01"), ("n3", "2026-01-02")].map(|(id, at)| (id.into(), at.to_owned())).into();
    let at = |last: u8, since| Report { vtep: Some([10, 0, 0, last].into()), since, ..Report::default() };
    let place = |table: &Loaded, local: &LocalView, victim: Report, attacker: Report| {
        let merged = merge(table, local, Some(&Reports::from([("n2".into(), victim), ("n3".into(), attacker)])));
        ["n2", "n3"].map(|id| merged.model.nodes[id].vtep.to_string())
    };
    let elsewhere = LocalView { node: Some("n1".into()), ..LocalView::default() };
    assert_eq!(place(&table, &elsewhere, at(2, 1), at(3, 2)), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(place(&table, &elsewhere, at(2, 1), at(2, 2)), ["10.0.0.2", "192.0.2.3"], "n3 has joined later");
    assert_eq!(place(&table, &elsewhere, at(3, 4), at(3, 2)), ["192.0.2.2", "10.0.0.3"]);
    // A manager's own address.
    let here = LocalView { node: Some("n2".into()), vtep: Some([10, 0, 0, 2].into()), ..LocalView::default() };
    assert_eq!(place(&table, &here, Report::default(), at(2, 1)), ["10.0.0.2", "192.0.2.3"]);
    // A machine that has joined anew, before the managers call its former self down.
    table.model.nodes.get_mut("n2").unwrap().state = NodeState::Disconnected;
    assert_eq!(place(&table, &elsewhere, at(2, 1), at(2, 2)), ["192.0.2.2", "10.0.0.2"]);
}

#[test]
fn nodes_behind_one_nat_are_where_they_say() {
    let mut table = table();
    let nat = [203, 0, 113, 1].into();
    for node in table.model.nodes.values_mut().filter(|node| node.id.as_str() != "n1") {
        (node.address, node.vtep, node.state) = (nat, nat, crate::model::NodeState::Ready);
    }
    let local = LocalView { node: Some("n1".into()), ..LocalView::default() };
    let at = |last: u8| Report { vtep: Some([10, 0, 0, last].into()), preparing: true, ..Report::default() };
    let merge = |reports: &[(&str, Report)]| {
        merge(&table, &local, Some(&reports.iter().map(|(id, report)| ((*id).to_owned(), report.clone())).collect()))
    };
    let places = |merged: &Loaded| -> Vec<String> {
        merged.model.nodes.values().map(|node| format!("{} {}", node.id, node.vtep)).collect()
    };
    // One of them has the address, the other none yet; what runs there is out of reach.
    let nobody = merge(&[]);
    assert_eq!(places(&nobody), ["n1 192.0.2.1", "n2 203.0.113.1"]);
    assert_eq!(nobody.unplaced, ids(&["n3"]));
    // One word is enough, whose ever it is.
    assert_eq!(places(&merge(&[("n3", at(3))])), ["n1 192.0.2.1", "n2 203.0.113.1", "n3 10.0.0.3"]);
    assert_eq!(places(&merge(&[("n2", at(2))])), ["n1 192.0.2.1", "n2 10.0.0.2", "n3 203.0.113.1"]);
    let both = merge(&[("n2", at(2)), ("n3", at(3))]);
    assert_eq!(places(&both), ["n1 192.0.2.1", "n2 10.0.0.2", "n3 10.0.0.3"]);
    assert_eq!((both.left_out.len(), both.unplaced.len(), both.model.tasks.len()), (0, 0, 4));
    assert!(both.model.nodes.values().skip(1).all(|node| node.dataplane == Dataplane::None), "not ready yet");
    // The same place twice: the second has none.
    let clash = merge(&[("n2", at(2)), ("n3", at(2))]);
    assert_eq!(places(&clash), ["n1 192.0.2.1", "n2 10.0.0.2", "n3 203.0.113.1"]);
    assert_eq!(nobody.model.tasks.len(), 4, "its tasks were n2's");
    // What runs on a node without a place is nowhere.
    table.model.tasks.values_mut().for_each(|task| std::sync::Arc::make_mut(task).node = Some("n3".into()));
    let nowhere = super::merge(&table, &local, Some(&Reports::new()));
    assert!(nowhere.model.tasks.is_empty() && nowhere.left_out.len() == 5, "{:?}", nowhere.left_out);
}

#[test]
fn nodes_say_which_port_they_use() {
    let at = |port| Report { vxlan_port: NonZeroU16::new(port), ..Report::default() };
    let local = LocalView { node: Some("n1".into()), vxlan_port: NonZeroU16::new(4789), ..LocalView::default() };
    let merged = merge(&table(), &local, Some(&Reports::from([("n1".into(), at(1)), ("n2".into(), at(7789))])));
    let ports: Vec<_> = merged.model.nodes.values().map(|node| node.vxlan_port.map_or(0, NonZeroU16::get)).collect();
    assert_eq!(ports, [4789, 7789, 0], "its own agent's word counts more than an old report");
}

#[test]
fn nodes_speak_for_their_own_tasks_only() {
    let reports = Reports::from([("n2".into(), report(&["a", "b"], &["a", "c", "gone"]))]);
    let merged = merge(&table(), &LocalView::default(), Some(&reports)).model;
    use TaskRole::*;
    assert_eq!(roles(&merged), [("a", Backend), ("b", Draining), ("c", Absent), ("d", Endpoint)]);
}

#[test]
fn what_the_own_engine_sees() {
    let netns = |name: &str| Some(PathBuf::from(name));
    let container = |task: Option<&str>, health| Container {
        task: task.map(str::to_owned),
        netns: (health != Health::Dead).then(|| netns("/sandbox/1")).flatten(),
        addresses: BTreeMap::new(),
        health,
    };
    let standalone = Container {
        netns: netns("/sandbox/2"),
        addresses: [("app".to_owned(), [10, 0, 1, 6].into())].into(),
        ..Container::default()
    };
    let mut local = LocalView { node: Some("n1".into()), ..LocalView::default() };
    local.containers = [
        ("x".to_owned(), container(Some("a"), Health::Unhealthy)),
        ("y".to_owned(), container(Some("b"), Health::Fine)),
        ("z".to_owned(), standalone),
    ]
    .into();
    let merged = merge(&table(), &local, Some(&Reports::new())).model;
    assert_eq!(merged.role(&merged.tasks["a"]), TaskRole::Draining);
    assert_eq!((&merged.tasks["a"].netns, &merged.tasks["d"].netns), (&netns("/sandbox/1"), &netns("/sandbox/2")));
    assert_eq!(merged.tasks["b"].netns, None, "another node's");

    local.containers.insert("x".into(), container(Some("a"), Health::Dead));
    let merged = merge(&table(), &local, Some(&Reports::new())).model;
    assert_eq!((merged.role(&merged.tasks["a"]), &merged.tasks["a"].netns), (TaskRole::Absent, &None));
    let said = local.report("7");
    assert_eq!((said.dead, said.unhealthy, said.version.as_str()), (ids(&["a"]), ids(&[]), "7"));
}
