//! `--underlay`: the interfaces where other nodes' VXLAN arrives, and through which ours leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    str::FromStr,
};

use dataplane_common::addr::Mac;
use futures::{StreamExt, TryStreamExt};
use hiveway_core::{
    DEFAULT_GATEWAY_MTU,
    observed::{Kind, Link},
};

use crate::netlink::{Error, Socket, leading};

const LOOPBACK: &str = "lo";
/// Requests under way together.
const AT_ONCE: usize = 64;

/// `--underlay`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// The interface that carries the tunnel address, unless that is where nothing arrives, and those that the routes to
    /// other nodes lead through.
    #[default]
    Auto,
    /// These.
    Named(BTreeSet<String>),
}

impl FromStr for Underlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let names: BTreeSet<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let sane = |name: &str| !name.is_empty() && name.len() <= 15 && !name.contains(['/', ' ', ':']);
        if names.contains(LOOPBACK) {
            return Err(
                "nothing arrives on lo from other nodes: name the interfaces that lead to them, or `auto`".into()
            );
        }
        if names.contains("auto") || !names.iter().all(|name| sane(name) && name != "." && name != "..") {
            return Err("not `auto`, nor interface names of 1 to 15 characters separated by commas".into());
        }
        Ok(Self::Named(names))
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Named(names) => f.write_str(&names.iter().map(String::as_str).collect::<Vec<_>>().join(",")),
        }
    }
}

/// What `--underlay` means now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Names of the interfaces that exist.
    pub names: BTreeSet<String>,
    /// The only one's index; 0 if there is not exactly one: then the routing table is asked for each packet.
    pub only: u32,
    /// Its MAC; zero if there is not exactly one, or it has none.
    pub mac: Mac,
    /// The smallest MTU of all.
    pub mtu: u32,
    /// The node's own address where tunnels arrive, if that is not the one that other nodes know.
    pub own_address: Option<Ipv4Addr>,
}

impl Uplinks {
    /// Their names, separated by commas; `none` without any.
    pub fn text(&self) -> String {
        if self.names.is_empty() {
            return "none".to_owned();
        }
        self.names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

/// What `underlay` means on a node with these links. `routes`: indices of the interfaces that routes to other nodes lead
/// through.
pub fn choose(underlay: &Underlay, links: &BTreeMap<String, Link>, vtep: Ipv4Addr, routes: &BTreeSet<u32>) -> Uplinks {
    let leads = |name: &str, link: &Link| match underlay {
        Underlay::Named(names) => names.contains(name),
        Underlay::Auto => {
            let here = carries(link, vtep) || routes.contains(&link.index);
            here && !apart(name, link) && !link.is_ours(name) && link.layer.unsupported().is_none()
        }
    };
    let chosen: Vec<_> = links.iter().filter(|(name, link)| leads(name, link)).collect();
    let (only, mac) = match chosen[..] {
        [(_, link)] => (link.index, link.mac),
        _ => (0, Mac::default()),
    };
    let mtu = chosen.iter().map(|(_, link)| link.mtu).min().unwrap_or(DEFAULT_GATEWAY_MTU);
    Uplinks { names: chosen.into_iter().map(|(name, _)| name.clone()).collect(), only, mac, mtu, own_address: None }
}

/// Asks the kernel where the routes from the tunnel address to `nodes` lead, if `underlay` depends on it.
///
/// # Errors
/// When a request fails.
pub async fn routes(
    socket: &Socket,
    underlay: &Underlay,
    vtep: Ipv4Addr,
    nodes: impl Iterator<Item = Ipv4Addr>,
) -> Result<BTreeSet<u32>, Error> {
    if *underlay != Underlay::Auto {
        return Ok(BTreeSet::new());
    }
    let questions: Vec<_> = nodes.map(|node| leading(socket, vtep, node)).collect();
    let found: Vec<_> = futures::stream::iter(questions).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Whether `--underlay` can be what it says, on a node with these links.
///
/// # Errors
/// What cannot, naming interface and remedy.
pub fn check(underlay: &Underlay, links: &BTreeMap<String, Link>, vtep: Ipv4Addr) -> Result<(), String> {
    let carrying: Vec<_> = links.iter().filter(|(_, link)| carries(link, vtep)).collect();
    let Underlay::Named(names) = underlay else {
        return match carrying.first() {
            None => Err(format!("no interface carries this node's tunnel address {vtep}; name one with --underlay")),
            Some((name, link)) => supported(name, link),
        };
    };
    for name in names {
        let Some(link) = links.get(name) else {
            let known = links.keys().filter(|name| *name != LOOPBACK).cloned().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "--underlay: there is no interface {name} in this network namespace; there are: {known}"
            ));
        };
        supported(name, link)?;
    }
    if carrying.iter().any(|(name, link)| names.contains(*name) || apart(name, link)) {
        return Ok(());
    }
    let there: Vec<_> = links.iter().filter(|(name, _)| names.contains(*name)).collect();
    let addresses: Vec<_> = there.iter().flat_map(|(_, link)| &link.addresses).map(|a| a.addr().to_string()).collect();
    let (verb, plural) = if names.len() == 1 { ("does", "interface") } else { ("do", "interfaces") };
    Err(match addresses.is_empty() {
        true => format!(
            "--underlay: {plural} {underlay} has no IPv4 address; give it the node's tunnel address {vtep} first"
        ),
        false => format!(
            "--underlay: {plural} {underlay} {verb} not carry this node's tunnel address {vtep} (it has {}); name the \
             interface that does, or correct the node's `address` or `vtep` in the table; behind a 1:1 NAT, say with \
             --underlay-address which one is its own",
            addresses.join(", ")
        ),
    })
}

/// Whether an address on it waits for packets that arrive elsewhere.
fn apart(name: &str, link: &Link) -> bool {
    name == LOOPBACK || link.kind == Kind::Other("dummy".to_owned())
}

fn supported(name: &str, link: &Link) -> Result<(), String> {
    match link.layer.unsupported() {
        None => Ok(()),
        Some(why) => Err(format!("--underlay: interface {name} cannot carry VXLAN here: {why}; choose another one")),
    }
}

/// Whether an interface carries it.
pub fn carried(links: &BTreeMap<String, Link>, address: Ipv4Addr) -> bool {
    links.values().any(|link| carries(link, address))
}

fn carries(link: &Link, address: Ipv4Addr) -> bool {
    link.addresses.iter().any(|net| net.addr() == address)
}

#[cfg(test)]
mod tests {
    use hiveway_core::observed::Layer;

