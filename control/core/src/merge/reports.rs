//! Other nodes' reports.

use std::{collections::BTreeSet, sync::Arc};

use super::{Report, Reports};
use crate::{
    docker_api::Loaded,
    model::{Dataplane, Model, Task, TaskState},
};

/// Nodes without a report have no Hiveway. `own`: this node, which [`super::local`] knows better.
pub(super) fn apply(table: &mut Loaded, reports: &Reports, own: Option<&str>) {
    let model = &mut table.model;
    for node in model.nodes.values_mut() {
        node.dataplane = Dataplane::None;
    }
    for (id, report) in reports.iter().filter(|(id, _)| Some(id.as_str()) != own) {
        let Some(node) = model.nodes.get_mut(id.as_str()) else { continue };
        if !report.preparing {
            // Also one that is down: see where the reports come from.
            (node.dataplane, node.vxlan_port) = (Dataplane::Hiveway, report.vxlan_port);
        }
        vtep(model, id, report);
        health(model, id, report);
    }
}

/// Tunnels of a node end where it says, unless that turns out to be another node's place.
pub(super) fn vtep(model: &mut Model, id: &str, report: &Report) {
    if let (Some(vtep), Some(node)) = (report.vtep, model.nodes.get_mut(id)) {
        node.vtep = vtep;
    }
}

/// Takes unhealthy tasks out of rotation, dead ones out of the network, and unreachable ones out of the routing mesh;
/// only tasks of the node that says so.
pub(super) fn health(model: &mut Model, id: &str, report: &Report) {
    let unhealthy = |task: &mut Task| task.unhealthy = true;
    let dead = |task: &mut Task| {
        if task.state.is_live() {
            // Whatever was asked for, nothing there answers any more.
            task.state = TaskState::Failed;
        }
    };
    let unreachable = |task: &mut Task| task.unreachable = true;
    let mut each = |ids: &BTreeSet<String>, change: &dyn Fn(&mut Task)| {
        for task in ids {
            let task = model.tasks.get_mut(task.as_str()).filter(|task| task.node.as_deref() == Some(id));
            if let Some(task) = task {
                change(Arc::make_mut(task));
            }
        }
    };
    each(&report.unhealthy, &unhealthy);
    each(&report.dead, &dead);
    each(&report.unreachable, &unreachable);
}
