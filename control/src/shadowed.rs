//! Processes of the node that listen on a port which is also published: the service hides them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use dataplane_common::headers::ipproto;
use procfs::{
    ProcResult,
    net::{TcpState, UdpState},
    process::{FDTarget, all_processes},
};
use serde::Serialize;

/// A socket that hears nothing from new clients while its port is published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shadowed {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
    /// Where it listens.
    pub address: IpAddr,
    /// The process, if it can be found.
    pub pid: Option<i32>,
    /// Its name.
    pub process: Option<String>,
}

/// An engine's process.
const ENGINE: &str = "dockerd";

impl Shadowed {
    /// A Docker engine holds every port of its own routing mesh open, so that nobody else takes it.
    pub fn is_engines(&self) -> bool {
        self.process.as_deref() == Some(ENGINE)
    }
}

/// Such sockets in the caller's network namespace. Connected UDP sockets hear from their own peer only and don't count.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn shadowed(published: &BTreeSet<(u8, u16)>) -> ProcResult<Vec<Shadowed>> {
    if published.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = BTreeMap::new();
    let mut add = |number: u8, protocol, local: std::net::SocketAddr, inode: u64| {
        // The programs look at IPv4 only, and so does a socket that is bound to an address of IPv6.
        let ipv4 = match local.ip() {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => ip.is_unspecified() || ip.to_ipv4_mapped().is_some(),
        };
        if ipv4 && published.contains(&(number, local.port())) {
            let (port, address) = (local.port(), local.ip());
            found.insert(inode, Shadowed { protocol, port, address, pid: None, process: None });
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
    if !found.is_empty() {
        name(&mut found)?;
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort();
    Ok(found)
}

/// Finds whose sockets these are, by inode. Processes come and go meanwhile.
fn name(sockets: &mut BTreeMap<u64, Shadowed>) -> ProcResult<()> {
    for process in all_processes()?.flatten() {
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            let FDTarget::Socket(inode) = descriptor.target else { continue };
            if let Some(socket) = sockets.get_mut(&inode) {
                socket.pid = Some(process.pid);
                socket.process = process.stat().ok().map(|stat| stat.comm);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn listeners_on_published_ports_are_found_with_their_process() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (udp, connected) = (UdpSocket::bind("[::]:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        connected.connect("127.0.0.1:9").unwrap();
        let [tcp, udp, own] = [tcp.local_addr(), udp.local_addr(), connected.local_addr()].map(|a| a.unwrap().port());
        let found = shadowed(&BTreeSet::from([(6, tcp), (17, udp), (17, own)])).unwrap();
        let brief: Vec<_> = found.iter().map(|s| (s.protocol, s.port)).collect();
        assert_eq!(brief, [("tcp", tcp), ("udp", udp)]);
        assert!(found.iter().all(|s| s.pid == Some(std::process::id() as i32) && s.process.is_some()), "{found:?}");
        // The other protocol's port of that number is nobody's.
        assert_eq!(shadowed(&BTreeSet::from([(17, tcp)])).unwrap().len(), usize::from(tcp == udp));
        assert_eq!(shadowed(&BTreeSet::new()).unwrap(), []);
        assert!(found.iter().all(|s| !s.is_engines()));
        assert!(Shadowed { process: Some("dockerd".into()), ..found[0].clone() }.is_engines());
    }
}
