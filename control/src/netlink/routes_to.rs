//! Asks the kernel how packets get to other nodes: routes and neighbours.

use std::{collections::BTreeSet, net::Ipv4Addr};

use hiveway_core::next_hop::{Neighbour, Neighbours, Route, Underlay};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMetric, RouteNextHopFlags, RouteType},
};
use rtnetlink::RouteMessageBuilder;

use super::{
    Error, Socket,
    observe::{mac, neighbour_messages},
};

/// The interface with this index; `None`: there is none.
///
/// # Errors
/// When the kernel refuses the request.
pub async fn underlay(socket: &Socket, index: u32) -> Result<Option<Underlay>, Error> {
    let mut answer = socket.handle().link().get().match_index(index).execute();
    let what = "look up the underlay interface";
    let link = match socket.next(what, &mut answer).await? {
        Some(Ok(link)) => link,
        Some(Err(error)) => {
            return match Error::from_rtnetlink(what, error) {
                error if error.errno() == Some(libc::ENODEV) => Ok(None),
                error => Err(error),
            };
        }
        None => return Ok(None),
    };
    let mut underlay = Underlay { index, mac: None, mtu: 0 };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => underlay.mtu = *mtu,
            LinkAttribute::Address(bytes) if link.header.flags.contains(LinkFlags::Up) => underlay.mac = mac(bytes),
            _ => {}
        }
    }
    Ok(Some(underlay))
}

/// Where a packet from `from`, an address of this node, to `to` goes that has to leave through the interface, as the
/// tunnel's do. `None`: nowhere.
///
/// # Errors
/// When the request fails; that there is no route is no error.
pub async fn route(socket: &Socket, from: Ipv4Addr, to: Ipv4Addr, interface: u32) -> Result<Option<Route>, Error> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).source_prefix(from, 32);
    let request = request.output_interface(interface).build();
    let mut answer = socket.handle().route().get(request).execute();
    let what = format!("ask for the route to {to}");
    let route = match socket.next(&what, &mut answer).await? {
        Some(Ok(route)) => route,
        Some(Err(error)) => {
            return match Error::from_rtnetlink(what, error) {
                Error::Kernel { .. } => Ok(None),
                error => Err(error),
            };
        }
        None => return Ok(None),
    };
    if route.header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let mut found = Route { next: to, interface: 0, mtu: 0 };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => found.next = *gateway,
            // An IPv6 gateway: its neighbours are not looked at.
            RouteAttribute::Via(_) => return Ok(None),
            RouteAttribute::Oif(index) => found.interface = *index,
            RouteAttribute::Metrics(metrics) => {
                let own = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                found.mtu = own.unwrap_or(0);
            }
            _ => {}
        }
    }
    Ok(Some(found))
}

/// Indices of all interfaces that packets from `from` to `to` may leave through, by the route that the kernel finds:
/// more than one if it has several next hops. Dead ones do not count. Empty: no route, or none that leaves the node.
///
/// # Errors
/// When the request fails; that there is no route is no error.
pub async fn leading(socket: &Socket, from: Ipv4Addr, to: Ipv4Addr) -> Result<BTreeSet<u32>, Error> {
    let mut request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).source_prefix(from, 32).build();
    // The route with all its next hops, instead of the one that a packet would get.
    request.header.flags = RouteFlags::FibMatch;
    let mut answer = socket.handle().route().get(request).execute();
    let what = format!("ask for the routes to {to}");
    let route = match socket.next(&what, &mut answer).await? {
        Some(Ok(route)) => route,
        Some(Err(error)) => {
            return match Error::from_rtnetlink(what, error) {
                Error::Kernel { .. } => Ok(BTreeSet::new()),
                error => Err(error),
            };
        }
        None => return Ok(BTreeSet::new()),
    };
    let mut found = BTreeSet::new();
    for attribute in route.attributes.iter().filter(|_| route.header.kind == RouteType::Unicast) {
        match attribute {
            RouteAttribute::Oif(index) => drop(found.insert(*index)),
            // The kernel keeps the next hops of an interface that is down, and does not use them.
            RouteAttribute::MultiPath(hops) => {
                let used = hops.iter().filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
                found.extend(used.map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The neighbours on an interface that the kernel would send to.
///
/// # Errors
/// When the kernel refuses the request.
pub async fn neighbours(socket: &Socket, interface: u32) -> Result<Neighbours, Error> {
    let here = |entry: &NeighbourMessage| (entry.header.ifindex == interface).then(|| valid(entry)).flatten();
    let found = neighbour_messages(socket, AddressFamily::Inet, Some(interface), "list neighbours", here).await?;
    Ok(found.into_iter().collect())
}

fn valid(entry: &NeighbourMessage) -> Option<(Ipv4Addr, Neighbour)> {
    let stale = match entry.header.state {
        NeighbourState::Stale => true,
        NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe | NeighbourState::Permanent => false,
        _ => return None,
    };
    let (mut ip, mut address) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => ip = Some(*destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => address = mac(bytes),
            _ => {}
        }
    }
    Some((ip?, Neighbour { mac: address?, stale }))
}

/// Has the kernel ask whether a neighbour is still there, as it does before it sends to it. Not for permanent ones,
/// which are none after this.
///
/// # Errors
/// When the kernel refuses the request.
pub async fn confirm(socket: &Socket, interface: u32, neighbour: Ipv4Addr) -> Result<(), Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = interface;
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(neighbour)));
    // Without the flag that would make one.
    socket.request(&format!("confirm the neighbour {neighbour}"), RouteNetlinkMessage::NewNeighbour(message), 0).await
}
