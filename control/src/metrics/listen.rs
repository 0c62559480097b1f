//! Connections to `--metrics`: anybody who reaches the address may open them, so they are few, and each lives for a
//! short time.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::places::{Place, Places};

/// Connections from one address, and from all.
const CONNECTIONS: (usize, usize) = (8, 32);
/// A connection ends that long after it has begun, whatever it is at: a scrape takes milliseconds.
const LIFE: Duration = Duration::from_secs(10);

/// A listener with a limited number of connections.
#[derive(Debug)]
pub(super) struct Few {
    listener: TcpListener,
    places: Places,
    life: Duration,
}

impl Few {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, places: Places::new(CONNECTIONS.0, CONNECTIONS.1), life: LIFE }
    }
}

impl Listener for Few {
    type Io = Short;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Short, SocketAddr) {
        loop {
            match self.listener.accept().await {
                // Without a place the stream is closed at once.
                Ok((stream, address)) => {
                    if let Some(place) = self.places.take(address.ip().to_string()) {
                        let end = Box::pin(sleep_until(Instant::now() + self.life));
                        return (Short { stream, end, _place: place }, address);
                    }
                }
                Err(error) => {
                    // Out of file descriptors, mostly: some will come back.
                    tracing::warn!("metrics: cannot accept a connection: {error}");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with an end.
#[derive(Debug)]
pub(super) struct Short {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    /// Given back when the connection ends.
    _place: Place,
}

impl Short {
    fn over(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Short {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.over(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Short {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.over(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    /// What one who asks properly gets.
    async fn scrape(address: SocketAddr) -> String {
        let asked = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            io::Result::Ok(text)
        };
        timeout(Duration::from_secs(20), asked).await.map_or_else(|_| "nothing".into(), Result::unwrap_or_default)
    }

    #[tokio::test]
    async fn idle_connections_are_few_and_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let few = Few { life: Duration::from_secs(1), ..Few::new(listener) };
        tokio::spawn(async { axum::serve(few, Router::new().route("/", get(async || "served"))).await });
        assert!(scrape(address).await.ends_with("served"));
        let mut idle = Vec::new();
        for _ in 0..100 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // Half a request is as good as none.
        for stream in &mut idle {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost").await;
        }
        assert!(!scrape(address).await.ends_with("served"), "there is no place left");
        let mut closed = 0;
        for mut stream in idle {
            let ended = timeout(Duration::from_secs(10), stream.read(&mut [0; 16])).await;
            closed += usize::from(ended.is_ok());
        }
        assert_eq!(closed, 100, "all of them have ended");
        assert!(scrape(address).await.ends_with("served"));
    }
}
