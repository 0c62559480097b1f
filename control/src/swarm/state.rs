//! All objects of the swarm, as lists and events tell them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use hiveway_core::docker_api::api;
use hiveway_proto::swarm::{Meta, Object, object::Kind};

use super::convert;

/// Bit of an event's action.
const REMOVE: u32 = 4;

/// Objects of one kind with their versions. A version is an index of the swarm's log, so that those of all objects are
/// in order.
#[derive(Clone, Debug)]
struct Versioned<T> {
    objects: BTreeMap<String, (u64, T)>,
    /// The list is at least as young as this: what is older and not in it was removed before.
    listed: u64,
}

impl<T> Default for Versioned<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: 0 }
    }
}

/// What the manager has said last of each object.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    nodes: Versioned<api::Node>,
    networks: Versioned<api::Network>,
    services: Versioned<api::Service>,
    tasks: Versioned<api::Task>,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Nodes,
    Networks,
    Services,
    Tasks,
}

impl State {
    /// Takes an object of a list, or an event's. Older versions than the one at hand are passed over: lists are the
    /// leader's, events come from this manager's own copy, which may lag behind.
    pub(super) fn apply(&mut self, action: u32, object: Object) {
        let gone = action & REMOVE != 0;
        match object.kind {
            Some(Kind::Node(raw)) => {
                let (id, version) = (raw.id.clone(), version(raw.meta.as_ref()));
                let mut node = convert::node(raw);
                if let Some((_, before)) = self.nodes.objects.get(&id) {
                    // Only lists have it.
                    if node.manager_status.addr.is_empty() {
                        node.manager_status = before.manager_status.clone();
                    }
                    // A node that has become the leader sees itself as 0.0.0.0.
                    if !says_where(&node) && says_where(before) {
                        node.status.addr.clone_from(&before.status.addr);
                    }
                }
                put(&mut self.nodes, gone, id, version, node);
            }
            Some(Kind::Network(raw)) => {
                let (id, version) = (raw.id.clone(), version(raw.meta.as_ref()));
                put(&mut self.networks, gone, id, version, convert::network(raw));
            }
            Some(Kind::Service(raw)) => {
                let (id, version) = (raw.id.clone(), version(raw.meta.as_ref()));
                put(&mut self.services, gone, id, version, convert::service(raw));
            }
            Some(Kind::Task(raw)) => {
                let (id, version) = (raw.id.clone(), version(raw.meta.as_ref()));
                put(&mut self.tasks, gone, id, version, convert::task(raw));
            }
            // A kind that we did not ask for.
            None => {}
        }
    }

    /// The list of these is complete: it was made after all objects that are known now. A manager that has just been
    /// promoted learns the swarm's history from its beginning and tells it as events; what they say of objects that are
    /// long gone is passed over from here on.
    pub(super) fn complete(&mut self, list: List) {
        let newest =
            newest(&self.nodes).max(newest(&self.networks)).max(newest(&self.services)).max(newest(&self.tasks));
        match list {
            List::Nodes => self.nodes.listed = newest,
            List::Networks => self.networks.listed = newest,
            List::Services => self.services.listed = newest,
            List::Tasks => self.tasks.listed = newest,
        }
    }

    /// All of them.
    pub(super) fn objects(&self) -> api::Objects {
        fn all<T: Clone>(map: &Versioned<T>) -> Vec<T> {
            map.objects.values().map(|(_, object)| object.clone()).collect()
        }
        api::Objects {
            nodes: all(&self.nodes),
            networks: all(&self.networks),
            services: all(&self.services),
            tasks: all(&self.tasks),
        }
    }
}

fn says_where(node: &api::Node) -> bool {
    node.status.addr.parse().is_ok_and(|address: IpAddr| !address.is_unspecified())
}

fn version(meta: Option<&Meta>) -> u64 {
    meta.and_then(|meta| meta.version.as_ref()).map_or(0, |version| version.index)
}

fn newest<T>(map: &Versioned<T>) -> u64 {
    map.objects.values().map(|(version, _)| *version).max().unwrap_or(0)
}

fn put<T>(map: &mut Versioned<T>, gone: bool, id: String, version: u64, object: T) {
    match map.objects.entry(id) {
        Entry::Occupied(entry) if gone => {
            entry.remove();
        }
        Entry::Occupied(mut entry) if entry.get().0 <= version => {
            entry.insert((version, object));
        }
        Entry::Vacant(entry) if !gone && (version == 0 || version > map.listed) => {
            entry.insert((version, object));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use hiveway_proto::swarm::{ManagerStatus, Node, NodeStatus, Task, Version};

    use super::*;

    fn node(version: u64, addr: &str, manager: Option<&str>) -> Object {
        let meta = Some(Meta { version: Some(Version { index: version }), created_at: None });
        let status = Some(NodeStatus { state: 2, addr: addr.into() });
        let manager_status = manager.map(|addr| ManagerStatus { addr: addr.into() });
        Object { kind: Some(Kind::Node(Node { id: "n1".into(), meta, status, manager_status, ..Node::default() })) }
    }

    #[test]
    fn events_that_are_older_than_the_list_are_passed_over() {
        let mut state = State::default();
        state.apply(1, node(10, "192.0.2.1", Some("192.0.2.1:2377")));
        state.apply(2, node(9, "192.0.2.9", None));
        let nodes = state.objects().nodes;
        assert_eq!(nodes[0].status.addr, "192.0.2.1");
        state.apply(2, node(11, "192.0.2.2", None));
        let nodes = state.objects().nodes;
        assert_eq!(
            (nodes[0].status.addr.as_str(), nodes[0].manager_status.addr.as_str()),
            ("192.0.2.2", "192.0.2.1:2377")
        );
        state.apply(4, node(11, "", None));
        assert!(state.objects().nodes.is_empty());
        state.apply(4, node(11, "", None));
        assert!(state.objects().nodes.is_empty());
    }

    #[test]
    fn a_node_that_becomes_the_leader_stays_where_it_is() {
        let mut state = State::default();
        state.apply(0, node(10, "192.0.2.1", None));
        for (version, said, want) in
            [(11, "0.0.0.0", "192.0.2.1"), (12, "", "192.0.2.1"), (13, "192.0.2.3", "192.0.2.3")]
        {
            state.apply(2, node(version, said, None));
            assert_eq!(state.objects().nodes[0].status.addr, want, "after {said}");
        }
    }

    #[test]
    fn history_that_is_older_than_the_list_brings_nothing_back() {
        let task = |id: &str, index| {
            let meta = Some(Meta { version: Some(Version { index }), created_at: None });
            Object { kind: Some(Kind::Task(Task { id: id.into(), meta, ..Task::default() })) }
        };
        let ids = |state: &State| state.objects().tasks.into_iter().map(|task| task.id).collect::<Vec<_>>();
        let mut state = State::default();
        state.apply(0, node(20, "192.0.2.1", None));
        state.complete(List::Nodes);
        state.apply(0, task("now", 10));
        state.complete(List::Tasks);
        // Younger than all listed tasks, but the nodes were listed before.
        state.apply(1, task("then", 15));
        assert_eq!(ids(&state), ["now"]);
        state.apply(1, task("new", 21));
        assert_eq!(ids(&state), ["new", "now"]);
        // A node may have come between the two lists.
        state.apply(0, task("newer", 40));
        state.complete(List::Tasks);
        let mut other = node(30, "192.0.2.2", None);
        if let Some(Kind::Node(node)) = &mut other.kind {
            node.id = "n2".into();
        }
        state.apply(1, other);
        assert_eq!(state.objects().nodes.len(), 2);
    }
}
