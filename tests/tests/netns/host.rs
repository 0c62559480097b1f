//! The node itself, and tasks on it, as clients of published ports; and the node's own use of such ports.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, Offloads, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer::{self, LoadLoop},
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, assert_refused, strict, web_table};

const WEB: [&str; 2] = ["web.1", "web.2"];

/// web.1 and web.2 on n1 and n2, published as 8080/tcp and 5353/udp; n3 has only user.1.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3")
}

/// New connections to both published ports go round evenly and show `seen`.
fn answers(client: &Netns, address: &str, seen: &str) -> Result<()> {
    let what = || format!("from {} to {address}", client.label());
    let tcp = peer::tcp_load(client, &format!("{address}:8080"), 20, 2)?;
    assert_even(&tcp, &WEB, 10).with_context(what)?;
    assert_peer(&tcp, seen).with_context(what)?;
    let udp = peer::udp_load(client, &format!("{address}:5353"), 20)?;
    assert_even(&udp, &WEB, 10).with_context(what)?;
    assert_peer(&udp, seen).with_context(what)
}

#[test]
fn a_node_reaches_published_ports_at_every_address_with_its_tunnel_address() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        strict(&cluster)?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            // n1 has one of the two backends, n3 none.
            for (node, own) in [(0, "192.168.77.11"), (2, "192.168.77.13")] {
                for address in [own, "127.0.0.1", "127.0.0.53", "192.168.77.12"] {
                    answers(&cluster.nodes[node], address, own).with_context(|| format!("{offloads:?}"))?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_floating_address_answers_its_own_node_at_once() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let node = &cluster.nodes[2];
        node.run("ip addr add 192.168.77.200/32 dev eth0")?;
        answers(node, "192.168.77.200", "192.168.77.13")?;
        // Others find it as soon as the agent has seen it (within a second, on a machine that is not busy).
        wait_for("the floating address to answer others", PATIENCE, || {
            answers(&cluster.nodes[0], "192.168.77.200", "192.168.77.11")
        })
    });
}

#[test]
fn big_bodies_pass_both_ways_between_a_node_and_its_published_ports() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        strict(&cluster)?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for node in [0, 2] {
                let node = &cluster.nodes[node];
                for address in ["127.0.0.1", "192.168.77.11", "192.168.77.13"] {
                    // One for each backend, local to the node or not.
                    for _ in WEB {
                        peer::transfer(node, &format!("{address}:8080"), 3_000_000)
                            .with_context(|| format!("{offloads:?} from {}", node.label()))?;
                        // The larger ones are cut on both ways.
                        for size in [1400, 3000, 20_000] {
                            let echo = peer::udp_echo(node, &format!("{address}:5353"), size, 4)?;
                            let what = || format!("{offloads:?}: {size} bytes from {} to {address}", node.label());
                            ensure!(echo.ok == 4, "{}: {echo:?}", what());
                        }
                    }
                }
            }
        }
        for node in &cluster.nodes {
            // What the loopback device's own traffic may be as large as is none of our business.
            let routes = node.run("ip route show cache")? + &node.run("ip route get 127.0.0.1")?;
            ensure!(!routes.contains("mtu"), "the loopback's path MTU has changed: {routes}");
        }
        Ok(())
    });
}

#[test]
fn a_task_reaches_its_own_and_other_nodes_ports_and_may_be_its_own_backend() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        strict(&cluster)?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (task, node) in [("web.1", "192.168.77.11"), ("web.2", "192.168.77.12"), ("user.1", "192.168.77.13")] {
                for address in ["192.168.77.11", "192.168.77.12", "192.168.77.13", "172.18.0.1"] {
                    answers(cluster.task(task), address, node).with_context(|| format!("{offloads:?}"))?;
                }
                peer::transfer(cluster.task(task), &format!("{node}:8080"), 3_000_000)?;
            }
        }
        Ok(())
    });
}

