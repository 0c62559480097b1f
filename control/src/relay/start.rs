//! The relay of one agent: what runs when, as the node's engine says.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hiveway_core::merge::Report;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    DEFAULT_PORT, PathNews, VERSION,
    client::{self, Contacts, Manager, Trust, Views},
    server::{self, Registry, Sessions},
    status::RelayParts,
};
use crate::{
    behind::{Behind, Patience, telling},
    certs::{Credentials, Files, Reloading},
    engine::{EngineView, Membership},
    source::{Hub, Live, Own},
    state_dir::{RELAY_CONTACTS, RELAY_REPORTS, StateDir},
};

/// Pause between attempts to read certificates or to listen.
const PAUSE: Duration = Duration::from_secs(2);
/// How long the engine may take to name the managers, before one at a fixed address is believed without that.
const ENGINE_PATIENCE: Duration = Duration::from_secs(10);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's certificate (`--relay-cert`, `--relay-key`, `--relay-ca`).
    pub files: Files,
    /// Where to listen on managers (`--relay-listen`); `None`: at the node's address.
    pub listen: Option<SocketAddr>,
    /// Where an earlier agent has left reports.
    pub state_dir: PathBuf,
    /// The only manager to talk to (`relay:HOST:PORT`); `None`: all that the engine knows.
    pub fixed: Option<String>,
}

/// A relay at work; dropped, it ends.
#[derive(Debug)]
pub struct Handle {
    /// How it does.
    pub board: Arc<RelayParts>,
    registry: Arc<Registry>,
    kept: watch::Sender<Option<StateDir>>,
    _tasks: JoinSet<()>,
}

impl Handle {
    /// From now on reports, and where to deregister, are kept in the state directory.
    pub fn keep_in(&self, state: StateDir) {
        self.registry.keep_in(state.clone());
        self.kept.send_replace(Some(state));
    }
}

/// Starts everything. `ready`: the data plane works; only then does the node report itself, and others send it frames
/// of the routing mesh. `paths`: what its probes show.
pub fn start(
    hub: &Hub,
    options: Options,
    ready: watch::Receiver<bool>,
    paths: watch::Receiver<Arc<PathNews>>,
) -> Handle {
    let registry = Arc::new(Registry::open(Some(&options.state_dir.join(RELAY_REPORTS)), hub.reports.clone()));
    let board = Arc::<RelayParts>::default();
    let mut tasks = JoinSet::new();
    board.set(|board| board.registry = Some(registry.clone()));
    let (kept, keeps) = watch::channel(None);
    let agent = Agent { ready, paths, kept: keeps };
    tasks.spawn(run(hub.clone(), options, agent, registry.clone(), board.clone()));
    Handle { board, registry, kept, _tasks: tasks }
}

/// What the rest of the agent says.
struct Agent {
    ready: watch::Receiver<bool>,
    paths: watch::Receiver<Arc<PathNews>>,
    kept: watch::Receiver<Option<StateDir>>,
}

async fn run(
    hub: Hub,
    options: Options,
    Agent { ready, paths, kept }: Agent,
    registry: Arc<Registry>,
    board: Arc<RelayParts>,
) {
    let reloading = certificates(&hub, &options.files, &board).await;
    let credentials = reloading.subscribe();
    board.set(|board| board.credentials = Some(credentials.clone()));
    let (managers, listed) = watch::channel(Vec::new());
    let (trust, trusted) = watch::channel(Trust::Listed);
    board.set(|board| board.trust = Some(trusted.clone()));
    let (report, reported) = watch::channel(None);
    let (place, placed) = watch::channel(None);
    let (wants, wanted) = watch::channel(false);
    let views = Arc::<Views>::default();
    board.set(|board| board.links = views.clone());
    let parts = client::Parts {
        credentials: credentials.clone(),
        managers: listed.clone(),
        trust: trusted,
        report: reported,
        paths,
        place: placed,
        wanted,
        relayed: hub.relayed.clone(),
        views,
    };
    let mut tasks = JoinSet::new();
    let (serving, served) = watch::channel(None);
    tasks.spawn(keep_contacts(listed, served, (ready.clone(), kept), options.files.clone()));
    let server = serve(hub.clone(), options.clone(), credentials, registry.clone(), board, serving);
    let mut programmed = ready.clone();
    tasks.spawn(async move {
        // The tables that it gives say that this node has Hiveway.
        if programmed.wait_for(|ready| *ready).await.is_ok() {
            server.await;
        }
    });
    tasks.spawn(mirror(hub.clone(), registry));
    let says = Says { managers, trust, report, place, wants };
    tasks.spawn(follow(hub.engine.clone(), hub.own.subscribe(), ready, options, says));
    client::run(parts).await;
}

