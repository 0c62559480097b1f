//! The call to one manager's agent: made again and again, with reports up and, if it is the chosen one, tables down.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use hiveway_core::{docker_api::Loaded, merge::Report};
use hiveway_proto::relay::{FromAgent, FromManager, Welcome, from_manager::Message, relay_client::RelayClient};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{
    Manager, Trust,
    connect::{NoConnection, connect},
};
use crate::{
    certs::Credentials,
    relay::{
        PROTOCOL, PathNews, VERSION,
        convert::{decode, encode_paths, encode_report, port_of},
    },
};

/// For the call's first answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long to wait for more changes before reporting them.
const SETTLE: Duration = Duration::from_millis(20);
/// Largest table: a million tasks fit.
const MAX_TABLE: usize = 512 << 20;
/// Between attempts: the first and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What happens on a link.
#[derive(Debug)]
pub(super) enum Event {
    /// The manager's agent takes this node for a member.
    Up { node: String, welcome: Welcome },
    /// A table.
    Table(Box<Table>),
    /// Hiveway is being taken down on this manager's node.
    Leaving { node: String },
    /// No connection, for this reason.
    Down(String),
    /// This node is no member, says the manager's agent.
    Refused(String),
    /// The node there is not believed to be a manager.
    Distrusted(String),
    /// The manager is this node itself.
    Myself,
    /// This node's certificates have been renewed: it connects anew.
    Renewing,
}

/// A table from a manager's agent.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) loaded: Loaded,
    /// The manager's own source is disconnected: for how long, and why.
    pub(super) stale: Option<(Duration, String)>,
}

/// A link to one manager.
pub(super) struct Link {
    pub(super) manager: Manager,
    pub(super) credentials: watch::Receiver<Arc<Credentials>>,
    /// Which nodes are believed to be managers.
    pub(super) trust: watch::Receiver<Trust>,
    /// What to report; `None` while there is nothing to say yet.
    pub(super) report: watch::Receiver<Option<Report>>,
    /// What is known of the paths to other nodes.
    pub(super) paths: watch::Receiver<Arc<PathNews>>,
    /// Where this node's tunnels end, once its engine has said so.
    pub(super) place: watch::Receiver<Option<Ipv4Addr>>,
    /// Whose tables are wanted.
    pub(super) provider: watch::Receiver<Option<Manager>>,
    pub(super) events: mpsc::Sender<(Manager, Event)>,
}

impl Link {
    /// Until it is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            let mut was_up = false;
            let end = self.call(&mut was_up).await;
            let myself = matches!(end, Event::Myself);
            if self.tell(end).await.is_none() {
                return;
            }
            if myself {
                // Until the certificates say otherwise.
                if self.credentials.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if was_up {
                pause = PAUSES.0;
            }
            // Managers that come back must not meet all agents at once.
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn tell(&self, event: Event) -> Option<()> {
        self.events.send((self.manager.clone(), event)).await.ok()
    }

    fn message(&mut self) -> FromAgent {
        let mut report = self.report.borrow_and_update().as_ref().map(encode_report);
        let paths = self.paths.borrow_and_update().clone();
        if let Some(report) = &mut report {
            report.paths = Some(encode_paths(&paths.report, paths.at.elapsed()));
        }
        let want_tables = self.provider.borrow_and_update().as_ref() == Some(&self.manager);
        let vtep = self.place.borrow_and_update().map_or(0, Ipv4Addr::to_bits);
        FromAgent { protocol: PROTOCOL, version: VERSION.to_owned(), want_tables, report, deregister: false, vtep }
    }

    /// One call; returns how it ended.
    async fn call(&mut self, was_up: &mut bool) -> Event {
        let credentials = self.credentials.borrow_and_update().clone();
        let connected = connect(&self.manager.address, self.manager.node.as_deref(), &credentials).await;
        let (channel, identity) = match connected {
            Ok(connected) => connected,
            Err(NoConnection::Myself) => return Event::Myself,
            Err(NoConnection::Failed(why)) => return Event::Down(why),
        };
        if let Err(why) = self.trust.borrow_and_update().check(&identity.node) {
            return Event::Distrusted(why);
        }
        let mut client = RelayClient::new(channel).max_decoding_message_size(MAX_TABLE);
        let (out, outbound) = mpsc::channel(4);
        let first = self.message();
        let _ = out.send(first).await;
        let node = identity.node.clone();
        let inbound = match timeout(ANSWER, client.sync(ReceiverStream::new(outbound))).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return ended(&status),
            Err(_) => return Event::Down(silent()),
        };
        let mut inbound = inbound;
        match timeout(ANSWER, inbound.message()).await {
            Ok(Ok(Some(FromManager { message: Some(Message::Welcome(welcome)) }))) => {
                *was_up = true;
                if self.tell(Event::Up { node: identity.node, welcome }).await.is_none() {
                    return Event::Down(String::new());
                }
            }
            Ok(Ok(_)) => return Event::Down("it does not speak the relay's protocol".into()),
            Ok(Err(status)) => return ended(&status),
            Err(_) => return Event::Down(silent()),
        }
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(FromManager { message: Some(Message::Table(table)) })) => {
                        let Some(table) = read(table).await else { continue };
                        if self.tell(Event::Table(Box::new(table))).await.is_none() {
                            return Event::Down(String::new());
                        }
                    }
                    Ok(Some(FromManager { message: Some(Message::Leaving(_)) })) => {
                        // There will be no more for a while.
                        *was_up = false;
                        if self.tell(Event::Leaving { node: node.clone() }).await.is_none() {
                            return Event::Down(String::new());
                        }
                    }
                    // Something that newer managers say.
                    Ok(Some(_)) => {}
                    Ok(None) => return Event::Down("it has closed the connection".into()),
                    Err(status) => return ended(&status),
                },
                Ok(()) = self.report.changed() => {
                    sleep(SETTLE).await;
                    let message = self.message();
                    let _ = out.send(message).await;
                }
                Ok(()) = self.paths.changed() => {
                    let message = self.message();
                    if message.report.is_some() {
                        let _ = out.send(message).await;
                    }
                }
                Ok(()) = self.place.changed() => {
                    let message = self.message();
                    let _ = out.send(message).await;
                }
                Ok(()) = self.provider.changed() => {
                    let message = self.message();
                    let _ = out.send(message).await;
                }
                Ok(()) = self.trust.changed() => {
                    if let Err(why) = self.trust.borrow_and_update().check(&node) {
                        return Event::Distrusted(why);
                    }
                }
                Ok(()) = self.credentials.changed() => return Event::Renewing,
            }
        }
    }
}

async fn read(table: hiveway_proto::relay::Table) -> Option<Table> {
    let stale = (!table.live).then(|| (Duration::from_millis(table.stale_ms), table.stale_why.clone()));
    let data_path_port = port_of("data path port", table.data_path_port).ok().flatten();
    let (model, left_out) = tokio::task::spawn_blocking(move || decode(table)).await.ok()?;
    Some(Table { loaded: Loaded { model, left_out, data_path_port, ..Loaded::default() }, stale })
}

fn silent() -> String {
    format!("no answer within {} s", ANSWER.as_secs())
}

fn ended(status: &Status) -> Event {
    match status.code() {
        Code::PermissionDenied => Event::Refused(status.message().to_owned()),
        _ if status.message().is_empty() => Event::Down(format!("{:?}", status.code())),
        _ => Event::Down(status.message().to_owned()),
    }
}