/// n1 with a stock engine's gateway bridge: its own masquerade, which gives every UDP connection the published port.
fn adopted(lab: &Lab) -> Result<Cluster<'_>> {
    let node = lab.node("n1", 11)?;
    node.run("ip link add docker_gwbridge type bridge")?;
    node.run("ip addr add 172.18.0.1/16 dev docker_gwbridge")?;
    node.run("ip link set docker_gwbridge up")?;
    node.run("nft add table ip nat")?;
    node.run("nft add chain ip nat POSTROUTING { type nat hook postrouting priority 100 ; }")?;
    let from = "nft add rule ip nat POSTROUTING ip saddr 172.18.0.0/16 oifname != docker_gwbridge";
    node.run(&format!("{from} meta l4proto udp masquerade to :5353"))?;
    node.run(&format!("{from} masquerade"))?;
    Cluster::start_on(lab, vec![node, lab.node("n2", 12)?, lab.node("n3", 13)?], web(), &[])
}

#[test]
fn an_adopted_gateway_bridge_and_its_masquerade_are_no_obstacle() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let mut cluster = adopted(lab)?;
        strict(&cluster)?;
        cluster.serve(&WEB)?;
        let _outside = peer::udp_server(lab, &far, 53, "outside")?;
        let task = cluster.task("web.1");
        for address in ["192.168.77.11", "172.18.0.1"] {
            answers(task, address, "192.168.77.11")?;
        }
        // To the outside the node's masquerade uses the published port: answers are the task's, not a new client's.
        let udp = peer::udp_load(task, "192.168.88.100:53", 1)?;
        assert_even(&udp, &["outside"], 1)?;
        ensure!(udp.peers.len() == 1, "{udp:?}");
        Ok(())
    });
}

#[test]
fn sockets_of_the_node_on_a_published_port_get_their_own_answers() {
    scenario(|lab| {
        let (far, near) = (lab.far_client()?, lab.client()?);
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let servers = [peer::udp_server(lab, &far, 53, "outside")?, peer::udp_server(lab, &near, 53, "outside")?];
        for node in [0, 2] {
            for target in ["192.168.88.100:53", "192.168.77.100:53"] {
                for connected in [true, false] {
                    let tally = peer::udp_from_port(&cluster.nodes[node], target, 5353, 5, connected)?;
                    assert_even(&tally, &["outside"], 5).with_context(|| format!("connected: {connected}"))?;
                }
            }
        }
        drop(servers);
        // The port is the service's for everybody else, and for these hosts from other ports.
        answers(&far, "192.168.77.11", "192.168.88.100")?;
        let counters = &cluster.agents[2].json(&["status"])?["dataplane"]["counters"];
        let noted = counters["own_noted"].as_u64();
        ensure!(noted == Some(2), "one connection per target, however often used: {noted:?}");
        Ok(())
    });
}

#[test]
fn what_nobody_serves_is_refused_and_an_unpublished_port_is_the_nodes_own_again() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        // A process of the node on the same port: hidden by the service.
        let _own = peer::http_server(lab, &cluster.nodes[2], 8080, "node")?;
        let own_udp = peer::udp_server(lab, &cluster.nodes[2], 5353, "node")?;
        cluster.agents[2].wait_status("which sockets are shadowed", |status| {
            let shadowed = status["shadowed"].as_array().context("no list of shadowed sockets")?;
            let brief: Vec<_> =
                shadowed.iter().map(|s| format!("{}/{} {}", s["port"], s["protocol"], s["process"])).collect();
            let want = ["8080/\"tcp\" \"hw-lab-peer\"", "5353/\"udp\" \"hw-lab-peer\""];
            ensure!(brief == want, "{brief:?}");
            Ok(())
        })?;
        ensure!(cluster.agents[0].json(&["status"])?["shadowed"].as_array().is_some_and(Vec::is_empty), "on n1");
        for address in ["127.0.0.1", "192.168.77.13"] {
            answers(&cluster.nodes[2], address, "192.168.77.13")?;
        }
        cluster.change(|table| WEB.iter().for_each(|task| table.set_states(task, "shutdown", "shutdown")))?;
        for address in ["127.0.0.1", "192.168.77.13"] {
            assert_refused(&peer::tcp_load(&cluster.nodes[2], &format!("{address}:8080"), 2, 1)?, 2)?;
            assert_refused(&peer::udp_load(&cluster.nodes[2], &format!("{address}:5353"), 2)?, 2)?;
        }
        cluster.change(|table| {
            for task in WEB {
                table.remove("tasks", task);
            }
            table.remove("services", "web");
        })?;
        for address in ["127.0.0.1", "192.168.77.13"] {
            let tcp = peer::tcp_load(&cluster.nodes[2], &format!("{address}:8080"), 5, 1)?;
            assert_even(&tcp, &["node"], 5)?;
            let udp = peer::udp_load(&cluster.nodes[2], &format!("{address}:5353"), 5)?;
            assert_even(&udp, &["node"], 5)?;
        }
        drop(own_udp);
        // The link itself stays, for probes.
        let rules = cluster.nodes[2].run("nft list table inet hiveway")?;
        ensure!(!rules.contains("host_output"), "translations are left without a published port: {rules}");
        Ok(())
    });
}

