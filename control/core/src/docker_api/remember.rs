//! What a live source no longer says, but said before.

use std::sync::Arc;

use super::Loaded;
use crate::model::{Id, Model, Service, Task};

impl Loaded {
    /// Carries over what running tasks need from the table before this one, because the Engine API forgets too early:
    ///
    /// * a service that has vanished while tasks of it still run is kept as [`vanished`](crate::model::Service), with
    ///   its virtual addresses and ports but without backends, so that established flows drain;
    /// * a task keeps the ports it was first seen with (changing a service's ports replaces its tasks, and the API
    ///   shows only the service's new ports); one that had no port assigned yet takes the new ones.
    pub fn remember(&mut self, previous: &Model) {
        let model = &mut self.model;
        let networks = &model.networks;
        for task in model.tasks.values_mut().filter(|t| t.state.is_networked()) {
            let Some(before) = previous.tasks.get(&task.id) else { continue };
            let assigned = !before.ports.is_empty() && before.ports.iter().all(|p| p.published_port.is_some());
            if assigned && task.ports != before.ports {
                Arc::make_mut(task).ports.clone_from(&before.ports);
            }
        }
        let running = |t: &&Arc<Task>| t.state.is_networked() && t.node.is_some();
        let wanted: Vec<Id> = model.tasks.values().filter(running).filter_map(|t| t.service.clone()).collect();
        for id in wanted {
            let Some(before) = previous.services.get(&id).filter(|_| !model.services.contains_key(&id)) else {
                continue;
            };
            let mut service = Service::clone(before);
            service.vanished = true;
            service.virtual_ips.retain(|net, ip| {
                let usable = networks.get(net).is_some_and(|n| n.subnet_of(*ip).is_some_and(|s| s.usable(*ip)));
                // Somebody may have been given the address since.
                let free = model.services.values().all(|s| s.virtual_ips.get(net) != Some(ip))
                    && model.tasks.values().all(|t| t.addresses.get(net).is_none_or(|a| a.ip != *ip));
                usable && free
            });
            model.services.insert(id, Arc::new(service));
        }
    }
}
