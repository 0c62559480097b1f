//! Sockets of the node that wait for clients on published ports, by which family, and whose they are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use dataplane_common::headers::ipproto;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::AF_INET6,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use procfs::{
    ProcResult,
    net::{TcpState, UdpState},
    process::{FDTarget, Process, all_processes},
};

/// A socket that waits for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
    /// Where it listens.
    pub address: IpAddr,
    /// It hears IPv4 clients.
    pub ipv4: bool,
    /// It hears IPv6 clients.
    pub ipv6: bool,
    /// The process that holds it, if it can be found.
    pub owner: Option<Owner>,
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its id.
    pub pid: i32,
    /// Its name, as the kernel has it.
    pub process: String,
    /// What it is to a Docker engine.
    pub engine: Option<EngineProcess>,
}

/// A process of a Docker engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineProcess {
    /// The engine itself, which keeps the ports of its own routing mesh from others.
    Daemon,
    /// What it starts for each port (`docker-proxy`), with the IPv4 address that the port leads to.
    Proxy(Option<Ipv4Addr>),
}

const DAEMON: &str = "dockerd";
const PROXY: &str = "docker-proxy";

/// Such sockets in the caller's network namespace, on `published` ports (IP protocol number, port), sorted. Connected
/// UDP sockets hear from their own peer only and don't count.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn listeners(published: &BTreeSet<(u8, u16)>) -> ProcResult<Vec<Listener>> {
    if published.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = BTreeMap::new();
    let mut add = |number: u8, protocol, local: SocketAddr, inode: u64| {
        if published.contains(&(number, local.port())) {
            let (port, address) = (local.port(), local.ip());
            let (ipv4, ipv6) = match address {
                IpAddr::V4(_) => (true, false),
                // Unless it says otherwise, see `only_ipv6`.
                IpAddr::V6(ip) if ip.is_unspecified() => (true, true),
                IpAddr::V6(ip) => (ip.to_ipv4_mapped().is_some(), ip.to_ipv4_mapped().is_none()),
            };
            found.insert(inode, Listener { protocol, port, address, ipv4, ipv6, owner: None });
        }
    };
    for socket in procfs::net::tcp()?.into_iter().chain(procfs::net::tcp6().unwrap_or_default()) {
        if socket.state == TcpState::Listen {
            add(ipproto::TCP, "tcp", socket.local_address, socket.inode);
        }
    }
    for socket in procfs::net::udp()?.into_iter().chain(procfs::net::udp6().unwrap_or_default()) {
        if socket.state != UdpState::Established {
            add(ipproto::UDP, "udp", socket.local_address, socket.inode);
        }
    }
    for (name, number) in [("tcp", ipproto::TCP), ("udp", ipproto::UDP)] {
        if !found.values().any(|socket| socket.protocol == name && socket.ipv4 && socket.ipv6) {
            continue;
        }
        // A kernel without sock_diag does not say: then both families count.
        for inode in only_ipv6(number).unwrap_or_default() {
            if let Some(socket) = found.get_mut(&inode) {
                socket.ipv4 = false;
            }
        }
    }
    if !found.is_empty() {
        name(&mut found)?;
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_by_key(|socket| (socket.protocol, socket.port, socket.address, socket.owner.as_ref().map(|o| o.pid)));
    Ok(found)
}

/// A process that has a UDP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: i32,
    /// Its name, as the kernel has it.
    pub process: String,
    /// Whose socket it is.
    pub uid: u32,
    /// Where it is bound.
    pub address: IpAddr,
}

/// Processes that have this UDP port for IPv4 in the caller's network namespace, connected sockets too. Sockets of the
/// kernel's own have no process.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn holders(port: u16) -> ProcResult<Vec<Holder>> {
    let sockets = procfs::net::udp()?.into_iter().chain(procfs::net::udp6().unwrap_or_default());
    let sockets = sockets.filter(|socket| socket.local_address.port() == port);
    let found: HashMap<_, _> = sockets.map(|socket| (socket.inode, (socket.uid, socket.local_address.ip()))).collect();
    let mut owners = BTreeMap::new();
    each_socket(|process, inode| {
        if let Some((uid, address)) = found.get(&inode) {
            let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
            let holder = Holder { pid: process.pid, process: name, uid: *uid, address: *address };
            owners.entry(inode).or_insert(holder);
        }
    })?;
    Ok(owners.into_values().collect())
}

/// Inodes of waiting IPv6 sockets that have `IPV6_V6ONLY` set: `/proc` does not show it.
fn only_ipv6(protocol: u8) -> io::Result<Vec<u64>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family: AF_INET6,
        protocol,
        extensions: ExtensionFlags::empty(),
        // A UDP socket without a peer is closed, as far as the kernel's names for states go.
        states: if protocol == ipproto::TCP { StateFlags::LISTEN } else { StateFlags::CLOSE },
        socket_id: SocketId::new_v6(),
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) => {
                    let only = answer.nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true)));
                    found.extend(only.then_some(u64::from(answer.header.inode)));
                }
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(_) => return Ok(found),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).filter(|_| length > 0).unwrap_or_default();
        }
    }
}

