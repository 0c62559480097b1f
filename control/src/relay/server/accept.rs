//! Takes connections in and proves who they are from. Whoever fails costs a bounded amount of memory for a bounded
//! time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::connection::{Connection, Peer};
use crate::{
    certs::{Credentials, Identity},
    places::Places,
    seldom::Seldom,
};

/// For a whole handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way from one address, and from all.
const HANDSHAKES: (usize, usize) = (16, 256);
/// Connections of one node: an agent has one, plus a new one while an old one is not known to be dead.
const PER_NODE: usize = 4;
/// Connections of all nodes.
const CONNECTIONS: usize = 4096;

/// Accepts until it is dropped.
pub(super) async fn accept(
    listener: TcpListener,
    credentials: watch::Receiver<Arc<Credentials>>,
    accepted: mpsc::Sender<std::io::Result<Connection>>,
) {
    let handshakes = Places::new(HANDSHAKES.0, HANDSHAKES.1);
    let nodes = Places::new(PER_NODE, CONNECTIONS);
    let refused = Arc::new(Seldom::default());
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                // Out of file descriptors, mostly: some will come back.
                tracing::warn!("relay: cannot accept a connection: {error}");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(handshake) = handshakes.take(address.ip().to_string()) else {
            tracing::debug!("relay: too many handshakes under way, {address} has to come again");
            continue;
        };
        let current = credentials.borrow().clone();
        let (nodes, accepted, refused) = (nodes.clone(), accepted.clone(), refused.clone());
        tokio::spawn(async move {
            let _handshake = handshake;
            let why = match timeout(HANDSHAKE, shake(stream, address, &current, &nodes)).await {
                Ok(Ok(connection)) => return drop(accepted.send(Ok(connection)).await),
                Ok(Err(why)) => why,
                Err(_) => format!("no handshake within {HANDSHAKE:?}"),
            };
            match refused.say(&address.ip().to_string()) {
                Some(more) => tracing::info!("relay: {address} is not let in: {why}{more}"),
                None => tracing::debug!("relay: {address} is not let in: {why}"),
            }
        });
    }
}

async fn shake(
    stream: TcpStream,
    address: SocketAddr,
    credentials: &Credentials,
    nodes: &Places,
) -> Result<Connection, String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let acceptor = TlsAcceptor::from(credentials.server.clone());
    let tls = acceptor.accept(stream).await.map_err(|error| error.to_string())?;
    let chain: Arc<[_]> = tls.get_ref().1.peer_certificates().unwrap_or_default().into();
    let leaf = chain.first().ok_or("it has shown no certificate")?;
    let identity = Identity::of(leaf).map_err(|why| format!("its certificate: {why}"))?;
    let place = nodes.take(&identity.node).ok_or_else(|| format!("node {} has too many connections", identity.node))?;
    let peer = Peer { identity: Arc::new(identity), chain, address };
    Ok(Connection { tls, peer, _place: place })
}
