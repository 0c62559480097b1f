//! What carries VXLAN and clients besides one Ethernet interface: links without an Ethernet header, several uplinks,
//! the tunnel address on the loopback device.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, Tunnels, scenario, wait_for, with_and_without_offloads},
    peer,
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, assert_refused, web_table};

pub(crate) const WEB: [&str; 2] = ["web.1", "web.2"];
/// Less than the agent needs to notice by looking once in a while.
const FOLLOWED: Duration = Duration::from_millis(2500);

/// web.1 and web.2 on n1 and n2, published; n3 has only user.1. Nodes have these addresses.
pub(crate) fn web(addresses: [&str; 3], mtu: u32) -> Table {
    let mut table = web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53), ("tcp", 8081, 81)], "n3");
    for (node, address) in ["n1", "n2", "n3"].into_iter().zip(addresses) {
        table.item_mut("nodes", node)["address"] = json!(address);
    }
    for network in ["ingress", "app"] {
        table.item_mut("networks", network)["mtu"] = json!(mtu);
    }
    table
}

pub(crate) fn nodes(lab: &Lab) -> Result<Vec<Netns>> {
    (1..=3).map(|n| lab.node(&format!("n{n}"), 10 + n)).collect()
}

/// Overlay, VIP and routing mesh between the nodes, small and large.
pub(crate) fn everything_works(cluster: &Cluster<'_>, client: &Netns, node: &str, seen: &str) -> Result<()> {
    let user = cluster.task("user.1");
    for (name, task) in [("web.1", "10.0.1.3"), ("web.2", "10.0.1.4")] {
        assert_even(&peer::tcp_load(user, &format!("{task}:80"), 4, 1)?, &[name], 4)?;
        peer::transfer(user, &format!("{task}:80"), 1_000_000)?;
    }
    assert_even(&peer::tcp_load(user, "10.0.1.2:80", 10, 2)?, &WEB, 5)?;
    peer::transfer(user, "10.0.1.2:80", 1_000_000)?;
    let tcp = peer::tcp_load(client, &format!("{node}:8080"), 10, 2)?;
    assert_even(&tcp, &WEB, 5)?;
    assert_peer(&tcp, seen)?;
    for _ in WEB {
        peer::transfer(client, &format!("{node}:8080"), 1_000_000)?;
    }
    let udp = peer::udp_load(client, &format!("{node}:5353"), 10)?;
    assert_even(&udp, &WEB, 5)?;
    assert_peer(&udp, seen)
}

#[test]
fn a_link_without_ethernet_header_is_the_underlay() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let nodes = nodes(lab)?;
        let address = |host: u8| Ipv4Addr::new(10, 8, 0, host);
        let ends: Vec<_> = nodes.iter().zip(11..).map(|(node, host)| (node, address(host))).collect();
        let _tunnels = Tunnels::start("tun1", 1420, &ends)?;
        let table = web(["10.8.0.11", "10.8.0.12", "10.8.0.13"], 1370);
        let mut cluster = Cluster::start_on(lab, nodes, table, &["--underlay", "tun1", "--xdp", "generic"])?;
        cluster.serve(&WEB)?;
        everything_works(&cluster, &client, "192.168.77.13", "192.168.77.100")?;
        // The slow path: what must be fragmented, and broadcast.
        let large = peer::udp_echo_fragmentable(cluster.task("user.1"), "10.0.1.2:53", 3000, 4)?;
        ensure!(large.ok == 4, "datagrams of 3000 bytes: {large:?}");
        cluster.task("web.1").run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
        let answers = cluster.task("user.1").run("ping -b -c 1 -W 5 10.0.1.255")?;
        ensure!(answers.contains("from 10.0.1.3"), "broadcast: {answers}");
        let status = cluster.agents[2].cli(&["status"])?;
        ensure!(status.contains("10.8.0.13 on tun1") && status.contains("no Ethernet header"), "{status}");
        Ok(())
    });
}

