//! What an engine has made is found by looking: by addresses and by both ends of a pair, whatever the names.

use std::collections::{BTreeMap, BTreeSet};

use hiveway_core::{
    Desired, Settings,
    desired::{AttachedTask, OverlayPort},
    observed::{GatewayPort, InnerLink, Inside, Kind, Link, Namespace, OverlayLink},
    sandbox::{Sandboxes, sandboxes},
};

const ID: u32 = 0x8000_0001;

fn settings() -> Settings {
    Settings {
        gwbridge: "docker_gwbridge".into(),
        gwbridge_subnet: "172.18.0.1/16".parse().expect("a subnet"),
        ..Settings::new("n1")
    }
}

fn desired() -> Desired {
    let port = OverlayPort {
        id: ID,
        network: "app".into(),
        net: 4097,
        vni: 4097,
        ip: [10, 0, 1, 3].into(),
        mac: [2, 0x42, 10, 0, 1, 3],
    };
    let task = AttachedTask {
        id: "web.1".into(),
        tag: [1; 8],
        netns: Some("/run/docker/netns/x".into()),
        ip: [10, 0, 1, 3].into(),
        overlay_ports: vec![port],
        gateway: true,
        running: true,
        unreachable: false,
    };
    Desired { attached: vec![task], ..Desired::default() }
}

fn inner(index: u32, peer: u32, address: &str, mac: u8) -> InnerLink {
    let addresses = BTreeSet::from([address.parse().expect("an address")]);
    InnerLink {
        index,
        peer: Some(peer),
        mac: [2, 0, 0, 0, 0, mac],
        mtu: 1450,
        up: true,
        addresses,
        ..InnerLink::default()
    }
}

/// A port in the node's namespace.
fn port(index: u32, peer: u32, master: &str) -> Link {
    Link { master: Some(master.to_owned()), ..Link::new(index, Kind::Veth { peer }) }
}

fn found(links: &[(&str, Link)], inside: Option<&[(&str, InnerLink)]>) -> Sandboxes {
    found_of(&desired(), links, inside)
}

fn found_of(desired: &Desired, links: &[(&str, Link)], inside: Option<&[(&str, InnerLink)]>) -> Sandboxes {
    let links = links.iter().map(|(name, link)| ((*name).to_owned(), link.clone())).collect();
    let namespace = match inside {
        None => Namespace::Missing { path: "/run/docker/netns/x".into() },
        Some(inner) => Namespace::Present(Inside {
            loopback_up: true,
            links: inner.iter().map(|(name, link)| ((*name).to_owned(), link.clone())).collect(),
            ..Inside::default()
        }),
    };
    sandboxes(desired, &settings(), &links, &BTreeMap::from([("web.1".to_owned(), namespace)]), &BTreeMap::new())
}

#[test]
fn a_running_task_with_all_but_the_gateway_is_named_and_then_not_waited_for() {
    let inside = [("eth0", inner(3, 4, "10.0.1.3/24", 1)), ("eth1", inner(5, 6, "198.51.100.3/24", 2))];
    let mut desired = desired();
    let without = |desired: &Desired| {
        let all = found_of(desired, &[], Some(&inside));
        (all.without_gateway.contains("web.1"), all.incomplete, all.waiting.len())
    };
    assert_eq!(without(&desired), (true, true, 1));
    desired.attached[0].unreachable = true;
    assert_eq!(without(&desired), (true, false, 0));
    (desired.attached[0].running, desired.attached[0].unreachable) = (false, false);
    assert_eq!(without(&desired), (false, true, 1), "the engine may not be finished");
    // Something else is missing too: not finished either.
    desired.attached[0].running = true;
    assert!(found_of(&desired, &[], Some(&inside[1..])).without_gateway.is_empty());
}

