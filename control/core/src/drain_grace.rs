//! The drain grace: tasks that have just left the table keep their endpoints for a moment, and so do nodes whose
//! Hiveway is taken down.
//!
//! Nodes read a new table within milliseconds of each other, not at the same instant, and a client's packet may be on
//! its way. A task that leaves the table in an orderly way (removed, shut down, complete) is therefore kept as a
//! draining endpoint for a short while: it gets no new flow from the change on, but a packet that another node sent it
//! a moment ago still arrives. Its connections that are older than that end at once: the task has been drained, or is
//! dead, and its clients should find another one. A task that failed, or whose node or address is gone, has
//! no grace. Likewise a node that has deregistered gets no new flow of the mesh, and the answers that it still sends
//! are taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use crate::{
    joined::joined,
    model::{Dataplane, Id, Model, NodeState, Task, TaskState},
};

/// How long by default.
pub const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Remembers the table in force, and what has just left it.
#[derive(Clone, Debug)]
pub struct DrainGrace {
    period: Duration,
    last: Arc<Model>,
    /// Tasks within their grace, with the time at which it ends.
    departing: BTreeMap<Id, (Task, Duration)>,
    /// Nodes without Hiveway now that had it, with the time until which what they send is taken.
    leaving: BTreeMap<Id, Duration>,
}

impl DrainGrace {
    /// Nothing known yet. A `period` of zero is no grace.
    pub fn new(period: Duration) -> Self {
        Self { period, last: Arc::default(), departing: BTreeMap::new(), leaving: BTreeMap::new() }
    }

    /// `model`, with tasks that left it less than a period ago as draining; `model` itself if there are none. `now` is
    /// any monotonic time.
    pub fn apply(&mut self, model: &Arc<Model>, now: Duration) -> Arc<Model> {
        if !Arc::ptr_eq(&self.last, model) {
            let last = std::mem::replace(&mut self.last, model.clone());
            self.departures(&last, model, now);
        }
        self.departing.retain(|_, (_, until)| now < *until);
        self.leaving.retain(|_, until| now < *until);
        if self.departing.is_empty() && self.leaving.is_empty() {
            return model.clone();
        }
        let mut with_grace = Model::clone(model);
        for (id, (task, _)) in &self.departing {
            with_grace.tasks.insert(id.clone(), Arc::new(task.clone()));
        }
        for id in self.leaving.keys() {
            if let Some(node) = with_grace.nodes.get_mut(id) {
                node.dataplane = Dataplane::Left;
            }
        }
        Arc::new(with_grace)
    }

    /// Tasks within their grace.
    pub fn departing(&self) -> impl Iterator<Item = &Id> {
        self.departing.keys()
    }

    /// When [`DrainGrace::apply`] will next give another answer for the same model.
    pub fn deadline(&self) -> Option<Duration> {
        self.departing.values().map(|(_, until)| *until).chain(self.leaving.values().copied()).min()
    }

    /// Which tasks leave with a new table, and which lose their grace because of it.
    fn departures(&mut self, last: &Model, model: &Model, now: Duration) {
        let until = now + self.period;
        // Addresses of whoever is new or has changed: an address has one owner at a time.
        let mut taken = BTreeSet::new();
        // And their namespaces.
        let mut spaces = BTreeSet::new();
        // Who is where may change without a change of the task.
        let same_nodes = last.nodes.keys().eq(model.nodes.keys());
        for (id, before, task) in joined(&last.tasks, &model.tasks) {
            let same = before.zip(task).is_some_and(|(before, task)| Arc::ptr_eq(before, task));
            if same_nodes && same {
                continue;
            }
            if let Some(task) = task.filter(|task| model.is_endpoint(task)) {
                taken.extend(task.addresses.iter().map(|(network, address)| (network.as_str(), address.ip)));
                spaces.extend(task.netns.as_ref().map(|netns| (&task.node, netns)));
            } else if let Some(before) = before.filter(|before| last.is_endpoint(before)) {
                let departing = || (Task::clone(before), until);
                self.departing.entry(id.clone()).or_insert_with(departing);
            }
        }
        if !self.departing.is_empty() && (last.services != model.services || last.nodes != model.nodes) {
            taken.extend(addresses_besides(model));
        }
        self.departing.retain(|id, (task, _)| {
            let back = model.tasks.get(id).is_some_and(|task| model.is_endpoint(task));
            let replaced = task.netns.as_ref().is_some_and(|netns| spaces.contains(&(&task.node, netns)));
            !back && !replaced && drains(model, task, &taken)
        });

        let has = |model: &Model, id: &str| model.nodes.get(id).is_some_and(|n| n.dataplane == Dataplane::Hiveway);
        let members = last.nodes.values().filter(|node| node.dataplane == Dataplane::Hiveway);
        for node in members.filter(|node| !has(model, &node.id)) {
            self.leaving.insert(node.id.clone(), until);
        }
        self.leaving.retain(|id, _| !has(model, id) && model.nodes.contains_key(id));
    }
}

