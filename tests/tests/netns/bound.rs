//! Published ports at some of a node's addresses only: `--mesh-addresses` and the label `hiveway.addresses`.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer::{self, LoadLoop},
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_refused};

/// web.1 on n1, published as 8080/tcp and 5353/udp; n2 has no task. `labels` are the service's.
fn web(labels: serde_json::Value) -> Table {
    Table::with_nodes(2)
        .ingress()
        .service("web")
        .set("services", "labels", labels)
        .publish("tcp", 8080, 80)
        .publish("udp", 5353, 53)
        .task("web.1", "web", "n1", &[("ingress", "10.0.0.6")])
}

/// n2 has 10.50.0.1 besides, and a client that knows the way there.
fn start<'l>(lab: &'l Lab, table: Table, flags: &[&str]) -> Result<(Cluster<'l>, Netns)> {
    let client = lab.client()?;
    let nodes = vec![lab.node("n1", 11)?, lab.node("n2", 12)?];
    nodes[1].run("ip link add extra type veth peer name extra2")?;
    nodes[1].run("ip addr add 10.50.0.1/32 dev extra")?;
    nodes[1].run("ip link set extra up")?;
    client.run("ip route add 10.50.0.1/32 via 192.168.77.12")?;
    let mut cluster = Cluster::start_on(lab, nodes, table, flags)?;
    cluster.serve(&["web.1"])?;
    Ok((cluster, client))
}

fn served(client: &Netns, address: &str) -> Result<()> {
    wait_for(&format!("{address} to be served to {}", client.label()), PATIENCE, || {
        assert_even(&peer::attempts(client, "tcp", &format!("{address}:8080"), 4)?, &["web.1"], 4)?;
        assert_even(&peer::attempts(client, "udp", &format!("{address}:5353"), 4)?, &["web.1"], 4)
    })
}

/// The stack answers: nobody listens.
fn left_alone(client: &Netns, address: &str) -> Result<()> {
    wait_for(&format!("{address} to be left alone"), PATIENCE, || {
        assert_refused(&peer::attempts(client, "tcp", &format!("{address}:8080"), 2)?, 2)?;
        assert_refused(&peer::attempts(client, "udp", &format!("{address}:5353"), 2)?, 2)
    })
    .with_context(|| format!("from {}", client.label()))
}

#[test]
fn a_bound_port_answers_at_its_addresses_and_nowhere_else() {
    for xdp in ["off", "generic"] {
        scenario(|lab| {
            let (mut cluster, client) = start(lab, web(json!({})), &["--xdp", xdp])?;
            let node = cluster.nodes[1].clone();
            let all = ["192.168.77.12", "10.50.0.1"];
            for address in all {
                served(&client, address)?;
                served(&node, address)?;
            }
            served(&node, "127.0.0.1")?;
            let kept = LoadLoop::tcp(lab, &client, "10.50.0.1:8080", 1, true)?;
            let local = LoadLoop::tcp(lab, &node, "127.0.0.1:8080", 1, true)?;
            // By address.
            cluster.change(|table| {
                table.item_mut("services", "web")["labels"] = json!({"hiveway.addresses": "192.168.77.0/24"});
            })?;
            for client in [&client, &node] {
                served(client, "192.168.77.12")?;
                left_alone(client, "10.50.0.1")?;
            }
            left_alone(&node, "127.0.0.1")?;
            served(&node, "192.168.77.11")?;
            // What is open goes on.
            for kept in [kept, local] {
                kept.wait_answers(10)?;
                let tally = kept.stop()?;
                ensure!(tally.failed == 0, "{tally:?}");
            }
            // By interface.
            cluster.change(|table| {
                table.item_mut("services", "web")["labels"] = json!({"hiveway.addresses": "extra,127.0.0.0/8"});
            })?;
            for client in [&client, &node] {
                served(client, "10.50.0.1")?;
                left_alone(client, "192.168.77.12")?;
            }
            served(&node, "127.0.0.53")?;
            // A process of the node has the port there.
            let _own = peer::http_server(lab, &node, 8080, "node")?;
            assert_even(&peer::tcp_load(&client, "192.168.77.12:8080", 4, 1)?, &["node"], 4)?;
            assert_even(&peer::tcp_load(&node, "192.168.77.12:8080", 4, 1)?, &["node"], 4)?;
            assert_even(&peer::tcp_load(&client, "10.50.0.1:8080", 4, 1)?, &["web.1"], 4)
        });
    }
}

#[test]
fn the_nodes_own_addresses_and_the_label_both_count() {
    scenario(|lab| {
        let (mut cluster, client) = start(lab, web(json!({})), &["--mesh-addresses", "eth0,extra"])?;
        let node = cluster.nodes[1].clone();
        served(&client, "192.168.77.12")?;
        served(&client, "10.50.0.1")?;
        left_alone(&node, "127.0.0.1")?;
        let shown = cluster.agents[1].json(&["status"])?["node"]["addresses"].clone();
        ensure!(shown == json!(["10.50.0.1", "192.168.77.12"]), "{shown}");
        cluster.change(|table| {
            table.item_mut("services", "web")["labels"] = json!({"hiveway.addresses": "10.50.0.0/16,127.0.0.0/8"});
        })?;
        wait_for("the label to be shown", PATIENCE, || {
            let shown = cluster.agents[1].json(&["service", "ls"])?[0]["addresses"].clone();
            ensure!(shown == json!(["10.50.0.0/16", "127.0.0.0/8"]), "{shown}");
            Ok(())
        })?;
        left_alone(&client, "192.168.77.12")?;
        served(&client, "10.50.0.1")?;
        left_alone(&node, "127.0.0.1")
    });
}
