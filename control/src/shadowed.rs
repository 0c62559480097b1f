//! Processes of the node that listen on a port which is also published: the service hides them.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use serde::Serialize;

use crate::listeners::{EngineProcess, Listener};

/// A socket that hears nothing from new clients while its port is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// Those of `listeners` that published ports hide. `mesh`: a Docker engine's routing mesh was taken over, whose ingress
/// is in that subnet (of the gateway bridge): what the engine holds open for it is not hidden from anybody.
pub fn shadowed(listeners: &[Listener], mesh: Option<Ipv4Net>) -> Vec<Shadowed> {
    // The programs look at IPv4 only.
    let hidden = listeners.iter().filter(|socket| socket.ipv4 && !mesh.is_some_and(|ingress| holds(socket, ingress)));
    hidden
        .map(|socket| Shadowed {
            protocol: socket.protocol,
            port: socket.port,
            address: socket.address,
            pid: socket.owner.as_ref().map(|owner| owner.pid),
            process: socket.owner.as_ref().map(|owner| owner.process.clone()),
        })
        .collect()
}

/// Whether an engine has opened this socket for its own routing mesh, rather than for a port of a container elsewhere.
fn holds(socket: &Listener, ingress: Ipv4Net) -> bool {
    match socket.owner.as_ref().and_then(|owner| owner.engine) {
        Some(EngineProcess::Daemon) => true,
        Some(EngineProcess::Proxy(to)) => to.is_none_or(|ip| ingress.contains(&ip)),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{TcpListener, UdpSocket},
    };

    use super::*;
    use crate::listeners::{Owner, listeners};

    #[test]
    fn listeners_on_published_ports_are_found_with_their_process() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let (udp, connected) = (UdpSocket::bind("[::]:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        connected.connect("127.0.0.1:9").unwrap();
        let [tcp, udp, own] = [tcp.local_addr(), udp.local_addr(), connected.local_addr()].map(|a| a.unwrap().port());
        let find = |published: &[(u8, u16)]| {
            shadowed(&listeners(&published.iter().copied().collect::<BTreeSet<_>>()).unwrap(), None)
        };
        let found = find(&[(6, tcp), (17, udp), (17, own)]);
        let brief: Vec<_> = found.iter().map(|s| (s.protocol, s.port)).collect();
        assert_eq!(brief, [("tcp", tcp), ("udp", udp)]);
        assert!(found.iter().all(|s| s.pid == Some(std::process::id() as i32) && s.process.is_some()), "{found:?}");
        // The other protocol's port of that number is nobody's.
        assert_eq!(find(&[(17, tcp)]).len(), usize::from(tcp == udp));
        assert_eq!(find(&[]), []);
    }

    #[test]
    fn what_an_engine_holds_for_its_mesh_is_not_hidden() {
        let socket = |ipv4, engine| Listener {
            protocol: "tcp",
            port: 80,
            address: [0; 4].into(),
            ipv4,
            ipv6: true,
            owner: Some(Owner { pid: 1, process: "dockerd".into(), engine }),
        };
        let ingress = Some("172.18.0.1/16".parse::<Ipv4Net>().unwrap());
        let proxy = |ip: [u8; 4]| Some(EngineProcess::Proxy(Some(ip.into())));
        for (socket, mesh, hidden) in [
            (socket(true, Some(EngineProcess::Daemon)), ingress, false),
            (socket(true, proxy([172, 18, 0, 2])), ingress, false),
            (socket(true, proxy([172, 17, 0, 2])), ingress, true),
            (socket(true, None), ingress, true),
            (socket(true, Some(EngineProcess::Daemon)), None, true),
            (socket(false, None), None, false),
        ] {
            assert_eq!(!shadowed(std::slice::from_ref(&socket), mesh).is_empty(), hidden, "{socket:?}");
        }
    }
}
