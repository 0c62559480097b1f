//! `--metrics`: OpenMetrics over HTTP, gathered at each scrape.

mod collect;
mod listen;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{Router, http::header, response::IntoResponse, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

use crate::agent::shared::Shared;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    let registry = Arc::new(registry);
    let app = Router::new().route("/metrics", get(move || scrape(registry.clone())));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listen::Few::new(listener), app).await {
            tracing::error!("metrics: {error}");
        }
    });
}

async fn scrape(registry: Arc<Registry>) -> impl IntoResponse {
    // Reading maps blocks.
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    match text.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