#[test]
fn settings_of_the_node_that_are_in_the_way_are_named() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 1, web())?;
        let node = &cluster.nodes[0];
        let said = |part: &str| -> Result<bool> {
            Ok(cluster.agents[0].json(&["status"])?["warnings"].to_string().contains(part))
        };
        ensure!(!said("firewall chain")?, "a fresh node's firewall is in nobody's way");
        for (chain, hook, interface) in [("FORWARD", "forward", "hw-gwbridge"), ("OUTPUT", "output", "hw-host")] {
            node.run("nft add table ip filter")?;
            node.run(&format!(
                "nft add chain ip filter {chain} {{ type filter hook {hook} priority 0 ; policy drop ; }}"
            ))?;
            wait_for(&format!("{chain}, which drops everything, to be named"), PATIENCE, || {
                ensure!(said(&format!("firewall chain ip filter {chain}"))?, "nobody says so");
                Ok(())
            })?;
            let key = if hook == "forward" { "iifname" } else { "oifname" };
            node.run(&format!("nft add rule ip filter {chain} {key} {interface} accept"))?;
            wait_for(&format!("{chain}, which accepts {interface}, to be found harmless"), PATIENCE, || {
                ensure!(!said("firewall chain")?, "it is named");
                Ok(())
            })?;
            node.run("nft delete table ip filter")?;
        }
        for (value, want) in [("1", true), ("0", false)] {
            node.run(&format!("sysctl -qw net.bridge.bridge-nf-call-iptables={value}"))?;
            wait_for(&format!("bridge-nf-call-iptables={value} to be read"), PATIENCE, || {
                ensure!(said("bridge-nf-call-iptables")? == want, "with {value}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_socket_that_never_falls_silent_follows_its_port_when_it_is_unpublished() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let node = cluster.nodes[2].clone();
        let _own = peer::udp_server(lab, &node, 5353, "node")?;
        let kept = LoadLoop::udp_from_port(lab, &node, "127.0.0.1:5353", 20_000)?;
        cluster.change(|table| {
            let tcp = json!([{"protocol": "tcp", "target_port": 80, "published_port": 8080}]);
            table.item_mut("services", "web")["ports"] = tcp;
        })?;
        kept.wait_answers(20)?;
        let tally = kept.stop()?;
        ensure!(tally.names.get("node").is_some_and(|answers| *answers >= 10), "{tally:?}");
        // The other port is still the service's.
        let tcp = peer::tcp_load(&node, "127.0.0.1:8080", 4, 1)?;
        assert_even(&tcp, &WEB, 2)
    });
}

/// A bridge as an engine makes it for containers of this node alone, with its rules around, and a container on it.
pub(crate) fn container_on(lab: &Lab, node: &Netns, bridge: &str, subnet: &str) -> Result<Netns> {
    let container = lab.namespace(&format!("c-{}-{bridge}", node.label()))?;
    node.run(&format!("ip link add {bridge} type bridge forward_delay 0 mcast_snooping 0"))?;
    node.run(&format!("ip addr add {subnet}.1/16 dev {bridge}"))?;
    node.run(&format!("ip link set {bridge} up"))?;
    let port = format!("v{}", &bridge[..6]);
    node.run(&format!("ip link add {port} type veth peer name eth0 netns {}", container.name()))?;
    node.run(&format!("ip link set {port} master {bridge} up"))?;
    container.run(&format!("ip addr add {subnet}.2/16 dev eth0"))?;
    container.run("ip link set eth0 up")?;
    container.run(&format!("ip route add default via {subnet}.1"))?;
    node.run("nft add table ip engine")?;
    node.run("nft add chain ip engine FORWARD { type filter hook forward priority 0 ; policy drop ; }")?;
    node.run("nft add chain ip engine POSTROUTING { type nat hook postrouting priority 100 ; }")?;
    for rule in [
        format!("FORWARD oifname {bridge} ct state related,established accept"),
        format!("FORWARD iifname {bridge} oifname != {bridge} accept"),
        format!("POSTROUTING ip saddr {subnet}.0/16 oifname != {bridge} masquerade"),
    ] {
        node.run(&format!("nft add rule ip engine {rule}"))?;
    }
    Ok(container)
}

#[test]
fn containers_on_bridges_of_their_node_alone_reach_published_ports_at_every_address_of_it() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        strict(&cluster)?;
        cluster.serve(&WEB)?;
        for (index, own) in [(0, "192.168.77.11"), (2, "192.168.77.13")] {
            let node = cluster.nodes[index].clone();
            for (bridge, subnet) in [("docker0", "172.17.0"), ("br-0123456789ab", "172.20.0")] {
                let container = container_on(lab, &node, bridge, subnet)?;
                lab.refresh_offloads()?;
                // The agent sees the bridge come.
                wait_for("the container's first answer", PATIENCE, || {
                    let first = peer::tcp_load(&container, &format!("{own}:8080"), 2, 1)?;
                    ensure!(first.failed == 0, "{first:?}");
                    Ok(())
                })?;
                for offloads in Offloads::BOTH {
                    lab.set_offloads(offloads)?;
                    for address in [own, &format!("{subnet}.1"), "172.18.0.1", "192.168.77.12"] {
                        answers(&container, address, own).with_context(|| format!("{bridge}, {offloads:?}"))?;
                    }
                    for address in [own, &format!("{subnet}.1")] {
                        peer::transfer(&container, &format!("{address}:8080"), 3_000_000)?;
                        let echo = peer::udp_echo(&container, &format!("{address}:5353"), 1400, 4)?;
                        ensure!(echo.ok == 4, "{echo:?}");
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn udp_that_is_older_than_its_port_finds_the_service_when_that_is_published() {
    scenario(|lab| {
        let mut table = web();
        let tcp = json!([{"protocol": "tcp", "target_port": 80, "published_port": 8080}]);
        let both = table.item_mut("services", "web")["ports"].clone();
        table.item_mut("services", "web")["ports"] = tcp;
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&WEB)?;
        let node = cluster.nodes[2].clone();
        let container = container_on(lab, &node, "docker0", "172.17.0")?;
        // A process of the node answers on the port before it is published, and as its own client on another one.
        let _own = [peer::udp_server(lab, &node, 5353, "node")?, peer::udp_server(lab, &node, 5354, "other")?];
        let outside = lab.client()?;
        let mut older = Vec::new();
        for (client, target, port) in [
            (&node, "127.0.0.1:5353", 20_000),
            (&node, "192.168.77.13:5353", 20_001),
            (&container, "172.17.0.1:5353", 20_002),
        ] {
            older.push(LoadLoop::udp_from_port(lab, client, target, port)?);
        }
        // The process answers this one from the bridge's address; what is asked never gets an answer, as with syslog.
        let target = "192.168.77.13:5353";
        let arguments = LoadLoop::arguments("udp-load", target);
        let more = ["--same-port", "--first-port", "20003", "--timeout-ms", "300", "--unconnected"];
        let command = peer::command(&container, &[&arguments[..], &more].concat())?;
        older.push(LoadLoop::spawn(command, lab.directory(), "one-way", target, 1)?);
        let unconcerned = [
            LoadLoop::udp_from_port(lab, &node, "127.0.0.1:5354", 20_004)?,
            LoadLoop::udp_from_port(lab, &outside, "192.168.77.13:5354", 20_005)?,
        ];
        cluster.change(|table| table.item_mut("services", "web")["ports"] = both)?;
        for client in &older {
            client.wait_answers(200)?;
        }
        for client in older {
            let tally = client.stop()?;
            let served: u64 = WEB.iter().filter_map(|task| tally.names.get(*task)).sum();
            ensure!(served >= 100, "still the process's: {tally:?}");
            ensure!(tally.failed <= 1, "{tally:?}");
        }
        for client in unconcerned {
            let tally = client.stop()?;
            ensure!(tally.failed == 0 && tally.names.len() == 1, "{tally:?}");
        }
        Ok(())
    });
}

#[test]
fn ipv6_clients_are_said_not_to_be_served_and_listeners_for_them_alone_are_not_shadowed() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 1, web_table(&["n1", "n1"], &[("tcp", 8080, 80)], "n1"))?;
        let node = &cluster.nodes[0];
        let agent = &cluster.agents[0];
        let status = agent.json(&["status"])?;
        ensure!(status["ipv6"].is_null(), "{:#}", status["ipv6"]);
        node.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0")?;
        node.run("ip addr add 2001:db8::11/64 dev eth0 nodad")?;
        agent.wait_status("which addresses are not served", |status| {
            ensure!(status["ipv6"]["addresses"] == json!(["2001:db8::11"]), "{:#}", status["ipv6"]);
            Ok(())
        })?;
        let text = agent.cli(&["status"])?;
        ensure!(
            text.contains("NOT served: published ports answer at IPv4 addresses only; not at 2001:db8::11"),
            "{text}"
        );
        Ok(())
    });
}

