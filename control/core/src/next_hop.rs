//! The route to another node, from what the kernel says of routes and neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use dataplane_common::{addr::Mac, xdp::Hop};

/// The interface that carries the tunnel address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Interface index.
    pub index: u32,
    /// Its MAC; `None`: it has none, or is down.
    pub mac: Option<Mac>,
    /// MTU.
    pub mtu: u32,
}

/// What the routing table says about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Whom it is handed to: a gateway, or the destination itself.
    pub next: Ipv4Addr,
    /// Interface index.
    pub interface: u32,
    /// MTU of the route; 0: none of its own.
    pub mtu: u32,
}

/// A neighbour that the kernel would send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// MAC.
    pub mac: Mac,
    /// Nobody has heard of it for a while, and the kernel asks only when it sends to it itself.
    pub stale: bool,
}

/// Neighbours on the underlay, by address.
pub type Neighbours = BTreeMap<Ipv4Addr, Neighbour>;

/// The limit that the routing table has for the path to a node, for the map `PATHS`, where the interface takes so many
/// bytes; 0: none that is smaller.
pub fn route_mtu(route: Option<&Route>, interface: u16) -> u16 {
    let mtu = route.map_or(0, |route| u16::try_from(route.mtu).unwrap_or(u16::MAX));
    if mtu < interface { mtu } else { 0 }
}

/// The hop to the node with this tunnel address. `None`: there is none that can be told beforehand, and the kernel has
/// to be asked for each packet.
pub fn hop(vtep: Ipv4Addr, route: Option<&Route>, underlay: &Underlay, neighbours: &Neighbours) -> Option<Hop> {
    let route = route.filter(|route| route.interface == underlay.index)?;
    let neighbour = neighbours.get(&route.next)?;
    let mtu = match route.mtu {
        0 => underlay.mtu,
        mtu => mtu.min(underlay.mtu),
    };
    Some(Hop {
        vtep: vtep.octets(),
        ifindex: underlay.index,
        src: underlay.mac?,
        dst: neighbour.mac,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
    })
}

/// Those of the next hops that the kernel must be told to ask whether they are still there.
pub fn to_confirm<'a>(routes: impl IntoIterator<Item = &'a Route>, neighbours: &Neighbours) -> BTreeSet<Ipv4Addr> {
    let stale = |next: &Ipv4Addr| neighbours.get(next).is_some_and(|neighbour| neighbour.stale);
    routes.into_iter().map(|route| route.next).filter(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
    const UNDERLAY: Underlay = Underlay { index: 7, mac: Some([1; 6]), mtu: 1500 };
    const ROUTE: Route = Route { next: GATEWAY, interface: 7, mtu: 0 };

    fn neighbours(stale: bool) -> Neighbours {
        Neighbours::from([(GATEWAY, Neighbour { mac: [9; 6], stale })])
    }

    #[test]
    fn a_hop_needs_route_neighbour_and_interface() {
        let hop = |route: Option<Route>, underlay| hop(VTEP, route.as_ref(), &underlay, &neighbours(true));
        let found = hop(Some(ROUTE), UNDERLAY).unwrap();
        assert_eq!(found, Hop { vtep: VTEP.octets(), ifindex: 7, src: [1; 6], dst: [9; 6], mtu: 1500 });
        assert_eq!(hop(Some(Route { mtu: 1400, ..ROUTE }), UNDERLAY).unwrap().mtu, 1400);
        assert_eq!(hop(Some(Route { mtu: 9000, ..ROUTE }), UNDERLAY).unwrap().mtu, 1500);
        assert_eq!(hop(None, UNDERLAY), None);
        assert_eq!(hop(Some(Route { interface: 8, ..ROUTE }), UNDERLAY), None);
        assert_eq!(hop(Some(Route { next: VTEP, ..ROUTE }), UNDERLAY), None);
        assert_eq!(hop(Some(ROUTE), Underlay { mac: None, ..UNDERLAY }), None);
    }

    #[test]
    fn a_route_limits_what_the_interface_takes() {
        let mtu = |mtu| route_mtu(Some(&Route { mtu, ..ROUTE }), 1500);
        assert_eq!([mtu(0), mtu(1400), mtu(1500), mtu(9000), mtu(70_000)], [0, 1400, 0, 0, 0]);
        assert_eq!(route_mtu(None, 1500), 0);
    }

    #[test]
    fn only_stale_next_hops_are_to_be_confirmed() {
        let routes = [ROUTE, ROUTE, Route { next: VTEP, ..ROUTE }];
        assert_eq!(to_confirm(&routes, &neighbours(true)), BTreeSet::from([GATEWAY]));
        assert_eq!(to_confirm(&routes, &neighbours(false)), BTreeSet::new());
    }
}
