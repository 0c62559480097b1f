//! A node's part of the table: what a manager's agent sends to a worker's.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    desired::LeftOut,
    docker_api::Loaded,
    model::{Id, Model, PublishMode, Service, Task, is_meant_for_us},
};

/// What the agent on `node` needs: all nodes, the networks that the node has a task or an address of its own on with
/// everything there, and what the routing mesh needs (the ingress network with all that is published on it).
///
/// Of what was left out the agent is told all but what is about items that the node has no part in.
pub fn filter(table: &Loaded, node: &str) -> Loaded {
    let model = &table.model;
    let networks = networks(model, node);
    let mut part = Model {
        nodes: model.nodes.clone(),
        networks: model.networks.iter().filter(|(id, _)| networks.contains(id.as_str())).map(own).collect(),
        jobs_serve: model.jobs_serve,
        ..Model::default()
    };
    for node in part.nodes.values_mut() {
        node.addresses.retain(|network, _| networks.contains(network.as_str()));
    }
    for task in model.tasks.values() {
        let mut task = Task { netns: None, ..Task::clone(task) };
        let here = task.node.as_deref() == Some(node);
        task.addresses.retain(|network, _| networks.contains(network.as_str()));
        if here || !task.addresses.is_empty() {
            part.tasks.insert(task.id.clone(), Arc::new(task));
        }
    }
    let used: BTreeSet<&str> = part.tasks.values().filter_map(|task| task.service.as_deref()).collect();
    for service in model.services.values() {
        let mut service = Service::clone(service);
        service.virtual_ips.retain(|network, _| networks.contains(network.as_str()));
        if !service.virtual_ips.is_empty() || used.contains(service.id.as_str()) || in_ingress_mode(&service) {
            // No others leave the manager.
            service.labels.retain(|key, _| is_meant_for_us(key));
            part.services.insert(service.id.clone(), Arc::new(service));
        }
    }
    let left_out = table.left_out.iter().filter(|item| concerns(item, model, &part)).cloned().collect();
    Loaded { model: part, left_out, data_path_port: table.data_path_port, ..Loaded::default() }
}

/// Whether a node with this part of the model is to hear of what was left out: unless it names an item that is in the
/// model and not in the part.
fn concerns(item: &LeftOut, model: &Model, part: &Model) -> bool {
    let words = item.what.split([' ', '(', ')', ',']).filter(|word| !word.is_empty());
    let elsewhere = |id: &str| {
        let missing = |all: bool, here: bool| all && !here;
        missing(model.tasks.contains_key(id), part.tasks.contains_key(id))
            || missing(model.services.contains_key(id), part.services.contains_key(id))
            || missing(model.networks.contains_key(id), part.networks.contains_key(id))
    };
    !words.into_iter().any(elsewhere)
}

fn own<K: Clone, V: Clone>((key, value): (&K, &V)) -> (K, V) {
    (key.clone(), value.clone())
}

fn in_ingress_mode(service: &Service) -> bool {
    service.ports.iter().any(|port| port.publish_mode == PublishMode::Ingress)
}

/// The node's networks, and the ingress network.
fn networks<'m>(model: &'m Model, node: &str) -> BTreeSet<&'m str> {
    let here = model.tasks.values().filter(|task| task.node.as_deref() == Some(node) && task.state.is_live());
    let of_tasks = here.flat_map(|task| task.addresses.keys());
    let of_node = model.nodes.get(node).into_iter().flat_map(|node| node.addresses.keys());
    let ingress = model.ingress().map(|network| &network.id);
    of_tasks.chain(of_node).chain(ingress).map(Id::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
version: 1
nodes:
  - {id: n1, hostname: one, address: 192.0.2.1, addresses: {mine: 10.0.2.9}}
  - {id: n2, hostname: two, address: 192.0.2.2, addresses: {app: 10.0.1.9, mine: 10.0.2.8, other: 10.0.3.9}}
networks:
  - {id: ingress, name: ingress, ingress: true, subnets: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1, vni: 4096}]}
  - {id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}
  - {id: mine, name: mine, subnets: [{subnet: 10.0.2.0/24, gateway: 10.0.2.1, vni: 4098}]}
  - {id: other, name: other, subnets: [{subnet: 10.0.3.0/24, gateway: 10.0.3.1, vni: 4099}]}
