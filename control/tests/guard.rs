//! Firewall and sysctls against the real kernel, each test in a network namespace of its own. Needs root and `nft`.

mod support;

use std::collections::BTreeSet;

use control::{
    nft::{self, Bound, Firewall, Foreign, HostRules, Listed, Masquerade},
    state_dir::StateDir,
    sysctl,
};
use dataplane_common::counter::Stat;
use hiveway_core::firewall::Ranges;
use support::{Netns, in_fresh_netns, run};

fn host() -> HostRules {
    HostRules {
        ip: [169, 254, 72, 1].into(),
        vtep: [192, 0, 2, 1].into(),
        bridges: ["docker0", "hw-gwbridge"].map(str::to_owned).into(),
        ports: BTreeSet::from([(6, 8080), (6, 80), (17, 53), (132, 9)]),
        bound: vec![
            Bound { ports: [(6, 7), (17, 7)].into(), nets: vec!["127.0.0.0/8".parse().unwrap()] },
            Bound {
                ports: [(6, 8)].into(),
                nets: ["192.0.2.1/32", "198.51.100.0/24"].map(|net| net.parse().unwrap()).into(),
            },
            Bound { ports: [(6, 9)].into(), nets: vec![] },
        ],
        engine: true,
        mss: 1410,
    }
}

/// Lists with single addresses, networks and ranges; with all but a few; with nobody.
fn listed() -> Vec<Listed> {
    let of = |nets: &[&str]| nets.iter().map(|net| net.parse::<ipnet::Ipv4Net>().unwrap()).collect::<Ranges>();
    vec![
        Listed {
            ports: [(6, 8080), (17, 53), (132, 9)].into(),
            allowed: of(&["10.0.0.0/25", "10.0.0.128/25", "192.0.2.7/32", "203.0.113.4/31", "203.0.113.6/32"]),
        },
        Listed { ports: [(6, 80)].into(), allowed: Ranges::all().minus(&of(&["0.0.0.0/8", "198.51.100.1/32"])) },
        Listed { ports: [(6, 81)].into(), allowed: Ranges::NONE },
    ]
}

fn firewall() -> Firewall {
    Firewall {
        vxlan_port: 4789,
        vteps: BTreeSet::from([[192, 0, 2, 9].into(), [192, 0, 2, 10].into(), [192, 0, 2, 2].into()]),
        vtep: Some([192, 0, 2, 1].into()),
        bridges: ["br-0123456789ab", "docker0", "docker_gwbridge", "hw-gwbridge"].map(String::from).into(),
        overlays: ["hwb4097", "hwb4098"].map(String::from).into(),
        vnis: BTreeSet::from([4097, 16_777_214]),
        foreign: Foreign::Vnis(BTreeSet::from([7, 4098])),
        masquerade: Some(Masquerade { bridge: "hw-gwbridge".into(), subnet: "172.18.0.1/16".parse().unwrap() }),
        published: BTreeSet::from([8080]),
        published_udp: BTreeSet::from([8080]),
        listed: listed(),
        engine_bridge: Some("docker_gwbridge".into()),
        sandbox: BTreeSet::from([[172, 18, 0, 2].into()]),
        host: Some(host()),
    }
}

