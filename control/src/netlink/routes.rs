//! Reads the routes of a namespace.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use rtnetlink::RouteMessageBuilder;

use super::{Error, ROUTE_PROTOCOL, Socket};

/// A unicast IPv4 route of the main table over one interface.
pub(super) struct Route {
    pub(super) to: Ipv4Net,
    pub(super) via: Option<Ipv4Addr>,
    /// Index.
    pub(super) interface: u32,
    /// 0: none of its own.
    pub(super) mtu: u32,
    /// We have added it.
    pub(super) ours: bool,
}

/// All such routes.
///
/// # Errors
/// When the kernel refuses the request.
pub(super) async fn list(socket: &Socket) -> Result<Vec<Route>, Error> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let messages: Vec<RouteMessage> =
        socket.collect("list routes", socket.handle().route().get(request).execute()).await?;
    Ok(messages.iter().filter_map(parse).collect())
}

fn parse(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let (mut to, mut via, mut interface, mut mtu) = (Ipv4Addr::UNSPECIFIED, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = Some(*ip),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                let own = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                mtu = own.unwrap_or(0);
            }
            _ => {}
        }
    }
    let to = Ipv4Net::new(to, header.destination_prefix_length).ok()?;
    let ours = header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
    Some(Route { to, via, interface: interface?, mtu, ours })
}
