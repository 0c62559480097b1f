//! A connection to a manager's agent, of which it is certain that it is one.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::certs::{Credentials, Identity, Role, server_name};

/// For connecting, handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// A manager that does not answer for this long is gone, together.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoConnection {
    /// It is this node itself.
    Myself,
    /// Anything else.
    Failed(String),
}

/// Connects to `address` (HOST:PORT); `expected` is the node id that must be there, where it is known.
pub(super) async fn connect(
    address: &str,
    expected: Option<&str>,
    credentials: &Credentials,
) -> Result<(Channel, Identity), NoConnection> {
    let failed = |why: String| NoConnection::Failed(why);
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(|error| failed(format!("cannot connect: {error}")))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        let connector = TlsConnector::from(credentials.client.clone());
        let tls = connector
            .connect(server_name(), stream)
            .await
            .map_err(|error| failed(format!("no manager of this swarm is there: {error}")))?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map_or(&[][..], |leaf| leaf);
        let identity = Identity::of(leaf).map_err(|why| failed(format!("its certificate: {why}")))?;
        Ok((tls, identity))
    };
    let (tls, identity) = timeout(CONNECT, connecting)
        .await
        .unwrap_or_else(|_| Err(failed(format!("no answer within {} s", CONNECT.as_secs()))))?;
    if identity.node == credentials.me.node {
        return Err(NoConnection::Myself);
    }
    if identity.role != Role::Manager {
        return Err(failed(format!("node {} is there, which is no manager but a {}", identity.node, identity.role)));
    }
    if let Some(expected) = expected.filter(|expected| *expected != identity.node) {
        return Err(failed(format!("node {} is there, not {expected}", identity.node)));
    }
    // The channel gets this one connection; when it ends, the link makes a new one.
    let tls = Arc::new(Mutex::new(Some(TokioIo::new(tls))));
    let once = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move { tls.lock().await.take().ok_or_else(|| std::io::Error::other("the connection has ended")) }
    });
    let channel = Endpoint::from_static("http://swarm-manager")
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .connect_with_connector(once)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok((channel, identity))
}
