//! Observing and applying against the real kernel, each test in network namespaces of its own. Needs root.

mod support;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use control::netlink::{
    Former, Looked, Socket, Spaces, apply,
    monitor::{self, RouteChanges},
    observe_host, observe_node, underlay,
};
use hiveway_core::{
    DEFAULT_HOST_IP, Desired,
    desired::{GatewayBridge, HostLink, Interface, LocalTask, OverlayNetwork, OverlaySubnet, Peer, Role},
    observed::{HostEnd, Namespace, Observed},
    plan::{Plan, Stage, Tunnel, plan},
};
use support::{Netns, in_fresh_netns, node::eventually, run};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

const TUNNEL: Tunnel = Tunnel { local: std::net::Ipv4Addr::new(192, 0, 2, 1), port: 4789, underlay_mtu: 1500 };

fn desired(space: &Netns) -> Desired {
    let vtep = [192, 0, 2, 2].into();
    let peer = |host: u8| Peer { ip: [10, 0, 1, host].into(), mac: [2, 0x42, 10, 0, 1, host], vtep };
    Desired {
        networks: vec![OverlayNetwork {
            id: "app".into(),
            name: "app".into(),
            bridge: "hwb4097".into(),
            mtu: 1400,
            subnets: vec![OverlaySubnet {
                vni: 4097,
                vxlan: "hwx4097".into(),
                subnet: "10.0.1.0/24".parse().unwrap(),
                gateway: [10, 0, 1, 1].into(),
                peers: BTreeSet::from([peer(8), peer(9)]),
                flood: BTreeSet::from([vtep, [192, 0, 2, 3].into()]),
                mesh: [([2, 0x48, 192, 0, 2, 3], [192, 0, 2, 3].into())].into(),
            }],
        }],
        tasks: vec![LocalTask {
            id: "web.1".into(),
            tag: [1; 8],
            netns: Some(space.path()),
            interfaces: vec![
                Interface {
                    host: "hwv000000000001".into(),
                    container: "eth0".into(),
                    bridge: "hwb4097".into(),
                    address: "10.0.1.3/24".parse().unwrap(),
                    mac: [2, 0x42, 10, 0, 1, 3],
                    mtu: 1400,
                    routes: vec![("10.0.2.0/24".parse().unwrap(), [10, 0, 1, 1].into())],
                    role: Role::Overlay { net: 4097, vni: 4097 },
                },
                Interface {
                    host: "hwv000000000002".into(),
                    container: "eth1".into(),
                    bridge: "hw-gwbridge".into(),
                    address: "172.18.0.2/16".parse().unwrap(),
                    mac: [2, 0x42, 172, 18, 0, 2],
                    mtu: 1500,
                    routes: vec![("0.0.0.0/0".parse().unwrap(), [172, 18, 0, 1].into())],
                    role: Role::Gateway,
                },
            ],
        }],
        gateway: Some(GatewayBridge { bridge: "hw-gwbridge".into(), address: "172.18.0.1/16".parse().unwrap() }),
        host_link: Some(HostLink { ip: DEFAULT_HOST_IP }),
        ..Desired::default()
    }
}

/// For a look: what is bounded here is what it may find.
const WHILE: Duration = Duration::from_secs(60);

async fn look(socket: &Socket, desired: &Desired) -> (Observed, Spaces) {
    let gateway = "172.18.0.0/16".parse().unwrap();
    let heard = Cell::new(0);
    let progress = || heard.set(heard.get() + 1);
    let Looked { spaces, namespaces, .. } =
        Looked::within(WHILE, desired, Path::new("/run/netns"), gateway, &mut 0, &BTreeMap::new(), &progress).await;
    assert!(heard.get() >= desired.tasks.len(), "each namespace is heard of");
    let links = observe_node(socket).await.unwrap();
    let host = match links.get("hw-host") {
        Some(link) => observe_host(socket, link.index).await.unwrap(),
        None => HostEnd::default(),
    };
    (Observed { links, namespaces, host }, spaces)
}

/// Plans, applies and returns the plan.
async fn settle(socket: &Socket, desired: &Desired) -> Plan {
    let (observed, spaces) = look(socket, desired).await;
    let plan = plan(&observed, desired, TUNNEL);
    assert_eq!(plan.blocked, []);
    for stage in [Stage::Prepare, Stage::Finish, Stage::Fill] {
        for step in plan.steps.iter().filter(|step| step.stage == stage) {
            apply(socket, &spaces, &step.action).await.unwrap_or_else(|error| panic!("{}: {error}", step.action));
        }
    }
    plan
}

