//! Containers and neighbours that lie.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dataplane_common::drop_reason::DropReason;
use etherparse::PacketBuilder;
use hiveway_tests::{
    lab::{Capture, DISCARD_PORT, MESH_VNI, Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer, plain,
    table::Table,
};
use serde_json::json;

use crate::{
    frames::{ip, mac},
    host,
    support::{Cluster, METRICS, metric},
    takeover,
};

const VNI: u32 = 4097;

/// a.1 on n1 and a.2 on n2; n3 is a plain node whose address anything can be sent from.
fn two_tasks() -> Table {
    Table::with_nodes(3)
        .set("nodes", "dataplane", json!("none"))
        .network("app", "10.0.1", VNI)
        .service("a")
        .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
        .task("a.2", "a", "n2", &[("app", "10.0.1.4")])
        .task("p.1", "a", "n3", &[("app", "10.0.1.5")])
}

/// An Ethernet frame with a UDP datagram to `DISCARD_PORT`.
fn frame(source_mac: &str, target_mac: &str, source: &str, target: &str) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(source_mac), mac(target_mac))
        .ipv4(ip(source), ip(target), 64)
        .udp(4000, DISCARD_PORT);
    let mut bytes = Vec::with_capacity(builder.size(5));
    builder.write(&mut bytes, b"liar!").expect("a vector takes everything");
    bytes
}

/// A VXLAN header with a VNI, and a frame.
fn tunnelled(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    payload.extend_from_slice(inner);
    payload
}

#[test]
fn a_container_cannot_use_another_ones_address() {
    with_and_without_offloads(|lab| {
        let cluster = Cluster::start(lab, 2, two_tasks())?;
        let (liar, agent) = (cluster.task("a.1"), &cluster.agents[0]);
        let (own, theirs) = (plain::mac_of("10.0.1.3"), plain::mac_of("10.0.1.4"));
        let mut seen = Capture::start(lab, cluster.task("a.2"), "eth0", &format!("udp port {DISCARD_PORT}"))?;
        let before = (agent.dropped("spoofed_mac")?, agent.dropped("spoofed_ip")?);
        for _ in 0..5 {
            liar.send_frame("eth0", &frame("02:42:0a:00:01:63", &theirs, "10.0.1.3", "10.0.1.4"))?;
        }
        for _ in 0..7 {
            liar.send_frame("eth0", &frame(&own, &theirs, "10.0.1.99", "10.0.1.4"))?;
        }
        liar.send_frame("eth0", &frame(&own, &theirs, "10.0.1.3", "10.0.1.4"))?;
        agent.wait_dropped("spoofed_ip", before.1 + 7)?;
        ensure!(agent.dropped("spoofed_mac")? == before.0 + 5, "spoofed_mac: {}", agent.json(&["drops"])?);
        ensure!(agent.dropped("spoofed_ip")? == before.1 + 7, "spoofed_ip: {}", agent.json(&["drops"])?);
        seen.wait_packets(1)?;
        let rows = seen.dissect("udp", &["ip.src"])?;
        ensure!(rows == [["10.0.1.3"]], "a.2 has seen {rows:?}");
        Ok(())
    });
}

