//! What the agent's loop shares with those who ask: the status socket and the metrics.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use dataplane::{Connections, Counts, Dataplane, MapFault, Removed, SweepReport, Timeouts};
use hiveway_core::{LeftOut, Model, Problem, model::AllowList};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{host_rules::FirewallStatus, preview, probes::Paths, tags::Tags, takeover::Takeover, xdp::XdpStatus};
use crate::{
    around::Reads, cli::MeshReturn, engine::EngineView, host_firewall::LastReading, liveness::Liveness,
    relay::RelayParts, source::Live, uplinks::Uplinks,
};

/// How long somebody waits who asks what a round would change: less than the command does.
const PREVIEW: Duration = Duration::from_secs(25);

/// A failing or waiting item, as the last reconciliation saw it.
#[derive(Clone, Debug)]
pub struct OpenItem {
    /// What, like `task web.1`.
    pub item: String,
    /// Why.
    pub why: String,
    /// Failures in a row; 0 for what only waits.
    pub attempts: u32,
    /// When it is tried again; `None` for what only waits.
    pub retry: Option<Instant>,
}

/// How long the last change of the table took to be in the maps.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Reading and checking the source.
    pub reading: std::time::Duration,
    /// From then on until the last entry was written.
    pub programming: std::time::Duration,
}

/// Pins that somebody has taken away, and that were made anew.
#[derive(Clone, Copy, Debug)]
pub struct PinsGone {
    /// When that was noticed last.
    pub at: Instant,
    /// How often so far.
    pub times: u32,
    /// A BPF file system was mounted for them that last time.
    pub mounted: bool,
}

impl PinsGone {
    /// The next time.
    pub(super) fn again(before: Option<Self>, mounted: bool) -> Self {
        Self { at: Instant::now(), times: before.map_or(0, |before| before.times) + 1, mounted }
    }

    /// What people should know: an agent that starts while pins are gone begins without its connections.
    pub(crate) fn warning(self, bpffs: &str) -> String {
        let (seconds, times) = (self.at.elapsed().as_secs(), self.times);
        let mounted = if self.mounted { " on a BPF file system that the agent has mounted" } else { "" };
        let often = if times > 1 { format!(", {times} times so far") } else { String::new() };
        format!(
            "pins below {bpffs} were gone {seconds} s ago{often}, and were made anew{mounted}: find out what removes \
             or unmounts them; an agent that starts while they are gone begins without its connections"
        )
    }
}

/// A new table that was refused while an older one stays in force.
#[derive(Clone, Debug)]
pub struct Refused {
    /// When.
    pub at: Instant,
    /// Why, one line per problem.
    pub problems: Vec<String>,
}

/// What the last reconciliation left.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The table in force.
    pub model: Arc<Model>,
    /// Id of this node.
    pub node: String,
    /// When the source was last read successfully.
    pub read_at: Option<Instant>,
    /// When the table in force came into force.
    pub changed_at: Option<Instant>,
    /// A newer one that was refused.
    pub refused: Option<Refused>,
    /// What a live source says of itself.
    pub live: Option<Arc<Live>>,
    /// Oddities in the table.
    pub warnings: Vec<Problem>,
    /// What is not programmed, and why.
    pub left_out: Vec<LeftOut>,
    /// Items that could not be served.
    pub failing: Vec<OpenItem>,
    /// Items that wait for something.
    pub waiting: Vec<OpenItem>,
    /// Tunnel address.
    pub vtep: Option<std::net::Ipv4Addr>,
    /// The underlay's own address, where that is another.
    pub underlay_address: Option<std::net::Ipv4Addr>,
    /// UDP port of VXLAN.
    pub vxlan_port: Option<u16>,
    /// Where other nodes' VXLAN arrives.
    pub uplinks: Uplinks,
    /// What is wrong with them: those that were in use and are gone, and those that are left out.
    pub uplink_warnings: Vec<String>,
    /// Why the UDP port of VXLAN is not held, where that is no failure.
    pub port_warning: Option<String>,
    /// What the underlay's interface takes, in bytes.
    pub underlay_mtu: u16,
    /// Gateway bridge, and whether it is ours.
    pub gateway: Option<(String, bool)>,
    /// The gateway bridge's subnet.
    pub gateway_subnet: Option<ipnet::Ipv4Net>,
    /// Interfaces that clients arrive at.
    pub mesh_interfaces: Vec<String>,
    /// Interfaces and addresses where published ports should answer and do not, and why.
    pub unserved: Vec<String>,
    /// What XDP does there.
    pub xdp: Vec<XdpStatus>,
    /// Addresses at which published ports answer.
    pub addresses: Vec<std::net::Ipv4Addr>,
    /// At how many they would answer if the map had room for all.
    pub wanted_addresses: usize,
    /// Ports that this node answers at: (IP protocol number, port).
    pub published: std::collections::BTreeSet<(u8, u16)>,
    /// Tasks with networking on this node.
    pub local_tasks: usize,
    /// What is taken over from a Docker engine; `None` if it carries no network.
    pub takeover: Option<Takeover>,
    /// What is left to the host's own packet filters.
    pub firewall: FirewallStatus,
    /// The first table has been programmed.
    pub ready: bool,
    /// Reconciliations so far.
    pub runs: u64,
    /// Errors so far, of any item.
    pub errors: u64,
    /// When the last one ended.
    pub last_run: Option<Instant>,
    /// How long it took.
    pub last_duration: std::time::Duration,
    /// Of the table in force.
    pub change: Option<Change>,
    /// The table's tasks by tag.
    pub tags: Arc<Tags>,
    /// When pins were last found gone; `None`: never.
    pub pins_gone: Option<PinsGone>,
}

