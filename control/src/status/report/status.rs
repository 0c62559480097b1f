//! `status`.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use hiveway_core::{LeftOut, Problem, path_check::Finding};
use serde::Serialize;

use super::{
    fill::{nearly_full, without_share},
    health::Health,
    paths::{Known, PathRow},
};
use crate::{
    agent::{
        host_rules::FirewallStatus,
        shared::{OpenItem, Shared, Snapshot},
        takeover::Takeover,
        xdp::XdpStatus,
    },
    around::Question,
    engine::EngineView,
    engine_mesh::DeadPorts,
    ipv6::NotServed,
    relay::RelayStatus,
    shadowed::Shadowed,
    source::Lost,
};

/// `hiveway status --json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    pid: u32,
    uptime_seconds: u64,
    /// The first table has been programmed.
    ready: bool,
    /// See [`Health`].
    healthy: bool,
    node: Node,
    table: Table,
    /// Between agents; null for files.
    relay: Option<RelayStatus>,
    /// This node's engine; null for files.
    engine: Option<Engine>,
    local_tasks: usize,
    failing: Vec<Item>,
    waiting: Vec<Item>,
    left_out: Vec<LeftOut>,
    /// What the host's packet filters may close, which is left to them.
    firewall: Firewall,
    /// Beside a Docker engine; null where none carries a network.
    takeover: Option<Takeover>,
    /// Ports that neither Hiveway nor the engine serves here; null: none.
    dead_ports: Option<DeadPorts>,
    /// To other nodes that run Hiveway.
    paths: Vec<PathRow>,
    /// What is wrong with them.
    path_problems: Vec<Finding>,
    /// Local processes on published ports.
    shadowed: Vec<Shadowed>,
    /// Where IPv6 clients of published ports are not served; null where there can be none.
    ipv6: Option<NotServed>,
    /// Settings of the node that are in the way.
    warnings: Vec<String>,
    reconcile: Reconcile,
    dataplane: Dataplane,
}

#[derive(Clone, Debug, Serialize)]
struct Node {
    id: String,
    hostname: Option<String>,
    state: Option<String>,
    vtep: Option<Ipv4Addr>,
    /// The underlay's own address behind a 1:1 NAT; null where it is `vtep`.
    underlay_address: Option<Ipv4Addr>,
    /// UDP port of VXLAN; null before the first table.
    vxlan_port: Option<u16>,
    underlay: String,
    gateway_bridge: Option<GatewayBridge>,
    mesh_interfaces: Vec<String>,
    /// `tunnel` or `dsr`.
    mesh_return: &'static str,
    xdp: Vec<XdpStatus>,
    addresses: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, Serialize)]
