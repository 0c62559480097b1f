//! What `hiveway teardown` serves where the agent has served tables: that this node is one without Hiveway now. To
//! everybody who has a certificate of the swarm; there is no table any more to look members up in.

use std::{collections::BTreeSet, io, sync::Arc};

use hiveway_proto::relay::{
    FromAgent, FromManager, Leaving as Message, Welcome,
    from_manager::Message::{Leaving as Said, Welcome as Hello},
    relay_server::{Relay, RelayServer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{KEEPALIVE, MAX_MESSAGE, accept, connection::Peer};
use crate::{
    certs::Credentials,
    relay::{PROTOCOL, VERSION},
};

/// Says it to each node that calls, and who has heard it.
#[derive(Clone, Debug)]
pub struct Leaving {
    said: Arc<watch::Sender<BTreeSet<String>>>,
}

impl Leaving {
    /// Nobody has heard it yet.
    pub fn new() -> (Self, watch::Receiver<BTreeSet<String>>) {
        let (said, heard) = watch::channel(BTreeSet::new());
        (Self { said: Arc::new(said) }, heard)
    }
}

/// Serves until it is dropped.
pub async fn serve_leaving(listener: TcpListener, credentials: Arc<Credentials>, leaving: Leaving) {
    let (accepted, connections) = mpsc::channel::<io::Result<_>>(64);
    let (_renewed, current) = watch::channel(credentials.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(accept::accept(listener, current, accepted));
    let service = RelayServer::new(Service { leaving, credentials }).max_decoding_message_size(MAX_MESSAGE);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .http2_max_header_list_size(16 << 10)
        .max_concurrent_streams(4)
        .add_service(service);
    if let Err(error) = server.serve_with_incoming(ReceiverStream::new(connections)).await {
        tracing::warn!("relay: {error}");
    }
}

struct Service {
    leaving: Leaving,
    credentials: Arc<Credentials>,
}

#[tonic::async_trait]
impl Relay for Service {
    type SyncStream = ReceiverStream<Result<FromManager, Status>>;

    async fn sync(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SyncStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("no peer"))?;
        let mut inbound = request.into_inner();
        let welcome = Welcome {
            protocol: PROTOCOL,
            version: VERSION.to_owned(),
            node_id: self.credentials.me.node.clone(),
            cluster_id: self.credentials.me.cluster.clone(),
        };
        let (out, stream) = mpsc::channel(1);
        let said = self.leaving.said.clone();
        tokio::spawn(async move {
            for message in [Hello(welcome), Said(Message {})] {
                if out.send(Ok(FromManager { message: Some(message) })).await.is_err() {
                    return;
                }
            }
            drop(out);
            // Who ends the call has read all of it.
            while let Ok(Some(_)) = inbound.message().await {}
            said.send_if_modified(|said| said.insert(peer.identity.node.clone()));
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