#[test]
fn a_tunnel_forged_by_a_container_or_a_local_user_is_dropped() {
    with_and_without_offloads(|lab| {
        let cluster = Cluster::start(lab, 2, two_tasks())?;
        let (liar, agent) = (cluster.task("a.1"), &cluster.agents[0]);
        let wire = Capture::start(lab, lab.switch(), "n1", "udp port 4789")?;
        let before = agent.dropped("forged_tunnel")?;
        let inner = frame(&plain::mac_of("10.0.1.3"), &plain::mac_of("10.0.1.4"), "10.0.1.3", "10.0.1.4");
        send_datagrams(liar, "192.168.77.12:4789", &tunnelled(VNI, &inner), 6)?;
        agent.wait_dropped("forged_tunnel", before + 6)?;
        ensure!(agent.dropped("forged_tunnel")? == before + 6, "forged_tunnel: {}", agent.json(&["drops"])?);
        // A user on the node itself: refused by the firewall table.
        let refused = send_datagrams(&cluster.nodes[0], "192.168.77.12:4789", &tunnelled(VNI, &inner), 3);
        ensure!(refused.is_err(), "a local user could send to a node's tunnel port");
        ensure!(agent.dropped("forged_tunnel")? > before + 6, "the firewall's drops are not counted");
        // But for probes, which are in the mesh's VNI.
        let rows = wire.dissect(&format!("vxlan && vxlan.vni != {MESH_VNI}"), &["ip.src"])?;
        ensure!(rows.is_empty(), "forged tunnels left the node: {rows:?}");
        // The node's own slow path still works: broadcast goes through the kernel's device.
        cluster.task("a.2").run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
        let answers = liar.run("ping -b -c 1 -W 5 10.0.1.255")?;
        ensure!(answers.contains("from 10.0.1.4"), "the guard has cut off our own tunnel: {answers}");
        Ok(())
    });
}

/// Drops of the programs and of the firewall, some of them for one and the same reason.
#[test]
fn what_drops_says_is_what_the_metric_says_for_every_reason() {
    scenario(|lab| {
        let cluster = Cluster::start_with(lab, 2, two_tasks(), &METRICS)?;
        let (liar, node, agent) = (cluster.task("a.1"), &cluster.nodes[0], &cluster.agents[0]);
        let (own, theirs) = (plain::mac_of("10.0.1.3"), plain::mac_of("10.0.1.4"));
        let inner = frame(&own, &theirs, "10.0.1.3", "10.0.1.4");
        let count = |reason: &str| agent.dropped(reason);
        let reasons = ["spoofed_mac", "spoofed_ip", "forged_tunnel", "unknown_destination"];
        let before = reasons.map(|reason| count(reason).unwrap_or(0));
        for _ in 0..3 {
            liar.send_frame("eth0", &frame("02:42:0a:00:01:63", &theirs, "10.0.1.3", "10.0.1.4"))?;
        }
        for _ in 0..4 {
            liar.send_frame("eth0", &frame(&own, &theirs, "10.0.1.99", "10.0.1.4"))?;
        }
        // Five that the program drops, and more that the firewall does.
        send_datagrams(liar, "192.168.77.12:4789", &tunnelled(VNI, &inner), 5)?;
        agent.wait_dropped("forged_tunnel", before[2] + 5)?;
        let programs = count("forged_tunnel")?;
        ensure!(send_datagrams(node, "192.168.77.12:4789", &tunnelled(VNI, &inner), 1).is_err(), "it was sent");
        agent.wait_dropped("forged_tunnel", programs + 1)?;
        liar.send_frame("eth0", &frame(&own, "ff:ff:ff:ff:ff:ff", "10.0.1.3", "192.168.77.11"))?;
        agent.wait_dropped("unknown_destination", before[3] + 1)?;
        for (at, least) in [(0, 3), (1, 4), (2, 6), (3, 1)] {
            let grown = count(reasons[at])? - before[at];
            ensure!(grown >= least, "{grown} of {}", reasons[at]);
        }
        // Something may be dropped between the one and the other.
        wait_for("drops and the metric to agree", PATIENCE, || {
            let rows = agent.json(&["drops"])?;
            let rows = rows.as_array().context("no list")?;
            ensure!(rows.len() == DropReason::ALL.len(), "{} reasons of {}", rows.len(), DropReason::ALL.len());
            for row in rows {
                let reason = row["reason"].as_str().context("no reason")?;
                for (series, key) in [("packets", "packets"), ("bytes", "bytes")] {
                    let series = format!("hiveway_dropped_{series}_total{{reason=\"{reason}\"}}");
                    let (seen, shown) = (metric(node, &series)?, row[key].as_u64().map(|count| count as f64));
                    ensure!(seen.is_some() && seen == shown, "{series} is {seen:?}, and drops says {shown:?}");
                }
            }
            Ok(())
        })
    });
}

