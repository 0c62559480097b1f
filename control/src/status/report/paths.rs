//! `check`, and what `status` says of paths.

use std::{collections::BTreeMap, net::Ipv4Addr};

use hiveway_core::{
    DEFAULT_VXLAN_PORT,
    model::Node,
    path_check::{Finding, Gravity, Here, Overlay, PathTo, blocked, findings},
    probe::State,
};
use serde::Serialize;

use super::matrix::{Matrix, MatrixRow};
use crate::agent::shared::{Shared, Snapshot};

/// A path from this node to another one.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PathRow {
    /// Id of the other node.
    node: String,
    hostname: String,
    /// Its tunnel address.
    address: Ipv4Addr,
    state: State,
    since_seconds: u64,
    rtt_microseconds: Option<u64>,
    /// From 0 to 1, of the last small probes.
    loss: f64,
    /// How many those were.
    probes: u32,
    /// The longest outer packet that is sent there, in bytes.
    mtu: u16,
    /// The longest that a probe has shown to pass.
    passed: Option<u16>,
    /// The longest that the other node sends here.
    their_mtu: Option<u16>,
    /// Since the other node's last probe came in.
    heard_seconds_ago: Option<u64>,
    /// The port that it sends its tunnels to, if they come in where none is expected.
    port: Option<u16>,
}

/// `hiveway check --json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    node: String,
    hostname: String,
    address: Option<Ipv4Addr>,
    /// Some path has not passed a probe yet.
    waiting: bool,
    /// [`Known::passing`].
    passing: bool,
    /// Nor does one from another node, as far as its agent has told this one (managers).
    all_passing: bool,
    /// Whose rows this agent knows: `manager` all nodes', `worker` its own; null where agents do not report.
    role: Option<&'static str>,
    paths: Vec<PathRow>,
    /// All nodes' rows (managers), else null.
    nodes: Option<Vec<MatrixRow>>,
    problems: Vec<Finding>,
}

/// What is known about the paths to other nodes.
pub(super) struct Known {
    here: Here,
    paths: Vec<(String, PathTo)>,
    fault: Option<String>,
}

impl Known {
    /// As the prober has left it.
    pub(super) fn new(shared: &Shared, snapshot: &Snapshot) -> Self {
        let model = &snapshot.model;
        let nodes: BTreeMap<Ipv4Addr, &Node> = model.nodes.values().map(|node| (node.vtep, node)).collect();
        let mtus = shared.about.paths.mtus();
        let paths = shared.about.paths.views().into_iter().filter_map(|(vtep, view)| {
            let node = nodes.get(&Ipv4Addr::from(vtep))?;
            let mtu = mtus.get(&vtep).copied().unwrap_or(snapshot.underlay_mtu);
            let path = PathTo { hostname: node.hostname.clone(), address: node.vtep, mtu, view };
            Some((node.id.to_string(), path))
        });
        let own = model.nodes.get(snapshot.node.as_str());
        Self {
            here: Here {
                hostname: own.map(|node| node.hostname.clone()).unwrap_or_default(),
                address: snapshot.vtep.unwrap_or(Ipv4Addr::UNSPECIFIED),
                port: snapshot.vxlan_port.unwrap_or(DEFAULT_VXLAN_PORT),
                interface: snapshot.underlay_mtu,
            },
            paths: paths.collect(),
            fault: shared.about.paths.fault(),
        }
    }

    /// Every path was seen to pass, or its node has just joined, and none is known to fail.
    pub(super) fn passing(&self) -> bool {
        self.fault.is_none() && !blocked(&self.paths())
    }

    fn paths(&self) -> Vec<PathTo> {
        self.paths.iter().map(|(_, path)| path.clone()).collect()
    }

    /// One row per path.
    pub(super) fn rows(&self) -> Vec<PathRow> {
        let row = |(node, path): &(String, PathTo)| PathRow {
            node: node.clone(),
            hostname: path.hostname.clone(),
            address: path.address,
            state: path.view.state,
            since_seconds: path.view.since.as_secs(),
            rtt_microseconds: path.view.rtt.map(|rtt| rtt.as_micros() as u64),
            loss: (path.view.loss * 1e4).round() / 1e4,
            probes: path.view.counted,
            mtu: path.mtu,
            passed: path.view.passed,
            their_mtu: path.view.their_mtu,
            heard_seconds_ago: path.view.heard.map(|heard| heard.as_secs()),
            port: path.view.port,
        };
        self.paths.iter().map(row).collect()
    }

    /// What is wrong.
    pub(super) fn problems(&self, snapshot: &Snapshot) -> Vec<Finding> {
        // The mesh keeps its segments small itself; other networks' containers go by the network's MTU.
        let networks: Vec<_> = (snapshot.model.networks.values().filter(|network| !network.ingress))
            .map(|network| Overlay { name: network.name.clone(), mtu: network.mtu, carrier: network.carrier })
            .collect();
        let own = |problem: String, remedy: &str| Finding {
            severity: Gravity::Error,
            from: None,
            node: self.here.hostname.clone(),
            problem,
            remedy: remedy.to_owned(),
        };
        // What every path begins with comes first.
        let underlay = snapshot.failing.iter().filter(|open| is_underlays(&open.item)).map(|open| {
            let problem = format!("{}: {}", open.item, open.why);
            own(problem, "mend this first: all paths begin here; `hiveway status` shows all that is failing")
        });
        let fault = self.fault.iter().map(|fault| own(format!("no probes are sent: {fault}"), "see `hiveway status`"));
        let mut problems: Vec<_> = underlay.chain(fault).collect();
        problems.extend(findings(&self.here, &self.paths(), &networks));
        problems
    }
}

/// Whether a failing item of this name is about where tunnels begin.
fn is_underlays(item: &str) -> bool {
    matches!(item.split(' ').next(), Some("underlay" | "uplinks"))
}

pub(super) fn check(shared: &Shared, snapshot: &Snapshot) -> Check {
    let known = Known::new(shared, snapshot);
    let matrix = Matrix::now(shared, snapshot);
    let mut problems = known.problems(snapshot);
    problems.extend(matrix.iter().flat_map(|matrix| matrix.problems.clone()));
    problems.sort_by_key(|problem| problem.severity);
    Check {
        node: snapshot.node.clone(),
        hostname: known.here.hostname.clone(),
        address: snapshot.vtep,
        waiting: known.paths.iter().any(|(_, path)| path.view.state == State::Waiting),
        passing: known.passing(),
        all_passing: known.passing() && matrix.as_ref().is_none_or(Matrix::passing),
        role: shared.about.relay.as_ref().map(|_| if matrix.is_some() { "manager" } else { "worker" }),
        paths: known.rows(),
        nodes: matrix.map(|matrix| matrix.rows),
        problems,
    }
}