#[test]
fn clients_behind_a_link_without_ethernet_header_are_served() {
    with_and_without_offloads(|lab| {
        let (client, nodes) = (lab.namespace("vpn")?, nodes(lab)?);
        // Beside the backend of web.1, and where there is none.
        let (here, there) = (Ipv4Addr::new(10, 9, 1, 1), Ipv4Addr::new(10, 9, 3, 1));
        let _tunnels = [
            Tunnels::start("tun1", 1420, &[(&nodes[0], here), (&client, Ipv4Addr::new(10, 9, 1, 100))])?,
            Tunnels::start("tun3", 1420, &[(&nodes[2], there), (&client, Ipv4Addr::new(10, 9, 3, 100))])?,
        ];
        let table = web(["192.168.77.11", "192.168.77.12", "192.168.77.13"], 1450);
        let mut cluster = Cluster::start_on(lab, nodes, table, &[])?;
        cluster.serve(&WEB)?;
        everything_works(&cluster, &client, "10.9.1.1", "10.9.1.100")?;
        everything_works(&cluster, &client, "10.9.3.1", "10.9.3.100")?;
        // Refused at once: nothing listens at the target port, nor at one that is not published.
        for port in [8081, 8082] {
            assert_refused(&peer::attempts(&client, "tcp", &format!("10.9.3.1:{port}"), 4)?, 4)?;
        }
        let used = peer::udp_from_port(&cluster.nodes[2], "10.9.3.100:9", 5353, 1, false)?;
        ensure!(used.ok == 0, "{used:?}");
        ensure!(cluster.agents[2].counter("own_noted")? >= 1, "the node's own use of a published port is not noted");
        Ok(())
    });
}

/// Tunnel addresses of the nodes of a [`fabric`].
const ON_LO: [&str; 3] = ["10.255.0.11", "10.255.0.12", "10.255.0.13"];

/// As in a routed fabric: each node has its tunnel address on the loopback device and two uplinks, each to a router of
/// its own, over which packets are spread.
fn fabric(lab: &Lab) -> Result<Vec<Netns>> {
    let (nodes, switch) = (nodes(lab)?, lab.switch());
    switch.run("ip link add br1 type bridge forward_delay 0 mcast_snooping 0")?;
    switch.run("ip link set br1 up")?;
    for (node, host) in nodes.iter().zip(11..) {
        second_uplink(lab, node, host)?;
        node.run(&format!("ip addr add 10.255.0.{host}/32 dev lo"))?;
        node.run("sysctl -qw net.ipv4.fib_multipath_hash_policy=1")?;
    }
    for (node, host) in nodes.iter().zip(11..) {
        fabric_routes(node, host, |other| format!("nexthop via 192.168.77.{other} nexthop via 192.168.78.{other}"))?;
    }
    Ok(nodes)
}

/// The cable between a node's eth1 and the second switch.
fn second_uplink(lab: &Lab, node: &Netns, host: u8) -> Result<()> {
    let (switch, port) = (lab.switch(), format!("{}-b", node.label()));
    switch.run(&format!("ip link add {port} type veth peer name eth1 netns {}", node.name()))?;
    switch.run(&format!("ip link set {port} master br1 up"))?;
    node.run(&format!("ip addr add 192.168.78.{host}/24 dev eth1"))?;
    node.run("ip link set eth1 up").map(drop)
}

/// A node's routes to the others' tunnel addresses.
fn fabric_routes(node: &Netns, host: u8, hops: impl Fn(u8) -> String) -> Result<()> {
    (11..14).filter(|other| *other != host).try_for_each(|other| {
        node.run(&format!("ip route replace 10.255.0.{other} src 10.255.0.{host} {}", hops(other))).map(drop)
    })
}

/// Packets that an interface has received.
fn received(node: &Netns, interface: &str) -> Result<u64> {
    let link = node.run(&format!("ip -s -o link show dev {interface}"))?;
    let rx = link.split("RX:").nth(1).and_then(|rest| rest.split_whitespace().nth(7));
    Ok(rx.and_then(|packets| packets.parse().ok()).unwrap_or(0))
}

