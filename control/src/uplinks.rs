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

use crate::{
    mesh::is_container_bridge,
    netlink::{Error, Socket, leading},
    seldom::Seldom,
};

const LOOPBACK: &str = "lo";
/// Requests under way together.
const AT_ONCE: usize = 64;

/// `--underlay`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// The interface that carries the tunnel address, unless that is where nothing arrives, and those that the routes
    /// to other nodes lead through, as far as [`choose`] believes where those are.
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
    /// Interfaces that routes to other nodes lead through and that are no uplinks all the same, and why.
    pub left_out: BTreeMap<String, String>,
}

impl Uplinks {
    /// What an operator should know of interfaces that are no uplinks.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.left_out.iter().map(|(name, why)| left_out(name, why))
    }

    /// What the log says of interfaces that are left out for another reason than `before`. Nodes choose what they
    /// claim, and may claim something else all the time: one line for each interface and minute.
    pub(crate) fn news(&self, before: &Self, seldom: &Seldom) -> Vec<String> {
        let news = self.left_out.iter().filter(|(name, why)| before.left_out.get(*name) != Some(*why));
        news.filter_map(|(name, why)| Some(left_out(name, why) + &seldom.say(name)?)).collect()
    }

    /// Whether nothing has changed but what is left out, and why.
    pub(crate) fn carry_as(&self, before: &Self) -> bool {
        Self { left_out: BTreeMap::new(), ..self.clone() } == Self { left_out: BTreeMap::new(), ..before.clone() }
    }

    /// Their names, separated by commas; `none` without any.
    pub fn text(&self) -> String {
        if self.names.is_empty() {
            return "none".to_owned();
        }
        self.names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

fn left_out(name: &str, why: &str) -> String {
    format!(
        "a route to another node leads over {name}, which is no uplink: {why}; if tunnels are to arrive there, name all \
         uplinks with --underlay"
    )
}

/// Another node's tunnel address, and who vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Tunnel address.
    pub vtep: Ipv4Addr,
    /// The node, if its own agent alone says that its tunnels end there; `None`: the operator's table says so, or the
    /// manager has seen the node at this address.
    pub claimed_by: Option<String>,
}

/// Indices of the interfaces that the routes to other nodes lead through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// To tunnel addresses that the table or the manager vouches for.
    pub known: BTreeSet<u32>,
    /// To tunnel addresses that only the nodes themselves claim; one of these nodes, with its address.
    pub claimed: BTreeMap<u32, String>,
}

/// What `underlay` means on a node with these links, whose gateway bridge has the name `gateway`.
///
/// A node may claim any tunnel address, and so any route. With `auto` a claim makes an interface an uplink only where
/// this node's tunnel address is on no interface that packets arrive at (`lo`, a dummy device); else the interface
/// that carries it counts, and those that lead to nodes whose address the manager has seen. A bridge of containers is
/// made an uplink by no other node: containers could send tunnels there.
pub fn choose(
    underlay: &Underlay,
    links: &BTreeMap<String, Link>,
    vtep: Ipv4Addr,
    routes: &Routes,
    gateway: &str,
) -> Uplinks {
    let usable =
        |name: &str, link: &Link| !apart(name, link) && !link.is_ours(name) && link.layer.unsupported().is_none();
    let carrying = || links.iter().filter(|(_, link)| carries(link, vtep));
    let address_is_apart = carrying().next().is_some() && carrying().all(|(name, link)| apart(name, link));
    let leads = |link: &Link| {
        routes.known.contains(&link.index) || (address_is_apart && routes.claimed.contains_key(&link.index))
    };
    let is_uplink = |name: &str, link: &Link| match underlay {
        Underlay::Named(names) => names.contains(name),
        Underlay::Auto => {
            let led = leads(link) && !is_container_bridge(name, link, gateway);
            (carries(link, vtep) || led) && usable(name, link)
        }
    };
    let (chosen, others): (Vec<_>, Vec<_>) = links.iter().partition(|(name, link)| is_uplink(name, link));
    let why = |(name, link): (&String, &Link)| {
        let why = match routes.claimed.get(&link.index) {
            _ if !usable(name, link) => return None,
            Some(node) if !is_container_bridge(name, link, gateway) => {
                format!("only {node} itself says that its tunnels end there")
            }
            None if !routes.known.contains(&link.index) => return None,
            _ => "it is a bridge of containers".to_owned(),
        };
        Some((name.clone(), why))
    };
    let left_out = others.into_iter().filter_map(why).collect();
    let (only, mac) = match chosen[..] {
        [(_, link)] => (link.index, link.mac),
        _ => (0, Mac::default()),
    };
    let mtu = chosen.iter().map(|(_, link)| link.mtu).min().unwrap_or(DEFAULT_GATEWAY_MTU);
    let names = chosen.into_iter().map(|(name, _)| name.clone()).collect();
    Uplinks { names, only, mac, mtu, own_address: None, left_out }
}

