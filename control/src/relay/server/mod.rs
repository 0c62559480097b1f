//! The managers' side.

mod accept;
mod connection;
mod leaving;
mod members;
mod path_reports;
mod registry;
mod saved;
mod session;
mod sessions;
mod tables;

use std::{io, sync::Arc, time::Duration};

use hiveway_proto::relay::{
    FromAgent, FromManager,
    relay_server::{Relay, RelayServer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

pub use leaving::{Leaving, serve_leaving};
pub use path_reports::{PathReports, Word};
pub use registry::Registry;
pub use saved::reported;
pub use sessions::{SessionView, Sessions};

use crate::{certs::Credentials, seldom::Seldom, source::Live};
use connection::Peer;
use session::Session;
use tables::Tables;

/// Largest message from an agent: a report of a node with ten thousand unhealthy tasks is smaller.
const MAX_MESSAGE: usize = 1 << 20;
/// A peer that does not answer for this long is gone, together.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// What a server works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The manager's table.
    pub table: watch::Receiver<Arc<Live>>,
    /// Certificates.
    pub credentials: watch::Receiver<Arc<Credentials>>,
    /// Where reports go.
    pub registry: Arc<Registry>,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
}

/// Serves agents until it is dropped; those that are connected are told then.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, parts: Parts) -> Result<(), tonic::transport::Error> {
    let (accepted, connections) = mpsc::channel::<io::Result<_>>(64);
    let mut tasks = JoinSet::new();
    tasks.spawn(accept::accept(listener, parts.credentials.clone(), accepted));
    tasks.spawn(follow(parts.table.clone(), parts.registry.clone()));
    let registry = parts.registry.clone();
    tasks.spawn(async move { registry.late().await });
    // Dropped with this future.
    let (_open, closing) = watch::channel(());
    let tables = Arc::new(Tables::new(parts.table.clone()));
    let service = RelayServer::new(Service { parts, tables, closing, refused: Seldom::default() })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .http2_max_header_list_size(16 << 10)
        .max_concurrent_streams(4)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(connections))
        .await
}

/// Tells the registry which nodes are down or gone.
async fn follow(mut table: watch::Receiver<Arc<Live>>, registry: Arc<Registry>) {
    loop {
        let live = table.borrow_and_update().clone();
        if let Some(table) = live.table.as_ref().filter(|_| live.is_current() && live.expelled.is_none()) {
            registry.table(table);
        }
        if table.changed().await.is_err() {
            return;
        }
    }
}

#[derive(Debug)]
struct Service {
    parts: Parts,
    tables: Arc<Tables>,
    closing: watch::Receiver<()>,
    /// Nodes that are not served.
    refused: Seldom,
}

#[tonic::async_trait]
impl Relay for Service {
    type SyncStream = ReceiverStream<Result<FromManager, Status>>;

    async fn sync(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SyncStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("no peer"))?;
        let live = self.parts.table.borrow().clone();
        members::admit(&live, &peer.identity.node).inspect_err(|why| {
            if let Some(more) = self.refused.say(&peer.identity.node) {
                let (node, address, why) = (&peer.identity.node, peer.address, why.message());
                tracing::info!("relay: node {node} at {address} is refused: {why}{more}");
            }
        })?;
        // One message may wait: a slow reader never has more than that and what is on the wire.
        let (out, stream) = mpsc::channel(1);
        let session = Session::new(self.parts.clone(), self.tables.clone(), self.closing.clone(), peer);
        tokio::spawn(session.run(request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