#[test]
fn the_table_is_replaced_only_when_it_differs() {
    in_fresh_netns(|| async {
        run("nft add table inet other");
        assert!(nft::ensure(&firewall()).unwrap());
        assert!(!nft::ensure(&firewall()).unwrap(), "a second time changes nothing");
        assert!(run("nft list table inet hiveway").contains("masquerade to :8081-65535"));

        for damage in [
            "nft delete table inet hiveway",
            "nft flush chain inet hiveway output",
            "nft add rule inet hiveway forward accept",
            "nft add element inet hiveway vteps { 203.0.113.1 }",
            "nft add chain inet hiveway extra",
            "nft delete element inet hiveway tcp_ports { 80 }",
            "nft flush chain inet hiveway host_postrouting",
            "nft flush chain inet hiveway input",
            "nft delete element inet hiveway overlays { hwb4098 }",
            "nft add element inet hiveway clients_0 { 198.51.100.0/24 }",
            "nft flush chain inet hiveway lists_prerouting",
            "nft flush chain inet hiveway gwbridge",
            "nft delete element inet hiveway sandbox { 172.18.0.2 }",
            "nft flush chain inet hiveway sent",
            "nft flush chain inet hiveway uninvited",
            "nft flush chain inet hiveway source_ports",
            "nft delete element inet hiveway containers { docker0 }",
            "nft delete element inet hiveway published { 8080 }",
        ] {
            run(damage);
            assert!(nft::ensure(&firewall()).unwrap(), "{damage} went unnoticed");
            assert!(!nft::ensure(&firewall()).unwrap());
        }
        let tcp_only = Some(HostRules { bridges: BTreeSet::new(), ports: BTreeSet::from([(6, 80)]), ..host() });
        for foreign in [Foreign::Any, Foreign::Vnis([].into()), Foreign::Vnis([7].into()), Foreign::Vnis([4097].into())]
        {
            let firewall = Firewall { foreign, ..firewall() };
            assert!(nft::ensure(&firewall).unwrap(), "{:?} went unnoticed", firewall.foreign);
            assert!(!nft::ensure(&firewall).unwrap(), "{:?} is replaced again", firewall.foreign);
        }
        let adopted = Firewall {
            masquerade: None,
            overlays: [].into(),
            vteps: BTreeSet::new(),
            vtep: None,
            host: tcp_only,
            ..firewall()
        };
        assert!(nft::ensure(&adopted).unwrap());
        assert!(!nft::ensure(&adopted).unwrap());
        assert!(!run("nft list table inet hiveway").contains("172.18.0.0/16"));
        assert!(nft::ensure(&Firewall { host: None, ..adopted }).unwrap());
        assert!(!run("nft list table inet hiveway").contains("dnat ip to"));

        assert!(nft::remove().unwrap());
        assert!(!nft::remove().unwrap());
        assert_eq!(run("nft list tables").trim(), "table inet other");
    });
}

/// Sends a datagram out of a namespace, and returns what is answered.
fn ask_from(space: &Netns, from: &'static str, to: &'static str) -> std::thread::JoinHandle<Vec<u8>> {
    let space = std::fs::File::open(space.path()).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(&space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = std::net::UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        socket.send_to(b"?", to).unwrap();
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer).unwrap();
        answer[..length].to_vec()
    })
}

