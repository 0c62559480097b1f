//! The manager's push stream: all that the swarm is, and every change of it, from the control socket on managers.
//!
//! First the stream, then the lists, then the stream's events: nothing is missed in between. After any break all over
//! again; the last table stays meanwhile.

mod connect;
mod convert;
mod list;
mod session;
mod state;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hiveway_core::docker_api::api;
use hiveway_proto::swarm::WatchMessage;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::source::Live;

/// First pause after a break; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause. Looking whether the socket is there costs little.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Below the engine's directory.
const ROOT_CA: &str = "certificates/swarm-root-ca.crt";

/// Where the manager is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// Its control socket.
    pub socket: PathBuf,
    /// The swarm's root certificate.
    pub root_ca: PathBuf,
}

impl Manager {
    /// With the certificates in the engine's `swarm_dir`.
    pub fn new(socket: &Path, swarm_dir: &Path) -> Self {
        Self { socket: socket.to_owned(), root_ca: swarm_dir.join(ROOT_CA) }
    }
}

/// The swarm's objects after each of these messages of a push stream, without a manager. The objects of the first
/// message count as listed.
pub fn replay(messages: impl IntoIterator<Item = WatchMessage>) -> impl Iterator<Item = api::Objects> {
    use state::List::{Networks, Nodes, Services, Tasks};
    let mut state = state::State::default();
    messages.into_iter().enumerate().map(move |(number, message)| {
        session::apply(&mut state, message);
        if number == 0 {
            [Nodes, Networks, Services, Tasks].into_iter().for_each(|list| state.complete(list));
        }
        state.objects()
    })
}

/// Follows the swarm until nobody listens any more. Until the first table `lost` says why there is none.
pub fn follow(manager: Manager) -> (watch::Receiver<Arc<Live>>, JoinHandle<()>) {
    let from = format!("control socket {}", manager.socket.display());
    let (sender, receiver) = watch::channel(Arc::new(Live { from, ..Live::default() }));
    let task = tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            let before = sender.borrow().table.clone();
            let why = tokio::select! {
                why = session::run(&manager, &sender) => why,
                () = sender.closed() => return,
            };
            let had_any = !same(before.as_ref(), sender.borrow().table.as_ref());
            pause = if had_any { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            sender.send_if_modified(|live| lose(live, &why));
            tokio::select! {
                () = sleep(pause) => {}
                () = sender.closed() => return,
            }
        }
    });
    (receiver, task)
}

fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// Returns whether that is news.
fn lose(live: &mut Arc<Live>, why: &str) -> bool {
    if live.lost.as_ref().is_some_and(|lost| lost.why == why) {
        return false;
    }
    // Whoever decides what table is in force says it aloud: workers have no control socket, and need none.
    tracing::debug!("{}: {why}", live.from);
    Arc::make_mut(live).lose(why);
    true
}
