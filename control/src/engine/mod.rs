//! This node's own engine: what only it knows of the node, and what it knows before the managers do.

mod api;
mod containers;
mod info;
mod questions;
mod session;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hiveway_core::merge::LocalView;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

pub use api::EngineVersion;

use crate::source::Lost;

/// Pause after the engine could not be reached or has gone away.
const PAUSE: Duration = Duration::from_secs(1);

/// What the engine says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineView {
    /// For the table.
    pub local: LocalView,
    /// Whether the node belongs to a swarm.
    pub membership: Membership,
    /// The node is a manager: its control socket can be used.
    pub manager: bool,
    /// All managers that the engine knows, its own node included if it is one: address and node id.
    pub managers: BTreeMap<IpAddr, String>,
    /// Node ids of all managers; `None` where the engine does not know them all (yet).
    pub manager_ids: Option<BTreeSet<String>>,
    /// UDP port of the engine's VXLAN, where it says so (managers).
    pub data_path_port: Option<NonZeroU16>,
    /// This node's own address where the engine listens, which it may announce another one for.
    pub local_addr: Option<Ipv4Addr>,
    /// Its program and the API version that is used; `None` before it has answered.
    pub version: Option<EngineVersion>,
    /// What it makes its packet filters with: `iptables`, `nftables`, perhaps with `+firewalld`. Engines before 28.2 do
    /// not say.
    pub firewall_backend: Option<String>,
    /// Containers that it could not be asked about, by id, and why: what was known of them stays.
    pub unanswered: BTreeMap<String, String>,
    /// The engine can't be reached; the rest is what it said last.
    pub lost: Option<Lost>,
}

/// Whether a node belongs to a swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// Not asked yet, or the answer says nothing (pending, locked).
    #[default]
    Unknown,
    /// It does.
    Member,
    /// It does not: its engine says so.
    None,
}

/// Where the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its API's socket.
    pub socket: PathBuf,
    /// Its directory for the swarm.
    pub swarm_dir: PathBuf,
}

/// Follows the engine until nobody listens any more.
pub fn follow(engine: Engine) -> (watch::Receiver<Arc<EngineView>>, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(Arc::default());
    let task = tokio::spawn(async move {
        loop {
            let why = tokio::select! {
                why = session::run(&engine, &sender) => why,
                () = sender.closed() => return,
            };
            sender.send_if_modified(|view| lose(Arc::make_mut(view), &engine, &why));
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = sender.closed() => return,
            }
        }
    });
    (receiver, task)
}

/// The engine does not say anything now. Returns whether that is news.
fn lose(view: &mut EngineView, engine: &Engine, why: &str) -> bool {
    if view.lost.as_ref().is_some_and(|lost| lost.why == why) {
        return false;
    }
    tracing::warn!("engine at {}: {why}; what it said last stays", engine.socket.display());
    view.lost = Some(Lost::again(view.lost.as_ref(), why));
    true
}
