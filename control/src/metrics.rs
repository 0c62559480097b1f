//! `--metrics`: OpenMetrics over HTTP, gathered at each scrape.

mod collect;
mod listen;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{Router, http::header, response::IntoResponse, routing::get, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::agent::shared::Shared;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Scrapes that are gathered at the same time. Whoever asks may go away at once, and what is being gathered then goes
/// on: so there must be few, however many have asked.
const AT_ONCE: usize = 2;

/// Listens at `address`.
///
/// # Errors
/// When it cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen at {address}: {error}")))
}

/// Serves `/metrics` until the process ends.
pub fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut registry = Registry::with_prefix("hiveway");
    registry.register_collector(Box::new(collect::Agent(shared)));
    tokio::spawn(answer(listener, registry));
}

/// Over HTTP/1 alone: a connection has one request at a time then.
async fn answer(listener: TcpListener, registry: Registry) {
    let (registry, turns) = (Arc::new(registry), Arc::new(Semaphore::new(AT_ONCE)));
    let app = Router::new().route("/metrics", get(move || scrape(registry.clone(), turns.clone())));
    let mut listener = listen::Few::new(listener);
    loop {
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn scrape(registry: Arc<Registry>, turns: Arc<Semaphore>) -> impl IntoResponse {
    // Who goes away while waiting leaves nothing behind.
    let turn = turns.acquire_owned().await;
    // Reading maps blocks.
    let text = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt,
        sync::{
            Condvar, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::{sleep, timeout},
    };

    use super::*;

    /// Gathers for as long as the test wants it to.
    #[derive(Debug, Default)]
    struct Slow {
        begun: AtomicUsize,
        open: Mutex<bool>,
        opened: Condvar,
    }

    #[derive(Debug)]
    struct Gathering(Arc<Slow>);

    impl Collector for Gathering {
        fn encode(&self, _: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            self.0.begun.fetch_add(1, Ordering::SeqCst);
            let open = self.0.open.lock().unwrap();
            drop(self.0.opened.wait_while(open, |open| !*open).unwrap());
            Ok(())
        }
    }

    async fn ask(address: SocketAddr, request: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream
    }

    async fn answered(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await.expect("an end");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn who_asks_and_goes_away_again_and_again_keeps_two_threads_at_most() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = Arc::new(Slow::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Gathering(slow.clone())));
        tokio::spawn(answer(listener, registry));
        for _ in 0..40 {
            let stream = ask(address, SCRAPE).await;
            sleep(Duration::from_millis(5)).await;
            drop(stream);
            sleep(Duration::from_millis(5)).await;
        }
        let begun = slow.begun.load(Ordering::SeqCst);
        *slow.open.lock().unwrap() = true;
        slow.opened.notify_all();
        assert!((1..=2).contains(&begun), "{begun} scrapes are being gathered");
        assert!(answered(ask(address, SCRAPE).await).await.ends_with("# EOF\n"));
    }

    #[tokio::test]
    async fn a_connection_is_no_bundle_of_streams() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(answer(listener, Registry::default()));
        let said = answered(ask(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said:?}");
    }
}
