//! This node's own engine.

use std::{path::Path, sync::Arc};

use super::{LocalView, reports};
use crate::{
    docker_api::Loaded,
    model::{Dataplane, Id, Model},
};

pub(super) fn apply(table: &mut Loaded, local: &LocalView) {
    let Loaded { model, .. } = table;
    let Some(id) = local.node.as_deref() else { return };
    let Some(node) = model.nodes.get_mut(id) else { return };
    node.dataplane = Dataplane::Hiveway;
    node.vxlan_port = local.vxlan_port;
    let report = local.report("");
    reports::vtep(model, id, &report);
    reports::health(model, id, &report);
    for container in local.containers.values() {
        let Some(netns) = &container.netns else { continue };
        match &container.task {
            Some(task) => set(model, task, id, netns),
            None => {
                for task in attachments(model, id, container) {
                    set(model, &task, id, netns);
                }
            }
        }
    }
}

/// The attachment tasks of a standalone container: those of this node that have its address. There is one per network.
fn attachments(model: &Model, node: &str, container: &super::Container) -> Vec<Id> {
    let same = |network: &str, ip| container.addresses.get(network) == Some(&ip);
    let tasks = model.tasks.values().filter(|task| {
        task.service.is_none()
            && task.node.as_deref() == Some(node)
            && task.state.is_networked()
            && task.addresses.iter().any(|(network, address)| same(network, address.ip))
    });
    tasks.map(|task| task.id.clone()).collect()
}

fn set(model: &mut Model, task: &str, node: &str, netns: &Path) {
    if let Some(task) = model.tasks.get_mut(task).filter(|task| task.node.as_deref() == Some(node)) {
        Arc::make_mut(task).netns = Some(netns.to_owned());
    }
}
