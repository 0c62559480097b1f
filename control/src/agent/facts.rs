//! What only the kernel knows, taken from what was observed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use dataplane_common::mesh::MAX_NODE_ADDRESSES;
use hiveway_core::{
    DEFAULT_GATEWAY_MTU, DEFAULT_HOST_IP, Facts, Settings,
    firewall::LeftEntries,
    model::Places,
    observed::{Kind, Link, Replies, Sandbox},
    plan::DEFAULT_GATEWAY_BRIDGE,
};
use ipnet::Ipv4Net;

use crate::{
    cli::{AgentArgs, MeshReturn},
    engine_mesh::has_ipvs,
    mesh,
    uplinks::{self, Underlay, Uplinks},
};

const DOCKER_BRIDGE: &str = "docker_gwbridge";

/// The gateway bridge to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gateway {
    /// Name.
    pub(super) name: String,
    /// Made by us, or to be made by us.
    pub(super) ours: bool,
}

/// Which bridge is the gateway bridge.
pub(super) fn gateway(args: &AgentArgs, links: &BTreeMap<String, Link>) -> Gateway {
    let is_bridge = |name: &str| links.get(name).is_some_and(|link| link.kind == Kind::Bridge);
    let name = match &args.gwbridge {
        Some(name) => name.clone(),
        None if is_bridge(DOCKER_BRIDGE) => DOCKER_BRIDGE.to_owned(),
        None => DEFAULT_GATEWAY_BRIDGE.to_owned(),
    };
    let ours = links.get(&name).is_none_or(|link| {
        link.is_ours(&name) || (name == DEFAULT_GATEWAY_BRIDGE && link.alias.is_none() && link.kind == Kind::Bridge)
    });
    Gateway { name, ours }
}

/// Whether the subnet of a gateway bridge that we make is nobody else's on this node.
///
/// # Errors
/// Whose it is: two routes would lead there, and containers reach either nobody outside or not one another.
pub(super) fn gateway_subnet(subnet: Ipv4Net, gateway: &Gateway, links: &BTreeMap<String, Link>) -> Result<(), String> {
    if !gateway.ours {
        return Ok(());
    }
    let ours = subnet.trunc();
    // Where another one is wider, ours is the more specific route.
    let overlaps = |other: &Ipv4Net| ours.contains(other);
    let others = links.iter().filter(|(name, link)| **name != gateway.name && !link.is_ours(name) && link.up);
    let found = others.flat_map(|(name, link)| link.addresses.iter().map(move |address| (name, address)));
    found.into_iter().find(|(_, address)| overlaps(&address.trunc())).map_or(Ok(()), |(name, address)| {
        Err(format!("{ours} is taken: {name} has {address}; start the agents with another --gwbridge-subnet"))
    })
}

/// The settings that the desired state depends on.
///
/// # Errors
/// When an adopted gateway bridge has no address, or is no bridge.
pub(super) fn settings(
    args: &AgentArgs,
    vxlan_port: u16,
    gateway: &Gateway,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
) -> Result<Settings, String> {
    let subnet = match links.get(&gateway.name).filter(|_| !gateway.ours) {
        None => args.gwbridge_subnet,
        Some(other) if other.kind != Kind::Bridge => {
            let name = &gateway.name;
            return Err(format!("--gwbridge {name}: {name} is there and is no bridge; name a bridge, or nothing"));
        }
        // With its host bits: they are the containers' next hop.
        Some(bridge) => *bridge
            .addresses
            .first()
            .ok_or_else(|| format!("the adopted gateway bridge {} has no IPv4 address; give it one", gateway.name))?,
    };
    Ok(Settings {
        node: args.node.clone(),
        vtep: None,
        vxlan_port,
        mesh_vni: args.mesh_vni,
        gwbridge: gateway.name.clone(),
        gwbridge_subnet: subnet,
        gateway_mtu: uplinks.mtu.min(DEFAULT_GATEWAY_MTU),
        mesh_allow: args.mesh_allow(),
        mesh_deny: args.mesh_deny(),
        mesh_addresses: args.mesh_addresses(),
        direct_return: args.mesh_return == MeshReturn::Dsr,
        host_ip: DEFAULT_HOST_IP,
        mesh_refused: None,
    })
}

