//! Reads the inside of a task's namespace.

use std::{collections::BTreeMap, net::Ipv4Addr};

use futures::TryStreamExt;
use hiveway_core::observed::{InnerLink, Inside};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use rtnetlink::RouteMessageBuilder;

use super::{
    Error, ROUTE_PROTOCOL, Socket,
    observe::{addresses, infos, links, mac, name},
};

/// Links, addresses and routes with a next hop.
///
/// # Errors
/// When the kernel refuses a request.
pub(super) async fn observe_inside(socket: &Socket) -> Result<Inside, Error> {
    let mut inside = Inside::default();
    let mut addresses = addresses(socket).await?;
    let mut routes = routes(socket).await?;
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

/// IPv4 routes of the main table that have a next hop, by interface index.
async fn routes(socket: &Socket) -> Result<BTreeMap<u32, Routes>, Error> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let messages: Vec<RouteMessage> = socket
        .handle()
        .route()
        .get(request)
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::from_rtnetlink("list routes", error))?;
    let mut found = BTreeMap::<u32, Routes>::new();
    for message in messages {
        let header = &message.header;
        if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
            continue;
        }
        let (mut to, mut via, mut interface) = (Ipv4Addr::UNSPECIFIED, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = *ip,
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = Some(*ip),
                RouteAttribute::Oif(index) => interface = Some(*index),
                _ => {}
            }
        }
        let to = Ipv4Net::new(to, header.destination_prefix_length);
        if let (Ok(to), Some(via), Some(interface)) = (to, via, interface) {
            let ours = header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
            found.entry(interface).or_default().insert((to, via), ours);
        }
    }
    Ok(found)
}