/// It stands for published ports, and whoever reaches it comes with the tunnel address.
#[test]
fn the_host_links_address_is_reached_by_translation_only() {
    const TARGET: &str = "169.254.72.1:8080";
    scenario(|lab| {
        let client = lab.client()?;
        let mut table = web();
        table.item_mut("services", "web")["labels"] = json!({"hiveway.deny": "192.168.77.100"});
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&WEB)?;
        let (node, agent) = (cluster.nodes[2].clone(), cluster.agents[2].clone());
        client.run("ip route add 169.254.72.1/32 via 192.168.77.13")?;
        let refused = |client: &Netns| -> Result<()> {
            let before = agent.dropped("not_allowed")?;
            let tally = peer::attempts(client, "tcp", TARGET, 2)?;
            ensure!(tally.ok == 0, "from {}: {tally:?}", client.label());
            agent.wait_dropped("not_allowed", before + 1)
        };
        refused(&client)?;
        // Where a port is not bound, it is not reached by this address either.
        cluster.change(|table| {
            table.item_mut("services", "web")["labels"] = json!({"hiveway.addresses": "127.0.0.0/8"});
        })?;
        wait_for("the ports to be bound", PATIENCE, || {
            let tally = peer::attempts(&node, "tcp", "192.168.77.13:8080", 1)?;
            assert_refused(&tally, 1)
        })?;
        for client in [&client, &node, cluster.task("user.1")] {
            refused(client)?;
        }
        answers(&node, "127.0.0.1", "192.168.77.13")
    });
}

