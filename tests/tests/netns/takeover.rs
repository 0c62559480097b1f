//! Beside a Docker engine, on nodes made by hand as an engine makes them: the routing mesh and VIPs are ours,
//! everything else stays the engine's.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer::{self, LoadLoop},
    stock,
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, METRICS, assert_even, assert_metrics, assert_peer, assert_refused, web_table};

pub(crate) const WEB: [&str; 2] = ["web.1", "web.2"];

/// web.1 and web.2 on n1 and n2, published as 8080/tcp and 5353/udp; user.1 on n3. All networks are the engines'.
pub(crate) fn web() -> Table {
    let mut table = web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3");
    for network in ["ingress", "app"] {
        table.item_mut("networks", network)["carrier"] = json!("engine");
    }
    for n in 1..=3 {
        let addresses = json!({"ingress": format!("10.0.0.20{n}"), "app": format!("10.0.1.20{n}")});
        table.item_mut("nodes", &format!("n{n}"))["addresses"] = addresses;
    }
    table
}

pub(crate) fn nodes(lab: &Lab) -> Result<Vec<Netns>> {
    let nodes = (1..=3).map(|n| lab.node(&format!("n{n}"), 10 + n)).collect::<Result<Vec<_>>>()?;
    nodes.iter().try_for_each(stock::gateway_bridge)?;
    Ok(nodes)
}

fn start<'l>(lab: &'l Lab, table: Table, extra: &[&str]) -> Result<Cluster<'l>> {
    let mut cluster = Cluster::start_on(lab, nodes(lab)?, table, extra)?;
    cluster.serve(&WEB)?;
    Ok(cluster)
}

#[test]
fn published_ports_answer_on_every_node_with_the_clients_address() {
    scenario(|lab| {
        let clients = [(lab.client()?, "192.168.77.100"), (lab.far_client()?, "192.168.88.100")];
        let cluster = start(lab, web(), &[])?;
        for (client, address) in &clients {
            for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
                let tcp = peer::tcp_load(client, &format!("{node}:8080"), 40, 2)?;
                assert_even(&tcp, &WEB, 20)?;
                assert_peer(&tcp, address)?;
                let udp = peer::udp_load(client, &format!("{node}:5353"), 40)?;
                assert_even(&udp, &WEB, 20)?;
                assert_peer(&udp, address)?;
                for _ in WEB {
                    peer::transfer(client, &format!("{node}:8080"), 3_000_000)?;
                }
            }
        }
        // The nodes themselves, a container, and the way out of one, which is the engine's.
        for (node, own) in [(0, "192.168.77.11"), (2, "192.168.77.13")] {
            for at in [own, "127.0.0.1", "192.168.77.12"] {
                let tcp = peer::tcp_load(&cluster.nodes[node], &format!("{at}:8080"), 20, 2)?;
                assert_even(&tcp, &WEB, 10)?;
                assert_peer(&tcp, own)?;
            }
        }
        let container = peer::tcp_load(cluster.task("user.1"), "192.168.77.11:8080", 20, 2)?;
        assert_even(&container, &WEB, 10)?;
        let _outside = peer::http_server(lab, &clients[0].0, 80, "outside")?;
        let out = peer::tcp_load(cluster.task("web.1"), "192.168.77.100:80", 5, 1)?;
        assert_even(&out, &["outside"], 5)?;
        assert_peer(&out, "192.168.77.11")?;
        for agent in &cluster.agents {
            let status = agent.json(&["status"])?;
            ensure!(status["takeover"]["mesh"] == true, "{status:#}");
            ensure!(status["node"]["gateway_bridge"].is_null(), "nothing of ours is on the bridge: {status:#}");
        }
        Ok(())
    });
}

#[test]
fn vips_are_balanced_on_the_containers_own_interface() {
    scenario(|lab| {
        let cluster = start(lab, web(), &[])?;
        let user = cluster.task("user.1");
        // Also from a container that is a backend itself, and on whose node another is.
        for (client, address) in [(user, "10.0.1.9")] {
            let tcp = peer::tcp_load(client, "10.0.1.2:80", 40, 2)?;
            assert_even(&tcp, &WEB, 20)?;
            assert_peer(&tcp, address)?;
            let udp = peer::udp_load(client, "10.0.1.2:53", 40)?;
            assert_even(&udp, &WEB, 20)?;
            assert_peer(&udp, address)?;
            for _ in WEB {
                peer::transfer(client, "10.0.1.2:80", 3_000_000)?;
            }
        }
        let hairpin = peer::tcp_load(cluster.task("web.1"), "10.0.1.2:80", 20, 1)?;
        assert_even(&hairpin, &WEB, 10)?;
        user.run("ping -c 2 -i 0.05 -W 5 10.0.1.2")?;
        let neighbour = user.run("ip neigh show 10.0.1.2")?;
        ensure!(neighbour.contains("02:42:0a:00:01:cb"), "the VIP has another MAC than the engine's: {neighbour}");
        // What is no VIP goes as before.
        let direct = peer::tcp_load(user, "10.0.1.4:80", 10, 1)?;
        assert_even(&direct, &["web.2"], 10)
    });
}

