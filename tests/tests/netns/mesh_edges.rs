//! The routing mesh's less usual clients, addresses and ports.

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer,
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, assert_refused, web_table};

const WEB: [&str; 2] = ["web.1", "web.2"];

/// web.1 and web.2 on n1 and n2, published as 8080/tcp; n3 has only user.1.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80)], "n3")
}

fn answers(client: &Netns, target: &str, seen: &str) -> Result<()> {
    let tally = peer::tcp_load(client, target, 4, 1)?;
    assert_even(&tally, &WEB, 2)?;
    assert_peer(&tally, seen)
}

#[test]
fn addresses_that_come_and_go_answer_while_they_are_there() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let floating = "192.168.77.50";
        for node in [&cluster.nodes[2], &cluster.nodes[0]] {
            node.run(&format!("ip addr add {floating}/32 dev eth0"))?;
            client.output("ip neigh flush all")?;
            wait_for(&format!("{floating} to answer on {}", node.label()), PATIENCE, || {
                answers(&client, &format!("{floating}:8080"), "192.168.77.100")
            })?;
            node.run(&format!("ip addr del {floating}/32 dev eth0"))?;
        }
        Ok(())
    });
}

#[test]
fn a_client_behind_another_interface_of_the_node_is_served() {
    with_and_without_offloads(|lab| {
        let beside = lab.namespace("beside")?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        for (number, node) in [&cluster.nodes[0], &cluster.nodes[2]].into_iter().enumerate() {
            let (subnet, device) = (format!("192.168.{}", 90 + number), format!("eth{number}"));
            node.run(&format!("ip link add eth1 type veth peer name {device} netns {}", beside.name()))?;
            node.run(&format!("ip addr add {subnet}.1/24 dev eth1"))?;
            node.run("ip link set eth1 up")?;
            beside.run(&format!("ip addr add {subnet}.100/24 dev {device}"))?;
            beside.run(&format!("ip link set {device} up"))?;
            lab.prepare_cable(node, "eth1", (&beside, &device))?;
            wait_for(&format!("{} to serve eth1", node.label()), PATIENCE, || {
                answers(&beside, &format!("{subnet}.1:8080"), &format!("{subnet}.100"))
            })?;
            peer::transfer(&beside, &format!("{subnet}.1:8080"), 1_000_000)?;
        }
        Ok(())
    });
}

#[test]
fn containers_and_nodes_are_clients_of_published_ports_too() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        // A container to another node: masqueraded as its own node.
        answers(cluster.task("user.1"), "192.168.77.11:8080", "192.168.77.13")?;
        // A node to another node.
        answers(&cluster.nodes[2], "192.168.77.12:8080", "192.168.77.13")
    });
}

#[test]
fn old_and_new_target_ports_coexist_while_a_service_is_updated() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut table = web();
        let port = |target: u16| json!([{"protocol": "tcp", "target_port": target, "published_port": 8080, "publish_mode": "ingress"}]);
        table.item_mut("tasks", "web.1")["ports"] = port(80);
        table.item_mut("tasks", "web.2")["ports"] = port(8000);
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&["web.1"])?;
        let _new = peer::http_server(lab, cluster.task("web.2"), 8000, "web.2")?;
        for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
            answers(&client, &format!("{node}:8080"), "192.168.77.100")?;
        }
        // The published port moves.
        cluster.change(|table| {
            for task in WEB {
                table.item_mut("tasks", task)["ports"][0]["published_port"] = json!(8181);
            }
            table.item_mut("services", "web")["ports"][0]["published_port"] = json!(8181);
        })?;
        wait_for("the new port", PATIENCE, || answers(&client, "192.168.77.13:8181", "192.168.77.100"))?;
        let old = peer::tcp_load(&client, "192.168.77.13:8080", 2, 1)?;
        assert_refused(&old, 2)
    });
}

#[test]
fn published_ports_are_reserved_on_every_node() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 3, web())?;
        for node in &cluster.nodes {
            let reserved = node.run("sysctl -n net.ipv4.ip_local_reserved_ports")?;
            ensure!(reserved.trim() == "8080", "{}: {reserved}", node.label());
        }
        Ok(())
    });
}