services:
  - {id: web, name: web, virtual_ips: {app: 10.0.1.2, ingress: 10.0.0.2}, labels: {hiveway.allow: 10.0.0.0/8, secret: x},
     ports: [{protocol: tcp, target_port: 80, published_port: 80, publish_mode: ingress}]}
  - {id: pub, name: pub, virtual_ips: {other: 10.0.3.3, ingress: 10.0.0.3},
     ports: [{protocol: tcp, target_port: 80, published_port: 81, publish_mode: ingress}]}
  - {id: db, name: db, virtual_ips: {app: 10.0.1.4, other: 10.0.3.4}}
  - {id: elsewhere, name: elsewhere, virtual_ips: {other: 10.0.3.5}}
tasks:
  - {id: w, service_id: web, node_id: n1, desired_state: running, state: running, netns: /x,
     addresses: {app: 10.0.1.3, ingress: 10.0.0.4}}
  - {id: p, service_id: pub, node_id: n2, desired_state: running, state: running,
     addresses: {other: 10.0.3.6, ingress: 10.0.0.5}}
  - {id: d, service_id: db, node_id: n2, desired_state: running, state: running,
     addresses: {app: 10.0.1.5, other: 10.0.3.7}}
  - {id: e, service_id: elsewhere, node_id: n2, desired_state: running, state: running, addresses: {other: 10.0.3.8}}
";

    #[test]
    fn a_nodes_networks_and_what_the_mesh_needs() {
        let model = crate::table::parse_file(TABLE, std::path::Path::new("t.yaml")).expect("valid").model;
        let table = Loaded { model, ..Loaded::default() };
        let part = filter(&table, "n1").model;
        let keys = |ids: Vec<&Id>| ids.into_iter().map(Id::as_str).collect::<Vec<_>>().join(" ");
        assert_eq!(keys(part.networks.keys().collect()), "app ingress mine");
        assert_eq!(keys(part.nodes["n2"].addresses.keys().collect()), "app mine");
        assert_eq!(keys(part.services.keys().collect()), "db pub web");
        assert_eq!(keys(part.services["pub"].virtual_ips.keys().collect()), "ingress");
        assert!(part.services["web"].labels.keys().eq(["hiveway.allow"]));
        assert_eq!(keys(part.tasks.keys().collect()), "d p w");
        assert_eq!(keys(part.tasks["p"].addresses.keys().collect()), "ingress");
        assert_eq!(part.tasks["w"].netns, None);
        assert_eq!(filter(&table, "n2").model.tasks.len(), 4);
    }

    #[test]
    fn a_node_hears_of_what_is_left_out_unless_it_has_no_part_in_it() {
        let model = crate::table::parse_file(TABLE, std::path::Path::new("t.yaml")).expect("valid").model;
        let item = |what: &str| LeftOut { what: what.into(), why: "because".into() };
        let whats = [
            "label hiveway.alow of service web (web)",
            "network secret (xyz)",
            "port 80/tcp of service elsewhere (elsewhere)",
            "subnet fd00::/64 of network other (other)",
            "task e as backend of published port 80",
            "task w",
        ];
        let table = Loaded { model, left_out: whats.map(item).to_vec(), ..Loaded::default() };
        let told = |node: &str| filter(&table, node).left_out.into_iter().map(|item| item.what).collect::<Vec<_>>();
        assert_eq!(told("n1"), [whats[0], whats[1], whats[5]]);
        assert_eq!(told("n2"), whats);
    }
}
