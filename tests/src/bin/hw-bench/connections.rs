//! Connections of one request each: a client that makes one after the other, and a server that answers.
//!
//! Both share a core, which is never idle: a rate is what the path costs, not how long it takes to wake somebody up.
//! A connection is ended by a reset, so that neither end runs out of ports in TIME_WAIT.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use serde::{Deserialize, Serialize};

/// What a client measured.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Connections per second.
    pub(crate) rate: f64,
    /// From the first SYN to the answer, in microseconds.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Of a connection; without it a lost packet would hang the bench for minutes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers one byte on each connection with a byte, one connection after the other; does not return.
pub(crate) fn serve(port: u16) -> Result<()> {
    crate::rr::pin()?;
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on {port}"))?;
    eprintln!("listening on {port}");
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        // Until the client resets it: whoever ends it first has the work.
        while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
    }
}

/// Makes connections for that long.
pub(crate) fn load(target: SocketAddr, seconds: f64) -> Result<Rate> {
    crate::rr::pin()?;
    let connect = || -> Result<f64> {
        let began = Instant::now();
        let mut stream =
            TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).with_context(|| format!("no answer from {target}"))?;
        let took = began.elapsed().as_secs_f64() * 1e6;
        setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
            .with_context(|| format!("cannot reset connection {}", stream.as_raw_fd()))?;
        Ok(took)
    };
    for _ in 0..100 {
        connect()?;
    }
    let started = Instant::now();
    let mut took = Vec::with_capacity(100_000);
    while started.elapsed().as_secs_f64() < seconds {
        took.push(connect()?);
    }
    let rate = took.len() as f64 / started.elapsed().as_secs_f64();
    ensure!(!took.is_empty(), "no time to measure in {seconds} s");
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    Ok(Rate { rate, p50_us: at(0.5), p99_us: at(0.99) })
}
