//! What IPv6 clients of published ports meet: the programs serve IPv4 alone.

use std::net::{IpAddr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use serde::Serialize;

use crate::{listeners::Listener, mesh};

/// Where published ports do not answer though clients may try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotServed {
    /// Global IPv6 addresses of the node.
    pub addresses: Vec<Ipv6Addr>,
    /// Sockets of a Docker engine that take IPv6 clients of published ports.
    pub engine: Vec<EngineListener>,
}

/// A socket of a Docker engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineListener {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
    /// Where it listens.
    pub address: IpAddr,
    /// The process's name.
    pub process: String,
}

/// What there is; `None` if no client can be misled: nothing is published, or the node has no IPv6 that leads anywhere.
///
/// # Errors
/// When the interfaces' addresses cannot be read.
pub fn not_served(published: bool, listeners: &[Listener]) -> nix::Result<Option<NotServed>> {
    if !published {
        return Ok(None);
    }
    let mut addresses: Vec<Ipv6Addr> = getifaddrs()?
        .filter(|interface| !mesh::is_containers(&interface.interface_name))
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in6()?.ip()))
        .filter(is_global)
        .collect();
    addresses.sort();
    addresses.dedup();
    Ok(of(addresses, listeners))
}

fn of(addresses: Vec<Ipv6Addr>, listeners: &[Listener]) -> Option<NotServed> {
    let engine = listeners.iter().filter(|socket| socket.ipv6).filter_map(|socket| {
        let owner = socket.owner.as_ref().filter(|owner| owner.engine.is_some())?;
        let (protocol, port, address, process) = (socket.protocol, socket.port, socket.address, owner.process.clone());
        Some(EngineListener { protocol, port, address, process })
    });
    let all = NotServed { engine: engine.collect(), addresses };
    (!all.addresses.is_empty() || !all.engine.is_empty()).then_some(all)
}

/// Neither loopback nor link-local nor a group; private ranges count as global, as the kernel's scope has it.
fn is_global(ip: &Ipv6Addr) -> bool {
    !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listeners::{EngineProcess, Owner};

    #[test]
    fn addresses_and_an_engines_sockets_are_named() {
        let socket = |ipv6, engine| Listener {
            protocol: "tcp",
            port: 8080,
            address: "::".parse().unwrap(),
            ipv4: true,
            ipv6,
            owner: Some(Owner { pid: 1, process: "dockerd".into(), engine }),
        };
        let engine = Some(EngineProcess::Daemon);
        assert_eq!(of(vec![], &[socket(true, None), socket(false, engine)]), None);
        let found = of(vec![], &[socket(true, engine)]).unwrap();
        assert_eq!((found.engine[0].port, found.engine[0].process.as_str()), (8080, "dockerd"));
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        assert_eq!(of(vec![address], &[]).unwrap().addresses, [address]);
        assert_eq!(not_served(false, &[socket(true, engine)]), Ok(None));
        let global = |text: &str| is_global(&text.parse().unwrap());
        assert!(global("2001:db8::1") && global("fd00::1") && !global("fe80::1") && !global("::1"));
    }
}
