//! Reads the inside of a task's namespace.

use std::{collections::BTreeMap, net::Ipv4Addr};

use hiveway_core::observed::{InnerLink, Inside};
use ipnet::Ipv4Net;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::{
    Error, Socket,
    observe::{addresses, infos, links, mac, name},
    routes,
};

/// Links, addresses and routes with a next hop.
///
/// # Errors
/// When the kernel refuses a request.
pub(super) async fn observe_inside(socket: &Socket) -> Result<Inside, Error> {
    let mut inside = Inside::default();
    let mut addresses = addresses(socket).await?;
    let mut routes = with_next_hop(socket).await?;
    for message in links(socket).await? {
        let Some(name) = name(&message) else { continue };
        if message.header.flags.contains(LinkFlags::Loopback) {
            inside.loopback_up |= message.header.flags.contains(LinkFlags::Up);
            continue;
        }
        let mut link = parse(&message);
        link.addresses = addresses.remove(&link.index).unwrap_or_default();
        link.routes = routes.remove(&link.index).unwrap_or_default();
        inside.links.insert(name.to_owned(), link);
    }
    Ok(inside)
}

fn parse(message: &LinkMessage) -> InnerLink {
    let mut link = InnerLink {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..InnerLink::default()
    };
    let mut far = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Link(index) => far = Some(*index),
            _ => {}
        }
    }
    let veth = infos(message).any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
    link.peer = far.filter(|_| veth);
    link
}

type Routes = BTreeMap<(Ipv4Net, Ipv4Addr), bool>;

/// IPv4 routes that have a next hop, by interface index.
async fn with_next_hop(socket: &Socket) -> Result<BTreeMap<u32, Routes>, Error> {
    let mut found = BTreeMap::<u32, Routes>::new();
    for route in routes::list(socket).await? {
        if let Some(via) = route.via {
            found.entry(route.interface).or_default().insert((route.to, via), route.ours);
        }
    }
    Ok(found)
}
