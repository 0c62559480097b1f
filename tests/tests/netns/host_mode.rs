//! Ports published in host mode: straight to the task of the node, and closed where there is none.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer::{self, LoadLoop},
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, assert_refused, strict};

const NEAR: &str = "192.168.77.100";
const FAR: &str = "192.168.88.100";
const N1: &str = "192.168.77.11";
const N2: &str = "192.168.77.12";
const N3: &str = "192.168.77.13";

/// web.1 and web.2 on n1 and n2 with 8080/tcp and 5353/udp in host mode, without any ingress network; n3 has no task.
fn web() -> Table {
    let port = |protocol: &str, published: u16, target: u16| json!({"protocol": protocol, "target_port": target, "published_port": published, "publish_mode": "host"});
    Table::with_nodes(3)
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("app", "10.0.1.2")
        .set("services", "ports", json!([port("tcp", 8080, 80), port("udp", 5353, 53)]))
        .task("web.1", "web", "n1", &[("app", "10.0.1.3")])
        .task("web.2", "web", "n2", &[("app", "10.0.1.4")])
}

/// All that `client` asks for at `node` is answered by this one task, which sees the client as `seen`.
fn answers(client: &Netns, node: &str, task: &str, seen: &str) -> Result<()> {
    for tally in
        [peer::tcp_load(client, &format!("{node}:8080"), 6, 2)?, peer::udp_load(client, &format!("{node}:5353"), 6)?]
    {
        let answered = assert_even(&tally, &[task], 6).and_then(|()| assert_peer(&tally, seen));
        answered.with_context(|| format!("{} to {node}", client.label()))?;
    }
    Ok(())
}

fn closed(client: &Netns, node: &str) -> Result<()> {
    assert_refused(&peer::tcp_load(client, &format!("{node}:8080"), 2, 1)?, 2).with_context(|| node.to_owned())?;
    assert_refused(&peer::udp_load(client, &format!("{node}:5353"), 1)?, 1).with_context(|| node.to_owned())
}

#[test]
fn a_host_mode_port_leads_straight_to_the_nodes_own_task() {
    with_and_without_offloads(|lab| {
        let (near, far) = (lab.client()?, lab.far_client()?);
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1", "web.2"])?;
        for (client, seen) in [(&near, NEAR), (&far, FAR), (&cluster.nodes[2], N3)] {
            answers(client, N1, "web.1", seen)?;
            answers(client, N2, "web.2", seen)?;
        }
        peer::transfer(&far, &format!("{N2}:8080"), 1_000_000)?;
        closed(&near, N3)?;
        // Every address of the node answers.
        let floating = "192.168.77.50";
        cluster.nodes[1].run(&format!("ip addr add {floating}/32 dev eth0"))?;
        wait_for("the other address to answer", PATIENCE, || answers(&far, floating, "web.2", FAR))?;
        // The port is nobody's source port, where it answers.
        for (node, reserved) in cluster.nodes.iter().zip(["5353,8080", "5353,8080", ""]) {
            let seen = node.run("sysctl -n net.ipv4.ip_local_reserved_ports")?;
            ensure!(seen.trim() == reserved, "{}: {seen}", node.label());
        }
        Ok(())
    });
}

/// The node itself, and containers on it: shown with its tunnel address, as with any published port.
#[test]
fn a_host_mode_port_answers_its_own_node_and_its_own_containers() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        strict(&cluster)?;
        cluster.serve(&["web.1", "web.2"])?;
        let (n1, n3, task) = (&cluster.nodes[0], &cluster.nodes[2], cluster.task("web.1"));
        for (client, address) in [(n1, "127.0.0.1"), (n1, N1), (task, N1), (task, "172.18.0.1")] {
            answers(client, address, "web.1", N1)?;
        }
        answers(task, N2, "web.2", N1)?;
        peer::transfer(n1, "127.0.0.1:8080", 3_000_000)?;
        // A node without a task has no such port: whatever listens there is its own.
        closed(n3, "127.0.0.1")?;
        let _own = peer::http_server(lab, n3, 8080, "node")?;
        assert_even(&peer::tcp_load(n3, "127.0.0.1:8080", 4, 1)?, &["node"], 4)
    });
}

/// Nothing of the kind is balanced: of two tasks on one node the newer one has the port.
#[test]
fn a_newer_task_takes_the_port_over_and_connections_stay_where_they_are() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1", "web.2"])?;
        let kept = LoadLoop::tcp(lab, &client, &format!("{N1}:8080"), 1, true)?;
        kept.wait_answers(5)?;
        cluster.change(|table| {
            let next = table.clone().task("web.3", "web", "n1", &[("app", "10.0.1.5")]);
            *table = next.set("tasks", "created_at", json!("2026-11-21T10:00:00Z"));
        })?;
        cluster.serve(&["web.3"])?;
        answers(&client, N1, "web.3", NEAR)?;
        let status = cluster.agents[0].cli(&["status"])?;
        ensure!(status.contains("port 8080/tcp of task web.1: task web.3, which is newer, has it"), "{status}");

        // It drains: nobody else is there, so nothing new comes in once the other one has gone too.
        cluster.change(|table| table.set_states("web.1", "shutdown", "running"))?;
        answers(&client, N1, "web.3", NEAR)?;
        cluster.change(|table| table.remove("tasks", "web.3"))?;
        cluster.end_task("web.3");
        wait_for("the port to be closed to new connections", PATIENCE, || closed(&client, N1))?;
        kept.wait_answers(5)?;
        let tally = kept.stop()?;
        ensure!(tally.failed == 0, "an established connection broke: {tally:?}");
        ensure!(tally.names.keys().eq(["web.1"]), "it moved: {tally:?}");
        answers(&client, N2, "web.2", NEAR)
    });
}