#[test]
fn interfaces_are_known_by_address_not_by_name() {
    // Another pair has the same indices by chance: it is no port of the bridge. A third one is, of another container.
    let links = [
        ("vetha", port(9, 5, "br-x")),
        ("vethb", port(9, 5, "docker_gwbridge")),
        ("vethc", port(11, 7, "docker_gwbridge")),
    ];
    let inside = [
        ("eth2", inner(3, 4, "10.0.1.3/24", 1)),
        ("eth0", inner(5, 9, "172.18.0.7/16", 2)),
        ("eth1", inner(7, 8, "10.0.0.6/24", 3)),
    ];
    let all = found(&links, Some(&inside));
    let sandbox = &all.found["web.1"];
    assert_eq!(
        sandbox.overlay_ports,
        BTreeMap::from([(ID, OverlayLink { name: "eth2".into(), mac: [2, 0, 0, 0, 0, 1] })])
    );
    let gateway = GatewayPort {
        name: "eth0".to_owned(),
        host: "vethb".into(),
        ifindex: 9,
        address: "172.18.0.7/16".parse().expect("an address"),
        mac: [2, 0, 0, 0, 0, 2],
    };
    assert_eq!(sandbox.gateway, Some(gateway));
    assert!(all.waiting.is_empty() && !all.incomplete);
}

#[test]
fn what_is_missing_is_waited_for() {
    let says = |all: &Sandboxes| all.waiting.iter().map(|w| w.why.clone()).collect::<Vec<_>>().join("|");
    let gone = found(&[], None);
    assert!(says(&gone).contains("/run/docker/netns/x") && gone.found.is_empty() && !gone.incomplete);
    // Its other end belongs to no bridge, or another one.
    let inside = [("eth0", inner(5, 9, "172.18.0.7/16", 2))];
    let unplugged = found(&[("vetha", port(9, 5, "br-x"))], Some(&inside));
    assert!(says(&unplugged).contains("10.0.1.3") && says(&unplugged).contains("docker_gwbridge"), "{unplugged:?}");
    assert!(unplugged.incomplete && unplugged.found["web.1"].gateway.is_none());
    let namespaces = BTreeMap::from([("web.1".to_owned(), Namespace::Unusable { why: "no namespace yet".into() })]);
    let early = sandboxes(&desired(), &settings(), &BTreeMap::new(), &namespaces, &BTreeMap::new());
    assert!(early.incomplete && says(&early).contains("no namespace yet"));
}

#[test]
fn a_look_that_fails_takes_nothing_away() {
    let links = [("vethb", port(9, 5, "docker_gwbridge"))];
    let inside = [("eth2", inner(3, 4, "10.0.1.3/24", 1)), ("eth0", inner(5, 9, "172.18.0.7/16", 2))];
    let before = found(&links, Some(&inside)).found;
    assert!(before["web.1"].gateway.is_some() && before["web.1"].overlay_ports.len() == 1);
    let unread = |desired: &Desired, links: &[(&str, Link)]| {
        let links = links.iter().map(|(name, link)| ((*name).to_owned(), link.clone())).collect();
        let namespace = Namespace::Unread { path: "/run/docker/netns/x".into(), why: "too late".into(), begun: true };
        sandboxes(desired, &settings(), &links, &BTreeMap::from([("web.1".to_owned(), namespace)]), &before).found
    };
    assert_eq!(unread(&desired(), &links), before);
    // The other end is gone, or a port of another bridge: that much is known.
    for links in [vec![], vec![("vethb", port(9, 5, "br-x"))], vec![("vethb", port(10, 5, "docker_gwbridge"))]] {
        let kept = unread(&desired(), &links);
        assert!(
            kept["web.1"].gateway.is_none() && kept["web.1"].overlay_ports == before["web.1"].overlay_ports,
            "{kept:?}"
        );
    }
    // Another container.
    let mut other = desired();
    other.attached[0].netns = Some("/run/docker/netns/y".into());
    assert!(unread(&other, &links).is_empty());
    assert!(found(&links, None).found.is_empty(), "it is gone");
}
