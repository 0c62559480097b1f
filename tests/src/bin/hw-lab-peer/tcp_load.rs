//! TCP load with a tally of who answered.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::load::{Tally, pattern, sha256};

use crate::progress::Progress;

#[derive(clap::Args, Clone)]
pub(crate) struct Options {
    /// Address and port.
    #[arg(long)]
    target: SocketAddr,
    /// Number of requests.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    concurrency: u64,
    /// A request may take this long, from connect to answer.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    /// Pause between a thread's requests.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Instead of --count: until stdin is closed.
    #[arg(long)]
    loop_until_stdin_closes: bool,
    /// Source port of the first request, the next one's of the next; without it the kernel picks, and may pick one
    /// again.
    #[arg(long)]
    first_port: Option<u16>,
    /// All of a thread's requests on one connection; a broken connection is a failure, and opened anew.
    #[arg(long)]
    keep_alive: bool,
}

pub(crate) fn run(options: &Options) -> Tally {
    let started = Instant::now();
    let stop = if options.loop_until_stdin_closes { crate::stdin_closed() } else { Arc::new(AtomicBool::new(false)) };
    let (next, progress) = (AtomicU64::new(0), Progress::default());
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..options.concurrency).map(|_| scope.spawn(|| one_thread(options, &stop, &next, &progress))).collect();
        for thread in threads {
            match thread.join() {
                Ok(tally) => total.merge(tally),
                Err(_) => total.failure("load thread panicked"),
            }
        }
    });
    total.elapsed_ms = millis(started);
    total
}

fn one_thread(options: &Options, stop: &AtomicBool, next: &AtomicU64, progress: &Progress) -> Tally {
    let mut tally = Tally::default();
    let mut kept: Option<TcpStream> = None;
    while !stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if !options.loop_until_stdin_closes && number >= options.count {
            break;
        }
        let port = options.first_port.map(|first| nth_port(first, number));
        let started = Instant::now();
        match request(options, port, &mut kept) {
            Ok(answer) => {
                progress.answered(tally.ok == 0);
                tally.answer(&answer, millis(started));
            }
            Err(error) => {
                progress.failed(&error);
                kept = None;
                tally.failure(describe(&error));
            }
        }
        std::thread::sleep(Duration::from_millis(options.pause_ms));
    }
    tally
}

/// The error as text; a limit that was reached reads the same whichever call it ended.
fn describe(error: &anyhow::Error) -> String {
    use io::ErrorKind::{TimedOut, WouldBlock};
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let in_progress = error.to_string() == "connect" && format!("{error:#}").contains("os error 115");
    if in_progress || matches!(kind, Some(TimedOut | WouldBlock)) {
        format!("no answer in time: {error:#}")
    } else {
        format!("{error:#}")
    }
}

fn request(options: &Options, port: Option<u16>, kept: &mut Option<TcpStream>) -> Result<String> {
    let limit = Duration::from_millis(options.timeout_ms);
    let stream = match kept.take() {
        Some(stream) => stream,
        None => connect(options.target, port, limit)?,
    };
    let connection = if options.keep_alive { "keep-alive" } else { "close" };
    let head = format!("GET / HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n");
    (&stream).write_all(head.as_bytes()).context("send")?;
    let body = read_answer(&stream)?;
    if options.keep_alive {
        *kept = Some(stream);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Uploads the pattern, then downloads it; counts as two requests.
pub(crate) fn transfer(target: &str, bytes: usize, timeout_ms: u64) -> Tally {
    let started = Instant::now();
    let mut tally = Tally::default();
    let data = pattern(bytes);
    let expected = sha256(&data);
    let limit = Duration::from_millis(timeout_ms);
    for upload in [true, false] {
        let result = || -> Result<String> {
            let stream = connect(target.parse().context("--target")?, None, limit)?;
            if upload {
                let head =
                    format!("POST / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n");
                (&stream).write_all(head.as_bytes())?;
                (&stream).write_all(&data).context("upload")?;
                let answer = String::from_utf8(read_answer(&stream).context("answer to the upload")?)?;
                ensure!(answer.contains(&expected), "the upload arrived changed: {answer}");
                Ok(answer)
            } else {
                let head = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
                (&stream).write_all(head.as_bytes())?;
                ensure!(sha256(&read_answer(&stream).context("download")?) == expected, "the download arrived changed");
                Ok(String::new())
            }
        }();
        match result {
            Ok(answer) => tally.answer(&answer, millis(started)),
            Err(error) => tally.failure(format!("{error:#}")),
        }
    }
    tally.elapsed_ms = millis(started);
    tally
}

/// The `number`th port after `first`, within 10000 to 32767, below what the kernel picks itself.
pub(crate) fn nth_port(first: u16, number: u64) -> u16 {
    let (low, span) = (10_000, 22_768);
    let offset = (u64::from(first) + number).saturating_sub(low) % span;
    u16::try_from(low + offset).unwrap_or(first)
}

fn connect(target: SocketAddr, port: Option<u16>, limit: Duration) -> Result<TcpStream> {
    let stream = match (port, target) {
        (Some(port), SocketAddr::V4(target)) => connect_from(port, target, limit)?,
        _ => TcpStream::connect_timeout(&target, limit).context("connect")?,
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Connects from a port of our choice.
fn connect_from(port: u16, target: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    use nix::sys::{
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
        time::TimeVal,
    };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // Also limits how long connecting takes.
    let limit = TimeVal::new(limit.as_secs().cast_signed(), i64::from(limit.subsec_micros()));
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))).context("bind")?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(target)).map_err(io::Error::from).context("connect")?;
    Ok(TcpStream::from(fd))
}

fn read_answer(stream: &TcpStream) -> Result<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let mut length = None;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line).context("receive")? > 0, "connection closed without an answer");
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let mut body = vec![0; length.context("answer without a length")?];
    reader.read_exact(&mut body).context("receive the body")?;
    Ok(body)
}

fn millis(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}