#[test]
fn the_guard_stops_forged_tunnels_and_not_the_kernels_own() {
    let far = Netns::new("far");
    in_fresh_netns(|| async {
        run(
            "ip link add name eth0 type veth peer name eth0x && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up",
        );
        run(&format!("ip link set eth0x netns {0} && ip -n {0} link set eth0x up", far.0));
        far.run("ip addr add 192.0.2.2/24 dev eth0x");
        nft::ensure(&firewall()).unwrap();
        let frame = |vni: u8| [8, 0, 0, 0, 0, 0x10, vni, 0, 1, 2, 3, 4];
        let send = |payload: &[u8], port: u16| {
            std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(payload, ("192.0.2.2", port)).map_err(|e| e.kind())
        };
        let denied = Err(std::io::ErrorKind::PermissionDenied);
        assert_eq!(send(&frame(1), 4789), denied, "our VNI 4097");
        assert_eq!(send(b"x", 4789), denied, "too short for a VNI");
        assert_eq!(nft::drops().unwrap().forged.packets, 2);
        nft::ensure(&Firewall { vteps: BTreeSet::from([[192, 0, 2, 2].into()]), ..firewall() }).unwrap();
        assert_eq!(nft::drops().unwrap().forged.packets, 2, "a change of the rules forgot what was counted");
        assert_eq!(send(b"x", 4789), denied);
        assert_eq!(nft::drops().unwrap().forged, Stat { packets: 3, bytes: 40 + 29 + 29 });
        assert_eq!(send(&frame(2), 4789), Ok(12), "another's device has that VNI");
        assert_eq!(send(&frame(3), 4789), denied, "4099 may be a network of the swarm that no task here is on");
        assert_eq!(send(&frame(1), 4790), Ok(12), "another port");
        let send_to = |address: &str, payload: &[u8]| {
            std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(payload, (address, 4789)).map_err(|e| e.kind())
        };
        let before = nft::drops().unwrap().forged.packets;
        for own in ["127.0.0.1", "192.0.2.1"] {
            assert_eq!(
                (send_to(own, &frame(1)), send_to(own, b"x")),
                (denied, denied),
                "this node's own tunnel at {own}"
            );
            assert_eq!(send_to(own, &frame(2)), Ok(12), "another's device has that VNI");
        }
        assert_eq!(send_to("192.0.2.77", &frame(1)), denied, "it may be another node's, too");
        assert_eq!(send_to("192.0.2.77", b"several in one"), denied, "of which only the first can be looked at");
        assert_eq!(nft::drops().unwrap().forged.packets, before + 6);
        far.run("ip addr add 192.0.2.77/24 dev eth0x");
        let ours = std::net::UdpSocket::bind("192.0.2.1:5000").unwrap();
        let theirs = ask_from(&far, "192.0.2.77:4789", "192.0.2.1:5000");
        ours.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(ours.send_to(b"an answer", "192.0.2.77:4789").unwrap(), 9, "to a client that has that port");
        assert_eq!(theirs.join().unwrap(), b"an answer");

        // Other people's vxlan devices on the same port go on working, also for this node's own processes.
        run("ip link add vx type vxlan id 7 dstport 4789 local 192.0.2.1 remote 192.0.2.2");
        run("ip addr add 10.9.0.1/24 dev vx && ip link set vx up");
        far.run("ip link add vx type vxlan id 7 dstport 4789 local 192.0.2.2 remote 192.0.2.1");
        far.run("ip addr add 10.9.0.2/24 dev vx");
        far.run("ip link set vx up");
        run("ping -c1 -W2 10.9.0.2");

        // Who sends through a device without a VNI of its own may choose any but ours.
        nft::ensure(&Firewall { foreign: Foreign::Any, ..firewall() }).unwrap();
        assert_eq!((send(&frame(3), 4789), send(&frame(1), 4789), send(b"x", 4789)), (Ok(12), denied, denied));
    });
}

