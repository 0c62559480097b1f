//! What a container makes of its own namespace keeps nothing from its time and takes nothing away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, PATIENCE, scenario, scenario_alone, slowness, wait_for},
    peer,
    table::Table,
};
use serde_json::Value;

use crate::{
    support::{Cluster, assert_even, web_table},
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

/// A while without news; where everything takes longer, there are as many rounds in it.
fn while_nothing_happens() {
    std::thread::sleep(Duration::from_secs(6) * slowness());
}

/// Makes sure that an agent without news has no more rounds than these in six seconds, on average where that is longer.
fn rests(agent: &Agent, most: u64) -> Result<()> {
    let before = runs(&agent.json(&["status"])?);
    while_nothing_happens();
    let rounds = runs(&agent.json(&["status"])?) - before;
    ensure!(rounds <= most * u64::from(slowness()), "{rounds} rounds in {} times six seconds", slowness());
    Ok(())
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
            // On a busy machine the look ends before so many are counted, because it takes more than five seconds.
            ensure!(status["failing"][0]["item"] == "task web.1" && why.contains("cannot be used"), "{status:#}");
            ensure!(status["healthy"] == false, "{status:#}");
            ensure!(status["takeover"] == before["takeover"], "it is taken away: {status:#}");
            Ok(())
        })?;
        for node in ["192.168.77.11", "192.168.77.12"] {
            assert_even(&peer::tcp_load(&client, &format!("{node}:8080"), 40, 2)?, &WEB, 20)?;
        }
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 40, 2)?, &WEB, 20)?;
        // It is looked at more and more seldom.
        rests(agent, 6)?;
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
        rests(agent, 4)
    });
}

/// A round that looks into containers gives way to a table that comes meanwhile.
#[test]
fn a_table_does_not_wait_for_containers_that_answer_late() {
    /// Such a round takes longer, and a table is in force in less.
    const LONG: Duration = Duration::from_millis(1200);
    const LIMIT: Duration = Duration::from_millis(600);
    /// After a round that took long what happens to links makes one no sooner than this.
    const PAUSE: Duration = Duration::from_secs(2);
    scenario_alone(|lab| {
        let mut cluster = Cluster::start(lab, 3, web_table(&["n1"; 3], &[], "n1"))?;
        let tasks = ["web.1", "web.2", "web.3", "user.1"];
        cluster.serve(&tasks[..3])?;
        for task in tasks {
            add_routes(lab, cluster.task(task), 60_000)?;
        }
        let (node, agent) = (cluster.nodes[0].clone(), cluster.agents[0].clone());
        let round = wait_for("a round to take long", 2 * PATIENCE, || {
            let status = agent.json(&["status"])?;
            let took = Duration::from_millis(status["reconcile"]["last_duration_ms"].as_u64().unwrap_or_default());
            ensure!(took > LONG, "{took:?}");
            Ok(took)
        })?;
        let mut took = Vec::new();
        for (n, states) in (0..).zip([["shutdown", "running"], ["running"; 2], ["shutdown", "running"], ["running"; 2]])
        {
            let before = runs(&agent.json(&["status"])?);
            wait_for("a round to come to its end", 2 * PATIENCE, || {
                ensure!(runs(&agent.json(&["status"])?) > before, "none yet");
                Ok(())
            })?;
            node.run(&format!("ip link add due{n} type veth peer name due{n}x"))?;
            // Into the midst of the next one.
            std::thread::sleep(PAUSE + round / 3);
            cluster.table.set_states("web.1", states[0], states[1]);
            cluster.table.write(&cluster.file)?;
            let start = Instant::now();
            wait_for("the table to be in force", PATIENCE, || {
                let tally = peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 6, 1)?;
                ensure!(tally.names.contains_key("web.1") == (states[0] == "running"), "{tally:?}");
                Ok(())
            })?;
            took.push(start.elapsed());
        }
        ensure!(took.iter().all(|took| *took < LIMIT * slowness()), "{took:?}");
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
        while_nothing_happens();
        ensure!(index()? == before, "the interface was made anew");
        task.run(&format!("ping -c 2 -i 0.05 -W {} 10.0.1.4", 5 * slowness()))?;
        let log = agent.log();
        ensure!(!log.contains("failed to decode"), "{log}");
        ensure!(log.matches("could not be read, or not all of them").count() == 1, "{log}");
        let status = agent.json(&["status"])?;
        ensure!(status["healthy"] == true, "{status:#}");
        Ok(())
    });
}