async fn remaining(socket: &Socket, desired: &Desired) -> Plan {
    plan(&look(socket, desired).await.0, desired, TUNNEL)
}

/// As a container with CAP_NET_ADMIN can have it: what takes too much memory to look at is named, and not looked at.
#[test]
fn a_namespace_with_endless_routes_is_named() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        let routes = tempfile::NamedTempFile::new().unwrap();
        let line = |n: u32| format!("route add {}/32 dev lo\n", std::net::Ipv4Addr::from_bits(0x0a80_0000 + n));
        std::fs::write(routes.path(), (0..66_000).map(line).collect::<String>()).unwrap();
        space.run(&format!("ip -batch {}", routes.path().display()));
        let observed = look(&socket, &desired).await.0;
        let Namespace::Unread { why, .. } = &observed.namespaces["web.1"] else { panic!("it was looked at") };
        assert!(why.contains("list routes: there are more than 65536"), "{why}");
        // On the node itself there may be as many.
        space.run("ip route flush root 10.128.0.0/9");
        run(&format!("ip -batch {}", routes.path().display()));
        settle(&socket, &desired).await;
        assert_eq!(remaining(&socket, &desired).await, Plan::default());
    });
}

/// Adds `count` rules that lead to the main table, each before the last one. As the `ip` command adds them, each is
/// compared with all others, which takes minutes.
fn add_rules(space: &Netns, count: u32) {
    let space = std::fs::File::open(space.path()).unwrap();
    let send = move || {
        use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
        nix::sched::setns(&space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        // NLM_F_REQUEST | NLM_F_CREATE; a rule of the family inet, table main, "to table"; its priority.
        const RTM_NEWRULE: u16 = 32;
        const HEAD: [u8; 12] = [2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
        let rule = |priority: u32| {
            let (length, kind, flags) = (36_u32.to_ne_bytes(), RTM_NEWRULE.to_ne_bytes(), 0x401_u16.to_ne_bytes());
            let attribute = [8_u16.to_ne_bytes(), 6_u16.to_ne_bytes()].concat();
            [&length[..], &kind, &flags, &[0; 8], &HEAD, &attribute, &priority.to_ne_bytes()].concat()
        };
        let priorities: Vec<u32> = (1..=count).rev().collect();
        for some in priorities.chunks(1000) {
            let messages: Vec<u8> = some.iter().flat_map(|priority| rule(*priority)).collect();
            assert_eq!(socket.send(&messages, 0).unwrap(), messages.len());
        }
    };
    std::thread::spawn(send).join().unwrap();
}

#[test]
fn a_namespace_with_endless_rules_is_named() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        // Rules say where replies go, which is asked once there is an interface on the gateway bridge.
        settle(&socket, &desired).await;
        add_rules(&space, 60_000);
        assert!(matches!(look(&socket, &desired).await.0.namespaces["web.1"], Namespace::Present(_)));
        add_rules(&space, 6_000);
        let observed = look(&socket, &desired).await.0;
        let Namespace::Unread { why, .. } = &observed.namespaces["web.1"] else { panic!("it was looked at") };
        assert!(why.contains("list routing rules: there are more than 65536"), "{why}");
    });
}

#[test]
fn a_namespace_with_endless_addresses_is_named() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        // Each is compared with the others of its interface.
        const INTERFACES: u32 = 66;
        let batch = tempfile::NamedTempFile::new().unwrap();
        let lines = (0..INTERFACES).flat_map(|n| {
            let addresses = (0..1000).map(move |host| {
                let ip = std::net::Ipv4Addr::from_bits(0x0a80_0000 + n * 1000 + host);
                format!("addr add {ip}/32 dev b{n}\n")
            });
            std::iter::once(format!("link add b{n} type bridge\n")).chain(addresses)
        });
        std::fs::write(batch.path(), lines.collect::<String>()).unwrap();
        space.run(&format!("ip -batch {}", batch.path().display()));
        let observed = look(&socket, &desired).await.0;
        let Namespace::Unread { why, .. } = &observed.namespaces["web.1"] else { panic!("it was looked at") };
        assert!(why.contains("list addresses: there are more than 65536"), "{why}");
        // With as many as a container could have, it is served again.
        (1..INTERFACES).for_each(|n| drop(space.run(&format!("ip link del b{n}"))));
        settle(&socket, &desired).await;
        assert_eq!(remaining(&socket, &desired).await, Plan::default());
    });
}