#[test]
fn frames_of_strangers_and_of_lying_nodes_are_dropped() {
    with_and_without_offloads(|lab| {
        let (stranger, node3) = (lab.client()?, lab.node("n3", 13)?);
        let cluster = Cluster::start(lab, 2, two_tasks())?;
        let agent = &cluster.agents[1];
        let mut seen = Capture::start(lab, cluster.task("a.2"), "eth0", &format!("udp port {DISCARD_PORT}"))?;
        let target = plain::mac_of("10.0.1.4");
        let count = |reason: &str| agent.dropped(reason);
        let before = (count("unknown_vtep")?, count("bad_inner_source")?, count("malformed_header")?);
        // Nobody's address.
        let honest = frame(&plain::mac_of("10.0.1.3"), &target, "10.0.1.3", "10.0.1.4");
        send_datagrams(&stranger, "192.168.77.12:4789", &tunnelled(VNI, &honest), 4)?;
        // A node, but the inner source lives elsewhere.
        send_datagrams(&node3, "192.168.77.12:4789", &tunnelled(VNI, &honest), 3)?;
        // The node that the inner source lives on.
        let own = frame(&plain::mac_of("10.0.1.5"), &target, "10.0.1.5", "10.0.1.4");
        send_datagrams(&node3, "192.168.77.12:4789", &tunnelled(VNI, &own), 2)?;
        agent.wait_dropped("unknown_vtep", before.0 + 4)?;
        agent.wait_dropped("bad_inner_source", before.1 + 3)?;
        ensure!(count("unknown_vtep")? == before.0 + 4, "{}", agent.json(&["drops"])?);
        ensure!(count("bad_inner_source")? == before.1 + 3, "{}", agent.json(&["drops"])?);
        seen.wait_packets(2)?;
        let rows = seen.dissect("udp", &["ip.src"])?;
        ensure!(rows == [["10.0.1.5"], ["10.0.1.5"]], "a.2 has seen {rows:?}");
        // A network that is not ours stays its owner's: a foreign vxlan device on the node gets its frames.
        let n2 = &cluster.nodes[1];
        n2.run("ip link add fvx0 type vxlan id 77 dstport 4789 local 192.168.77.12 nolearning")?;
        n2.run("ip link set fvx0 up")?;
        let mut foreign = Capture::start(lab, n2, "fvx0", &format!("udp port {DISCARD_PORT}"))?;
        let inner = frame("02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "10.9.0.1", "10.9.0.255");
        send_datagrams(&stranger, "192.168.77.12:4789", &tunnelled(77, &inner), 2)?;
        foreign.wait_packets(2)?;
        let rows = foreign.dissect("udp", &["ip.src"])?;
        ensure!(rows.len() == 2, "the foreign vxlan device got {rows:?}");
        ensure!(
            peer::tcp_load(cluster.task("a.1"), "10.0.1.4:81", 1, 1)?.errors.keys().any(|why| why.contains("refused"))
        );
        Ok(())
    });
}

/// Links between virtual machines and namespaces carry what one `sendmsg` with UDP_SEGMENT has made as one packet.
#[test]
fn every_frame_of_several_in_one_packet_is_checked() {
    scenario(|lab| {
        let worker = lab.node("n3", 13)?;
        let cluster = Cluster::start(lab, 2, two_tasks())?;
        let agent = &cluster.agents[1];
        let mut seen = Capture::start(lab, cluster.task("a.2"), "eth0", &format!("udp port {DISCARD_PORT}"))?;
        let before = agent.dropped("bad_inner_source")?;
        let of = |source: &str| {
            let inner = frame(&plain::mac_of(source), &plain::mac_of("10.0.1.4"), source, "10.0.1.4");
            tunnelled(VNI, &inner)
        };
        let (own, theirs) = (of("10.0.1.5"), of("10.0.1.3"));
        worker.enter(|| -> Result<()> {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment, &(own.len() as i32))?;
            socket.send_to(&[&own[..], &theirs, &own, &theirs].concat(), "192.168.77.12:4789")?;
            Ok(())
        })??;
        agent.wait_dropped("bad_inner_source", before + 2)?;
        seen.wait_packets(2)?;
        let rows = seen.dissect("udp", &["ip.src"])?;
        ensure!(rows == [["10.0.1.5"], ["10.0.1.5"]], "a.2 has seen {rows:?}");
        Ok(())
    });
}