#[test]
fn a_tunnel_address_on_lo_is_reached_over_all_uplinks() {
    scenario(|lab| {
        let (nodes, switch) = (fabric(lab)?, lab.switch());
        let client = lab.client()?;
        let mut cluster = Cluster::start_on(lab, nodes, web(ON_LO, 1450), &["--underlay", "auto"])?;
        cluster.serve(&WEB)?;
        everything_works(&cluster, &client, "192.168.77.13", "192.168.77.100")?;
        let before = received(&cluster.nodes[2], "eth1")?;
        assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 40, 2)?, &WEB, 20)?;
        ensure!(received(&cluster.nodes[2], "eth1")? > before, "nothing arrives on the second uplink");
        let status = cluster.agents[2].json(&["status"])?;
        ensure!(status["node"]["underlay"] == "eth0,eth1", "{}", status["node"]);
        // A routing protocol withdraws one of them from n3, whose interface stays up, and gives it back.
        for (hops, uplinks) in [(1, "eth0"), (2, "eth0,eth1"), (1, "eth0"), (2, "eth0,eth1")] {
            for other in [11, 12] {
                let hops = [format!("nexthop via 192.168.77.{other}"), format!("nexthop via 192.168.78.{other}")]
                    [..hops]
                    .join(" ");
                cluster.nodes[2].run(&format!("ip route replace 10.255.0.{other} src 10.255.0.13 {hops}"))?;
            }
            wait_for("the uplinks to follow the routes", FOLLOWED, || {
                let node = cluster.agents[2].json(&["status"])?["node"].take();
                ensure!(node["underlay"] == uplinks, "{node}");
                Ok(())
            })?;
        }
        // One of the uplinks fails, and the routes with it.
        for node in &cluster.nodes {
            node.run("ip link set eth1 down")?;
        }
        wait_for("the other uplink to carry everything", PATIENCE, || {
            assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 20, 2)?, &WEB, 10)
        })?;
        // The agents have chosen again: an uplink that is down is none.
        for agent in &cluster.agents {
            wait_for("the node to be healthy with the uplink that is left", PATIENCE, || {
                let status = agent.json(&["status"])?;
                ensure!(status["node"]["underlay"] == "eth0" && status["healthy"] == true, "{status}");
                Ok(())
            })?;
        }
        // Everything works, and it is said what does not.
        let healthy_and_says = |what: &[&str]| {
            wait_for(&format!("the node to be healthy and to say {what:?}"), PATIENCE, || {
                let status = cluster.agents[2].json(&["status"])?;
                ensure!(status["healthy"] == true, "{status}");
                let said: Vec<_> = status["warnings"].as_array().into_iter().flatten().collect();
                let said: Vec<_> =
                    said.iter().filter_map(|text| text.as_str()).filter(|t| t.contains("uplink")).collect();
                let fits = said.iter().zip(what).all(|(said, what)| said.contains(what));
                ensure!(said.len() == what.len() && fits, "{said:?}");
                Ok(())
            })
        };
        healthy_and_says(&["uplink eth1 is down: VXLAN is accepted on eth0 only; `ip link set eth1 up`"])?;
        let text = cluster.agents[2].cli(&["status"])?;
        ensure!(text.contains("Warnings:") && text.contains("uplink eth1 is down"), "{text}");
        // Up again without the routes that it had: half of the fabric is still unused. On all nodes: where a node has
        // no route over an uplink, what others send there is not accepted.
        let n3 = &cluster.nodes[2];
        let routes = |hops: fn(u8) -> String| -> Result<()> {
            cluster.nodes.iter().zip(11..).try_for_each(|(node, host)| fabric_routes(node, host, hops))
        };
        routes(|other| format!("via 192.168.77.{other}"))?;
        cluster.nodes.iter().try_for_each(|node| node.run("ip link set eth1 up").map(drop))?;
        healthy_and_says(&["uplink eth1 works again, but no route to another node leads over it"])?;
        routes(|other| format!("nexthop via 192.168.77.{other} nexthop via 192.168.78.{other}"))?;
        healthy_and_says(&[])?;
        // The cable: routes stay, as the kernel leaves them by default.
        switch.run("ip link set n3-b down")?;
        wait_for("the cable to be missed", PATIENCE, || {
            let status = cluster.agents[2].json(&["status"])?;
            ensure!(status["warnings"].to_string().contains("uplink eth1 has no carrier"), "{}", status["warnings"]);
            Ok(())
        })?;
        switch.run("ip link set n3-b up")?;
        healthy_and_says(&[])?;
        // Taken out, on which the kernel forgets the routes that have led over it, the other hop included.
        cluster.nodes[..2].iter().try_for_each(|node| node.run("ip link set eth1 down").map(drop))?;
        n3.run("ip link del eth1")?;
        routes(|other| format!("via 192.168.77.{other}"))?;
        healthy_and_says(&["uplink eth1 is gone: VXLAN is accepted on eth0 only; bring it and its routes back"])
    });
}

