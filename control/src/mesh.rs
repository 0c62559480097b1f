//! Where clients of published ports arrive: which interfaces, and which addresses of this node answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use hiveway_core::{
    desired::Binding,
    model::{ADDRESSES_LABEL, Place, Places, Service},
    observed::{Kind, Link, NAME_PREFIXES},
};
use ipnet::Ipv4Net;

use crate::cli::MeshInterfaces;

/// What this node itself sends to published ports is served elsewhere; nobody else arrives there.
pub const LOOPBACK: &str = "lo";

/// The interfaces that clients arrive at, the uplinks included. `gateway` is the gateway bridge.
pub fn interfaces(
    links: &BTreeMap<String, Link>,
    wanted: &MeshInterfaces,
    uplinks: &BTreeSet<String>,
    gateway: &str,
) -> BTreeSet<String> {
    let chosen: BTreeSet<String> = match wanted {
        MeshInterfaces::Named(names) => names.iter().filter(|name| links.contains_key(*name)).cloned().collect(),
        MeshInterfaces::All => {
            let arrives = |(name, link): &(&String, &Link)| {
                *name != LOOPBACK
                    && faces_clients(name, link, gateway)
                    && link.layer.unsupported().is_none()
                    && link.addresses.iter().any(is_global)
            };
            links.iter().filter(arrives).map(|(name, _)| name.clone()).collect()
        }
    };
    chosen.into_iter().chain(uplinks.iter().cloned()).collect()
}

/// Where clients should arrive and do not: named interfaces that are not there, and those whose link type no program
/// knows.
pub fn left_out(links: &BTreeMap<String, Link>, wanted: &MeshInterfaces, gateway: &str) -> Vec<String> {
    let named: &[String] = match wanted {
        MeshInterfaces::All => &[],
        MeshInterfaces::Named(names) => names,
    };
    let absent = named.iter().filter(|name| !links.contains_key(*name)).map(|name| {
        format!("published ports are not served on {name}: --mesh-interfaces names it, and there is no such interface")
    });
    let meant = |name: &String| *wanted == MeshInterfaces::All || named.contains(name);
    let why = |(name, link): (&String, &Link)| {
        let why = link.layer.unsupported()?;
        let clients = meant(name) && faces_clients(name, link, gateway) && link.addresses.iter().any(is_global);
        clients.then(|| format!("published ports do not answer on {name}: {why}"))
    };
    absent.chain(links.iter().filter_map(why)).collect()
}

/// Entries of `--mesh-addresses` that no address of this node is of. `own`: all of them.
pub fn idle_places(places: &Places, links: &BTreeMap<String, Link>, own: &BTreeMap<Ipv4Addr, u32>) -> Vec<String> {
    let idle = |place: &Place| match place {
        Place::Net(net) if own.keys().any(|address| net.contains(address)) => None,
        // This node's own connections.
        Place::Net(net) if net.addr().is_loopback() => None,
        Place::Interface(name) if name == LOOPBACK => None,
        Place::Net(_) => {
            Some(format!("--mesh-addresses: {place} holds no address of this node; no port answers there"))
        }
        Place::Interface(name) => match links.get(name) {
            None => Some(format!("--mesh-addresses: there is no interface {name} here; no port answers there")),
            Some(link) if link.addresses.iter().any(|address| own.contains_key(&address.addr())) => None,
            Some(_) => Some(format!("--mesh-addresses: {name} has no address that ports could answer at")),
        },
        // Told at the start: no change of the node's addresses makes them answer.
        Place::V6(_) => None,
    };
    places.all().iter().filter_map(idle).collect()
}

/// Interfaces that services' labels name and that are not here, where a port of theirs should answer here (`bound`:
/// those that are bound to some addresses). What a label names besides may be other nodes' on purpose.
pub fn idle_labels<'s>(
    services: impl IntoIterator<Item = &'s Service>,
    bound: &BTreeMap<(u8, u16), Binding>,
    links: &BTreeMap<String, Link>,
) -> Vec<String> {
    let mut idle = Vec::new();
    for service in services {
        let keys = service.ports.iter().filter_map(|port| port.ingress().or_else(|| port.host()));
        let ports: Vec<_> = keys.filter(|key| bound.contains_key(key)).map(|(_, port)| port.to_string()).collect();
        let Some(places) = service.places().filter(|_| !ports.is_empty()) else { continue };
        for place in places.all() {
            if let Place::Interface(name) = place
                && !links.contains_key(name)
            {
                idle.push(format!(
                    "label {ADDRESSES_LABEL} of service {} ({}): there is no interface {name} here; published port {} does \
                     not answer there",
                    service.name,
                    service.id,
                    ports.join(", ")
                ));
            }
        }
    }
    idle
}

