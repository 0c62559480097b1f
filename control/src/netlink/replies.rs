//! Which clients' replies leave a task's namespace by the gateway bridge: asked of the kernel, once for each prefix
//! that its routing tables and rules have, so that rules, metrics and other tables count as they do for the replies
//! themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use hiveway_core::observed::{Inside, Replies};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{Error, Socket};

/// That many prefixes of a namespace are asked about, the shortest ones: each costs a request in each round.
const MOST: usize = 256;
/// Addresses that a default route is tried with, if no other route holds them: documentation's (RFC 5737) and some
/// more.
const ANYWHERE: [Ipv4Addr; 6] = [
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(1, 0, 0, 1),
    Ipv4Addr::new(129, 0, 0, 1),
    Ipv4Addr::new(223, 255, 255, 1),
];

/// Where the replies of a task go whose interface on the gateway bridge has an address in `gateway`; nothing if there
/// is no such interface (yet).
///
/// # Errors
/// When a request fails; that there is no route to an address is no error.
pub(super) async fn replies(socket: &Socket, inside: &Inside, gateway: Ipv4Net) -> Result<Replies, Error> {
    let own = inside.links.values().find_map(|link| {
        let own = link.addresses.iter().find(|address| gateway.contains(&address.addr()))?;
        Some((link.index, own.addr()))
    });
    let Some((index, source)) = own else { return Ok(Replies::default()) };
    let mut prefixes: BTreeSet<Ipv4Net> = prefixes(socket).await?;
    // A kernel without policy routing has no rules to list; what the routes say holds all the same.
    match selected(socket).await {
        Ok(mut selected) => prefixes.append(&mut selected),
        // Each question would go through all of them.
        Err(error @ Error::TooMany { .. }) => return Err(error),
        Err(_) => {}
    }
    let mut prefixes: Vec<Ipv4Net> = prefixes.into_iter().collect();
    prefixes.sort_by_key(|net| (net.prefix_len(), net.addr()));
    let more = prefixes.len().saturating_sub(MOST);
    prefixes.truncate(MOST);
    let mut elsewhere = BTreeMap::new();
    for net in &prefixes {
        if let Some(client) = representative(*net, &prefixes) {
            // A socket that is bound to no address has none yet when its answer's route is looked up, and rules may
            // ask.
            let back = interface(socket, client, Some(source)).await? == Some(index)
                && interface(socket, client, None).await? == Some(index);
            elsewhere.insert(*net, !back);
        }
    }
    Ok(Replies { elsewhere, more })
}

/// The destinations of all routes, whatever their table but the one of the namespace's own addresses.
async fn prefixes(socket: &Socket) -> Result<BTreeSet<Ipv4Net>, Error> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = socket.handle().route().get(request).execute();
    let messages: Vec<RouteMessage> = socket.collect("list routes", routes).await?;
    Ok(messages.iter().filter_map(prefix).collect())
}

/// The destinations that rules select (`ip rule add to ...`): their table may have no more than a default route.
async fn selected(socket: &Socket) -> Result<BTreeSet<Ipv4Net>, Error> {
    let rules = socket.handle().rule().get(IpVersion::V4).execute();
    let messages: Vec<RuleMessage> = socket.collect("list routing rules", rules).await?;
    Ok(messages.iter().filter_map(destination).collect())
}

fn destination(rule: &RuleMessage) -> Option<Ipv4Net> {
    let to = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    })?;
    client_net(to, rule.header.dst_len)
}

fn prefix(message: &RouteMessage) -> Option<Ipv4Net> {
    let header = &message.header;
    let aside =
        matches!(header.kind, RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Throw);
    if header.table == libc::RT_TABLE_LOCAL || aside {
        return None;
    }
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(*ip),
        _ => None,
    });
    client_net(to.unwrap_or(Ipv4Addr::UNSPECIFIED), header.destination_prefix_length)
}

/// The prefix, if a client may be in it.
fn client_net(ip: Ipv4Addr, length: u8) -> Option<Ipv4Net> {
    let net = Ipv4Net::new(ip, length).ok()?.trunc();
    (!net.addr().is_multicast() && !net.addr().is_loopback()).then_some(net)
}

/// An address in `net` and in none of the `prefixes` inside it; `None`: they hold all of it, as far as its edges tell.
fn representative(net: Ipv4Net, prefixes: &[Ipv4Net]) -> Option<Ipv4Addr> {
    let inner: Vec<_> = prefixes.iter().filter(|other| **other != net && net.contains(*other)).collect();
    let step = |ip: Ipv4Addr, by: i64| u32::try_from(i64::from(ip.to_bits()) + by).ok().map(Ipv4Addr::from_bits);
    let edges =
        [net].into_iter().flat_map(|net| [step(net.network(), 1), step(net.broadcast(), -1), Some(net.network())]);
    let beside = inner.iter().flat_map(|other| [step(other.broadcast(), 1), step(other.network(), -1)]);
    let real = |ip: &Ipv4Addr| !(ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240);
    let all = ANYWHERE.into_iter().chain(edges.chain(beside).flatten());
    all.filter(real).find(|ip| net.contains(ip) && !inner.iter().any(|other| other.contains(ip)))
}

/// The interface by which a packet from `source` to `client` leaves; `None`: it leaves by none.
async fn interface(socket: &Socket, client: Ipv4Addr, source: Option<Ipv4Addr>) -> Result<Option<u32>, Error> {
    let request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(client, 32);
    let request = match source {
        Some(source) => request.source_prefix(source, 32),
        None => request,
    };
    let mut answer = socket.handle().route().get(request.build()).execute();
    let what = format!("ask for the route to {client}");
    match socket.next(&what, &mut answer).await? {
        Some(Ok(route)) => Ok(route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })),
        Some(Err(error)) => match Error::from_rtnetlink(what, error) {
            Error::Kernel { .. } => Ok(None),
            error => Err(error),
        },
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_what_is_left_of_its_prefix() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        let all = nets(&["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/10", "192.0.2.0/24", "198.51.100.7/32"]);
        for net in &all {
            let ip = representative(*net, &all).unwrap();
            let longest = all.iter().filter(|other| other.contains(&ip)).max_by_key(|other| other.prefix_len());
            assert_eq!(longest, Some(net), "{ip}");
        }
        // As some VPNs do it: nothing is left to the default route.
        let halves = nets(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(representative(halves[0], &halves), None);
        assert!(representative(halves[1], &halves).is_some() && representative(halves[2], &halves).is_some());
    }
}