    use super::*;

    const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn link(index: u32, address: &str) -> Link {
        let addresses = Some(address).filter(|text| !text.is_empty()).map(|text| text.parse().unwrap());
        Link {
            addresses: addresses.into_iter().collect(),
            mac: [2, 0, 0, 0, 0, index as u8],
            ..Link::new(index, Kind::Other(String::new()))
        }
    }

    /// The tunnel address on `on`; two uplinks.
    fn node(on: &str) -> BTreeMap<String, Link> {
        let address = |name: &str, other: &'static str| if name == on { "192.0.2.1/32" } else { other };
        let mut links = BTreeMap::new();
        for (index, name, other) in [(1, "lo", "127.0.0.1/8"), (2, "eth0", "10.0.0.1/31"), (3, "eth1", "10.0.1.1/31")] {
            links.insert(name.to_owned(), link(index, address(name, other)));
        }
        links.get_mut("eth1").unwrap().mtu = 1400;
        links
    }

    fn names(uplinks: &Uplinks) -> Vec<&str> {
        uplinks.names.iter().map(String::as_str).collect()
    }

    #[test]
    fn auto_is_the_carrier_and_where_routes_lead_but_never_lo() {
        let auto =
            |on: &str, routes: &[u32]| choose(&Underlay::Auto, &node(on), VTEP, &routes.iter().copied().collect());
        let one = auto("eth0", &[2]);
        assert_eq!((names(&one), one.only, one.mac, one.mtu), (vec!["eth0"], 2, [2, 0, 0, 0, 0, 2], 1500));
        let two = auto("lo", &[1, 2, 3]);
        assert_eq!((names(&two), two.only, two.mac, two.mtu), (vec!["eth0", "eth1"], 0, [0; 6], 1400));
        assert_eq!(names(&auto("eth0", &[3])), ["eth0", "eth1"]);
        assert_eq!(names(&auto("lo", &[3])), ["eth1"]);
        let none = auto("lo", &[]);
        assert_eq!((none.text(), none.only, none.mtu), ("none".to_owned(), 0, 1500));
    }

    #[test]
    fn the_flag_is_read_and_shown() {
        assert_eq!("auto".parse(), Ok(Underlay::Auto));
        assert!("".parse::<Underlay>().is_err(), "an empty variable is no choice");
        assert_eq!("eth1, eth0".parse::<Underlay>().unwrap().to_string(), "eth0,eth1");
        for bad in ["lo", "eth0,lo", "eth0,auto", "eth0,,eth1", "eth/0", "averyveryverylongname"] {
            bad.parse::<Underlay>().expect_err(bad);
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        let check = |text: &str, links: &BTreeMap<String, Link>| check(&text.parse().unwrap(), links, VTEP);
        assert_eq!(check("eth0", &node("eth0")), Ok(()));
        assert_eq!(check("eth0,eth1", &node("eth1")), Ok(()));
        assert_eq!(check("eth0,eth1", &node("lo")), Ok(()));
        assert_eq!(check("auto", &node("lo")), Ok(()));
        let refused = |text: &str, links: &BTreeMap<String, Link>| check(text, links).unwrap_err();
        assert!(refused("eth9", &node("eth0")).contains("no interface eth9"));
        assert!(refused("eth1", &node("eth0")).contains("does not carry this node's tunnel address 192.0.2.1"));
        assert!(refused("auto", &node("nowhere")).contains("no interface carries"));
        let mut infiniband = node("eth0");
        infiniband.get_mut("eth0").unwrap().layer = Layer::Other(32);
        for text in ["eth0", "auto"] {
            assert!(refused(text, &infiniband).contains("link type 32"), "{text}");
        }
        let mut tunnel = node("eth0");
        tunnel.get_mut("eth0").unwrap().layer = Layer::Ip;
        assert_eq!(check("eth0", &tunnel), Ok(()));
    }
}
