//! Request and response of one byte each on one TCP connection: the latency that small requests feel. And what this has
//! in common with `connections`, which makes a connection for each.

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

/// What a client measured, of requests or of connections.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Microseconds.
    pub(crate) p50_us: f64,
    /// Microseconds.
    pub(crate) p99_us: f64,
    /// One after the other, per second.
    pub(crate) rate: f64,
}

/// Without it a lost packet, or a path that ends nowhere, would hang the bench.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Client and server share a core. On two, most of what is measured is waking up the other one; on one it is the path.
pub(crate) fn pin() -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("cannot pin to core 0")
}

pub(crate) fn listen(port: u16) -> Result<TcpListener> {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on {port}"))?;
    eprintln!("listening on {port}");
    Ok(listener)
}

/// Answers every byte with a byte until the client ends the connection.
pub(crate) fn answer(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

pub(crate) fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One byte there and back.
pub(crate) fn request(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte).context("no answer")
}

/// Takes the time of `step` again and again, for that long. `first` times are not counted: they resolve neighbours and
/// wake the cores up.
pub(crate) fn measure(seconds: f64, first: usize, mut step: impl FnMut() -> Result<Duration>) -> Result<Latency> {
    for _ in 0..first {
        step()?;
    }
    let started = Instant::now();
    let mut took = Vec::with_capacity(100_000);
    while started.elapsed().as_secs_f64() < seconds {
        took.push(step()?.as_secs_f64() * 1e6);
    }
    let rate = took.len() as f64 / started.elapsed().as_secs_f64();
    ensure!(!took.is_empty(), "no time to measure in {seconds} s");
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    Ok(Latency { p50_us: at(0.5), p99_us: at(0.99), rate })
}

/// Answers on any number of connections, one thread for each; does not return.
pub(crate) fn serve(port: u16) -> Result<()> {
    pin()?;
    let listener = listen(port)?;
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        std::thread::spawn(move || answer(stream));
    }
}

/// Runs transactions for that long.
pub(crate) fn load(target: SocketAddr, seconds: f64) -> Result<Latency> {
    pin()?;
    let mut stream = connect(target)?;
    measure(seconds, 200, || {
        let sent = Instant::now();
        request(&mut stream).with_context(|| target.to_string())?;
        Ok(sent.elapsed())
    })
}