/// Virtual machines, or hosts behind this router, may be nodes of the same swarm.
#[test]
fn the_guard_lets_other_peoples_tunnels_be_routed() {
    let (vm, far) = (Netns::new("vm"), Netns::new("far"));
    in_fresh_netns(|| async {
        run("sysctl -qw net.ipv4.ip_forward=1");
        // The virtual machine's network is a bridge, as is that of containers.
        for (name, end, there, own, theirs) in [
            ("br0", "up0", &far, "192.0.2.1/24", "192.0.2.2/24"),
            ("virbr0", "vm0", &vm, "192.0.3.1/24", "192.0.3.2/24"),
            ("hw-gwbridge", "ct0", &vm, "172.18.0.1/16", "172.18.0.2/16"),
            ("docker0", "ct1", &vm, "172.17.0.1/16", "172.17.0.2/16"),
        ] {
            run(&format!("ip link add {name} type bridge && ip addr add {own} dev {name} && ip link set {name} up"));
            run(&format!(
                "ip link add {end} type veth peer name {end}x netns {} && ip link set {end} master {name} up",
                there.0
            ));
            there.run(&format!("ip addr add {theirs} dev {end}x"));
            there.run(&format!("ip link set {end}x up"));
        }
        far.run("ip route add default via 192.0.2.1");
        vm.run("ip route add 192.0.2.2 via 192.0.3.1");
        nft::ensure(&Firewall { vteps: BTreeSet::from([[192, 0, 2, 2].into()]), ..firewall() }).unwrap();
        far.run("nft add table inet counting");
        far.run("nft add chain inet counting in '{ type filter hook input priority 0; }'");
        far.run("nft add rule inet counting in udp dport 4789 counter");
        let arrived = || {
            let listing = far.run("nft list chain inet counting in");
            listing.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let send = || {
            vm.run("bash -c 'echo -n 12345678 > /dev/udp/192.0.2.2/4789'");
            std::thread::sleep(std::time::Duration::from_millis(300));
        };
        send();
        assert_eq!((arrived(), nft::drops().unwrap().forged.packets), (1, 0), "another machine's own tunnel");
        // Under this node's address it would be taken for this node's.
        run("nft add table ip nat");
        run("nft add chain ip nat post '{ type nat hook postrouting priority 100; }'");
        run("nft add rule ip nat post ip saddr 192.0.3.0/24 masquerade");
        send();
        assert_eq!((arrived(), nft::drops().unwrap().forged.packets), (1, 1), "it pretended to be this node");
        for (bridge, drops) in [("172.18.0.1", 2), ("172.17.0.1", 3)] {
            vm.run(&format!("ip route replace 192.0.2.2 via {bridge}"));
            send();
            assert_eq!((arrived(), nft::drops().unwrap().forged.packets), (1, drops), "a container's at {bridge}");
        }
    });
}

/// Tunnels end at every address of a node, and a container knows more of them than this node does of other nodes'.
#[test]
fn containers_reach_no_tunnel_at_whichever_address() {
    let (container, far) = (Netns::new("ct"), Netns::new("far"));
    in_fresh_netns(|| async {
        run("sysctl -qw net.ipv4.ip_forward=1");
        for (name, port, there, own, theirs) in [
            ("br0", "up0", &far, "192.0.2.1/24", "192.0.2.2/24"),
            ("docker0", "ct0", &container, "172.17.0.1/16", "172.17.0.2/16"),
        ] {
            run(&format!("ip link add {name} type bridge && ip addr add {own} dev {name} && ip link set {name} up"));
            run(&format!("ip link add {port} type veth peer name eth0 netns {}", there.0));
            run(&format!("ip link set {port} master {name} up"));
            there.run(&format!("ip addr add {theirs} dev eth0"));
            there.run("ip link set eth0 up");
            there.run(&format!("ip route add default via {}", own.split('/').next().unwrap()));
        }
        // Another node's second address.
        far.run("ip addr add 192.0.2.7/24 dev eth0");
        nft::ensure(&Firewall { vteps: BTreeSet::from([[192, 0, 2, 2].into()]), ..firewall() }).unwrap();
        let counting = |name: &str| {
            format!(
                "nft add table inet counting && \
                 nft add chain inet counting in '{{ type filter hook input priority 10; }}' && \
                 nft add rule inet counting in {name} udp dport 4789 counter"
            )
        };
        run(&counting("iifname docker0"));
        far.run(&format!("sh -c \"{}\"", counting("iifname eth0")));
        let packets = |listing: &str| {
            listing.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let arrived = || {
            let list = "nft list chain inet counting in";
            (packets(&run(list)), packets(&far.run(list)))
        };
        let send = |payload: &str, address: &str| {
            container.run(&format!("bash -c \"printf '{payload}' > /dev/udp/{address}/4789\""));
            std::thread::sleep(std::time::Duration::from_millis(200));
            (arrived(), nft::drops().unwrap().forged.packets)
        };
        let frame = "\\x08\\0\\0\\0\\0\\x10\\x01\\0frame";
        assert_eq!(send(frame, "172.17.0.1"), ((0, 0), 1), "the bridge's own address");
        assert_eq!(send(frame, "192.0.2.1"), ((0, 0), 2), "the node's");
        assert_eq!(send(frame, "192.0.2.2"), ((0, 0), 3), "another node's");
        assert_eq!(send(frame, "192.0.2.7"), ((0, 0), 4), "another node's second one");
        assert_eq!(send("several in one", "192.0.2.7"), ((0, 0), 5), "of which only the first can be looked at");
    });
}

/// An engine would lead them to a task. What is open goes on, and so does IPv6, which the port has nothing to do with.
#[test]
fn bound_ports_are_closed_at_other_addresses_beside_an_engine() {
    let far = Netns::new("far");
    in_fresh_netns(|| async {
        run("ip link add eth0 type veth peer name eth0x");
        run("ip addr add 192.0.2.1/24 dev eth0 && ip addr add 192.0.2.3/24 dev eth0 && ip link set eth0 up");
        run(&format!("ip link set eth0x netns {0} && ip -n {0} link set eth0x up", far.0));
        far.run("ip addr add 192.0.2.2/24 dev eth0x");
        // With this IPv6 connections are tracked, too.
        run("nft add table ip6 tracked");
        run("nft add chain ip6 tracked in '{ type filter hook input priority 0; }'");
        run("nft add rule ip6 tracked in ct state new counter");
        let _listener = std::net::TcpListener::bind("[::]:8").unwrap();
        let from_far = |address: &str| {
            let script = format!("timeout 1 bash -c '</dev/tcp/{address}/8' 2>&1 && echo open || echo closed");
            far.run(&script).trim().ends_with("open")
        };
        let own = |address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            std::net::TcpStream::connect_timeout(&(address, 8).into(), std::time::Duration::from_secs(1)).is_ok()
        };
        let before = std::net::TcpStream::connect("192.0.2.3:8").unwrap();
        nft::ensure(&Firewall { host: Some(HostRules { engine: false, ..host() }), ..firewall() }).unwrap();
        assert!(from_far("192.0.2.3") && own("192.0.2.3") && own("127.0.0.1"), "somebody may listen there");
        assert_eq!(nft::drops().unwrap().closed.packets, 0);
        nft::ensure(&firewall()).unwrap();
        assert!(from_far("192.0.2.1"), "where it is bound");
        assert!(!from_far("192.0.2.3") && !own("192.0.2.3") && !own("127.0.0.1"));
        assert!(nft::drops().unwrap().closed.packets >= 3);
        assert!(own("::1"), "IPv6");
        std::io::Write::write_all(&mut &before, b"still open").unwrap();
        assert!(!nft::ensure(&firewall()).unwrap(), "a second time changes nothing");
    });
}

#[test]
fn sysctls_are_set_and_given_back() {
    let scratch = tempfile::tempdir().unwrap();
    in_fresh_netns(|| async {
        let state = StateDir::open(scratch.path()).unwrap();
        run("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_local_reserved_ports=9000,9001");
        let ports = |ports: &[u16]| ports.iter().copied().collect::<BTreeSet<_>>();
        let reserved = || run("sysctl -n net.ipv4.ip_local_reserved_ports").trim().to_owned();

        assert!(sysctl::ensure(&state, &ports(&[80, 8080])).unwrap());
        assert!(!sysctl::ensure(&state, &ports(&[80, 8080])).unwrap(), "a second time changes nothing");
        assert_eq!((run("sysctl -n net.ipv4.ip_forward").trim(), &*reserved()), ("1", "80,8080,9000-9001"));

        assert!(sysctl::ensure(&state, &ports(&[443])).unwrap());
        assert_eq!(reserved(), "443,9000-9001");
        run("sysctl -qw net.ipv4.ip_forward=0");
        assert!(sysctl::ensure(&state, &ports(&[443])).unwrap(), "damage is repaired");

        assert!(sysctl::restore(&state).is_empty());
        assert_eq!((run("sysctl -n net.ipv4.ip_forward").trim(), &*reserved()), ("0", "9000-9001"));
    });
}
