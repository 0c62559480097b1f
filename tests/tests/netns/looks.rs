//! What a container makes of its own namespace keeps nothing from its time and takes nothing away.

use std::time::Duration;

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, scenario, wait_for},
    peer,
    table::Table,
};
use serde_json::Value;

use crate::{
    support::{Cluster, assert_even},
    takeover::{WEB, nodes, web},
};

fn beside_engines<'l>(lab: &'l Lab, table: Table) -> Result<Cluster<'l>> {
    let mut cluster = Cluster::start_on(lab, nodes(lab)?, table, &[])?;
    cluster.serve(&WEB)?;
    Ok(cluster)
}

/// So many routes over a container's loopback device.
fn add_routes(lab: &Lab, task: &Netns, count: u32) -> Result<()> {
    let line = |n: u32| format!("route add {}/32 dev lo\n", std::net::Ipv4Addr::from_bits(0x0a80_0000 + n));
    let file = lab.directory().join("routes");
    std::fs::write(&file, (0..count).map(line).collect::<String>())?;
    task.run(&format!("ip -batch {}", file.display())).map(drop)
}

fn runs(status: &Value) -> u64 {
    status["reconcile"]["runs"].as_u64().unwrap_or_default()
}

#[test]
fn a_look_that_fails_leaves_a_working_container_where_it_is() {
    scenario(|lab| {
        let client = lab.client()?;
        let cluster = beside_engines(lab, web())?;
        let (task, agent) = (cluster.task("web.1"), &cluster.agents[0]);
        let before = agent.json(&["status"])?;
        ensure!(before["takeover"]["mesh_tasks"] == 1, "{before:#}");
        // More than is looked at.
        add_routes(lab, task, 66_000)?;
        wait_for("the task to be named as failing", PATIENCE, || {
            let status = agent.json(&["status"])?;
            let why = status["failing"][0]["why"].as_str().unwrap_or_default();
            ensure!(status["failing"][0]["item"] == "task web.1" && why.contains("more than 65536"), "{status:#}");
            ensure!(status["healthy"] == false, "{status:#}");
            ensure!(status["takeover"] == before["takeover"], "it is taken away: {status:#}");
            Ok(())
        })?;
        for node in ["192.168.77.11", "192.168.77.12"] {
            assert_even(&peer::tcp_load(&client, &format!("{node}:8080"), 40, 2)?, &WEB, 20)?;
        }
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 40, 2)?, &WEB, 20)?;
        // It is looked at more and more seldom.
        let first = agent.json(&["status"])?;
        std::thread::sleep(Duration::from_secs(6));
        let second = agent.json(&["status"])?;
        ensure!(runs(&second) - runs(&first) <= 6, "{} rounds in six seconds", runs(&second) - runs(&first));
        task.run("ip route flush root 10.128.0.0/9")?;
        wait_for("the node to be healthy again", 3 * PATIENCE, || {
            let status = agent.json(&["status"])?;
            ensure!(status["healthy"] == true, "{status:#}");
            Ok(())
        })
    });
}

#[test]
fn more_routes_than_are_looked_at_make_no_rounds() {
    scenario(|lab| {
        let cluster = beside_engines(lab, web())?;
        let agent = &cluster.agents[0];
        add_routes(lab, cluster.task("web.1"), 300)?;
        wait_for("the routes to be named", PATIENCE, || {
            let status = agent.json(&["status"])?;
            ensure!(status["waiting"].to_string().contains("more routes than are looked at"), "{status:#}");
            Ok(())
        })?;
        let first = runs(&agent.json(&["status"])?);
        std::thread::sleep(Duration::from_secs(6));
        let rounds = runs(&agent.json(&["status"])?) - first;
        ensure!(rounds <= 4, "{rounds} rounds in six seconds");
        Ok(())
    });
}

#[test]
fn names_that_are_no_text_stop_nothing_and_fill_no_log() {
    scenario(|lab| {
        let table = Table::with_nodes(1)
            .network("app", "10.0.1", 4097)
            .service("a")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("a.2", "a", "n1", &[("app", "10.0.1.4")]);
        let cluster = Cluster::start(lab, 1, table)?;
        let (task, agent) = (cluster.task("a.1"), &cluster.agents[0]);
        let index = || task.run("cat /sys/class/net/eth0/ifindex");
        let before = index()?;
        let script = lab.directory().join("aliases");
        std::fs::write(&script, b"ip link set eth0 alias \xff\nip link set lo alias \xff\n")?;
        task.run(&format!("sh {}", script.display()))?;
        // The agent has work at each of them.
        task.run("ip link set lo down")?;
        task.run("ip link set eth0 mtu 1300")?;
        wait_for("the loopback device to be up, and the MTU right", PATIENCE, || {
            let links = task.run("ip -br link")? + &task.run("cat /sys/class/net/eth0/mtu")?;
            ensure!(links.contains("LOOPBACK,UP") && !links.contains("1300"), "{links}");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_secs(6));
        ensure!(index()? == before, "the interface was made anew");
        task.run("ping -c 2 -i 0.05 -W 5 10.0.1.4")?;
        let log = agent.log();
        ensure!(!log.contains("failed to decode"), "{log}");
        ensure!(log.matches("could not be read, or not all of them").count() == 1, "{log}");
        let status = agent.json(&["status"])?;
        ensure!(status["healthy"] == true, "{status:#}");
        Ok(())
    });
}