/// As a container with CAP_NET_ADMIN can have it: names that are no text keep none of its interfaces from being seen.
#[test]
fn names_that_are_no_text_hide_no_interface() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        settle(&socket, &desired).await;
        space.run("bash -c \"ip link set eth0 alias $'\\xff'; ip address del 10.0.1.3/24 dev eth0\"");
        space.run(
            "bash -c \"ip address add 10.0.1.3/24 dev eth0 label $'eth0:\\xff'; ip link add $'\\xfe' type bridge\"",
        );
        // A change inside asks for the interface alone.
        space.run("bash -c \"ip link set eth0 mtu 1300 up; ip link set lo alias $'\\xff' down\"");
        let changes = settle(&socket, &desired);
        let plan = tokio::time::timeout(Duration::from_secs(20), changes).await.expect("the agent would hang");
        let steps: Vec<_> = plan.steps.iter().map(|step| step.action.to_string()).collect();
        assert!(!steps.is_empty() && !steps.iter().any(|step| step.contains("create")), "{steps:?}");
        assert_eq!(remaining(&socket, &desired).await, Plan::default());
        // The node's own.
        run("bash -c \"ip link add up0 type bridge; ip link set up0 alias $'\\xff'; ip link set up0 mtu 1234\"");
        assert_eq!(observe_node(&socket).await.unwrap()["up0"].mtu, 1234);
        let index = socket.index("up0").await.unwrap();
        assert_eq!(underlay(&socket, index).await.unwrap().unwrap().mtu, 1234);
    });
}

#[test]
fn a_namespace_whose_look_has_failed_rests_and_keeps_no_other_waiting() {
    let (space, quick) = (Netns::new("space"), Netns::new("quick"));
    in_fresh_netns(|| async {
        let mut desired = desired(&space);
        let other = LocalTask { id: "z-quick".into(), netns: Some(quick.path()), ..desired.tasks[0].clone() };
        desired.tasks.push(other);
        let routes = tempfile::NamedTempFile::new().unwrap();
        let line = |n: u32| format!("route add {}/32 dev lo\n", std::net::Ipv4Addr::from_bits(0x0a80_0000 + n));
        std::fs::write(routes.path(), (0..66_000).map(line).collect::<String>()).unwrap();
        space.run(&format!("ip -batch {}", routes.path().display()));
        let at = async |rests| {
            let former = Former { why: "as before".into(), rests };
            let former = BTreeMap::from([(space.path(), former)]);
            let gateway = "172.18.0.0/16".parse().unwrap();
            Looked::within(WHILE, &desired, Path::new("/run/netns"), gateway, &mut 0, &former, &|| ()).await
        };
        let looked = at(false).await;
        assert_eq!(looked.failed.keys().collect::<Vec<_>>(), [&space.path()]);
        assert!(matches!(looked.namespaces["z-quick"], Namespace::Present(_)));
        // All is well, but its turn has not come.
        space.run("ip route flush root 10.128.0.0/9");
        let rests = at(true).await;
        assert!(rests.failed.is_empty() && matches!(rests.namespaces["z-quick"], Namespace::Present(_)));
        let kept = Namespace::Unread { path: space.path(), why: "as before".into(), begun: true };
        assert_eq!(rests.namespaces["web.1"], kept);
        assert!(matches!(at(false).await.namespaces["web.1"], Namespace::Present(_)));
        run(&format!("ip netns delete {}", space.0));
        assert!(matches!(at(true).await.namespaces["web.1"], Namespace::Missing { .. }), "that is seen all the same");
    });
}

#[test]
fn what_was_applied_needs_nothing_more() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        settle(&socket, &desired).await;
        assert_eq!(remaining(&socket, &desired).await, Plan::default());

        let vxlan = run("ip -d link show hwx4097");
        for part in ["vxlan id 4097", "local 192.0.2.1", "dstport 4789", "nolearning", "mtu 1400", "master hwb4097"] {
            assert!(vxlan.contains(part), "no {part:?} in {vxlan}");
        }
        assert!(run("ip -d link show hwv000000000002").contains("isolated on"));
        assert!(run("ip link show hwv000000000001").contains("alias hiveway task=web.1 net=4097"));
        let inside = space.run("ip -4 addr");
        assert!(inside.contains("10.0.1.3/24") && inside.contains("172.18.0.2/16"), "{inside}");
        let routes = space.run("ip route");
        assert!(routes.contains("default via 172.18.0.1 dev eth1"), "{routes}");
        assert!(routes.contains("10.0.2.0/24 via 10.0.1.1 dev eth0"), "{routes}");
        assert!(space.run("ip link show eth0").contains("02:42:0a:00:01:03"));
        assert_eq!(space.run("ip -6 -o addr show dev eth0"), "", "no link-local address");
    });
}

