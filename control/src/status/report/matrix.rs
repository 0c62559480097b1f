//! The paths between all nodes, as a manager's agent knows them, for `check`.

use std::{collections::BTreeMap, net::Ipv4Addr, num::NonZeroU16, sync::Arc, time::Duration};

use hiveway_core::{
    DEFAULT_VXLAN_PORT, Model,
    model::{Dataplane, Node, NodeState},
    path_check::{Finding, Gravity},
    path_matrix::{NodeRow, Said, findings},
    path_report::{Counts, Row},
    probe::State,
};
use serde::Serialize;

use crate::{
    agent::shared::{Shared, Snapshot},
    relay::server::PathReports,
};

/// A row of the matrix: what is known of the paths from a node.
#[derive(Clone, Debug, Serialize)]
pub struct MatrixRow {
    node: String,
    hostname: String,
    address: Ipv4Addr,
    /// This is the node that was asked.
    own: bool,
    /// How old it is; null where nothing is known.
    reported_seconds_ago: Option<u64>,
    /// Why nothing is known.
    missing: Option<String>,
    /// How many paths are in each state; null where nothing is known.
    counts: Option<Counts>,
    /// Why it sends no probes.
    fault: Option<String>,
    /// Its paths; where there are many, those that are not fine.
    paths: Vec<MatrixPath>,
}

#[derive(Clone, Debug, Serialize)]
struct MatrixPath {
    node: String,
    hostname: String,
    address: Ipv4Addr,
    state: State,
    since_seconds: u64,
    rtt_microseconds: Option<u32>,
    loss: f64,
    probes: u32,
    mtu: u16,
    passed: Option<u16>,
    limit: Option<u16>,
    /// Probes of that node arrive here.
    heard: bool,
    port: Option<u16>,
}

/// The matrix, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// One row for each node that should have paths.
    pub rows: Vec<MatrixRow>,
    /// What the own row does not say.
    pub problems: Vec<Finding>,
}

impl Matrix {
    /// As it is now; `None` where other nodes' agents report to somebody else, or to nobody.
    pub(super) fn now(shared: &Shared, snapshot: &Snapshot) -> Option<Self> {
        let registry = shared.about.relay.as_ref()?.registry()?;
        let own = Said::Rows { age: Duration::ZERO, report: Arc::new(shared.about.paths.report()) };
        let port = snapshot.vxlan_port.unwrap_or(DEFAULT_VXLAN_PORT);
        Some(Self::new(&snapshot.model, &snapshot.node, port, own, &registry.paths))
    }

    /// Of the nodes of this table. `own`: what this node says itself; `heard`: what the others have.
    pub fn new(model: &Model, me: &str, port: u16, own: Said, heard: &PathReports) -> Self {
        let mut own = Some(own);
        let nodes: Vec<NodeRow> = (model.nodes.values().filter(|node| is_there(node, me)))
            .map(|node| NodeRow {
                id: node.id.to_string(),
                hostname: node.hostname.clone(),
                address: node.vtep,
                port: node.vxlan_port.map_or(port, NonZeroU16::get),
                own: node.id == me,
                said: own.take_if(|_| node.id == me).unwrap_or_else(|| heard.of(&node.id)),
            })
            .collect();
        let names: BTreeMap<Ipv4Addr, &Node> = model.nodes.values().map(|node| (node.vtep, node)).collect();
        Self { rows: nodes.iter().map(|node| row(node, &names)).collect(), problems: findings(&nodes) }
    }

    /// No row says that traffic does not pass.
    pub fn passing(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Gravity::Error)
    }
}

/// It runs Hiveway and is not down: its agent should report.
fn is_there(node: &Node, me: &str) -> bool {
    node.id == me || (node.dataplane == Dataplane::Hiveway && node.state != NodeState::Down)
}

fn row(node: &NodeRow, names: &BTreeMap<Ipv4Addr, &Node>) -> MatrixRow {
    let report = node.report();
    let path = |row: &Row| {
        // Nodes that are gone from the table may be in a report a little longer.
        let to = names.get(&row.to).filter(|_| row.to != node.address)?;
        Some(MatrixPath {
            node: to.id.to_string(),
            hostname: to.hostname.clone(),
            address: row.to,
            state: row.state,
            since_seconds: row.since.into(),
            rtt_microseconds: row.rtt,
            loss: row.loss(),
            probes: row.counted,
            mtu: row.mtu,
            passed: row.passed,
            limit: row.limit,
            heard: row.heard,
            port: row.port,
        })
    };
    MatrixRow {
        node: node.id.clone(),
        hostname: node.hostname.clone(),
        address: node.address,
        own: node.own,
        reported_seconds_ago: match node.said {
            Said::Rows { age, .. } => Some(age.as_secs()),
            _ => None,
        },
        missing: node.missing(),
        counts: report.map(|report| report.counts),
        fault: report.and_then(|report| report.fault.clone()),
        paths: report.into_iter().flat_map(|report| &report.rows).filter_map(path).collect(),
    }
}