/// As a container may on any bridge of an engine's: its masquerade keeps the source port if it can.
#[test]
fn a_container_takes_no_published_port_towards_a_client() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let container = container_on(lab, &cluster.nodes[2], "docker0", "172.17.0")?;
        wait_for("the agent to know the bridge", PATIENCE, || {
            let rules = cluster.nodes[2].run("nft list table inet hiveway")?;
            ensure!(rules.contains("docker0"), "{rules}");
            Ok(())
        })?;
        let (to, from) =
            (far.enter(|| UdpSocket::bind("0.0.0.0:4000"))??, container.enter(|| UdpSocket::bind("0.0.0.0:5353"))??);
        for socket in [&to, &from] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        from.send_to(b"mine", "192.168.88.100:4000")?;
        let mut buffer = [0; 16];
        let (_, seen) = to.recv_from(&mut buffer)?;
        ensure!(seen.ip().to_string() == "192.168.77.13" && seen.port() != 5353, "{seen}");
        // The container still has its answers, and the client its service.
        to.send_to(b"yours", seen)?;
        let (length, _) = from.recv_from(&mut buffer)?;
        ensure!(buffer[..length] == *b"yours", "{:?}", &buffer[..length]);
        drop(to);
        let tally = peer::udp_from_port(&far, "192.168.77.13:5353", 4000, 4, true)?;
        ensure!((tally.ok, tally.failed) == (4, 0), "{tally:?}");
        Ok(())
    });
}