/// Waits until there are certificates: the node may join a swarm later, or somebody may switch autolock off.
async fn certificates(hub: &Hub, files: &Files, board: &RelayParts) -> Reloading {
    let mut told = String::new();
    loop {
        let why = match Reloading::start(files.clone()) {
            Ok(reloading) => {
                board.set(|board| board.certificate_error = None);
                return reloading;
            }
            Err(error) => error.to_string(),
        };
        if why != told {
            tracing::warn!("relay: no certificate: {why}");
            board.set(|board| board.certificate_error = Some(why.clone()));
            hub.relayed.send_modify(|live| Arc::make_mut(live).lose(format!("no certificate: {why}")));
            told = why;
        }
        sleep(PAUSE).await;
    }
}

/// What the client is told.
struct Says {
    managers: watch::Sender<Vec<Manager>>,
    trust: watch::Sender<Trust>,
    report: watch::Sender<Option<Report>>,
    place: watch::Sender<Option<Ipv4Addr>>,
    wants: watch::Sender<bool>,
}

/// What the engine says, as the client needs it.
async fn follow(
    mut engine: watch::Receiver<Arc<EngineView>>,
    mut own: watch::Receiver<Arc<Own>>,
    mut ready: watch::Receiver<bool>,
    options: Options,
    Says { managers, trust, report, place, wants }: Says,
) {
    let port = options.listen.map_or(DEFAULT_PORT, |listen| listen.port());
    let patience = Instant::now() + ENGINE_PATIENCE;
    loop {
        let view = engine.borrow_and_update().clone();
        let ready_now = *ready.borrow_and_update();
        // A table that comes before the engine's first word would be taken, whoever sends it.
        let waits = options.fixed.is_some()
            && view.membership == Membership::Unknown
            && view.lost.is_none()
            && Instant::now() < patience;
        set(&trust, options.fixed.as_ref().map_or(Trust::Listed, |_| Trust::of(&view)));
        let listed = match &options.fixed {
            Some(_) if waits => Vec::new(),
            Some(address) => vec![Manager { address: address.clone(), node: None }],
            None => others(&view, port),
        };
        set(&managers, listed);
        set(&place, view.local.vtep);
        if ready_now && view.local.node.is_some() {
            set(&report, Some(own.borrow_and_update().complete(&view.local).report(VERSION)));
        }
        set(&wants, options.fixed.is_some() || !view.manager);
        let changed = tokio::select! {
            changed = engine.changed() => changed,
            Ok(()) = own.changed() => Ok(()),
            Ok(()) = ready.changed() => Ok(()),
            () = sleep_until(patience), if waits => Ok(()),
        };
        if changed.is_err() {
            // Cancels nothing: the relay goes on with what the engine said last.
            return std::future::pending().await;
        }
    }
}

/// All managers but this node.
fn others(view: &EngineView, port: u16) -> Vec<Manager> {
    let others = view.managers.iter().filter(|(_, node)| view.local.node.as_ref() != Some(*node));
    let manager = |(ip, node): (&IpAddr, &String)| Manager {
        address: SocketAddr::new(*ip, port).to_string(),
        node: Some(node.clone()).filter(|node| !node.is_empty()),
    };
    others.map(manager).collect()
}

fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|before| {
        let changed = *before != value;
        if changed {
            *before = value;
        }
        changed
    });
}

/// Leaves for `hiveway teardown` where to deregister.
async fn keep_contacts(
    mut managers: watch::Receiver<Vec<Manager>>,
    mut serving: watch::Receiver<Option<SocketAddr>>,
    (mut ready, mut kept): (watch::Receiver<bool>, watch::Receiver<Option<StateDir>>),
    files: Files,
) {
    const LOST: &str = "relay: teardown will not be able to tell the managers";
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    let Some(state) = kept.wait_for(Option::is_some).await.ok().and_then(|state| state.clone()) else { return };
    let write = move |contacts: &Contacts, occasion| {
        let written = state.write_behind(RELAY_CONTACTS, occasion, || contacts.encode());
        written.map_err(|error| error.to_string())
    };
    let file = match Behind::start("relay-contacts", Patience::default(), telling(LOST, write)) {
        Ok(file) => file,
        Err(error) => return tracing::warn!("{LOST}: {error}"),
    };
    loop {
        let at = *serving.borrow_and_update();
        let contacts = Contacts::new(managers.borrow_and_update().clone(), at, &files);
        // While the engine is silent it may know no manager; those of before are better than none.
        if !contacts.managers.is_empty() || at.is_some() {
            file.put(contacts);
        }
        let changed = tokio::select! { changed = managers.changed() => changed, Ok(()) = serving.changed() => Ok(()) };
        if changed.is_err() {
            return;
        }
    }
}

