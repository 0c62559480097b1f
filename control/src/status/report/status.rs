//! `status`.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use hiveway_core::{LeftOut, Problem};
use serde::Serialize;

use crate::agent::shared::{Shared, Snapshot, Trouble};

/// `hiveway status --json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    pid: u32,
    uptime_seconds: u64,
    /// The first table has been programmed.
    ready: bool,
    /// Ready, nothing failing, no table refused.
    healthy: bool,
    node: Node,
    table: Table,
    local_tasks: usize,
    failing: Vec<Item>,
    waiting: Vec<Item>,
    left_out: Vec<LeftOut>,
    reconcile: Reconcile,
    dataplane: Dataplane,
}

#[derive(Clone, Debug, Serialize)]
struct Node {
    id: String,
    hostname: Option<String>,
    state: Option<String>,
    vtep: Option<Ipv4Addr>,
    underlay: String,
    gateway_bridge: Option<GatewayBridge>,
    mesh_interfaces: Vec<String>,
    addresses: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, Serialize)]
struct GatewayBridge {
    name: String,
    adopted: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Table {
    source: String,
    age_seconds: Option<u64>,
    in_force_seconds: Option<u64>,
    nodes: usize,
    networks: usize,
    services: usize,
    tasks: usize,
    warnings: Vec<Problem>,
    refused: Option<Refused>,
}

#[derive(Clone, Debug, Serialize)]
struct Refused {
    since_seconds: u64,
    problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Item {
    item: String,
    why: String,
    attempts: u32,
    retry_in_seconds: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
struct Reconcile {
    runs: u64,
    errors: u64,
    last_seconds_ago: Option<u64>,
    last_duration_ms: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Dataplane {
    bpffs: String,
    hook: &'static str,
    flows: usize,
    affinity: usize,
    counters: BTreeMap<&'static str, u64>,
}

pub(super) fn status(shared: &Shared, snapshot: &Snapshot) -> Result<Status, String> {
    let model = &snapshot.model;
    let node = model.nodes.get(&snapshot.node);
    Ok(Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime_seconds: shared.about.started.elapsed().as_secs(),
        ready: snapshot.ready,
        healthy: snapshot.ready && snapshot.failing.is_empty() && snapshot.refused.is_none(),
        node: Node {
            id: snapshot.node.clone(),
            hostname: node.map(|node| node.hostname.clone()),
            state: node.map(|node| node.state.name().to_owned()),
            vtep: snapshot.vtep,
            underlay: shared.about.underlay.clone(),
            gateway_bridge: snapshot
                .gateway
                .as_ref()
                .map(|(name, ours)| GatewayBridge { name: name.clone(), adopted: !ours }),
            mesh_interfaces: snapshot.mesh_interfaces.clone(),
            addresses: snapshot.addresses.clone(),
        },
        table: Table {
            source: shared.about.source.clone(),
            age_seconds: ago(snapshot.read_at),
            in_force_seconds: ago(snapshot.changed_at),
            nodes: model.nodes.len(),
            networks: model.networks.len(),
            services: model.services.len(),
            tasks: model.tasks.len(),
            warnings: snapshot.warnings.clone(),
            refused: snapshot.refused.as_ref().map(|refused| Refused {
                since_seconds: refused.at.elapsed().as_secs(),
                problems: refused.problems.clone(),
            }),
        },
        local_tasks: snapshot.local_tasks,
        failing: snapshot.failing.iter().map(item).collect(),
        waiting: snapshot.waiting.iter().map(item).collect(),
        left_out: snapshot.left_out.clone(),
        reconcile: Reconcile {
            runs: snapshot.runs,
            errors: snapshot.errors,
            last_seconds_ago: ago(snapshot.last_run),
            last_duration_ms: snapshot.last_duration.as_millis() as u64,
        },
        dataplane: dataplane(shared).map_err(|error| error.to_string())?,
    })
}

fn dataplane(shared: &Shared) -> Result<Dataplane, dataplane::MapFault> {
    let dataplane = shared.dataplane();
    Ok(Dataplane {
        bpffs: shared.about.bpffs.clone(),
        hook: if dataplane.uses_tcx() { "tcx" } else { "clsact" },
        flows: dataplane.flows()?.len(),
        affinity: dataplane.affinity()?.len(),
        counters: dataplane.counters()?.into_iter().map(|(counter, stat)| (counter.name(), stat.packets)).collect(),
    })
}

fn item(trouble: &Trouble) -> Item {
    Item {
        item: trouble.item.clone(),
        why: trouble.why.clone(),
        attempts: trouble.attempts,
        retry_in_seconds: trouble.retry.map(|at| at.saturating_duration_since(Instant::now()).as_secs()),
    }
}

fn ago(at: Option<Instant>) -> Option<u64> {
    at.map(|at| at.elapsed().as_secs())
}
