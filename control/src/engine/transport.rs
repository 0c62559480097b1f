//! Requests over the engine's socket, a connection for each. The client library collects an answer whole, and an event
//! up to its end, so what arrives is counted here, and a connection that has said too much is closed.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::http::{HeaderValue, Response, Uri, header::HOST, uri::PathAndQuery};
use bollard::{BollardRequest, errors::Error};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

/// Largest answer, in bytes. That about one container has some ten thousand.
const ANSWER: u64 = 64 << 20;
/// Largest event, in bytes, with all that comes between it and the one before.
const EVENT: u64 = 4 << 20;

/// Bytes of the stream of events that have come since the last event was taken from it.
pub(super) type Unheard = Arc<AtomicU64>;

/// Sends a request over a connection of its own.
///
/// # Errors
/// [`Error::IOError`] when the socket cannot be connected to; what becomes of the request.
pub(super) async fn send(
    socket: PathBuf,
    unheard: Unheard,
    mut request: BollardRequest,
) -> Result<Response<Incoming>, Error> {
    let stream = UnixStream::connect(&socket).await?;
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let (count, limit) = if path.path().ends_with("/events") { (unheard, EVENT) } else { (Unheard::default(), ANSWER) };
    count.store(0, Ordering::Relaxed);
    *request.uri_mut() = Uri::from(path);
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let (mut requests, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(Bounded { stream, count, limit })).await?;
    // Ends with the answer, or with the interest in it.
    tokio::spawn(connection);
    Ok(requests.send_request(request).await?)
}

/// What to say of a stream of events that was closed because of too large an event. The client library keeps the cause
/// to itself.
pub(super) fn too_much(unheard: &Unheard) -> Option<String> {
    (unheard.load(Ordering::Relaxed) > EVENT).then(|| larger(EVENT))
}

fn larger(limit: u64) -> String {
    format!("the engine's answer is larger than {} MiB", limit >> 20)
}

/// A connection that may say so much.
struct Bounded {
    stream: UnixStream,
    count: Arc<AtomicU64>,
    limit: u64,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = (buffer.filled().len() - before) as u64;
        let count = self.count.fetch_add(read, Ordering::Relaxed) + read;
        if count > self.limit {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::FileTooLarge, larger(self.limit))));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
