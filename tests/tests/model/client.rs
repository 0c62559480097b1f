//! Sockets of clients, and what they get to hear.

use std::{
    cell::Cell,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hiveway_tests::lab::{Netns, PATIENCE};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};

/// Source ports below what the kernel picks itself.
const FIRST_PORT: u16 = 10_000;

/// A namespace that asks.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) netns: Netns,
    pub(crate) address: &'static str,
    next_port: Cell<u16>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This task answered, and says that this address asked it.
    From { task: String, seen: String },
    /// A reset, a refusal, port unreachable.
    Refused,
    /// Nothing within the time given.
    Silence,
}

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp { stream: TcpStream, unread: Vec<u8>, requests: u64 },
    Udp { socket: UdpSocket, requests: u64 },
}

impl Client {
    pub(crate) fn new(netns: Netns, address: &'static str) -> Self {
        Self { netns, address, next_port: Cell::new(FIRST_PORT) }
    }

    /// A port that this client has not used before: each is a new flow.
    pub(crate) fn fresh_port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port.set(if port == 32_000 { FIRST_PORT } else { port + 1 });
        port
    }

    /// Connects from a port; `None` if that was refused.
    pub(crate) fn tcp(&self, port: u16, target: SocketAddrV4) -> Result<Option<Socket>> {
        let connected = self.netns.enter(|| connect_tcp(port, target))?;
        match connected {
            Ok(stream) => Ok(Some(Socket::Tcp { stream, unread: Vec::new(), requests: 0 })),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{}:{port} to {target}", self.address)),
        }
    }

    pub(crate) fn udp(&self, port: u16, target: SocketAddrV4) -> Result<Socket> {
        let socket = self.netns.enter(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        Ok(Socket::Udp { socket: socket.with_context(|| format!("UDP from port {port}"))?, requests: 0 })
    }
}

fn connect_tcp(port: u16, target: SocketAddrV4) -> io::Result<TcpStream> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(PATIENCE.as_secs().cast_signed(), 0))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    connect(fd.as_raw_fd(), &SockaddrIn::from(target))?;
    let stream = TcpStream::from(fd);
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Socket {
    /// Sends a request and waits for its answer, not longer than `limit`.
    pub(crate) fn ask(&mut self, limit: Duration) -> Result<Answer> {
        match self {
            Self::Tcp { stream, unread, requests } => {
                *requests += 1;
                match stream.write_all(format!("{requests}\n").as_bytes()) {
                    Ok(()) => hear(stream, unread, *requests, limit),
                    Err(error) => refused(error),
                }
            }
            Self::Udp { socket, requests } => {
                *requests += 1;
                ask_datagram(socket, *requests, limit)
            }
        }
    }
}

/// The answer to request `number`; late ones to earlier requests are passed over.
fn hear(stream: &TcpStream, unread: &mut Vec<u8>, number: u64, limit: Duration) -> Result<Answer> {
    let deadline = Instant::now() + limit;
    loop {
        while let Some(end) = unread.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if let Some(answer) = answer_to(number, &line)? {
                return Ok(answer);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Answer::Silence);
        }
        stream.set_read_timeout(Some(left))?;
        let mut buffer = [0; 512];
        match { stream }.read(&mut buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(length) => unread.extend_from_slice(&buffer[..length]),
            Err(error) if is_timeout(&error) => return Ok(Answer::Silence),
            Err(error) => return refused(error),
        }
    }
}

/// Asks again every second: datagrams may get lost, and on one socket it stays one flow.
fn ask_datagram(socket: &UdpSocket, number: u64, limit: Duration) -> Result<Answer> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Answer::Silence);
        }
        // A refusal of an earlier datagram is reported here, too; this one has not been sent then.
        if let Err(error) = socket.send(number.to_string().as_bytes()) {
            return refused(error);
        }
        socket.set_read_timeout(Some(left.min(Duration::from_secs(1))))?;
        let mut buffer = [0; 512];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(answer) = answer_to(number, &buffer[..length])? {
                        return Ok(answer);
                    }
                }
                Err(error) if is_timeout(&error) => break,
                Err(error) => return refused(error),
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn refused(error: io::Error) -> Result<Answer> {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    match error.kind() {
        BrokenPipe | ConnectionRefused | ConnectionReset => Ok(Answer::Refused),
        _ => Err(error.into()),
    }
}

fn answer_to(number: u64, line: &[u8]) -> Result<Option<Answer>> {
    let text = String::from_utf8_lossy(line);
    let mut words = text.split_whitespace();
    let (Some(request), Some(task), Some(seen)) = (words.next(), words.next(), words.next()) else {
        bail!("an answer that no server gives: {text}")
    };
    let current = request.parse() == Ok(number);
    Ok(current.then(|| Answer::From { task: task.to_owned(), seen: seen.to_owned() }))
}