/// (network, address) pairs that services or nodes of the table use.
fn addresses_besides(model: &Model) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    let of_services = model.services.values().flat_map(|s| s.virtual_ips.iter().map(|(n, ip)| (n.as_str(), *ip)));
    let of_nodes = model.nodes.values().flat_map(|n| n.addresses.iter().map(|(n, ip)| (n.as_str(), *ip)));
    of_services.chain(of_nodes)
}

/// Makes of a departed task what stays during its grace: false if that is nothing. `taken`: (network, address) pairs
/// that others have since.
fn drains(model: &Model, task: &mut Task, taken: &BTreeSet<(&str, Ipv4Addr)>) -> bool {
    let ended_badly = model
        .tasks
        .get(&task.id)
        .is_some_and(|now| matches!(now.state, TaskState::Failed | TaskState::Rejected | TaskState::Orphaned));
    let Some(node) = task.node.as_ref().and_then(|id| model.nodes.get(id)) else { return false };
    if ended_badly || node.state == NodeState::Down {
        return false;
    }
    task.desired_state = TaskState::Shutdown;
    task.addresses.retain(|network, address| {
        model.networks.get(network).is_some_and(|n| n.subnet_of(address.ip).is_some())
            && !taken.contains(&(network.as_str(), address.ip))
    });
    !task.addresses.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskRole;

    const TABLE: &str = r#"
version: 1
nodes: [{id: n1, hostname: n1, address: 192.0.2.1}]
networks: [{id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]
services: [{id: web, name: web, virtual_ips: {app: 10.0.1.2}}]
tasks:
  - {id: a, service_id: web, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.3}}
  - {id: b, service_id: web, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.4}}
