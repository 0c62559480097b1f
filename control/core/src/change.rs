//! What a change of a few tasks changes in the maps, found without deriving everything anew.
//!
//! What the maps say of a task that is elsewhere follows from the nodes, the networks, this node's own tasks, its
//! service and that service's other tasks, and from whoever publishes the same ports. So both tables are cut down to
//! these, the maps are derived from what is left of each, and where the two differ is what has changed. Whatever else
//! changes is not for this module: it answers `None`, and everything is derived anew.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dataplane_common::{
    endpoint::kind,
    state::{MapChange, MapState},
};

use crate::{
    derive::{derive, map_state},
    desired::GatewayAddresses,
    joined::joined,
    model::{Id, Model, Task},
    settings::{Facts, Settings},
};

/// More tasks than these are not a few.
const FEW: usize = 256;

/// A table as the maps show it, with what finds a task's neighbours in it.
#[derive(Clone, Debug)]
pub struct Programmed {
    model: Arc<Model>,
    settings: Settings,
    facts: Facts,
    addresses: GatewayAddresses,
    /// In order of their services.
    by_service: Vec<Arc<Task>>,
    /// Services by published port, in order.
    by_port: Vec<((u8, u16), Id)>,
    /// On this node, or with other ports than their service: these have a say in what is not theirs.
    always: BTreeMap<Id, Arc<Task>>,
}

impl Programmed {
    /// The maps have been derived from these.
    pub fn new(model: Arc<Model>, settings: Settings, facts: Facts, addresses: GatewayAddresses) -> Self {
        let me = model.find_node(&settings.node).map(|node| node.id.clone()).unwrap_or_default();
        let special = model.tasks.values().filter(|task| is_special(&model, task, &me));
        let always = special.map(|task| (task.id.clone(), task.clone())).collect();
        let mut by_service: Vec<_> = model.tasks.values().filter(|task| task.service.is_some()).cloned().collect();
        by_service.sort_by(|a, b| a.service.cmp(&b.service));
        let ports = model.services.values().flat_map(|service| service.ports.iter().map(move |port| (port, service)));
        let mut by_port: Vec<_> =
            ports.filter_map(|(port, service)| Some((port.ingress()?, service.id.clone()))).collect();
        by_port.sort();
        Self { model, settings, facts, addresses, by_service, by_port, always }
    }

    /// The maps show this table as well, what they were derived from being the same otherwise.
    pub fn with(self, model: Arc<Model>) -> Self {
        Self::new(model, self.settings, self.facts, self.addresses)
    }

    /// Whether these are what the maps have been derived from.
    pub fn is_of(&self, model: &Arc<Model>, settings: &Settings, facts: &Facts, addresses: &GatewayAddresses) -> bool {
        Arc::ptr_eq(&self.model, model)
            && (&self.settings, &self.facts, &self.addresses) == (settings, facts, addresses)
    }

    /// What is to be written so that the maps show `now`; `None`: only deriving everything can tell.
    pub fn change(&self, now: &Model) -> Option<MapChange> {
        let before = &*self.model;
        if before.nodes != now.nodes
            || before.networks != now.networks
            || before.services != now.services
            || before.jobs_serve != now.jobs_serve
        {
            return None;
        }
        let me = &now.find_node(&self.settings.node).ok()?.id;
        let changed = changed(before, now)?;
        let versions = || changed.iter().flat_map(|id| [before.tasks.get(*id), now.tasks.get(*id)]).flatten();
        if versions().any(|task| is_special(now, task, me)) {
            return None;
        }

        let services: BTreeSet<&str> = versions().filter_map(|task| task.service.as_deref()).collect();
        let fellows =
            services.iter().flat_map(|id| equal(&self.by_service, |task| task.service.as_deref().cmp(&Some(id))));
        let mut tasks = self.always.clone();
        tasks.extend(fellows.map(|task| (task.id.clone(), task.clone())));
        let mut then = self.cut(&services, tasks);
        let state_then = self.state(&then)?;
        for id in &changed {
            match now.tasks.get(*id) {
                Some(task) => drop(then.tasks.insert(task.id.clone(), task.clone())),
                None => drop(then.tasks.remove(*id)),
            }
        }
        difference(state_then, self.state(&then)?)
    }

