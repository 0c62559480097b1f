//! Capture → model, item by item.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{EngineCapture, Loaded, api, networks, nodes, services, tasks};
use crate::{
    desired::LeftOut,
    model::{Carrier, Model},
    problem::Problem,
};

pub(super) fn load(capture: &EngineCapture<'_>) -> Result<Loaded, Problem> {
    let mut left_out = Vec::new();
    let objects = api::Objects {
        nodes: items("nodes.json", capture.nodes, "node", &mut left_out)?,
        networks: items("networks.json", capture.networks, "network", &mut left_out)?,
        services: items("services.json", capture.services, "service", &mut left_out)?,
        tasks: items("tasks.json", capture.tasks, "task", &mut left_out)?,
    };
    let mut loaded = assemble(objects, Carrier::Hiveway, left_out);
    loaded.settle(|_| None);
    Ok(loaded)
}

pub(super) fn assemble(objects: api::Objects, carrier: Carrier, mut left_out: Vec<LeftOut>) -> Loaded {
    let mut unplaced: BTreeSet<String> = objects.nodes.iter().map(|node| node.id.clone()).collect();
    let attachments: Vec<_> = objects.nodes.iter().map(|node| (node.id.clone(), node.attachments.clone())).collect();
    // The manager copies the cluster's port to each node when the node joins.
    let ports = objects.nodes.iter().filter_map(|node| NonZeroU16::new(u16::try_from(node.data_path_port).ok()?));
    let data_path_port = ports.max();
    let (nodes, joined) = nodes::load(objects.nodes, &mut left_out);
    let networks = networks::load(objects.networks, carrier, &mut left_out);
    let services = services::load(objects.services, &networks, &mut left_out);
    let services = services.into_iter().map(|(id, service)| (id, Arc::new(service))).collect();
    let mut model = Model { nodes, networks: networks.usable, services, tasks: BTreeMap::new(), jobs_serve: true };
    nodes::own_addresses(attachments, &mut model);
    tasks::load(objects.tasks, &networks.unusable, &mut model, &mut left_out);
    left_out.sort();
    left_out.dedup();
    unplaced.retain(|id| !model.nodes.contains_key(id.as_str()));
    Loaded { model, left_out, unplaced, joined, data_path_port }
}

/// The elements of a list that can be read. An empty or missing list is `null` in Go.
fn items<T: DeserializeOwned>(
    file: &str,
    text: &str,
    what: &str,
    left_out: &mut Vec<LeftOut>,
) -> Result<Vec<T>, Problem> {
    let list: Option<Vec<Value>> = serde_json::from_str(text)
        .map_err(|e| Problem::error(file, format!("not a JSON list as the Engine API answers: {e}")))?;
    let mut items = Vec::new();
    for (i, value) in list.unwrap_or_default().into_iter().enumerate() {
        match serde_json::from_value(value) {
            Ok(item) => items.push(item),
            Err(e) => left_out.push(LeftOut { what: format!("{what} {file}[{i}]"), why: format!("unreadable: {e}") }),
        }
    }
    Ok(items)
}
