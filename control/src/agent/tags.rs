//! The table's tasks by tag, which is what the maps know of them.

use std::{collections::BTreeSet, sync::Arc};

use dataplane::Live;
use dataplane_common::addr::Tag;
use hiveway_core::{
    Model,
    drain_grace::DRAIN_GRACE,
    model::{Id, Task},
    tag,
};

/// Of one table. Made once for it: there may be many tasks.
#[derive(Clone, Debug, Default)]
pub struct Tags {
    model: Arc<Model>,
    /// Those that have just left the table.
    departing: BTreeSet<Id>,
    /// In order.
    tasks: Vec<(Tag, Arc<Task>)>,
}

impl Tags {
    /// Those of a table; of `departing` only the endpoint stays.
    pub fn new(model: Arc<Model>, departing: BTreeSet<Id>) -> Self {
        let mut tasks: Vec<_> = model.tasks.values().map(|task| (tag(&task.id), task.clone())).collect();
        tasks.sort_by_key(|(tag, _)| *tag);
        Self { model, departing, tasks }
    }

    /// Whether it is made of this table.
    pub fn is_of(&self, model: &Arc<Model>) -> bool {
        Arc::ptr_eq(&self.model, model)
    }

    /// Whose a tag is: the task's id, and its service's name.
    pub fn get(&self, tag: &Tag) -> Option<(&str, Option<&str>)> {
        let place = self.tasks.binary_search_by_key(tag, |(tag, _)| *tag).ok()?;
        let (_, task) = self.tasks.get(place)?;
        Some((&task.id, self.service(task)))
    }

    /// Whether a task's service has that name, although the table may not have the service any more.
    pub fn has_service(&self, name: &str) -> bool {
        self.tasks.iter().any(|(_, task)| self.service(task) == Some(name))
    }

    fn service<'t>(&'t self, task: &'t Task) -> Option<&'t str> {
        let service = task.service.as_ref();
        service.map(|id| self.model.services.get(id).map_or(id.as_str(), |service| &service.name))
    }

    /// Tags of all endpoints, as they are at `as_of` (`CLOCK_MONOTONIC` in nanoseconds). Of a task that has just left,
    /// the connections go on that another node may have opened with the table that it had a moment before.
    pub fn live(&self, as_of: u64) -> Live {
        let endpoints = || self.tasks.iter().filter(|(_, task)| self.model.role(task).is_endpoint());
        let mut live: Live = endpoints().map(|(tag, _)| *tag).collect();
        let since = as_of.saturating_sub(DRAIN_GRACE.as_nanos() as u64);
        for (tag, _) in endpoints().filter(|(_, task)| self.departing.contains(&task.id)) {
            live.departing(*tag, since);
        }
        live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
version: 1
nodes: [{id: n1, hostname: n1, address: 192.0.2.1}]
networks: [{id: app, name: app, subnets: [{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]}]
services: [{id: s, name: web}]
tasks:
  - {id: b, service_id: s, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.3}}
  - {id: a, node_id: n1, desired_state: running, state: failed, addresses: {app: 10.0.1.4}}
  - {id: c, node_id: n1, desired_state: running, state: running, addresses: {app: 10.0.1.5}}
";

    #[test]
    fn tasks_and_services_by_tag() {
        let table = hiveway_core::table::parse_file(TABLE, std::path::Path::new("t.yaml")).unwrap();
        let model = Arc::new(table.model);
        let tags = Tags::new(model.clone(), BTreeSet::new());
        assert!(tags.is_of(&model) && !Tags::default().is_of(&model));
        let all = ["a", "b", "c", "d"].map(|id| tags.get(&tag(id)));
        assert_eq!(all, [Some(("a", None)), Some(("b", Some("web"))), Some(("c", None)), None]);
        let both: Live = [tag("b"), tag("c")].into_iter().collect();
        let now = 5_000_000_000;
        assert_eq!(tags.live(now), both);
        let tags = Tags::new(model, BTreeSet::from(["b".into()]));
        assert_eq!(tags.get(&tag("b")), Some(("b", Some("web"))), "within its grace it still has a name");
        let mut departing = both;
        departing.departing(tag("b"), 3_000_000_000);
        assert_eq!(tags.live(now), departing);
    }
}
