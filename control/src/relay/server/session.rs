//! One agent's call.

use std::{sync::Arc, time::Duration};

use hiveway_proto::relay::{FromAgent, FromManager, Report, Table, Welcome, from_manager::Message};
use rustls::pki_types::UnixTime;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{
    Parts, Word,
    connection::Peer,
    members::{admit, is_unplaced, nowhere},
    sessions::Entry,
    tables::{Made, Tables},
};
use crate::relay::{
    PROTOCOL, VERSION,
    convert::{decode_paths, decode_report, text},
};

/// For the first message.
const HELLO: Duration = Duration::from_secs(10);
/// How long to wait for more changes of the table before sending it.
const SETTLE: Duration = Duration::from_millis(10);
/// How long a node without a place may take to get one by what it says.
const PLACE: Duration = Duration::from_secs(3);
/// How long the last word may take to a slow reader.
const LAST_WORD: Duration = Duration::from_secs(5);

type Out = mpsc::Sender<Result<FromManager, Status>>;

pub(super) struct Session {
    parts: Parts,
    tables: Arc<Tables>,
    closing: watch::Receiver<()>,
    peer: Peer,
    entry: Entry,
    /// What the agent has of the table.
    digest: Option<u64>,
    /// When it gets the next one; `None` while it has the newest or wants none.
    due: Option<Instant>,
    wants_tables: bool,
    /// It has said something.
    greeted: bool,
}

impl Session {
    pub(super) fn new(parts: Parts, tables: Arc<Tables>, closing: watch::Receiver<()>, peer: Peer) -> Self {
        let entry = parts.sessions.begin(&peer.identity.node, peer.address);
        Self { parts, tables, closing, peer, entry, digest: None, due: None, wants_tables: false, greeted: false }
    }

    fn node(&self) -> &str {
        &self.peer.identity.node
    }

    pub(super) async fn run(mut self, inbound: Streaming<FromAgent>, out: Out) {
        let ended = self.talk(inbound, &out).await;
        self.parts.registry.closed(self.node(), self.entry.id);
        match ended {
            // A call that has said nothing is not worth a line: there may be thousands.
            Ok(()) if !self.greeted => {}
            Ok(()) => tracing::info!("relay: node {} disconnected", self.node()),
            Err(status) => {
                if self.greeted {
                    tracing::info!("relay: node {} disconnected: {}", self.node(), status.message());
                }
                let _ = timeout(LAST_WORD, out.send(Err(status))).await;
            }
        }
    }