/// The interface of a task on the gateway bridge.
fn gateway_interface(task: &Netns) -> Result<String> {
    let shown = task.run("ip -4 -o addr show")?;
    let line = shown.lines().find(|line| line.contains(" 172.18.")).context("nothing on the gateway bridge")?;
    Ok(line.split_whitespace().nth(1).context("no name")?.to_owned())
}

/// Whether UDP's and SCTP's packets are left to be cut later there.
pub(crate) fn late_segmentation(netns: &Netns, interface: &str) -> Result<[String; 2]> {
    let shown = netns.run(&format!("ethtool -k {interface}"))?;
    let state = |feature: &str| {
        let line = shown.lines().find_map(|line| line.trim().strip_prefix(feature)?.strip_prefix(": "));
        line.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    Ok([state("tx-udp-segmentation"), state("tx-sctp-segmentation")])
}

/// A network that is no longer the engine's to carry, or a port that is no longer published, gives the offloads back.
#[test]
fn offloads_are_given_back_with_the_port() {
    scenario(|lab| {
        let mut cluster = start(lab, web(), &[])?;
        let task = cluster.task("web.1").clone();
        let own = gateway_interface(&task)?;
        ensure!(late_segmentation(&task, &own)? == ["off", "off"], "{own} leaves packets to be cut later");
        let other = cluster.task("web.2").clone();
        cluster.change(|table| {
            table.item_mut("services", "web")["ports"] = json!([]);
            for n in ["web.1", "web.2"] {
                table.item_mut("tasks", n)["addresses"].as_object_mut().map(|map| map.remove("ingress"));
            }
        })?;
        wait_for("the offloads to be back", PATIENCE, || {
            for task in [&task, &other] {
                ensure!(
                    late_segmentation(task, &gateway_interface(task)?)? == ["on", "on"],
                    "{} has not",
                    task.label()
                );
            }
            Ok(())
        })
    });
}

#[test]
fn teardown_gives_everything_back() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = start(lab, web(), &[])?;
        let before = peer::tcp_load(&client, "192.168.77.11:8080", 4, 1)?;
        assert_even(&before, &WEB, 2)?;
        let task = cluster.task("web.1").clone();
        let [own, ingress] = [gateway_interface(&task)?, "eth0".to_owned()];
        ensure!(late_segmentation(&task, &ingress)? == ["on", "on"], "the engine's own network was touched");
        ensure!(late_segmentation(&task, &own)? == ["off", "off"], "{own} leaves packets to be cut later");
        for (agent, node) in cluster.agents.iter().zip(&cluster.nodes) {
            agent.terminate()?;
            agent.teardown()?;
            let links = node.interfaces()?;
            ensure!(links.iter().all(|name| !name.starts_with("hw")), "left behind: {links:?}");
            ensure!(!node.run("nft list tables")?.contains("hiveway"), "our nftables table is still there");
            let reserved = node.run("sysctl -n net.ipv4.ip_local_reserved_ports")?;
            ensure!(reserved.trim().is_empty(), "ports are still reserved: {reserved}");
            ensure!(!agent.bpffs().exists(), "pins are still there");
        }
        let refused = peer::attempts(&client, "tcp", "192.168.77.11:8080", 2)?;
        assert_refused(&refused, 2)?;
        // Containers still reach each other, which is the engines' doing.
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.4:80", 10, 1)?, &["web.2"], 10)?;
        let vip = peer::attempts(cluster.task("user.1"), "tcp", "10.0.1.2:80", 2)?;
        ensure!(vip.ok == 0, "somebody still answers the VIP: {vip:?}");
        ensure!(late_segmentation(&task, &own)? == ["on", "on"], "the offloads of {own} are not back");
        for task in ["web.1", "user.1"] {
            let left = cluster.task(task).run("tc filter show dev eth0 ingress")?;
            ensure!(left.trim().is_empty(), "{left}");
        }
        Ok(())
    });
}