#[test]
fn damage_is_repaired_and_nothing_else_touched() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        settle(&socket, &desired).await;
        let outside = [
            "ip link del hwx4097",
            "ip link del hwb4097",
            "ip link del hw-gwbridge",
            "ip link del hwv000000000001",
            "ip link set hwx4097 down",
            "ip link set hwv000000000001 down",
            "ip link set hwv000000000001 nomaster",
            "ip link set hwb4097 mtu 1280",
            "ip link set hwb4097 alias ''",
            "bridge link set dev hwv000000000002 isolated off",
            "bridge fdb del 02:42:0a:00:01:08 dev hwx4097 dst 192.0.2.2 self",
            "bridge fdb replace 02:42:0a:00:01:08 dev hwx4097 dst 192.0.2.77 self",
            "bridge fdb append 00:00:00:00:00:00 dev hwx4097 dst 192.0.2.77 self",
            "bridge fdb del 02:48:c0:00:02:03 dev hwx4097 dst 192.0.2.3 self",
            "bridge fdb replace 02:48:c0:00:02:03 dev hwx4097 dst 192.0.2.77 self",
            "ip neigh del 10.0.1.8 dev hwx4097",
            "ip addr del 172.18.0.1/16 dev hw-gwbridge",
            "ip link del hw-host",
            "ip link set hw-host down",
            "ip link set hw-mesh down",
            "ip link set hw-mesh address 02:00:00:00:00:01",
            "ip link del hw-host && ip link add hw-host type veth peer name else",
            "ip route del 169.254.72.1",
            "ip route replace 169.254.72.1 dev hw-host",
            "ip neigh del 169.254.72.1 dev hw-host",
            "sysctl -qw net.ipv4.conf.hw-host.route_localnet=0",
        ];
        let inside = [
            "ip addr del 10.0.1.3/24 dev eth0",
            "ip addr add 10.0.1.77/24 dev eth0",
            "ip link set eth0 down",
            "ip link set eth0 mtu 1280",
            "ip link set eth0 address 02:00:00:00:00:01",
            "ip link set lo down",
            "ip link del eth1",
            "ip route del default",
            "ip route replace default via 172.18.0.99 dev eth1",
        ];
        let untouched = run("ip -o link show lo");
        for (line, enter) in outside.map(|line| (line, false)).into_iter().chain(inside.map(|line| (line, true))) {
            if enter {
                space.run(line)
            } else {
                run(line)
            };
            assert_ne!(remaining(&socket, &desired).await, Plan::default(), "{line} went unnoticed");
            settle(&socket, &desired).await;
            // Removing a bridge takes neighbours of its ports along only after the plan was made.
            assert_eq!(remaining(&socket, &desired).await, Plan::default(), "after {line}");
        }
        assert_eq!(run("ip -o link show lo"), untouched);
    });
}

#[test]
fn a_second_agent_run_adopts_and_recreates_nothing() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let desired = desired(&space);
        settle(&Socket::open().unwrap(), &desired).await;
        // Index and name: a link's operational state may still change by itself.
        let links = || -> Vec<String> {
            let listing = run("ip -o link");
            listing.lines().map(|line| line.split_whitespace().take(2).collect()).collect()
        };
        let before = links();
        // Another process would start with another socket and know nothing else.
        assert_eq!(settle(&Socket::open().unwrap(), &desired).await, Plan::default());
        assert_eq!(links(), before);
    });
}

#[test]
fn leftovers_go_and_foreign_links_stay() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        settle(&socket, &desired).await;
        // The same name prefix without our alias, and Docker's bridge.
        run("ip link add hwbother type bridge && ip link add docker_gwbridge type bridge");
        settle(&socket, &Desired::default()).await;
        let names: Vec<_> = observe_node(&socket).await.unwrap().into_keys().collect();
        assert_eq!(names, ["docker_gwbridge", "hwbother", "lo"]);
        assert_eq!(space.run("ip -br link").lines().count(), 1, "only lo is left inside");
    });
}

