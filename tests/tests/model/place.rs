//! Namespaces for tasks, with servers that stay when tasks come and go: cheap enough for hundreds of tasks.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use hiveway_tests::lab::{Lab, Netns};

/// Who lives in a place, for its servers.
#[derive(Debug, Default)]
struct Tenant {
    name: String,
    connections: Vec<TcpStream>,
}

/// A namespace with servers on 80/tcp and 53/udp that answer `<request> <task> <client's address>`.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) netns: Netns,
    tenant: Arc<Mutex<Tenant>>,
    /// A task lives here, or its interfaces have not gone yet.
    taken: bool,
}

impl Place {
    pub(crate) fn new(lab: &Lab, label: &str) -> Result<Self> {
        let netns = lab.namespace(label)?;
        let sockets = netns
            .enter(|| Ok::<_, std::io::Error>((TcpListener::bind("0.0.0.0:80")?, UdpSocket::bind("0.0.0.0:53")?)))?;
        let (listener, datagrams) = sockets.context("servers")?;
        let tenant = Arc::<Mutex<Tenant>>::default();
        let (tcp, udp) = (Arc::clone(&tenant), Arc::clone(&tenant));
        std::thread::spawn(move || accept(&listener, &tcp));
        std::thread::spawn(move || answer_datagrams(&datagrams, &udp));
        Ok(Self { netns, tenant, taken: false })
    }

    pub(crate) fn is_free(&self) -> bool {
        !self.taken
    }

    /// A task moves in.
    pub(crate) fn take(&mut self, name: &str) {
        self.taken = true;
        lock(&self.tenant).name = name.to_owned();
    }

    /// Frees the place once the agent has taken the interfaces away, as an engine deletes the namespace: sockets end
    /// without a word.
    pub(crate) fn vacate(&mut self) -> Result<()> {
        let devices = self.netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        // Two lines of headings, and `lo`.
        if devices.lines().count() <= 3 {
            for connection in lock(&self.tenant).connections.drain(..) {
                abort(&connection);
            }
            self.taken = false;
        }
        Ok(())
    }
}

/// Ends a connection at once and wakes the thread that reads from it; nothing is sent, there is no interface.
fn abort(connection: &TcpStream) {
    // SAFETY: sockaddr is plain data; AF_UNSPEC (all zeroes) asks for the connection to be dissolved.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = u32::try_from(size_of_val(&nobody)).unwrap_or(0);
    // SAFETY: the descriptor is open and the address is valid for its length.
    unsafe { libc::connect(connection.as_raw_fd(), &raw const nobody, length) };
}

fn accept(listener: &TcpListener, tenant: &Arc<Mutex<Tenant>>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let name = {
            let mut tenant = lock(tenant);
            tenant.connections.extend(stream.try_clone());
            tenant.name.clone()
        };
        // Whom the connection was made with, whoever lives here when it is used.
        std::thread::spawn(move || converse(&stream, &name));
    }
}

fn converse(mut stream: &TcpStream, name: &str) -> Option<()> {
    let peer = stream.peer_addr().ok()?;
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
        stream.write_all(format!("{} {name} {}\n", request.trim(), peer.ip()).as_bytes()).ok()?;
    }
}

fn answer_datagrams(socket: &UdpSocket, tenant: &Mutex<Tenant>) {
    let mut buffer = [0; 256];
    loop {
        // Errors are what earlier answers met with.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let request = String::from_utf8_lossy(&buffer[..length]);
        let answer = format!("{} {} {}\n", request.trim(), lock(tenant).name, peer.ip());
        let _ = socket.send_to(answer.as_bytes(), peer);
    }
}

fn lock(tenant: &Mutex<Tenant>) -> MutexGuard<'_, Tenant> {
    tenant.lock().unwrap_or_else(PoisonError::into_inner)
}