struct Firewall {
    #[serde(flatten)]
    judged: FirewallStatus,
    /// Since the rules were last read; null before the first time.
    read_seconds_ago: Option<u64>,
    /// Why they cannot be read; what they said before holds.
    error: Option<String>,
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
    /// Where a live source's table comes from now; null for files.
    from: Option<String>,
    /// While a live source can't be reached; the last table stays in force.
    unreachable: Option<Unreachable>,
    /// Why this node is no member of the swarm; its table is empty.
    expelled: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Unreachable {
    since_seconds: u64,
    why: String,
}

impl Unreachable {
    pub(super) fn of(lost: &Lost) -> Self {
        Self { since_seconds: lost.since.elapsed().as_secs(), why: lost.why.clone() }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Refused {
    since_seconds: u64,
    problems: Vec<String>,
}

/// What fails or is waited for.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Item {
    pub(super) item: String,
    pub(super) why: String,
    pub(super) attempts: u32,
    pub(super) retry_in_seconds: Option<u64>,
}

/// What this node's engine is, and whether it answers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Engine {
    /// As `docker version` shows it; null before it has answered.
    version: Option<String>,
    /// The version of its API that is used with it, and its newest one.
    api: Option<String>,
    newest_api: Option<String>,
    /// `iptables` or `nftables`, perhaps with `+firewalld`; null where it does not say.
    firewall_backend: Option<String>,
    /// While it does not answer, or is refused; what it said last stays.
    unreachable: Option<Unreachable>,
    /// Containers that it does not describe; what was known of them stays.
    unanswered: Vec<Unanswered>,
}

#[derive(Clone, Debug, Serialize)]
struct Unanswered {
    container: String,
    why: String,
}

impl Engine {
    pub(super) fn new(view: &EngineView) -> Self {
        let version = view.version.clone();
        let unanswered = view.unanswered.iter();
        Self {
            version: version.as_ref().map(|version| version.engine.clone()),
            api: version.as_ref().map(|version| version.api.clone()),
            newest_api: version.map(|version| version.newest_api),
            firewall_backend: view.firewall_backend.clone(),
            unreachable: view.lost.as_ref().map(Unreachable::of),
            unanswered: unanswered
                .map(|(container, why)| Unanswered { container: container.clone(), why: why.clone() })
                .collect(),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Reconcile {
    runs: u64,
    errors: u64,
    last_seconds_ago: Option<u64>,
    last_duration_ms: u64,
    /// Of the table in force, until the maps showed it.
    change: Option<Change>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Change {
    /// Reading and checking the source.
    reading_ms: f64,
    /// From then on until the last entry was written.
    programming_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Dataplane {
    bpffs: String,
    hook: &'static str,
    /// Established entries of translated connections, and of clients', as the last sweep has counted; null before the
    /// first.
    flows: Option<usize>,
    affinity: Option<usize>,
    tables: Vec<TableFill>,
    /// Since entries were counted; null before the first sweep.
    counted_seconds_ago: Option<u64>,
    /// Idle times in seconds, by state.
    timeouts: BTreeMap<&'static str, f64>,
    /// What is not as it was asked for, and what to do about it.
    warnings: Vec<String>,
    counters: BTreeMap<&'static str, u64>,
}

/// A connection table.
#[derive(Clone, Debug, Serialize)]
struct TableFill {
    name: &'static str,
    entries: Option<usize>,
    capacity: u32,
    /// From 0 to 1.
    pressure: Option<f64>,
}

pub(super) fn status(shared: &Shared, snapshot: &Snapshot) -> Result<Status, String> {
    let model = &snapshot.model;
    let node = model.nodes.get(snapshot.node.as_str());
    let live = snapshot.live.as_deref();
    let heard = shared.about.host_firewall.borrow().clone();
    let listing = heard.reading.as_ref().map(|reading| reading.listing.clone()).unwrap_or_default();
    let paths = Known::new(shared, snapshot);
    let health = Health::with(shared, snapshot, &paths);
    let around = shared.reads.around(&Question {
        published: snapshot.published.clone(),
        mesh: snapshot.gateway_subnet.filter(|_| snapshot.takeover.is_some()),
        bridge: snapshot.gateway.as_ref().filter(|(_, ours)| *ours).map(|(name, _)| name.clone()),
        listing,
    });
    Ok(Status {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime_seconds: shared.about.started.elapsed().as_secs(),
        ready: snapshot.ready,
        healthy: health.healthy,
        node: Node {
            id: snapshot.node.clone(),
            hostname: node.map(|node| node.hostname.clone()),
            state: node.map(|node| node.state.name().to_owned()),
            vtep: snapshot.vtep,
            underlay_address: snapshot.underlay_address.filter(|own| Some(*own) != snapshot.vtep),
            vxlan_port: snapshot.vxlan_port,
            underlay: snapshot.uplinks.text(),
            gateway_bridge: snapshot
                .gateway
                .as_ref()
                .map(|(name, ours)| GatewayBridge { name: name.clone(), adopted: !ours }),
            mesh_interfaces: snapshot.mesh_interfaces.clone(),
            mesh_return: shared.about.mesh_return.name(),
            xdp: snapshot.xdp.clone(),
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
            from: live.map(|live| live.from.clone()),
            unreachable: live.and_then(|live| live.lost.as_ref()).map(Unreachable::of),
            expelled: live.and_then(|live| live.expelled.clone()),
        },
        relay: shared.about.relay.as_ref().map(|board| board.status()),
        engine: shared.about.engine.as_ref().map(|view| Engine::new(&view.borrow())),
        local_tasks: snapshot.local_tasks,
        failing: shared.failing(snapshot).iter().map(item).collect(),
        waiting: snapshot.waiting.iter().map(item).collect(),
        left_out: snapshot.left_out.clone(),
        firewall: Firewall { judged: snapshot.firewall.clone(), read_seconds_ago: ago(heard.at), error: heard.error },
        takeover: snapshot.takeover.clone(),
        dead_ports: health.dead_ports,
        paths: paths.rows(),
        path_problems: paths.problems(snapshot),
        shadowed: around.shadowed,
        ipv6: around.ipv6,
        warnings: [
            snapshot.unserved.clone(),
            snapshot.firewall.warnings(),
            snapshot.uplink_warnings.clone(),
            snapshot.port_warning.iter().cloned().collect(),
            shared.about.tight.iter().cloned().collect(),
            live.and_then(|live| live.unkept.clone()).into_iter().collect(),
            around.warnings,
        ]
        .concat(),
        reconcile: Reconcile {
            runs: snapshot.runs,
            errors: snapshot.errors,
            last_seconds_ago: ago(snapshot.last_run),
            last_duration_ms: snapshot.last_duration.as_millis() as u64,
            change: snapshot
                .change
                .map(|change| Change { reading_ms: ms(change.reading), programming_ms: ms(change.programming) }),
        },
        dataplane: dataplane(shared, snapshot).map_err(|error| error.to_string())?,
    })
}

fn dataplane(shared: &Shared, snapshot: &Snapshot) -> Result<Dataplane, dataplane::MapFault> {
    let (hook, counters) = (shared.hook(), shared.counts().counters()?);
    let last = shared.sweeps().last;
    let left = last.map(|(_, report)| report.left);
    let capacity = shared.connections().capacity();
    let fill = |((name, entries), (_, capacity)): ((_, usize), (_, u32))| {
        let pressure = left.map(|_| entries as f64 / f64::from(capacity));
        TableFill { name, entries: left.map(|_| entries), capacity, pressure }
    };
    Ok(Dataplane {
        bpffs: shared.about.bpffs.clone(),
        hook,
        flows: left.map(|left| left.flows),
        affinity: left.map(|left| left.affinity),
        tables: left.unwrap_or_default().named().into_iter().zip(capacity.named()).map(fill).collect(),
        counted_seconds_ago: ago(last.map(|(at, _)| at)),
        timeouts: shared.about.timeouts.named().into_iter().map(|(name, time)| (name, time.as_secs_f64())).collect(),
        warnings: [
            nearly_full(shared),
            without_share(shared, snapshot).into_iter().collect(),
            snapshot.pins_gone.map(|gone| gone.warning(&shared.about.bpffs)).into_iter().collect(),
        ]
        .concat(),
        counters: counters.into_iter().map(|(counter, stat)| (counter.name(), stat.packets)).collect(),
    })
}

fn item(open: &OpenItem) -> Item {
    Item {
        item: open.item.clone(),
        why: open.why.clone(),
        attempts: open.attempts,
        retry_in_seconds: open.retry.map(|at| at.saturating_duration_since(Instant::now()).as_secs()),
    }
}

fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn ago(at: Option<Instant>) -> Option<u64> {
    at.map(|at| at.elapsed().as_secs())
}