/// Shared by the loop, the status socket and the metrics.
pub struct Shared {
    /// Source and directories, for display.
    pub about: About,
    snapshot: RwLock<Arc<Snapshot>>,
    dataplane: Mutex<Dataplane>,
    /// For readers of whole tables: they must not keep the data plane from being changed.
    connections: Connections,
    /// As it was opened: `tcx` or `clsact`.
    hook: &'static str,
    counts: Counts,
    pub(crate) reads: Reads,
    sweeps: Mutex<Sweeps>,
    previews: mpsc::Sender<preview::Answer>,
}

/// What the sweeps of the connection tables have found.
#[derive(Clone, Debug, Default)]
pub struct Sweeps {
    /// The last one that was done, and when.
    pub last: Option<(Instant, SweepReport)>,
    /// Entries removed by all of them.
    pub removed: Removed,
    /// What went wrong with the last one that was tried.
    pub error: Option<String>,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct About {
    /// `--mesh-allow`.
    pub mesh_allow: Option<AllowList>,
    /// `--mesh-deny`.
    pub mesh_deny: AllowList,
    /// `--mesh-return`.
    pub mesh_return: MeshReturn,
    /// Table source.
    pub source: String,
    /// Pins.
    pub bpffs: String,
    /// How long idle connections are remembered.
    pub timeouts: Timeouts,
    /// When the agent started.
    pub started: Instant,
    /// The paths to other nodes.
    pub paths: Arc<Paths>,
    /// How the relay does, with live sources.
    pub relay: Option<Arc<RelayParts>>,
    /// What this node's engine says, with live sources.
    pub engine: Option<watch::Receiver<Arc<EngineView>>>,
    /// Why full connection tables would be too much for the memory that the agent may use.
    pub tight: Option<String>,
    /// Which parts of the agent are at work.
    pub liveness: Arc<Liveness>,
    /// The host's packet filters, as last read.
    pub host_firewall: tokio::sync::watch::Receiver<LastReading>,
}

impl Shared {
    /// Before the first reconciliation.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn new(about: About, dataplane: Dataplane, previews: mpsc::Sender<preview::Answer>) -> Result<Self, MapFault> {
        let connections = dataplane.connections()?;
        let hook = if dataplane.uses_tcx() { "tcx" } else { "clsact" };
        let counts = dataplane.counts();
        let dataplane = Mutex::new(dataplane);
        let (snapshot, sweeps, reads) = Default::default();
        Ok(Self { about, snapshot, dataplane, connections, hook, counts, reads, sweeps, previews })
    }

    /// The last reconciliation's result.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// The connection tables, to be read without the data plane.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// How programs are attached: `tcx` or `clsact`.
    pub fn hook(&self) -> &'static str {
        self.hook
    }

    /// What the programs count, to be read without the data plane.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The last reconciliation's failing items, and parts of the agent that are overdue.
    pub fn failing(&self, snapshot: &Snapshot) -> Vec<OpenItem> {
        let now = Instant::now();
        let overdue = self.about.liveness.overdue(now).into_iter().map(|overdue| OpenItem {
            item: overdue.part.name().into(),
            why: overdue.why(now),
            attempts: 1,
            retry: None,
        });
        snapshot.failing.iter().cloned().chain(overdue).collect()
    }

    /// What a round would change now, as the agent's loop finds in its turn.
    ///
    /// # Errors
    /// Why that is not known.
    pub async fn preview(&self) -> Result<Vec<preview::Change>, String> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let stopping = || "the agent is stopping".to_owned();
            self.previews.send(answer).await.map_err(|_| stopping())?;
            answered.await.map_err(|_| stopping())?
        };
        let late = |_| format!("the agent has not come to it for {} s: see `hiveway status`", PREVIEW.as_secs());
        timeout(PREVIEW, asked).await.map_err(late)?
    }

    /// What the sweeps have found so far.
    pub fn sweeps(&self) -> Sweeps {
        self.sweeps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn swept(&self, result: Result<SweepReport, String>) {
        let mut sweeps = self.sweeps.lock().unwrap_or_else(PoisonError::into_inner);
        sweeps.error = result.as_ref().err().cloned();
        if let Ok(report) = result {
            sweeps.removed += report.removed;
            sweeps.last = Some((Instant::now(), report));
        }
    }

    /// The data plane, for the loop alone: its calls take as long as map operations do. Who answers questions has
    /// [`counts`] and [`connections`].
    ///
    /// [`counts`]: Self::counts
    /// [`connections`]: Self::connections
    pub(super) fn dataplane(&self) -> MutexGuard<'_, Dataplane> {
        self.dataplane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("about", &self.about).finish_non_exhaustive()
    }
}