/// Sends UDP datagrams from a namespace; fails if the kernel refuses to.
fn send_datagrams(netns: &Netns, target: &str, payload: &[u8], count: u32) -> Result<()> {
    netns.enter(|| -> Result<()> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..count {
            socket.send_to(payload, target)?;
        }
        Ok(())
    })?
}

/// An ICMPv6 router advertisement (RFC 4861 section 4.2) for everybody on the link, with a prefix to make addresses of.
fn router_advertisement(source_mac: &str) -> Vec<u8> {
    const TYPE: u8 = 134;
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x42, 0x0a, 0xff, 0xfe, 0, 1, 3];
    let all_nodes = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let prefix = [0x20, 0x01, 0x0d, 0xb8, 0, 0x66, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let information = [&[3, 4, 64, 0xc0][..], &[0, 0, 0x0e, 0x10], &[0, 0, 0x0e, 0x10], &[0; 4], &prefix].concat();
    let payload = [&[0; 8][..], &information].concat();
    let builder = PacketBuilder::ethernet2(mac(source_mac), [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(link_local, all_nodes, 255)
        // Hop limit 64, a default router for an hour.
        .icmpv6_raw(TYPE, 0, [64, 0, 0x0e, 0x10]);
    let mut bytes = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut bytes, &payload).expect("a vector takes everything");
    bytes
}

#[test]
fn a_containers_router_advertisement_changes_nothing_on_the_node() {
    scenario(|lab| {
        let nodes =
            [11, 12].map(|host| lab.node(&format!("n{}", host - 10), host)).into_iter().collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            node.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0")?;
        }
        let cluster = Cluster::start_on(lab, nodes, two_tasks(), &[])?;
        let (liar, own) = (cluster.task("a.1"), plain::mac_of("10.0.1.3"));
        let learned = || -> Result<()> {
            for node in &cluster.nodes {
                let routes = node.run("ip -6 route show")? + &node.run("ip -6 addr show")?;
                ensure!(!routes.contains("2001:db8:66") && !routes.contains("default"), "{}: {routes}", node.label());
            }
            Ok(())
        };
        for _ in 0..5 {
            liar.send_frame("eth0", &router_advertisement(&own))?;
            std::thread::sleep(Duration::from_millis(200));
        }
        learned()?;
        // Of an earlier version, or switched on by hand.
        let bridge =
            cluster.nodes[0].shell("ip -oneline link show type bridge | cut -d' ' -f2 | tr -d : | grep ^hwb")?;
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", bridge.trim());
        cluster.nodes[0].shell(&format!("echo 0 > {path}"))?;
        wait_for("IPv6 to be switched off again", PATIENCE, || {
            let off = cluster.nodes[0].shell(&format!("cat {path}"))?;
            ensure!(off.trim() == "1", "{path}: {off}");
            Ok(())
        })
    });
}

/// Frames of 10.0.`net`.3 with the MAC `to`, to `target`: UDP, TCP and ICMP.
fn to_the_stack(net: u8, to: &str, target: &str) -> Vec<Vec<u8>> {
    let source = format!("10.0.{net}.3");
    let head = || {
        let ethernet = PacketBuilder::ethernet2(mac(&plain::mac_of(&source)), mac(to));
        ethernet.ipv4(ip(&source), ip(target), 64)
    };
    let mut frames = vec![Vec::new(); 3];
    let written = [
        head().udp(4000, DISCARD_PORT).write(&mut frames[0], b"liar!"),
        head().tcp(4001, DISCARD_PORT, 1, 1024).syn().write(&mut frames[1], b""),
        head().icmpv4_echo_request(7, 1).write(&mut frames[2], b"liar!"),
    ];
    assert!(written.iter().all(Result::is_ok), "a vector takes everything");
    frames
}