/// With asymmetric routes: what the others send arrives on both, n3's own routes lead over eth0 alone. `auto` would not
/// accept what comes in on eth1.
#[test]
fn uplinks_that_are_named_are_all_accepted_on() {
    scenario(|lab| {
        let (nodes, client) = (fabric(lab)?, lab.client()?);
        let over_eth0 = |other: u8| format!("via 192.168.77.{other}");
        let over_eth1 = |other: u8| format!("via 192.168.78.{other}");
        fabric_routes(&nodes[2], 13, over_eth0)?;
        for (node, host) in nodes[..2].iter().zip(11..) {
            fabric_routes(node, host, over_eth1)?;
        }
        let mut cluster = Cluster::start_on(lab, nodes, web(ON_LO, 1450), &["--underlay", "eth0,eth1"])?;
        cluster.serve(&WEB)?;
        everything_works(&cluster, &client, "192.168.77.13", "192.168.77.100")?;
        let (n3, agent) = (&cluster.nodes[2], &cluster.agents[2]);
        let before = received(n3, "eth1")?;
        assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 40, 2)?, &WEB, 20)?;
        ensure!(received(n3, "eth1")? >= before + 40, "the backends' answers do not arrive on eth1");
        let status_says = |healthy: bool, what: &str| {
            wait_for(&format!("the node to be healthy: {healthy}, and to say `{what}`"), PATIENCE, || {
                let status = agent.json(&["status"])?;
                ensure!(status["healthy"] == healthy && status["failing"].to_string().contains(what), "{status:#}");
                ensure!(!status["warnings"].to_string().contains("uplink"), "{}", status["warnings"]);
                Ok(())
            })
        };
        status_says(true, "[]")?;
        ensure!(agent.json(&["status"])?["node"]["underlay"] == "eth0,eth1", "{}", agent.cli(&["status"])?);
        // One that is named has to be there and up. Everything goes on over the other, once the others' routes lead
        // there.
        let others = |hops: &dyn Fn(u8) -> String| {
            cluster.nodes[..2].iter().zip(11..).try_for_each(|(node, host)| fabric_routes(node, host, hops))
        };
        let works = || {
            wait_for("eth0 to carry everything", PATIENCE, || {
                assert_even(&peer::attempts(&client, "tcp", "192.168.77.13:8080", 4)?, &WEB, 2)
            })
        };
        others(&over_eth0)?;
        n3.run("ip link set eth1 down")?;
        status_says(false, "interface eth1 is down")?;
        works()?;
        n3.run("ip link del eth1")?;
        status_says(false, "interface eth1 is gone")?;
        works()?;
        second_uplink(lab, n3, 13)?;
        // It has another MAC, and sends nothing by which the others would learn that.
        cluster.nodes[..2].iter().try_for_each(|node| node.run("ip neigh flush dev eth1").map(drop))?;
        status_says(true, "[]")?;
        others(&over_eth1)?;
        everything_works(&cluster, &client, "192.168.77.13", "192.168.77.100")?;
        // By n3's own routes eth1 is no uplink: what arrives there is not accepted, and it is said why.
        agent.restart_with(&["--underlay", "auto"])?;
        let problems = |said: bool| {
            wait_for(&format!("a way that is no uplink's to be named: {said}"), PATIENCE, || {
                let status = agent.json(&["status"])?;
                let problems = status["path_problems"].to_string();
                ensure!(status["node"]["underlay"] == "eth0" && status["healthy"] == !said, "{status:#}");
                ensure!(
                    problems.matches("on an interface that is no uplink").count() == usize::from(said) * 2,
                    "{problems}"
                );
                Ok(())
            })
        };
        problems(true)?;
        others(&over_eth0)?;
        problems(false)
    });
}

