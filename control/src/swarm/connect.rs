//! The way to the manager: its control socket, TLS with the swarm's own root certificate.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::certs::{self, CertError};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("there is no control socket {0}: this node is no manager (now), or --control-socket is wrong")]
    Absent(PathBuf),
    #[error("control socket {0}: {1}")]
    Socket(PathBuf, io::Error),
    #[error("{0}; --swarm-dir names the engine's directory")]
    Root(#[from] CertError),
    #[error("TLS: {0}")]
    Config(#[from] rustls::Error),
    #[error("control socket {socket}: {error}; its certificate is checked with {ca}")]
    Tls { socket: PathBuf, ca: PathBuf, error: io::Error },
    #[error("control socket {0}: {1}")]
    Http(PathBuf, String),
}

/// Connects. The root certificate is read each time: it may have been rotated.
pub(super) async fn connect(socket: &Path, ca: &Path) -> Result<Channel, ConnectError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConnectError::Absent(socket.to_owned()),
        _ => ConnectError::Socket(socket.to_owned(), error),
    })?;
    let config = client_config(ca)?;
    let tls = TlsConnector::from(Arc::new(config)).connect(certs::server_name(), stream);
    let tls = tls.await.map_err(|error| ConnectError::Tls { socket: socket.to_owned(), ca: ca.to_owned(), error })?;
    // The one connection; when it is over so is the channel, for a new one needs new lists.
    let once = Mutex::new(Some(TokioIo::new(tls)));
    let connector = service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is over")))
    });
    let channel = Endpoint::from_static("http://swarm-manager").connect_with_connector(connector).await;
    channel.map_err(|error| ConnectError::Http(socket.to_owned(), chain(&error)))
}

/// No certificate is asked for on this socket.
fn client_config(ca: &Path) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(certs::root_store(ca)?).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// An error with all its causes: the outer ones of gRPC say little.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