/// An ARP request of 10.0.1.3 for `target`.
fn who_has(target: &str) -> Vec<u8> {
    let own = mac(&plain::mac_of("10.0.1.3"));
    let request: [&[u8]; 3] = [&[0xff; 6], &own, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]];
    let addresses: [&[u8]; 4] = [&own, &ip("10.0.1.3"), &[0; 6], &ip(target)];
    [request.concat(), addresses.concat()].concat()
}

/// What has come by behind the agent's own rules, from overlay addresses: for the node, and through it (what a bridge
/// forwards, where br_netfilter shows it, leaves by that bridge).
const BEHIND: &str = r#"add table inet behind
add chain inet behind input { type filter hook input priority 10; }
add rule inet behind input ip saddr 10.0.0.0/16 counter
add chain inet behind forward { type filter hook forward priority 10; }
add rule inet behind forward ip saddr 10.0.0.0/16 oifname != "hwb*" counter"#;

#[test]
fn a_container_reaches_nothing_of_the_node_over_an_overlay_bridge() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let table = two_tasks().network("inside", "10.0.2", VNI + 1).set("networks", "internal", json!(true));
        let cluster = Cluster::start(lab, 2, table.task("in.1", "a", "n1", &[("inside", "10.0.2.3")]))?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        node.shell(&format!("printf '%s\n' '{BEHIND}' | nft -f -"))?;
        // Bridged packets come by the same hooks, if the kernel has br_netfilter.
        node.run("sysctl -qwe net.ipv4.conf.all.rp_filter=0 net.bridge.bridge-nf-call-iptables=1")?;
        let mut outside = Capture::start(lab, &far, "eth0", "net 10.0.0.0/16")?;
        let before = agent.dropped("unknown_destination")?;
        let mut sent = 0;
        for (net, task) in [(1, "a.1"), (2, "in.1")] {
            let bridge = format!("hwb{}", VNI - 1 + u32::from(net));
            node.run(&format!("sysctl -qw net.ipv4.conf.{bridge}.rp_filter=0"))?;
            let links: serde_json::Value = serde_json::from_str(&node.run(&format!("ip -j link show {bridge}"))?)?;
            let own = links[0]["address"].as_str().unwrap_or_default();
            let group = "ff:ff:ff:ff:ff:ff";
            for (to, target) in [(own, "192.168.77.11"), (group, "192.168.77.11"), (own, "192.168.88.100")] {
                for frame in to_the_stack(net, to, target) {
                    cluster.task(task).send_frame("eth0", &frame)?;
                    sent += 1;
                }
            }
        }
        // What is sent last has come by when all is counted, whoever counts it.
        let passed = || -> Result<u64> {
            let listing = node.run("nft list table inet behind")?;
            let counts =
                listing.split("packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            Ok(counts.sum())
        };
        wait_for("all to have come by", PATIENCE, || {
            let (dropped, passed) = (agent.dropped("unknown_destination")? - before, passed()?);
            ensure!(dropped + passed >= sent, "{dropped} dropped and {passed} passed of {sent}");
            Ok(())
        })?;
        ensure!(passed()? == 0, "the node has taken or forwarded: {}", node.run("nft list table inet behind")?);
        ensure!(agent.dropped("unknown_destination")? == before + sent, "{}", agent.json(&["drops"])?);
        ensure!(outside.packets()? == 0, "a container's packets have left by an overlay bridge");

        // It does not answer for its addresses there either.
        let liar = cluster.task("a.1");
        let answers = Capture::start(lab, liar, "eth0", "arp[6:2] = 2")?;
        for target in ["192.168.77.11", "172.18.0.1", "10.0.1.4"] {
            liar.send_frame("eth0", &who_has(target))?;
        }
        std::thread::sleep(Duration::from_millis(300));
        let rows = answers.dissect("arp", &["arp.src.proto_ipv4"])?;
        ensure!(rows == [["10.0.1.4"]], "who was told about: {rows:?}");

        // Containers still reach each other, by the bridge too, and the outside by the way that is meant for it.
        cluster.task("a.2").run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
        ensure!(liar.run("ping -b -c 1 -W 5 10.0.1.255")?.contains("from 10.0.1.4"), "broadcast is cut off");
        liar.run("ping -c 1 -W 5 192.168.88.100").map(drop)
    });
}