/// On workers: should this node become a manager, it begins with what the managers know now.
async fn mirror(hub: Hub, registry: Arc<Registry>) {
    let mut relayed = hub.relayed.subscribe();
    loop {
        let live = relayed.borrow_and_update().clone();
        if let Some(table) = live.table.as_ref().filter(|_| live.is_current() && !hub.engine.borrow().manager) {
            registry.mirror(&table.model);
        }
        if relayed.changed().await.is_err() {
            return;
        }
    }
}

/// Serves tables while this node is a manager.
async fn serve(
    mut hub: Hub,
    options: Options,
    credentials: watch::Receiver<Arc<Credentials>>,
    registry: Arc<Registry>,
    board: Arc<RelayParts>,
    serving: watch::Sender<Option<SocketAddr>>,
) {
    let sessions = Arc::<Sessions>::default();
    board.set(|board| board.sessions = sessions.clone());
    loop {
        if hub.engine.wait_for(|view| view.manager && options.fixed.is_none()).await.is_err() {
            return;
        }
        let Some(address) = listen_address(&mut hub, options.listen).await else { continue };
        let mut listener = TcpListener::bind(address).await;
        if listener.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
            && options.listen.is_none()
        {
            // Behind a NAT the swarm's address is on no interface.
            listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
        }
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                let why = format!("cannot listen at {address}: {error}; choose another address with --relay-listen");
                board.set(|board| {
                    if board.listen_error.as_ref() != Some(&why) {
                        tracing::error!("relay: {why}");
                    }
                    board.listen_error = Some(why);
                });
                sleep(PAUSE).await;
                continue;
            }
        };
        tracing::info!("relay: serving tables at {address}");
        board.set(|board| (board.listening, board.listen_error) = (Some(address), None));
        // Where it listens in fact: `teardown` does so again.
        serving.send_replace(Some(listener.local_addr().unwrap_or(address)));
        let parts = server::Parts {
            table: hub.table.clone(),
            credentials: credentials.clone(),
            registry: registry.clone(),
            sessions: sessions.clone(),
        };
        let mut engine = hub.engine.clone();
        tokio::select! {
            result = server::serve(listener, parts) => {
                if let Err(error) = result {
                    tracing::error!("relay: {error}");
                }
            }
            _ = engine.wait_for(|view| !view.manager) => tracing::info!("relay: this node is no manager any more"),
            () = moved(hub.clone(), address), if options.listen.is_none() => {
                tracing::info!("relay: this node has another address");
            }
        }
        board.set(|board| board.listening = None);
        serving.send_replace(None);
    }
}

/// Where to listen; `None`: look again whether to listen at all.
async fn listen_address(hub: &mut Hub, listen: Option<SocketAddr>) -> Option<SocketAddr> {
    if listen.is_some() {
        return listen;
    }
    let engine = hub.engine.borrow().clone();
    let found = timeout(PAUSE, hub.table.wait_for(|live| own_address(live, &engine).is_some())).await;
    let live = found.ok()?.ok()?.clone();
    own_address(&live, &engine)
}

/// Where this node is found by the others, as the table says.
fn own_address(live: &Live, engine: &EngineView) -> Option<SocketAddr> {
    let node = live.table.as_ref()?.model.nodes.get(engine.local.node.as_deref()?)?;
    Some(SocketAddr::new(node.address.into(), DEFAULT_PORT))
}

/// Returns when the others find this node elsewhere than at `address`: a swarm may be made anew sooner than it is
/// noticed that the node has left the one before.
async fn moved(mut hub: Hub, address: SocketAddr) {
    loop {
        let (live, engine) = (hub.table.borrow_and_update().clone(), hub.engine.borrow_and_update().clone());
        if own_address(&live, &engine).is_some_and(|now| now != address) {
            return;
        }
        let changed =
            tokio::select! { changed = hub.table.changed() => changed, changed = hub.engine.changed() => changed };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}