    /// Until the agent goes (`Ok`) or must.
    async fn talk(&mut self, mut inbound: Streaming<FromAgent>, out: &Out) -> Result<(), Status> {
        let Some(hello) = self.hello(&mut inbound, out).await? else { return Ok(()) };
        self.greeted = true;
        tracing::info!("relay: node {} connected from {}", self.node(), self.peer.address);
        let welcome = Welcome {
            protocol: PROTOCOL,
            version: VERSION.to_owned(),
            node_id: self.parts.credentials.borrow().me.node.clone(),
            cluster_id: self.parts.credentials.borrow().me.cluster.clone(),
        };
        send(out, Message::Welcome(welcome)).await?;
        if !self.heard(hello)? {
            return Ok(());
        }
        let mut table = self.parts.table.clone();
        let mut credentials = self.parts.credentials.clone();
        let mut closing = self.closing.clone();
        let expires = Instant::now() + self.until_expiry();
        let (superseded, pace) = (self.entry.superseded.clone(), self.entry.pace.clone());
        let mut may_read = false;
        let mut lost_until = Instant::now() + PLACE;
        loop {
            let unplaced = is_unplaced(&table.borrow(), self.node());
            if !unplaced {
                lost_until = Instant::now() + PLACE;
            }
            let due = self.due;
            let ready = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
                out.reserve().await
            };
            let next = async {
                if !may_read {
                    pace.read().await;
                    may_read = true;
                }
                inbound.message().await
            };
            tokio::select! {
                _ = closing.changed() => return Err(stopping()),
                () = superseded.notified() => return Err(another()),
                () = sleep_until(lost_until), if unplaced => return Err(nowhere(&self.parts.table.borrow(), self.node())),
                () = sleep_until(expires) => return Err(Status::unauthenticated("the certificate has expired")),
                changed = credentials.changed() => {
                    changed.map_err(|_| Status::unavailable("certificates are gone"))?;
                    let trusted = credentials.borrow_and_update().still_trusts(&self.peer.chain, UnixTime::now());
                    trusted.map_err(|error| Status::unauthenticated(format!("the certificate is trusted no more: {error}")))?;
                }
                changed = table.changed() => {
                    changed.map_err(|_| Status::unavailable("this manager's agent is stopping"))?;
                    admit(&table.borrow_and_update(), self.node())?;
                    if self.wants_tables {
                        let soon = Instant::now() + SETTLE;
                        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
                    }
                }
                message = next => {
                    let Some(message) = message? else { return Ok(()) };
                    may_read = false;
                    if !self.heard(message)? {
                        return Ok(());
                    }
                }
                place = ready => {
                    let Ok(place) = place else { return Ok(()) };
                    // Whatever has come in the meantime is in it.
                    self.due = None;
                    let newest = tokio::select! {
                        _ = closing.changed() => return Err(stopping()),
                        () = superseded.notified() => return Err(another()),
                        () = out.closed() => return Ok(()),
                        newest = self.newest() => newest,
                    };
                    if let Some(table) = newest {
                        place.send(Ok(FromManager { message: Some(Message::Table(table)) }));
                    }
                }
            }
        }
    }

    /// The first message, when it is this call's turn; `None`: the agent has gone.
    async fn hello(&mut self, inbound: &mut Streaming<FromAgent>, out: &Out) -> Result<Option<FromAgent>, Status> {
        let pace = self.entry.pace.clone();
        let first = async {
            pace.read().await;
            inbound.message().await
        };
        tokio::select! {
            _ = self.closing.changed() => Err(stopping()),
            () = self.entry.superseded.notified() => Err(another()),
            () = out.closed() => Ok(None),
            first = timeout(HELLO, first) => first.map_err(|_| Status::deadline_exceeded("no first message"))?,
        }
    }

    /// Takes in what the agent says. Returns whether the call goes on.
    fn heard(&mut self, message: FromAgent) -> Result<bool, Status> {
        let FromAgent { protocol, version, want_tables, report, deregister, vtep } = message;
        let reported = report.is_some();
        if let Some(mut report) = report {
            let paths = report.paths.take().map(decode_paths);
            let report =
                decode_report(report, &version).map_err(|why| Status::invalid_argument(format!("report: {why}")))?;
            let (word, age) = match paths {
                Some(Ok((paths, age))) => (Word::Rows(Arc::new(paths)), age),
                Some(Err(why)) => (Word::Nonsense(why), Duration::ZERO),
                None => (Word::Nothing, Duration::ZERO),
            };
            self.parts.registry.paths.says(self.node(), self.entry.id, &report.version, word, age);
            self.parts.registry.report(self.node(), self.entry.id, report);
        } else if vtep != 0 {
            let place = decode_report(Report { vtep, ..Report::default() }, &version)
                .map_err(|why| Status::invalid_argument(format!("place: {why}")))?;
            self.parts.registry.place(self.node(), self.entry.id, place);
        }
        self.entry.update(|view| {
            (view.protocol, view.tables) = (protocol, want_tables);
            text(&version).clone_into(&mut view.version);
            view.reported = reported.then(std::time::Instant::now).or(view.reported);
        });
        if deregister {
            self.parts.registry.deregister(self.node());
            tracing::info!("relay: Hiveway has been taken down on node {}", self.node());
            return Ok(false);
        }
        if want_tables && !self.wants_tables {
            (self.digest, self.due) = (None, Some(Instant::now()));
        } else if !want_tables {
            self.due = None;
        }
        self.wants_tables = want_tables;
        Ok(true)
    }

    /// The newest table, unless the agent has it.
    async fn newest(&mut self) -> Option<Table> {
        if is_unplaced(&self.parts.table.borrow(), self.node()) {
            // The table that places it makes it due again.
            return None;
        }
        let Made { table, digest } = self.entry.pace.make(self.tables.of(self.node())).await?;
        if self.digest.replace(digest) == Some(digest) {
            return None;
        }
        self.entry.update(|view| view.sent += 1);
        Some(table)
    }

    fn until_expiry(&self) -> Duration {
        let now = UnixTime::now().as_secs();
        let left = u64::try_from(self.peer.identity.expires).unwrap_or_default().saturating_sub(now);
        // Far ahead is never: the clock's arithmetic ends somewhere.
        Duration::from_secs(left.min(10 * 365 * 86400))
    }
}

fn stopping() -> Status {
    Status::unavailable("this manager's agent stops serving tables")
}

fn another() -> Status {
    Status::aborted("another agent of this node has connected")
}

async fn send(out: &Out, message: Message) -> Result<(), Status> {
    out.send(Ok(FromManager { message: Some(message) })).await.map_err(|_| Status::cancelled("the agent is gone"))
}