/// All addresses of this node, with the index of the interface that carries them: wherever clients arrive, every one
/// answers, those on the loopback device too.
pub fn addresses(links: &BTreeMap<String, Link>, gateway: &str) -> BTreeMap<Ipv4Addr, u32> {
    let mine = links.iter().filter(|(name, link)| faces_clients(name, link, gateway));
    mine.flat_map(|(_, link)| link.addresses.iter().filter(|a| is_global(a)).map(|a| (a.addr(), link.index))).collect()
}

/// The addresses that each interface carries, for who names interfaces instead.
pub fn carried(links: &BTreeMap<String, Link>) -> BTreeMap<String, Vec<Ipv4Net>> {
    let alone = |link: &Link| link.addresses.iter().map(|address| address.addr().into()).collect();
    links.iter().map(|(name, link)| (name.clone(), alone(link))).collect()
}

/// Bridges whose ports are containers of this node, which reach published ports through the host link: the gateway
/// bridge, and those that a Docker engine has made.
pub fn container_bridges<'l>(
    links: &'l BTreeMap<String, Link>,
    gateway: &'l str,
) -> impl Iterator<Item = (&'l String, &'l Link)> {
    links.iter().filter(move |(name, link)| is_container_bridge(name, link, gateway))
}

/// Whether it is one of [`container_bridges`].
pub fn is_container_bridge(name: &str, link: &Link, gateway: &str) -> bool {
    link.kind == Kind::Bridge && (name == gateway || is_engines_bridge(name))
}

/// Neither a bridge of containers nor anything else of ours.
fn faces_clients(name: &str, link: &Link, gateway: &str) -> bool {
    let docker = is_engines_bridge(name);
    let ours = link.is_ours(name) || NAME_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    !(name == gateway || ours || (docker && link.kind == Kind::Bridge))
}