/// Whether tunnels can still arrive: the tunnel address is on an interface, and the uplinks are there and up.
///
/// # Errors
/// What is wrong.
pub(super) fn underlay(
    args: &AgentArgs,
    vtep: Ipv4Addr,
    links: &BTreeMap<String, Link>,
    uplinks: &Uplinks,
) -> Result<(), String> {
    if let Underlay::Named(names) = args.underlay()
        && let Some(gone) = names.iter().find(|name| !links.contains_key(*name))
    {
        return Err(format!("interface {gone} is gone"));
    }
    uplinks::check(&args.underlay(), links, vtep)?;
    let down = uplinks.names.iter().find(|name| links.get(*name).is_some_and(|link| !link.up));
    down.map_or(Ok(()), |name| Err(format!("interface {name} is down")))
}

/// Interface indices and the addresses that clients talk to, as if all of tasks' interfaces had been up.
///
/// # Errors
/// When the interfaces that `--underlay` names are gone.
pub(super) fn facts(
    args: &AgentArgs,
    links: &BTreeMap<String, Link>,
    gateway: &Gateway,
    sandboxes: &BTreeMap<String, Sandbox>,
    uplinks: &Uplinks,
    replies: &BTreeMap<String, Replies>,
    left: LeftEntries,
) -> Result<Facts, String> {
    if let Underlay::Named(names) = args.underlay()
        && uplinks.names.is_empty()
    {
        return Err(format!(
            "underlay interface {} is gone; maps stay as they are until it is back",
            Underlay::Named(names)
        ));
    }
    Ok(Facts {
        ifindex: links.iter().map(|(name, link)| (name.clone(), link.index)).collect(),
        unopened: BTreeSet::new(),
        underlay_ifindex: uplinks.only,
        underlay_mac: uplinks.mac,
        underlay_mtu: u16::try_from(uplinks.mtu).unwrap_or(u16::MAX),
        underlay_ip: uplinks.own_address,
        node_addresses: Answering::new(args.mesh_addresses().as_ref(), links, &gateway.name).known,
        carried: mesh::carried(links),
        engine_balances: has_ipvs(),
        left,
        sandboxes: sandboxes.clone(),
        replies: replies.clone(),
    })
}

/// Addresses of this node that published ports can answer at: all that the map holds, but for the host link's.
pub const MAX_ANSWERING: usize = MAX_NODE_ADDRESSES as usize - 1;

/// This node's addresses, as far as published ports are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answering {
    /// No more than the map holds, with the index of the interface that carries each. Addresses that `--mesh-addresses`
    /// does not name are here, too, as long as there is room: the programs ask which class they are of.
    pub(super) known: BTreeMap<Ipv4Addr, u32>,
    /// Those of them at which published ports answer.
    pub(super) at: Vec<Ipv4Addr>,
    /// At how many they would answer with enough room.
    pub(super) wanted: usize,
}

impl Answering {
    /// On a node with these links. `bound`: `--mesh-addresses`. What there is no room for are the last ones in
    /// numerical order, those that are not bound first.
    pub(super) fn new(bound: Option<&Places>, links: &BTreeMap<String, Link>, gateway: &str) -> Self {
        let all = mesh::addresses(links, gateway);
        let carried = mesh::carried(links);
        let nets = bound.map(|places| places.nets(&|name| carried.get(name).cloned().unwrap_or_default()));
        let answers = |ip: Ipv4Addr| nets.as_ref().is_none_or(|nets| nets.contains(ip));
        let (mut known, others): (BTreeMap<_, _>, BTreeMap<_, _>) = all.into_iter().partition(|(ip, _)| answers(*ip));
        let wanted = known.len();
        while known.len() > MAX_ANSWERING {
            known.pop_last();
        }
        let at = known.keys().copied().collect();
        let room = MAX_ANSWERING - known.len();
        known.extend(others.into_iter().take(room));
        Self { known, at, wanted }
    }

