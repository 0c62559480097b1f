//! The host link: what the planner's steps for it do, and what is there.

use std::{fs, net::Ipv4Addr, path::PathBuf};

use dataplane_common::addr::{HOST_MAC, HOST_PEER_MAC};
use hiveway_core::{
    names::{HOST, HOST_FAR},
    observed::HostEnd,
    plan::host_alias,
};
use netlink_packet_route::{
    link::{InfoData, InfoVeth},
    route::{RouteAttribute, RouteMetric, RouteProtocol, RouteScope},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Error, ROUTE_PROTOCOL, Socket, links, observe, routes};

/// Makes the pair, both ends down.
pub(super) async fn create(node: &Socket, what: &str, mtu: u32) -> Result<(), Error> {
    let far = LinkMessageBuilder::<LinkUnspec>::new()
        .name(HOST_FAR.to_owned())
        .mtu(mtu)
        .address(HOST_PEER_MAC.to_vec())
        .build();
    let near = LinkMessageBuilder::<LinkVeth>::new(HOST, HOST_FAR)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
        .mtu(mtu)
        .address(HOST_MAC.to_vec())
        .build();
    links::create(node, what, near).await?;
    for name in [HOST, HOST_FAR] {
        links::label(node, name, &host_alias(name)).await?;
    }
    Ok(())
}

/// Adds the route to the address that stands for published ports, or replaces it.
pub(super) async fn route(node: &Socket, what: &str, to: Ipv4Addr, mtu: u32) -> Result<(), Error> {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(to, 32)
        .output_interface(node.index(HOST).await?)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .build();
    route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    let request = node.handle().route().add(route).replace();
    request.execute().await.map_err(|error| Error::from_rtnetlink(what, error))
}

/// Clients at 127.0.0.1 are translated only after their packets have been routed out, and their answers before.
pub(super) fn set_route_localnet(what: &str, name: &str) -> Result<(), Error> {
    fs::write(route_localnet(name), "1\n").map_err(|source| Error::Kernel { what: what.to_owned(), source })
}

fn route_localnet(name: &str) -> PathBuf {
    ["/proc/sys/net/ipv4/conf", name, "route_localnet"].iter().collect()
}

/// What belongs to the near end, which has that interface index. Sysctls are those of the caller's namespace.
///
/// # Errors
/// When the kernel refuses a request.
pub async fn observe_host(socket: &Socket, index: u32) -> Result<HostEnd, Error> {
    let neighbours = observe::permanent_neighbours(socket, Some(index)).await?;
    let routes = routes::list(socket).await?;
    let over = routes.into_iter().filter(|route| route.interface == index);
    Ok(HostEnd {
        routes: over.map(|route| (route.to, route.mtu)).collect(),
        neighbours: neighbours.into_iter().filter(|entry| entry.0 == index).map(|(_, ip, mac)| (ip, mac)).collect(),
        route_localnet: fs::read_to_string(route_localnet(HOST)).is_ok_and(|text| text.trim() == "1"),
    })
}