/// A bridge that a Docker engine makes, by its name: the default one, the gateway bridge, those of user-defined
/// networks.
fn is_engines_bridge(name: &str) -> bool {
    name == "docker0"
        || name == "docker_gwbridge"
        || name.strip_prefix("br-").is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// An interface whose addresses are for containers only, or one of ours, as far as its name tells.
pub fn is_containers(name: &str) -> bool {
    is_engines_bridge(name) || NAME_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Neither loopback nor link-local nor nonsense; private ranges count as global, as the kernel's scope has it.
fn is_global(address: &Ipv4Net) -> bool {
    let ip = address.addr();
    !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
}

#[cfg(test)]
mod tests {
    use hiveway_core::observed::Layer;

    use super::*;

    fn link(index: u32, kind: Kind, alias: Option<&str>, address: &str) -> Link {
        Link {
            alias: alias.map(str::to_owned),
            addresses: BTreeSet::from([address.parse().unwrap()]),
            ..Link::new(index, kind)
        }
    }

    fn node() -> BTreeMap<String, Link> {
        let other = || Kind::Other(String::new());
        BTreeMap::from([
            ("lo".to_owned(), link(1, other(), None, "127.0.0.1/8")),
            ("eth0".to_owned(), link(2, other(), None, "192.168.77.11/24")),
            ("eth1".to_owned(), link(3, other(), None, "203.0.113.5/24")),
            ("eth2".to_owned(), link(4, other(), None, "169.254.3.4/16")),
            ("docker0".to_owned(), link(5, Kind::Bridge, None, "172.17.0.1/16")),
            ("br-0123456789ab".to_owned(), link(6, Kind::Bridge, None, "172.19.0.1/16")),
            ("br-lan".to_owned(), link(7, Kind::Bridge, None, "10.9.0.1/24")),
            ("hw-gwbridge".to_owned(), link(8, Kind::Bridge, Some("hiveway gwbridge"), "172.18.0.1/16")),
        ])
    }

    fn eth0() -> BTreeSet<String> {
        BTreeSet::from(["eth0".to_owned()])
    }

    #[test]
    fn a_link_type_that_no_program_knows_is_left_out() {
        let mut node = node();
        assert_eq!(left_out(&node, &MeshInterfaces::All, "hw-gwbridge"), Vec::<String>::new());
        node.get_mut("eth1").unwrap().layer = Layer::Other(32);
        assert!(!interfaces(&node, &MeshInterfaces::All, &eth0(), "hw-gwbridge").contains("eth1"));
        let why = left_out(&node, &MeshInterfaces::All, "hw-gwbridge");
        assert!(why.len() == 1 && why[0].contains("on eth1: its link type 32"), "{why:?}");
        node.get_mut("eth1").unwrap().layer = Layer::Ip;
        assert!(interfaces(&node, &MeshInterfaces::All, &eth0(), "hw-gwbridge").contains("eth1"));
    }

    #[test]
    fn what_names_nothing_here_is_told() {
        let named = |names: &[&str]| MeshInterfaces::Named(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(left_out(&node(), &named(&["eth0"]), "hw-gwbridge"), Vec::<String>::new());
        let why = left_out(&node(), &named(&["eth0", "eth9"]), "hw-gwbridge");
        assert!(why.len() == 1 && why[0].contains("on eth9: --mesh-interfaces names it"), "{why:?}");

        let idle = |list: &str| {
            idle_places(&Places::parse(list).unwrap(), &node(), &addresses(&node(), "hw-gwbridge")).join("\n")
        };
        assert_eq!(idle("eth0,192.168.77.0/24,203.0.113.5,0.0.0.0/0,fd00::/8,lo,127.0.0.1"), "");
        for (list, why) in [
            ("192.168.78.0/24", "192.168.78.0/24 holds no address of this node"),
            ("eth0,203.0.113.6", "203.0.113.6/32 holds no address of this node"),
            ("nosuch", "there is no interface nosuch here"),
            ("eth2", "eth2 has no address that ports could answer at"),
            ("172.17.0.1", "172.17.0.1/32 holds no address"),
        ] {
            assert!(idle(list).contains(why), "{list}: {}", idle(list));
        }
    }

    #[test]
    fn an_interface_that_a_label_names_and_that_is_not_here_is_told() {
        let text = "version: 1
services:
  - {id: w, name: web, labels: {hiveway.addresses: \"eth0,eth9,198.51.100.0/24\"},
     ports: [{protocol: tcp, target_port: 80, published_port: 8080}, {protocol: udp, target_port: 53, published_port: 53}]}
  - {id: d, name: dns, labels: {hiveway.addresses: eth8},
     ports: [{protocol: tcp, target_port: 53, published_port: 9053}]}
";
        let model = hiveway_core::table::parse_file(text, std::path::Path::new("t.yaml")).unwrap().model;
        let services = || model.services.values().map(|service| &**service);
        let bound = |keys: &[(u8, u16)]| keys.iter().map(|key| (*key, Binding::default())).collect::<BTreeMap<_, _>>();
        let told = idle_labels(services(), &bound(&[(6, 8080)]), &node());
        assert_eq!(told.len(), 1, "{told:?}");
        let want =
            "label hiveway.addresses of service web (w): there is no interface eth9 here; published port 8080 does";
        assert!(told[0].starts_with(want), "{told:?}");
        assert_eq!(idle_labels(services(), &bound(&[]), &node()), Vec::<String>::new(), "nothing answers here");
        assert_eq!(idle_labels(services(), &bound(&[(6, 8080), (6, 9053)]), &node()).len(), 2);
    }

    #[test]
    fn all_means_where_clients_can_be() {
        let found = interfaces(&node(), &MeshInterfaces::All, &eth0(), "hw-gwbridge");
        assert_eq!(found, ["br-lan", "eth0", "eth1"].map(str::to_owned).into());
    }

    #[test]
    fn bridges_of_containers_are_the_gateway_bridge_and_an_engines() {
        let mut node = node();
        node.insert("br-fedcba987654".to_owned(), link(9, Kind::Other("vlan".into()), None, "172.20.0.1/16"));
        let found: Vec<_> = container_bridges(&node, "hw-gwbridge").map(|(name, _)| name.as_str()).collect();
        assert_eq!(found, ["br-0123456789ab", "docker0", "hw-gwbridge"]);
    }

    #[test]
    fn every_address_of_the_node_answers() {
        let mut node = node();
        node.get_mut("lo").unwrap().addresses.insert("198.51.100.7/32".parse().unwrap());
        let want: [(Ipv4Addr, u32); 4] = [
            ([10, 9, 0, 1].into(), 7),
            ([192, 168, 77, 11].into(), 2),
            ([198, 51, 100, 7].into(), 1),
            ([203, 0, 113, 5].into(), 3),
        ];
        assert_eq!(addresses(&node, "hw-gwbridge"), want.into());
        assert!(!interfaces(&node, &MeshInterfaces::All, &eth0(), "hw-gwbridge").contains("lo"));
    }

    #[test]
    fn the_underlay_is_always_one_of_them() {
        let named = MeshInterfaces::Named(vec!["eth1".into(), "gone".into()]);
        let found = interfaces(&node(), &named, &eth0(), "hw-gwbridge");
        assert_eq!(found, ["eth0", "eth1"].map(str::to_owned).into());
    }
}