#[test]
fn maps_follow_at_once_when_an_uplink_is_back_after_a_while() {
    scenario(|lab| {
        let cluster =
            Cluster::start_on(lab, nodes(lab)?, web(["192.168.77.11", "192.168.77.12", "192.168.77.13"], 1450), &[])?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let maps = || -> Result<Option<u64>> {
            let status = agent.json(&["status"])?;
            let mut failing = status["failing"].as_array().into_iter().flatten();
            Ok(failing.find(|item| item["item"] == "maps").map(|item| item["attempts"].as_u64().unwrap_or(0)))
        };
        let rename = |from: &str, to: &str| {
            for step in ["down", &format!("name {to}")] {
                node.run(&format!("ip link set {from} {step}"))?;
            }
            node.run(&format!("ip link set {to} up"))
        };
        rename("eth0", "away0")?;
        // By then what fails on its own account is tried every 16 seconds.
        wait_for("the maps to have lacked it for a while", 2 * PATIENCE, || {
            let attempts = maps()?;
            ensure!(attempts >= Some(6), "{attempts:?} attempts");
            Ok(())
        })?;
        rename("away0", "eth0")?;
        wait_for("the maps to follow", FOLLOWED, || {
            ensure!(maps()?.is_none(), "{:#}", agent.json(&["status"])?["failing"]);
            Ok(())
        })
    });
}

/// A node whose address is on a bridge, of which its cable is a port, as hosts of virtual machines have it.
fn bridged(lab: &Lab, label: &str, host: u8) -> Result<Netns> {
    let node = lab.node(label, host)?;
    node.run("ip link add vmbr0 type bridge forward_delay 0 mcast_snooping 0")?;
    node.run("ip addr flush dev eth0")?;
    node.run("ip link set eth0 master vmbr0")?;
    node.run(&format!("ip addr add 192.168.77.{host}/24 dev vmbr0"))?;
    node.run("ip link set vmbr0 up")?;
    node.run("ip route add default via 192.168.77.1")?;
    Ok(node)
}

fn a_bridge_is_the_underlay(xdp: &str) {
    scenario(|lab| {
        let client = lab.client()?;
        let nodes = (1..=3).map(|n| bridged(lab, &format!("n{n}"), 10 + n)).collect::<Result<Vec<_>>>()?;
        let table = web(["192.168.77.11", "192.168.77.12", "192.168.77.13"], 1450);
        let mut cluster = Cluster::start_on(lab, nodes, table, &["--underlay", "vmbr0", "--xdp", xdp])?;
        cluster.serve(&WEB)?;
        everything_works(&cluster, &client, "192.168.77.13", "192.168.77.100")?;
        // A virtual machine on n3. Its port has the lowest MAC of the bridge's, which the bridge takes for its own.
        let (guest, n3) = (lab.namespace("guest")?, &cluster.nodes[2]);
        n3.run(&format!(
            "ip link add vnet0 address 02:00:00:00:00:01 type veth peer name eth0 netns {}",
            guest.name()
        ))?;
        n3.run("ip link set vnet0 master vmbr0 up")?;
        guest.run("ip addr add 192.168.77.60/24 dev eth0")?;
        guest.run("ip link set eth0 up")?;
        let bridge = n3.run("ip -br link show dev vmbr0")?;
        ensure!(bridge.contains("02:00:00:00:00:01"), "the bridge has another MAC: {bridge}");
        for (client, address) in [(&guest, "192.168.77.60"), (&client, "192.168.77.100")] {
            for node in ["192.168.77.13", "192.168.77.11"] {
                wait_for(&format!("{address} to be served at {node}"), PATIENCE, || {
                    let tally = peer::attempts(client, "tcp", &format!("{node}:8080"), 4)?;
                    assert_even(&tally, &WEB, 2)?;
                    assert_peer(&tally, address)
                })?;
                everything_works(&cluster, client, node, address)?;
            }
        }
        for agent in &cluster.agents {
            wait_for("the node to be healthy", PATIENCE, || {
                let status = agent.json(&["status"])?;
                ensure!(status["healthy"] == true && status["node"]["underlay"] == "vmbr0", "{status:#}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_bridge_with_a_virtual_machine_is_the_underlay() {
    a_bridge_is_the_underlay("off");
}

#[test]
fn a_bridge_with_xdp_is_the_underlay() {
    a_bridge_is_the_underlay("generic");
}
