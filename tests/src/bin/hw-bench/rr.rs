//! Request and response of one byte each on one TCP connection: the latency that small requests feel.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// What a client measured.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Microseconds.
    pub(crate) p50_us: f64,
    /// Microseconds.
    pub(crate) p99_us: f64,
    /// Transactions per second.
    pub(crate) rate: f64,
}

/// Without it a lost packet, or a path that ends nowhere, would hang the bench.
const PATIENCE: Duration = Duration::from_secs(5);

/// Client and server share a core. On two, most of what is measured is waking up the other one; on one it is the path.
pub(crate) fn pin() -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("cannot pin to core 0")
}

/// Answers every byte with a byte, one thread per connection; does not return.
pub(crate) fn serve(port: u16) -> Result<()> {
    pin()?;
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on {port}"))?;
    eprintln!("listening on {port}");
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
        });
    }
}

/// Runs transactions for that long.
pub(crate) fn load(target: SocketAddr, seconds: f64) -> Result<Latency> {
    pin()?;
    let mut stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    let mut transact = || -> Result<f64> {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).with_context(|| format!("no answer from {target}"))?;
        Ok(sent.elapsed().as_secs_f64() * 1e6)
    };
    // The first ones resolve neighbours and wake the cores up.
    for _ in 0..200 {
        transact()?;
    }
    let started = Instant::now();
    let mut took = Vec::with_capacity(100_000);
    while started.elapsed().as_secs_f64() < seconds {
        took.push(transact()?);
    }
    let rate = took.len() as f64 / started.elapsed().as_secs_f64();
    ensure!(!took.is_empty(), "no time to measure in {seconds} s");
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    Ok(Latency { p50_us: at(0.5), p99_us: at(0.99), rate })
}
