//! UDP server and load.

use std::{
    collections::BTreeSet,
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::load::{Tally, pattern};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};

use crate::progress::Progress;

#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Address and port.
    #[arg(long)]
    target: SocketAddr,
    /// Number of requests.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Instead of --count: until stdin is closed.
    #[arg(long)]
    loop_until_stdin_closes: bool,
    /// Send this many bytes that have to come back as they are, instead of asking who answers.
    #[arg(long)]
    size: Option<usize>,
    /// With --size: send that many datagrams with one call and have the kernel or the card cut them (UDP_SEGMENT).
    #[arg(long, default_value_t = 1)]
    segments: usize,
    /// With --size: the server sends that many datagrams back, with one call (UDP_SEGMENT), as QUIC servers do.
    #[arg(long, conflicts_with = "segments")]
    burst: Option<usize>,
    /// Let the network fragment what is too long (no DF), as if path MTU discovery were unknown.
    #[arg(long)]
    fragmentable: bool,
    /// An answer may take this long.
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Source port of the first request, the next one's of the next; without it the kernel picks, and may pick one
    /// again.
    #[arg(long)]
    first_port: Option<u16>,
    /// All requests from one port.
    #[arg(long)]
    same_port: bool,
    /// From a socket that is not connected: it takes answers from anybody.
    #[arg(long)]
    unconnected: bool,
    /// Pause between requests.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

pub(crate) fn serve(port: u16, name: &str, fragmentable: bool) -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("cannot listen on port {port}"))?;
    if fragmentable {
        never_set_df(&socket)?;
    }
    eprintln!("listening on {port}/udp as {name}");
    let mut buffer = vec![0; 65536];
    loop {
        // ICMP errors that answers provoke are reported here; the next request is none of their business.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let request = &buffer[..length];
        let sent = if request == b"who" {
            socket.send_to(format!("name={name} peer={peer}").as_bytes(), peer)
        } else if let Some((count, size)) = asked_burst(request) {
            send_burst(&socket, peer, count, size)
        } else {
            socket.send_to(request, peer)
        };
        if let Err(error) = sent {
            eprintln!("{peer}: {error}");
        }
    }
}

/// `burst COUNT SIZE`, of at most 64 kB.
fn asked_burst(request: &[u8]) -> Option<(usize, u16)> {
    let text = std::str::from_utf8(request).ok()?.strip_prefix("burst ")?;
    let (count, size) = text.split_once(' ')?;
    let (count, size) = (count.parse().ok()?, size.parse().ok()?);
    (count * usize::from(size) < 65_000).then_some((count, size))
}

/// Datagrams in one packet, which is cut on its way.
fn send_burst(socket: &UdpSocket, peer: SocketAddr, count: usize, size: u16) -> std::io::Result<usize> {
    let payload = pattern(usize::from(size) * count);
    let SocketAddr::V4(peer) = peer else { return Err(std::io::ErrorKind::Unsupported.into()) };
    let sent = sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&payload)],
        &[ControlMessage::UdpGsoSegments(&size)],
        MsgFlags::empty(),
        Some(&SockaddrIn::from(peer)),
    );
    sent.map_err(Into::into)
}

pub(crate) fn run(options: &Options) -> Tally {
    let started = Instant::now();
    let mut tally = Tally::default();
    let mut kept = None;
    let progress = Progress::default();
    let stop = if options.loop_until_stdin_closes { crate::stdin_closed() } else { Arc::default() };
    let numbers = if options.loop_until_stdin_closes { 0..u64::MAX } else { 0..options.count };
    for number in numbers {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let port = options.first_port.map_or(0, |first| match options.same_port {
            true => first,
            false => crate::tcp_load::nth_port(first, number),
        });
        let asked = Instant::now();
        match request(options, port, &mut kept) {
            Ok(answer) => {
                progress.answered(tally.ok == 0);
                tally.answer(&answer, u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX));
            }
            Err(error) => {
                progress.failed(&error);
                tally.failure(format!("{error:#}"));
            }
        }
        std::thread::sleep(Duration::from_millis(options.pause_ms));
    }
    tally.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tally
}

fn request(options: &Options, port: u16, kept: &mut Option<UdpSocket>) -> Result<String> {
    let socket = match kept.take() {
        Some(socket) => socket,
        None => {
            let socket = UdpSocket::bind(("0.0.0.0", port)).context("bind")?;
            socket.set_read_timeout(Some(Duration::from_millis(options.timeout_ms)))?;
            if options.fragmentable {
                never_set_df(&socket)?;
            }
            // Connected: an answer from another address is no answer.
            if !options.unconnected {
                socket.connect(options.target).context("connect")?;
            }
            socket
        }
    };
    let answer = match options.size {
        Some(size) => match options.burst {
            Some(count) => burst(&socket, count, size)?,
            None => echo(&socket, size, options.segments)?,
        },
        None if options.unconnected => {
            socket.send_to(b"who", options.target).context("send")?;
            answer(&socket)?
        }
        None => who(&socket)?,
    };
    if options.same_port {
        *kept = Some(socket);
    }
    Ok(answer)
}

/// IP_PMTUDISC_DONT of `ip(7)`: packets leave without DF, whatever their size.
fn never_set_df(socket: &UdpSocket) -> Result<()> {
    let value = libc::IP_PMTUDISC_DONT;
    // SAFETY: the option takes an int; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    ensure!(result == 0, "IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
    Ok(())
}

fn who(socket: &UdpSocket) -> Result<String> {
    socket.send(b"who").context("send")?;
    answer(socket)
}

fn answer(socket: &UdpSocket) -> Result<String> {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).context("receive")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// `segments` datagrams of `size` different bytes each have to come back as they are.
fn echo(socket: &UdpSocket, size: usize, segments: usize) -> Result<String> {
    let payload = pattern(size * segments);
    if segments > 1 {
        setsockopt(socket, sockopt::UdpGsoSegment, &i32::try_from(size)?).context("UDP_SEGMENT")?;
    }
    socket.send(&payload).context("send")?;
    receive(socket, &payload, size)
}

/// `count` datagrams of `size` different bytes each have to come from a server that sends them with one call.
fn burst(socket: &UdpSocket, count: usize, size: usize) -> Result<String> {
    socket.send(format!("burst {count} {size}").as_bytes()).context("send")?;
    receive(socket, &pattern(size * count), size)
}

/// Each `size` bytes of `payload` have to arrive, as a datagram.
fn receive(socket: &UdpSocket, payload: &[u8], size: usize) -> Result<String> {
    let mut missing: BTreeSet<&[u8]> = payload.chunks(size).collect();
    let mut buffer = vec![0; 65536];
    while !missing.is_empty() {
        let length = socket.recv(&mut buffer).with_context(|| format!("receive, {} missing", missing.len()))?;
        ensure!(missing.remove(&buffer[..length]), "{length} bytes came back that were never sent");
    }
    Ok(String::new())
}
