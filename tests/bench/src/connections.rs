//! Connections of one request each: a client that makes one after the other, and a server that answers.
//!
//! Both share a core, which is never idle: a rate is what the path costs, not how long it takes to wake somebody up.
//! A connection is ended by a reset, so that neither end runs out of ports in TIME_WAIT.

use std::{net::SocketAddr, os::fd::AsRawFd as _, time::Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::Linger};

use crate::rr::{self, Latency};

/// Answers on one connection after the other; does not return.
pub(crate) fn serve(port: u16) -> Result<()> {
    rr::pin()?;
    let listener = rr::listen(port)?;
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        // A client that is gone without a word must not keep the others waiting.
        stream.set_read_timeout(Some(rr::PATIENCE))?;
        rr::answer(stream);
    }
}

/// Makes connections for that long; the time of each is from the first SYN to the answer.
pub(crate) fn load(target: SocketAddr, seconds: f64) -> Result<Latency> {
    rr::pin()?;
    rr::measure(seconds, 100, || {
        let began = Instant::now();
        let mut stream = rr::connect(target)?;
        rr::request(&mut stream).with_context(|| target.to_string())?;
        let took = began.elapsed();
        // Whoever ends it first has the work.
        setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
            .with_context(|| format!("cannot reset connection {}", stream.as_raw_fd()))?;
        Ok(took)
    })
}