#[test]
fn connections_outlive_the_agent() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = start(lab, web(), &[])?;
        let mesh = LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, true)?;
        let vip = LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, true)?;
        let anew = LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 1, false)?;
        for agent in &cluster.agents {
            agent.sigkill();
        }
        for load in [&mesh, &vip, &anew] {
            load.wait_answers(50)?;
        }
        for agent in &cluster.agents {
            agent.restart()?;
        }
        for load in [&mesh, &vip, &anew] {
            load.wait_answers(50)?;
        }
        for tally in [mesh.stop()?, vip.stop()?, anew.stop()?] {
            ensure!(tally.failed == 0, "{tally:?}");
        }
        Ok(())
    });
}

#[test]
fn a_replaced_container_with_the_same_address_is_a_new_one() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = start(lab, web(), &[])?;
        cluster.change(|table| {
            table.set_states("web.2", "shutdown", "shutdown");
        })?;
        cluster.end_task("web.2");
        assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 10, 1)?, &["web.1"], 10)?;
        let both = [("ingress", "10.0.0.7"), ("app", "10.0.1.4")];
        cluster.change(|table| {
            table.remove("tasks", "web.2");
            *table = table.clone().task("web.9", "web", "n2", &both);
        })?;
        cluster.serve(&["web.9"])?;
        wait_for("the new container to be found", PATIENCE, || {
            assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 10, 1)?, &["web.1", "web.9"], 5)
        })?;
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 10, 1)?, &["web.1", "web.9"], 5)?;
        assert_even(&peer::tcp_load(cluster.task("web.9"), "10.0.1.2:80", 10, 1)?, &["web.1", "web.9"], 5)
    });
}

#[test]
fn networks_of_both_kinds_live_on_one_node() {
    scenario(|lab| {
        let table = web()
            .network("ours", "10.0.2", 4098)
            .service("own")
            .vip("ours", "10.0.2.2")
            .task("own.1", "own", "n1", &[("ours", "10.0.2.3")])
            .task("own.2", "own", "n2", &[("ours", "10.0.2.4")]);
        let mut cluster = start(lab, table, &[])?;
        cluster.serve(&["own.1", "own.2"])?;
        let ours = ["own.1", "own.2"];
        assert_even(&peer::tcp_load(cluster.task("own.1"), "10.0.2.2:80", 20, 1)?, &ours, 10)?;
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 20, 1)?, &WEB, 10)?;
        // They do not reach each other.
        let across = peer::attempts(cluster.task("user.1"), "tcp", "10.0.2.3:80", 1)?;
        ensure!(across.ok == 0, "{across:?}");
        Ok(())
    });
}

#[test]
fn the_mesh_stays_the_engines_where_the_hosts_firewall_has_a_say() {
    scenario(|lab| {
        let client = lab.client()?;
        let nodes = nodes(lab)?;
        nodes[0].run("nft add table ip filter")?;
        nodes[0].run("nft add chain ip filter DOCKER-USER")?;
        nodes[0].run("nft add rule ip filter DOCKER-USER meta mark 7 drop")?;
        let mut cluster = Cluster::start_on(lab, nodes, web(), &METRICS)?;
        cluster.serve(&WEB)?;
        let status = cluster.agents[0].json(&["status"])?;
        let why = status["takeover"]["mesh_why"].as_str().unwrap_or_default().to_owned();
        ensure!(status["takeover"]["mesh"] == false && why.contains("DOCKER-USER"), "{status:#}");
        let text = cluster.agents[0].cli(&["status"])?;
        ensure!(text.contains("NOT the routing mesh") && text.contains("DOCKER-USER"), "{text}");
        // No engine serves the ports instead: there is none here, nor IPVS in most kernels that this runs on.
        let dead = &status["dead_ports"];
        ensure!(dead["ports"] == json!(["8080/tcp", "5353/udp"]) && status["healthy"] == false, "{status:#}");
        ensure!(text.contains("published ports are dead: 8080/tcp, 5353/udp: "), "{text}");
        let remedy = dead["why"].as_str().unwrap_or_default();
        let ipvs = Path::new("/proc/net/ip_vs").exists();
        ensure!(remedy.contains(if ipvs { "DOCKER-INGRESS" } else { "modprobe ip_vs" }), "{remedy}");
        assert_refused(&peer::attempts(&client, "tcp", "192.168.77.11:8080", 2)?, 2)?;
        assert_metrics(
            &cluster.nodes[0],
            &[
                ("hiveway_ready", Some(1.0)),
                ("hiveway_healthy", Some(0.0)),
                ("hiveway_takeover_refused", Some(1.0)),
                ("hiveway_dead_ports", Some(2.0)),
                // Tables come from files here: nothing asks an engine.
                ("hiveway_engine_reachable", None),
            ],
        )?;
        // VIPs are none of its business; nor are other nodes' clients, its own tasks included.
        assert_even(&peer::tcp_load(&client, "192.168.77.12:8080", 20, 1)?, &WEB, 10)?;
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 20, 1)?, &WEB, 10)?;
        cluster.nodes[0].run("nft flush chain ip filter DOCKER-USER")?;
        wait_for("the mesh to be taken over", PATIENCE, || {
            assert_even(&peer::tcp_load(&client, "192.168.77.11:8080", 20, 1)?, &WEB, 10)
        })?;
        wait_for("the node to be healthy", PATIENCE, || {
            let status = cluster.agents[0].json(&["status"])?;
            ensure!(status["dead_ports"].is_null() && status["healthy"] == true, "{status:#}");
            let good = [("healthy", 1.0), ("takeover_refused", 0.0), ("dead_ports", 0.0)];
            let good = good.map(|(name, value)| (format!("hiveway_{name}"), Some(value)));
            assert_metrics(&cluster.nodes[0], &good.each_ref().map(|(name, value)| (name.as_str(), *value)))
        })?;
        // A roll-back leaves them dead again, and says so.
        cluster.agents[0].terminate()?;
        let said = cluster.agents[0].teardown()?;
        ensure!(said.contains("published ports are dead from now on: "), "{said}");
        Ok(())
    });
}