/// On a network that engines carry, the kernel's tunnel sockets take frames from whoever reaches them.
#[test]
fn nobody_on_a_node_gets_into_an_engines_network_by_way_of_its_tunnels() {
    scenario(|lab| {
        let nodes = takeover::nodes(lab)?;
        // An address of n2 that n1 does not know as such.
        nodes[1].run("ip addr add 10.50.0.1/32 dev eth0")?;
        nodes[0].run("ip route add 10.50.0.1/32 via 192.168.77.12")?;
        let container = host::container_on(lab, &nodes[0], "docker0", "172.17.0")?;
        let mut cluster = Cluster::start_on(lab, nodes, takeover::web(), &[])?;
        cluster.serve(&takeover::WEB)?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let filter = format!("udp port {DISCARD_PORT}");
        let seen = takeover::WEB.map(|task| Capture::start(lab, cluster.task(task), "eth0", &filter));
        let to = |target: &str, source: &str| {
            tunnelled(VNI, &frame(&plain::mac_of(source), &plain::mac_of(target), source, target))
        };
        let (to_first, to_second) = (to("10.0.1.3", "10.0.1.4"), to("10.0.1.4", "10.0.1.3"));
        let before = agent.dropped("forged_tunnel")?;
        let mut sent = 0;
        for from in [&container, cluster.task("web.1")] {
            for (address, payload) in [
                ("172.17.0.1:4789", &to_first),
                ("172.18.0.1:4789", &to_first),
                ("192.168.77.11:4789", &to_first),
                ("192.168.77.12:4789", &to_second),
                ("10.50.0.1:4789", &to_second),
            ] {
                send_datagrams(from, address, payload, 2)?;
                sent += 2;
            }
        }
        agent.wait_dropped("forged_tunnel", before + sent)?;
        for (address, payload) in
            [("127.0.0.1:4789", &to_first), ("192.168.77.11:4789", &to_first), ("10.50.0.1:4789", &to_second)]
        {
            ensure!(send_datagrams(node, address, payload, 1).is_err(), "a local user could send to {address}");
        }
        for capture in seen {
            let rows = capture?.dissect("udp", &["ip.src"])?;
            ensure!(rows.is_empty(), "a task has seen {rows:?}");
        }
        // The engines' own tunnels work.
        let tally = peer::tcp_load(cluster.task("user.1"), "10.0.1.3:80", 4, 1)?;
        ensure!(tally.failed == 0, "{tally:?}");
        let tally = peer::tcp_load(cluster.task("web.1"), "10.0.1.4:80", 4, 1)?;
        ensure!(tally.failed == 0, "{tally:?}");
        Ok(())
    });
}

/// As a container with NET_ADMIN and no user namespace can make one, through the veth that leads to the node's
/// namespace.
#[test]
fn a_foreign_port_of_a_bridge_of_ours_is_taken_away_and_named() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 2, two_tasks())?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        for bridge in [format!("hwb{VNI}"), "hw-gwbridge".to_owned()] {
            node.run(&format!("ip link add evil0 type veth peer name evil1 netns {}", cluster.task("a.1").name()))?;
            node.run(&format!("ip link set evil0 master {bridge} up"))?;
            wait_for(&format!("the port of {bridge} to go"), PATIENCE, || {
                let now = node.run(&format!("ip -brief link show master {bridge}"))?;
                ensure!(!now.contains("evil0"), "{now}");
                Ok(())
            })?;
            agent.wait_log(&format!("foreign interface evil0 on bridge {bridge}"))?;
            node.run("ip link delete evil0")?;
        }
        // Somebody else's bridges are somebody else's.
        node.run("ip link add br-mine type bridge")?;
        node.run("ip link add mine0 type veth peer name mine1")?;
        node.run("ip link set mine0 master br-mine")?;
        cluster.task("a.1").run("ping -c 1 -W 5 10.0.1.4")?;
        node.run("ip link show mine0").map(drop)
    });
}