/// Finds whose sockets these are, by inode. Processes come and go meanwhile.
fn name(sockets: &mut BTreeMap<u64, Listener>) -> ProcResult<()> {
    let mut roles = HashMap::new();
    each_socket(|process, inode| {
        let Some(socket) = sockets.get_mut(&inode) else { return };
        // An engine and its proxy may both hold one.
        if socket.owner.as_ref().is_some_and(|owner| owner.engine.is_some()) {
            return;
        }
        let engine = *roles.entry(process.pid).or_insert_with(|| engine_process(process));
        let process_name = process.stat().map(|stat| stat.comm).unwrap_or_default();
        socket.owner = Some(Owner { pid: process.pid, process: process_name, engine });
    })
}

/// Calls `found` with every socket that every process has, by inode.
fn each_socket(mut found: impl FnMut(&Process, u64)) -> ProcResult<()> {
    for process in all_processes()?.flatten() {
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                found(&process, inode);
            }
        }
    }
    Ok(())
}

/// What `process` is to a Docker engine. Not by its name, which each process chooses: by the program that it runs,
/// which must run as root, and for a proxy by its parent.
fn engine_process(process: &Process) -> Option<EngineProcess> {
    match program(process)?.as_str() {
        DAEMON => Some(EngineProcess::Daemon),
        PROXY => {
            let parent = Process::new(process.stat().ok()?.ppid).ok()?;
            (program(&parent)? == DAEMON)
                .then(|| EngineProcess::Proxy(leads_to(&process.cmdline().unwrap_or_default())))
        }
        _ => None,
    }
}

/// File name of the program that a process of root's runs.
fn program(process: &Process) -> Option<String> {
    if process.uid().ok()? != 0 {
        return None;
    }
    let path = process.exe().ok()?;
    let name = path.file_name()?.to_str()?;
    // What the kernel adds once the file was replaced, by an upgrade say.
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// The container that a proxy's command line names.
fn leads_to(arguments: &[String]) -> Option<Ipv4Addr> {
    let mut rest = arguments.iter().skip_while(|argument| *argument != "-container-ip");
    rest.nth(1)?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        fs,
        net::{Ipv6Addr, TcpListener, UdpSocket},
        os::unix::{fs::symlink, process::CommandExt},
        path::Path,
        process::{Child, Command},
    };

    use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, setsockopt, sockopt};

    use super::*;

    /// A listening TCP socket at `[::]`, for IPv6 alone or not.
    fn any_ipv6(only: bool) -> TcpListener {
        let fd = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, sockopt::Ipv6V6Only, &only).unwrap();
        let any = SockaddrIn6::from(std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0));
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &any).unwrap();
        socket::listen(&fd, Backlog::new(1).unwrap()).unwrap();
        fd.into()
    }

    #[test]
    fn families_that_a_socket_hears() {
        let (both, only) = (any_ipv6(false), any_ipv6(true));
        let (four, six) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap());
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let ports = [&both, &only, &four, &six].map(|socket| (6, socket.local_addr().unwrap().port()));
        let udp = (17, udp.local_addr().unwrap().port());
        let found = listeners(&ports.into_iter().chain([udp]).collect()).unwrap();
        let hears = |(number, port): (u8, u16)| {
            let protocol = if number == 6 { "tcp" } else { "udp" };
            let one = found.iter().find(|socket| (socket.protocol, socket.port) == (protocol, port)).unwrap();
            (one.ipv4, one.ipv6)
        };
        assert_eq!(ports.map(hears), [(true, true), (false, true), (true, false), (false, true)]);
        assert_eq!(hears(udp), (true, true));
    }

    /// A process that waits, whose program is `program`.
    struct Waiting(Child);

    impl Waiting {
        fn start(program: &Path, uid: u32) -> Self {
            let child = Command::new(program).arg("60").uid(uid).spawn().unwrap();
            Self(child)
        }

        fn role(&self) -> Option<EngineProcess> {
            engine_process(&Process::new(self.0.id() as i32).unwrap())
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn an_engine_is_known_by_its_program_not_by_its_name() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let sleep = fs::canonicalize("/bin/sleep").unwrap();
        let [engine, proxy, named] = ["dockerd", "docker-proxy", "named/dockerd"].map(|name| dir.path().join(name));
        for program in [&engine, &proxy] {
            fs::copy(&sleep, program).unwrap();
        }
        fs::create_dir(dir.path().join("named")).unwrap();
        symlink(&sleep, &named).unwrap();
        assert_eq!(Waiting::start(&engine, 0).role(), Some(EngineProcess::Daemon));
        assert_eq!(Waiting::start(&engine, 65534).role(), None, "not root's");
        assert_eq!(Waiting::start(&named, 0).role(), None, "called dockerd, but runs another program");
        assert_eq!(Waiting::start(&proxy, 0).role(), None, "not started by an engine");
        let replaced = Waiting::start(&engine, 0);
        fs::remove_file(&engine).unwrap();
        assert_eq!(replaced.role(), Some(EngineProcess::Daemon), "upgraded while it runs");
    }

    #[test]
    fn a_proxy_says_where_it_leads() {
        let line = "docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 80 -container-ip 172.18.0.2 -container-port 80";
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        assert_eq!(leads_to(&arguments), Some([172, 18, 0, 2].into()));
        assert_eq!(leads_to(&arguments[..3]), None);
    }
}