/// Asks the kernel where the routes from the tunnel address to `nodes` lead, if `underlay` depends on it.
///
/// # Errors
/// When a request fails.
pub async fn routes(
    socket: &Socket,
    underlay: &Underlay,
    vtep: Ipv4Addr,
    nodes: impl Iterator<Item = Destination>,
) -> Result<Routes, Error> {
    let mut routes = Routes::default();
    if *underlay != Underlay::Auto {
        return Ok(routes);
    }
    let questions: Vec<_> =
        nodes.map(async |node| Ok::<_, Error>((leading(socket, vtep, node.vtep).await?, node))).collect();
    let found: Vec<_> = futures::stream::iter(questions).buffered(AT_ONCE).try_collect().await?;
    for (interfaces, node) in found {
        match node.claimed_by {
            None => routes.known.extend(interfaces),
            Some(who) => {
                let claim = format!("node {who} ({})", node.vtep);
                for index in interfaces {
                    routes.claimed.entry(index).or_insert_with(|| claim.clone());
                }
            }
        }
    }
    Ok(routes)
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
    const GATEWAY: &str = "hw-gwbridge";

    fn known(routes: &[u32]) -> Routes {
        Routes { known: routes.iter().copied().collect(), ..Routes::default() }
    }

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
        let auto = |on: &str, routes: &[u32]| choose(&Underlay::Auto, &node(on), VTEP, &known(routes), GATEWAY);
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
    fn what_a_node_says_of_itself_makes_no_interface_an_uplink() {
        let claims = |claimed: &[u32]| {
            let claimed = claimed.iter().map(|index| (*index, "node evil (172.17.0.77)".to_owned())).collect();
            Routes { claimed, ..known(&[2]) }
        };
        let mut with_bridge = node("eth0");
        with_bridge.insert("docker0".to_owned(), Link { kind: Kind::Bridge, ..link(4, "172.17.0.1/16") });
        let found = choose(&Underlay::Auto, &with_bridge, VTEP, &claims(&[1, 2, 3, 4]), GATEWAY);
        assert_eq!((names(&found), found.only, found.mtu), (vec!["eth0"], 2, 1500));
        let said: Vec<_> = found.warnings().collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("over docker0, which is no uplink: it is a bridge of containers"), "{said:?}");
        assert!(said[1].contains("over eth1") && said[1].contains("only node evil (172.17.0.77) itself"), "{said:?}");
        // Where the manager has seen a node, one of an engine on this node's bridge, say.
        let found = choose(&Underlay::Auto, &with_bridge, VTEP, &known(&[2, 4]), GATEWAY);
        assert_eq!((names(&found), found.left_out.len()), (vec!["eth0"], 1));
        // An operator's word.
        let named = "eth0,docker0".parse().unwrap();
        let found = choose(&named, &with_bridge, VTEP, &Routes::default(), GATEWAY);
        assert_eq!((names(&found), found.left_out.len()), (vec!["docker0", "eth0"], 0));
    }

    #[test]
    fn claims_that_change_all_the_time_are_told_once_a_minute() {
        let claims = |n: u32| {
            let claim = |index| (index, format!("node evil ({})", Ipv4Addr::from_bits(0x0a00_0000 + n)));
            let routes = Routes { claimed: [claim(2 + n % 2)].into(), ..known(&[]) };
            choose(&Underlay::Auto, &node("nowhere"), VTEP, &routes, GATEWAY)
        };
        let (seldom, mut before, mut said) = (Seldom::default(), claims(0), Vec::new());
        said.extend(before.news(&Uplinks::default(), &seldom));
        for n in 1..1000 {
            let found = claims(n);
            assert!(found != before && found.carry_as(&before));
            said.extend(found.news(&before, &seldom));
            before = found;
        }
        assert_eq!(said.len(), 2, "one of each interface: {said:?}");
        assert!(said[0].contains("over eth0") && said[1].contains("over eth1"), "{said:?}");
    }

    /// `--data-path-addr`: no manager has seen the nodes where their tunnels end.
    #[test]
    fn own_tunnel_addresses_lead_over_the_carrier_or_from_lo_over_all_but_containers() {
        let claimed =
            Routes { claimed: [2, 3].map(|index| (index, "node n2 (10.0.1.2)".to_owned())).into(), ..known(&[]) };
        let auto = |on: &str| choose(&Underlay::Auto, &node(on), VTEP, &claimed, GATEWAY);
        let on_eth1 = auto("eth1");
        assert_eq!((names(&on_eth1), on_eth1.only), (vec!["eth1"], 3));
        assert_eq!(on_eth1.left_out.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!(names(&auto("lo")), ["eth0", "eth1"]);
        assert!(names(&auto("nowhere")).is_empty());
        let mut bridged = node("lo");
        bridged.get_mut("eth0").unwrap().kind = Kind::Bridge;
        let eth0 = bridged.remove("eth0").unwrap();
        for (name, found) in
            [("br-lan", vec!["br-lan", "eth1"]), ("br-0123456789ab", vec!["eth1"]), (GATEWAY, vec!["eth1"])]
        {
            let links = bridged.clone().into_iter().chain([(name.to_owned(), eth0.clone())]).collect();
            assert_eq!(names(&choose(&Underlay::Auto, &links, VTEP, &claimed, GATEWAY)), found);
        }
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