"#;

    fn model(text: &str) -> Model {
        crate::table::parse_file(text, std::path::Path::new("table.yaml")).expect("valid").model
    }

    fn without_b() -> Model {
        let mut model = model(TABLE);
        model.tasks.remove("b");
        model
    }

    impl DrainGrace {
        fn to(&mut self, model: &Model, now: Duration) -> Model {
            Model::clone(&self.apply(&Arc::new(model.clone()), now))
        }
    }

    fn role(model: &Model, id: &str) -> Option<TaskRole> {
        model.tasks.get(id).map(|task| model.role(task))
    }

    const START: Duration = Duration::from_secs(100);

    #[test]
    fn a_removed_task_drains_for_a_period_and_no_longer() {
        let mut grace = DrainGrace::new(DRAIN_GRACE);
        assert_eq!(grace.to(&model(TABLE), START), model(TABLE));
        assert_eq!(grace.deadline(), None);
        let at_once = grace.to(&without_b(), START);
        assert_eq!(role(&at_once, "b"), Some(TaskRole::Draining));
        assert_eq!(role(&at_once, "a"), Some(TaskRole::Backend));
        assert_eq!(grace.deadline(), Some(START + DRAIN_GRACE));
        let later = grace.to(&without_b(), START + DRAIN_GRACE / 2);
        assert_eq!(later, at_once, "the period is not prolonged by another look");
        assert_eq!(grace.to(&without_b(), START + DRAIN_GRACE), without_b());
        assert_eq!(grace.deadline(), None);
    }

    #[test]
    fn what_a_node_still_sends_after_it_has_deregistered_is_taken_for_a_period() {
        let with = |dataplane| {
            let mut model = model(TABLE);
            model.nodes.get_mut("n1").expect("n1").dataplane = dataplane;
            model
        };
        let (yes, no, left) = (with(Dataplane::Hiveway), with(Dataplane::None), with(Dataplane::Left));
        let mut grace = DrainGrace::new(DRAIN_GRACE);
        assert_eq!(grace.to(&no, START), no, "it never was there");
        assert_eq!(grace.to(&yes, START), yes);
        assert_eq!(grace.to(&no, START), left);
        assert_eq!(grace.deadline(), Some(START + DRAIN_GRACE));
        assert_eq!(grace.to(&no, START + DRAIN_GRACE / 2), left);
        assert_eq!(grace.to(&no, START + DRAIN_GRACE), no);
        assert_eq!(grace.to(&yes, START), yes);
        grace.to(&no, START);
        assert_eq!(grace.to(&yes, START), yes, "it is back");
        assert_eq!(grace.deadline(), None);
    }

    #[test]
    fn a_failed_task_has_no_grace_and_a_shut_down_one_has() {
        for (state, expected) in [(TaskState::Failed, TaskRole::Absent), (TaskState::Shutdown, TaskRole::Draining)] {
            let mut grace = DrainGrace::new(DRAIN_GRACE);
            grace.to(&model(TABLE), START);
            let mut ended = model(TABLE);
            let task = Arc::make_mut(ended.tasks.get_mut("b").expect("b"));
            (task.desired_state, task.state) = (TaskState::Shutdown, state);
            assert_eq!(role(&grace.to(&ended, START), "b"), Some(expected), "{state}");
        }
    }

    #[test]
    fn a_successor_with_the_same_address_ends_it() {
        let mut grace = DrainGrace::new(DRAIN_GRACE);
        grace.to(&model(TABLE), START);
        let mut replaced = without_b();
        let mut successor = model(TABLE).tasks.remove("b").expect("b");
        Arc::make_mut(&mut successor).id = "c".into();
        replaced.tasks.insert("c".into(), successor);
        assert_eq!(grace.to(&replaced, START), replaced);
    }

    #[test]
    fn a_successor_in_the_same_namespace_ends_it() {
        let in_space = |id: &str, path: &str| {
            let mut model = model(TABLE);
            let mut task = model.tasks.remove("b").expect("b");
            let changed = Arc::make_mut(&mut task);
            (changed.id, changed.netns) = (id.into(), Some(path.into()));
            let address = crate::model::Address::with_default_mac([10, 0, 1, if id == "b" { 4 } else { 5 }].into());
            changed.addresses = [("app".into(), address)].into_iter().collect();
            model.tasks.insert(id.into(), task);
            model
        };
        for (path, expected) in [("/run/netns/x", None), ("/run/netns/y", Some(TaskRole::Draining))] {
            let mut grace = DrainGrace::new(DRAIN_GRACE);
            grace.to(&in_space("b", "/run/netns/x"), START);
            let after = grace.to(&in_space("c", path), START);
            assert_eq!((role(&after, "b"), role(&after, "c")), (expected, Some(TaskRole::Backend)), "{path}");
        }
    }

    #[test]
    fn nothing_has_a_grace_on_a_node_that_is_gone_or_without_its_network() {
        let mut grace = DrainGrace::new(DRAIN_GRACE);
        grace.to(&model(TABLE), START);
        let mut down = without_b();
        down.nodes.get_mut("n1").expect("n1").state = NodeState::Down;
        assert_eq!(role(&grace.to(&down, START), "b"), None);

        let mut grace = DrainGrace::new(DRAIN_GRACE);
        grace.to(&model(TABLE), START);
        let bare = Model { nodes: model(TABLE).nodes, ..Model::default() };
        assert_eq!(grace.to(&bare, START), bare);
    }

    #[test]
    fn zero_switches_it_off() {
        let mut grace = DrainGrace::new(Duration::ZERO);
        grace.to(&model(TABLE), START);
        assert_eq!(grace.to(&without_b(), START), without_b());
    }
}
