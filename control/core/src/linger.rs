//! Departing tasks linger for a moment, and nodes whose Hiveway is taken down.
//!
//! Nodes read a new table within milliseconds of each other, not at the same instant, and a client's packet may be on
//! its way. A task that leaves the table in an orderly way (removed, shut down, complete) is therefore kept as a
//! draining endpoint for a short while: it gets no new flow from the change on, but a packet that another node sent it a
//! moment ago still arrives. A task that failed, or whose node or address is gone, does not linger. Likewise a node that
//! has said goodbye gets no new flow of the mesh, and the answers that it still sends are taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use crate::model::{Dataplane, Model, NodeState, Task, TaskState};

/// How long by default.
pub const DEFAULT_LINGER: Duration = Duration::from_secs(2);

/// Remembers the endpoints of the table in force and those that have just left it.
#[derive(Clone, Debug)]
pub struct Linger {
    period: Duration,
    /// Endpoints of the last table.
    known: BTreeMap<String, Task>,
    /// Tasks that linger, with the time at which they stop.
    departing: BTreeMap<String, (Task, Duration)>,
    /// Nodes with Hiveway in the last table.
    members: BTreeSet<String>,
    /// Nodes without it now, with the time until which what they send is taken.
    leaving: BTreeMap<String, Duration>,
}

impl Linger {
    /// Nothing known yet. A `period` of zero switches lingering off.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            known: BTreeMap::new(),
            departing: BTreeMap::new(),
            members: BTreeSet::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// `model`, with tasks that left it less than a period ago as draining. `now` is any monotonic time.
    pub fn apply(&mut self, model: &Model, now: Duration) -> Model {
        let taken = addresses_in_use(model);
        for (id, task) in &self.known {
            if !is_endpoint(model, id) && !self.departing.contains_key(id) {
                self.departing.insert(id.clone(), (task.clone(), now + self.period));
            }
        }
        let mut lingering = model.clone();
        self.departing.retain(|id, (task, until)| {
            if now >= *until || is_endpoint(model, id) {
                return false;
            }
            let Some(task) = as_draining(model, task, &taken) else { return false };
            lingering.tasks.insert(id.clone(), task);
            true
        });
        self.nodes(&mut lingering, now);
        self.known = model
            .tasks
            .values()
            .filter(|task| model.role(task).is_endpoint())
            .map(|task| (task.id.clone(), task.clone()))
            .collect();
        lingering
    }

    /// When [`Linger::apply`] will next give another answer for the same model.
    pub fn deadline(&self) -> Option<Duration> {
        self.departing.values().map(|(_, until)| *until).chain(self.leaving.values().copied()).min()
    }

    fn nodes(&mut self, model: &mut Model, now: Duration) {
        let has = |model: &Model, id: &str| model.nodes.get(id).is_some_and(|n| n.dataplane == Dataplane::Hiveway);
        for id in self.members.iter().filter(|id| !has(model, id)) {
            self.leaving.insert(id.clone(), now + self.period);
        }
        self.leaving.retain(|id, until| now < *until && !has(model, id) && model.nodes.contains_key(id));
        let members = model.nodes.values().filter(|node| node.dataplane == Dataplane::Hiveway);
        self.members = members.map(|node| node.id.clone()).collect();
        for id in self.leaving.keys() {
            if let Some(node) = model.nodes.get_mut(id) {
                node.dataplane = Dataplane::Left;
            }
        }
    }
}

fn is_endpoint(model: &Model, id: &str) -> bool {
    model.tasks.get(id).is_some_and(|task| model.role(task).is_endpoint())
}

/// (network, address) pairs that tasks, services or nodes of the table use now.
fn addresses_in_use(model: &Model) -> BTreeSet<(&str, Ipv4Addr)> {
    let tasks = model.tasks.values().filter(|task| model.role(task).is_endpoint());
    let of_tasks = tasks.flat_map(|t| t.addresses.iter().map(|(network, address)| (network.as_str(), address.ip)));
    let of_services = model.services.values().flat_map(|s| s.virtual_ips.iter().map(|(n, ip)| (n.as_str(), *ip)));
    let of_nodes = model.nodes.values().flat_map(|n| n.addresses.iter().map(|(n, ip)| (n.as_str(), *ip)));
    of_tasks.chain(of_services).chain(of_nodes).collect()
}