#[test]
fn a_namespace_under_the_same_name_that_is_another_one_gets_fresh_interfaces() {
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let (socket, desired) = (Socket::open().unwrap(), desired(&space));
        settle(&socket, &desired).await;
        // A process keeps the old namespace, and with it the old interfaces, alive.
        let mut holder = space.command("sleep").arg("60").spawn().unwrap();
        eventually("a process in the old namespace", || {
            let namespace =
                |path: String| std::fs::metadata(path).ok().map(|found| std::os::unix::fs::MetadataExt::ino(&found));
            let inside = namespace(format!("/proc/{}/ns/net", holder.id()));
            inside.is_some() && inside == namespace(format!("/run/netns/{}", space.0))
        });
        run(&format!("ip netns del {0} && ip netns add {0}", space.0));
        settle(&socket, &desired).await;
        assert_eq!(remaining(&socket, &desired).await, Plan::default());
        assert!(space.run("ip -4 addr").contains("10.0.1.3/24"));
        holder.kill().unwrap();
        holder.wait().unwrap();
    });
}

#[test]
fn a_file_that_is_no_namespace_is_said_to_be_none() {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let space = Netns::new("space");
    in_fresh_netns(|| async {
        let mut desired = desired(&space);
        for (path, why) in
            [(scratch.path(), "not a network namespace"), (Path::new("/proc/thread-self/ns/net"), "the node's own")]
        {
            desired.tasks[0].netns = Some(path.to_owned());
            let plan = remaining(&Socket::open().unwrap(), &desired).await;
            assert!(plan.blocked[0].why.contains(why), "{:?}", plan.blocked);
            assert!(!plan.blocked[0].waiting);
        }
        desired.tasks[0].netns = Some("/run/netns/hiveway-no-such-namespace".into());
        assert!(remaining(&Socket::open().unwrap(), &desired).await.blocked[0].waiting);
    });
}

/// More than the socket of one who does not read holds.
const FLOOD: &str = "for n in $(seq 600); do echo link set lo mtu $((60000 + n)); done | ip -batch -";

#[test]
fn missed_events_are_noticed() {
    in_fresh_netns(|| async {
        let (changed, mut changes) = mpsc::channel(1);
        // Of what is heard nothing counts: only what is missed does.
        let _links = monitor::watch(changed, |_| true).unwrap();
        let (hear, mut heard) = watch::channel(RouteChanges::default());
        let _ways = monitor::watch_next_hops(hear, |_| true).unwrap();
        // Meanwhile nothing is read.
        control::netlink::occupy(Duration::from_secs(3)).unwrap();
        run(FLOOD);
        const PATIENCE: Duration = Duration::from_secs(10);
        let told = timeout(PATIENCE, changes.recv()).await;
        assert_eq!(told, Ok(Some(())), "links");
        assert!(timeout(PATIENCE, heard.wait_for(|heard| heard.routes > 0)).await.is_ok(), "routes");
        // It goes on all the same, once what is left of the flood is read.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let _ = changes.try_recv();
        let before = heard.borrow().routes;
        run("ip addr add 192.0.2.77/32 dev lo");
        assert_eq!(timeout(PATIENCE, changes.recv()).await, Ok(Some(())), "links afterwards");
        assert!(timeout(PATIENCE, heard.wait_for(|heard| heard.routes > before)).await.is_ok(), "routes afterwards");
    });
}

#[test]
fn ports_of_foreign_bridges_lead_to_no_questions_about_routes() {
    in_fresh_netns(|| async {
        run(
            "ip link add foreign0 type bridge && ip link add f0 type veth peer name f1 && ip link set f0 master foreign0 up",
        );
        // The bridge's own MTU, which is the smallest of its ports', is to stay.
        run("ip link set foreign0 mtu 1300");
        let index: u32 =
            run("ip -o link show foreign0").split(':').next().and_then(|index| index.trim().parse().ok()).unwrap();
        let (hear, heard) = watch::channel(RouteChanges::default());
        let _ways = monitor::watch_next_hops(hear, move |event| event.master == Some(index)).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = heard.borrow().routes;
        for mtu in 1400..1420 {
            run(&format!("ip link set f0 mtu {mtu}"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ports = heard.borrow().routes - before;
        run("ip link set lo mtu 60000");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(heard.borrow().routes > before + ports, "a link that is of concern");
        assert!(ports <= 2, "{ports} questions because of 20 changes of a foreign port");
    });
}