    /// Whether there is room for all at which published ports should answer.
    ///
    /// # Errors
    /// For how many there is none.
    pub(super) fn fits(&self) -> Result<(), String> {
        let cut = self.wanted - self.at.len();
        if cut == 0 {
            return Ok(());
        }
        Err(format!(
            "published ports should answer at {} addresses of this node, and do at {MAX_ANSWERING} at most: the last {cut} \
             in numerical order are left to the stack; name those that matter with --mesh-addresses",
            self.wanted
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const GATEWAY: &str = "docker_gwbridge";

    /// eth0 with so many addresses from 10.0.0.1 on, eth1 with one above them.
    fn node(count: usize) -> BTreeMap<String, Link> {
        let other = || Kind::Other(String::new());
        let first = u32::from(Ipv4Addr::new(10, 0, 0, 1));
        let many: BTreeSet<Ipv4Net> = (first..).take(count).map(|ip| Ipv4Addr::from(ip).into()).collect();
        let eth0 = Link { addresses: many, ..Link::new(2, other()) };
        let eth1 = Link { addresses: BTreeSet::from([LAST.into()]), ..Link::new(3, other()) };
        BTreeMap::from([("eth0".to_owned(), eth0), ("eth1".to_owned(), eth1)])
    }

    const LAST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn answering(bound: &str, count: usize) -> Answering {
        let places = (!bound.is_empty()).then(|| Places::parse(bound).unwrap());
        Answering::new(places.as_ref(), &node(count), GATEWAY)
    }

    #[test]
    fn the_gateway_subnet_is_nobody_elses() {
        let gateway = |ours| Gateway { name: GATEWAY.to_owned(), ours };
        let mut links = node(1);
        let at = |address: &str| [address.parse().unwrap()].into();
        let bridge = |address: &str| Link { addresses: at(address), up: true, ..Link::new(9, Kind::Bridge) };
        links.insert(GATEWAY.to_owned(), bridge("172.18.0.1/16"));
        let asked = |subnet: &str, ours, links: &_| gateway_subnet(subnet.parse().unwrap(), &gateway(ours), links);
        assert_eq!(asked("172.18.0.0/16", true, &links), Ok(()), "its own");
        links.insert("br-docker".to_owned(), bridge("172.18.0.1/16"));
        let why = asked("172.18.0.0/16", true, &links).unwrap_err();
        assert!(why.contains("br-docker has 172.18.0.1/16") && why.contains("--gwbridge-subnet"), "{why}");
        assert!(asked("172.16.0.0/12", true, &links).is_err(), "around it");
        assert_eq!(asked("172.18.4.0/24", true, &links), Ok(()), "within it");
        links.get_mut("eth0").unwrap().up = true;
        assert!(asked("10.0.0.0/24", true, &links).unwrap_err().contains("eth0"), "an address of the node's");
        assert_eq!(asked("172.19.0.0/16", true, &links), Ok(()));
        assert_eq!(asked("172.18.0.0/16", false, &links), Ok(()), "the engine's business");
    }

    #[test]
    fn as_many_as_the_map_holds_all_answer() {
        let all = answering("", MAX_ANSWERING - 1);
        assert_eq!((all.known.len(), all.at.len(), all.wanted), (MAX_ANSWERING, MAX_ANSWERING, MAX_ANSWERING));
        assert_eq!(all.known.get(&LAST), Some(&3));
        assert_eq!(all.fits(), Ok(()));
    }

    #[test]
    fn what_there_is_no_room_for_is_left_out_everywhere_and_said() {
        let all = answering("", MAX_ANSWERING + 4);
        assert_eq!((all.known.len(), all.at.len(), all.wanted), (MAX_ANSWERING, MAX_ANSWERING, MAX_ANSWERING + 5));
        assert!(!all.known.contains_key(&LAST) && !all.at.contains(&LAST), "the highest goes first");
        assert!(all.at.iter().eq(all.known.keys()), "what is shown is what the map holds");
        let why = all.fits().unwrap_err();
        assert!(why.contains("at 16388 addresses") && why.contains("the last 5"), "{why}");
    }

    #[test]
    fn addresses_that_are_bound_are_kept_and_the_others_cut() {
        for bound in ["eth1", "192.0.2.0/24"] {
            let bound = answering(bound, MAX_ANSWERING + 4);
            assert_eq!((bound.at.as_slice(), bound.wanted), ([LAST].as_slice(), 1));
            assert_eq!((bound.known.len(), bound.known.get(&LAST)), (MAX_ANSWERING, Some(&3)));
            assert_eq!(bound.fits(), Ok(()), "nothing is missing that was asked for");
        }
        let too_many = answering("eth0", MAX_ANSWERING + 4);
        assert_eq!((too_many.at.len(), too_many.known.len()), (MAX_ANSWERING, MAX_ANSWERING));
        assert!(too_many.fits().unwrap_err().contains("the last 4"));
    }
}