#[test]
fn a_firewall_may_be_ignored() {
    scenario(|lab| {
        let client = lab.client()?;
        let nodes = nodes(lab)?;
        nodes[0].run("nft add table inet mine")?;
        nodes[0].run("nft add chain inet mine f { type filter hook forward priority 0 ; policy drop ; }")?;
        let mut cluster = Cluster::start_on(lab, nodes, web(), &["--ignore-firewall"])?;
        cluster.serve(&WEB)?;
        assert_even(&peer::tcp_load(&client, "192.168.77.11:8080", 20, 1)?, &WEB, 10)?;
        let status = cluster.agents[0].json(&["status"])?;
        let said = &status["firewall"]["left"][0];
        ensure!(status["takeover"]["mesh"] == true && said["chain"] == "inet:mine:f", "{status:#}");
        ensure!(cluster.agents[0].cli(&["status"])?.contains("ignored as asked"), "not said to people");
        Ok(())
    });
}

#[test]
fn interfaces_that_come_later_or_under_another_name_are_found() {
    scenario(|lab| {
        let cluster = start(lab, web(), &[])?;
        let user = cluster.task("user.1");
        user.run("ip link set eth0 down")?;
        user.run("ip link set eth0 name later0")?;
        user.run("ip link set later0 up")?;
        wait_for("the VIP on the renamed interface", PATIENCE, || {
            assert_even(&peer::attempts(user, "tcp", "10.0.1.2:80", 10)?, &WEB, 5)
        })?;
        user.run("ip addr del 10.0.1.9/24 dev later0")?;
        wait_for("its absence to be reported", PATIENCE, || {
            let status = cluster.agents[2].json(&["status"])?;
            let waiting = status["waiting"].to_string();
            ensure!(waiting.contains("user.1") && waiting.contains("10.0.1.9"), "{status:#}");
            Ok(())
        })?;
        user.run("ip addr add 10.0.1.9/24 dev later0")?;
        wait_for("the VIP on the interface that is back", PATIENCE, || {
            assert_even(&peer::attempts(user, "tcp", "10.0.1.2:80", 10)?, &WEB, 5)
        })
    });
}

#[test]
fn coming_and_going_under_load_loses_no_request() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = start(lab, web(), &[])?;
        for agent in &cluster.agents {
            agent.terminate()?;
            agent.teardown()?;
        }
        // Stands for the engine's own mesh: all that comes to n1 goes to the container there.
        let node = &cluster.nodes[0];
        node.run("nft add table ip enginemesh")?;
        node.run("nft add chain ip enginemesh pre { type nat hook prerouting priority -100 ; }")?;
        node.run("nft add rule ip enginemesh pre fib daddr type local tcp dport 8080 dnat to 172.18.0.3:80")?;
        let old = LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 2, true)?;
        let anew = LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 2, false)?;
        for agent in &cluster.agents {
            agent.restart()?;
        }
        let ours = peer::tcp_load(&client, "192.168.77.11:8080", 10, 1)?;
        ensure!(ours.failed == 0 && ours.names.len() == 2, "new connections are not ours: {ours:?}");
        old.wait_answers(50)?;
        cluster.agents[0].terminate()?;
        cluster.agents[0].teardown()?;
        anew.wait_answers(50)?;
        old.wait_answers(50)?;
        let (old, anew) = (old.stop()?, anew.stop()?);
        ensure!(old.failed == 0 && old.names.len() == 1, "what began with the engine stays with it: {old:?}");
        ensure!(anew.failed == 0 && anew.names.len() == 2, "{anew:?}");
        Ok(())
    });
}