/// The departed task as it lingers, if it may.
fn as_draining(model: &Model, task: &Task, taken: &BTreeSet<(&str, Ipv4Addr)>) -> Option<Task> {
    let ended_badly = model
        .tasks
        .get(&task.id)
        .is_some_and(|now| matches!(now.state, TaskState::Failed | TaskState::Rejected | TaskState::Orphaned));
    let node = model.nodes.get(task.node.as_ref()?)?;
    if ended_badly || node.state == NodeState::Down {
        return None;
    }
    let mut task = task.clone();
    task.desired_state = TaskState::Shutdown;
    task.addresses.retain(|network, address| {
        model.networks.get(network).is_some_and(|n| n.subnet_of(address.ip).is_some())
            && !taken.contains(&(network.as_str(), address.ip))
    });
    (!task.addresses.is_empty()).then_some(task)
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

    fn role(model: &Model, id: &str) -> Option<TaskRole> {
        model.tasks.get(id).map(|task| model.role(task))
    }

    const START: Duration = Duration::from_secs(100);

    #[test]
    fn a_removed_task_drains_for_a_period_and_no_longer() {
        let mut linger = Linger::new(DEFAULT_LINGER);
        assert_eq!(linger.apply(&model(TABLE), START), model(TABLE));
        assert_eq!(linger.deadline(), None);
        let at_once = linger.apply(&without_b(), START);
        assert_eq!(role(&at_once, "b"), Some(TaskRole::Draining));
        assert_eq!(role(&at_once, "a"), Some(TaskRole::Backend));
        assert_eq!(linger.deadline(), Some(START + DEFAULT_LINGER));
        let later = linger.apply(&without_b(), START + DEFAULT_LINGER / 2);
        assert_eq!(later, at_once, "the period is not prolonged by another look");
        assert_eq!(linger.apply(&without_b(), START + DEFAULT_LINGER), without_b());
        assert_eq!(linger.deadline(), None);
    }

    #[test]
    fn what_a_node_still_sends_after_its_goodbye_is_taken_for_a_period() {
        let with = |dataplane| {
            let mut model = model(TABLE);
            model.nodes.get_mut("n1").expect("n1").dataplane = dataplane;
            model
        };
        let (yes, no, left) = (with(Dataplane::Hiveway), with(Dataplane::None), with(Dataplane::Left));
        let mut linger = Linger::new(DEFAULT_LINGER);
        assert_eq!(linger.apply(&no, START), no, "it never was there");
        assert_eq!(linger.apply(&yes, START), yes);
        assert_eq!(linger.apply(&no, START), left);
        assert_eq!(linger.deadline(), Some(START + DEFAULT_LINGER));
        assert_eq!(linger.apply(&no, START + DEFAULT_LINGER / 2), left);
        assert_eq!(linger.apply(&no, START + DEFAULT_LINGER), no);
        assert_eq!(linger.apply(&yes, START), yes);
        linger.apply(&no, START);
        assert_eq!(linger.apply(&yes, START), yes, "it is back");
        assert_eq!(linger.deadline(), None);
    }

    #[test]
    fn a_failed_task_does_not_linger_and_a_shut_down_one_does() {
        for (state, expected) in [(TaskState::Failed, TaskRole::Absent), (TaskState::Shutdown, TaskRole::Draining)] {
            let mut linger = Linger::new(DEFAULT_LINGER);
            linger.apply(&model(TABLE), START);
            let mut ended = model(TABLE);
            let task = ended.tasks.get_mut("b").expect("b");
            (task.desired_state, task.state) = (TaskState::Shutdown, state);
            assert_eq!(role(&linger.apply(&ended, START), "b"), Some(expected), "{state}");
        }
    }

    #[test]
    fn a_successor_with_the_same_address_ends_it() {
        let mut linger = Linger::new(DEFAULT_LINGER);
        linger.apply(&model(TABLE), START);
        let mut replaced = without_b();
        let mut successor = model(TABLE).tasks.remove("b").expect("b");
        successor.id = "c".into();
        replaced.tasks.insert("c".into(), successor);
        assert_eq!(linger.apply(&replaced, START), replaced);
    }

    #[test]
    fn nothing_lingers_on_a_node_that_is_gone_or_without_its_network() {
        let mut linger = Linger::new(DEFAULT_LINGER);
        linger.apply(&model(TABLE), START);
        let mut down = without_b();
        down.nodes.get_mut("n1").expect("n1").state = NodeState::Down;
        assert_eq!(role(&linger.apply(&down, START), "b"), None);

        let mut linger = Linger::new(DEFAULT_LINGER);
        linger.apply(&model(TABLE), START);
        let bare = Model { nodes: model(TABLE).nodes, ..Model::default() };
        assert_eq!(linger.apply(&bare, START), bare);
    }

    #[test]
    fn zero_switches_it_off() {
        let mut linger = Linger::new(Duration::ZERO);
        linger.apply(&model(TABLE), START);
        assert_eq!(linger.apply(&without_b(), START), without_b());
    }
}