    /// The table without all that has nothing to do with these services and tasks.
    fn cut(&self, services: &BTreeSet<&str>, tasks: BTreeMap<Id, Arc<Task>>) -> Model {
        let all = &self.model.services;
        let of_tasks = tasks.values().filter_map(|task| task.service.as_deref());
        let near: BTreeSet<&str> = services.iter().copied().chain(of_tasks).collect();
        let ports = near.iter().filter_map(|id| all.get(*id)).flat_map(|service| &service.ports);
        let ports = ports.filter_map(|port| port.ingress());
        let others = ports.flat_map(|key| equal(&self.by_port, move |(other, _)| other.cmp(&key)));
        let others: Vec<&str> = others.map(|(_, id)| id.as_str()).collect();
        let ids = near.into_iter().chain(others);
        Model {
            nodes: self.model.nodes.clone(),
            networks: self.model.networks.clone(),
            services: ids
                .filter_map(|id| all.get_key_value(id))
                .map(|(id, service)| (id.clone(), service.clone()))
                .collect(),
            tasks,
            jobs_serve: self.model.jobs_serve,
        }
    }

    fn state(&self, model: &Model) -> Option<MapState> {
        let mut addresses = self.addresses.clone();
        let desired = derive(model, &self.settings, &mut addresses).ok()?;
        (addresses == self.addresses).then(|| map_state(model, &desired, &self.settings, &self.facts))
    }
}

/// Those of a sorted list that compare as equal.
fn equal<T>(sorted: &[T], order: impl Fn(&T) -> Ordering) -> &[T] {
    let from = sorted.partition_point(|item| order(item) == Ordering::Less);
    let to = from + sorted[from..].partition_point(|item| order(item) == Ordering::Equal);
    &sorted[from..to]
}

/// Whether more than the task itself and its service's sets may depend on it.
fn is_special(model: &Model, task: &Task, me: &str) -> bool {
    let service = task.service.as_ref().and_then(|id| model.services.get(id));
    task.node.as_deref() == Some(me) || service.is_none_or(|service| service.ports != task.ports)
}

/// Ids of the tasks that differ; `None` if they are many.
fn changed<'a>(before: &'a Model, now: &'a Model) -> Option<Vec<&'a str>> {
    let differ = joined(&before.tasks, &now.tasks).filter(|(_, before, now)| before != now);
    let changed: Vec<_> = differ.map(|(id, ..)| id.as_str()).take(FEW + 1).collect();
    (changed.len() <= FEW).then_some(changed)
}

/// From one state to another, if only endpoints elsewhere and the content of sets differ.
fn difference(from: MapState, to: MapState) -> Option<MapChange> {
    let rest = |state: &MapState| MapState { endpoints: BTreeMap::new(), sets: BTreeMap::new(), ..state.clone() };
    if rest(&from) != rest(&to) || !from.sets.keys().eq(to.sets.keys()) {
        return None;
    }
    let mut change = MapChange::default();
    for (key, endpoint) in &to.endpoints {
        if from.endpoints.get(key) != Some(endpoint) {
            change.endpoints.insert(*key, Some(*endpoint));
        }
    }
    for key in from.endpoints.keys().filter(|key| !to.endpoints.contains_key(key)) {
        change.endpoints.insert(*key, None);
    }
    let gone = change.endpoints.keys().filter_map(|key| from.endpoints.get(key));
    let come = change.endpoints.values().flatten();
    if gone.chain(come).any(|endpoint| endpoint.kind != kind::REMOTE) {
        return None;
    }
    change.sets = to.sets.into_iter().filter(|(key, set)| from.sets.get(key) != Some(set)).collect();
    Some(change)
}
