//! Where tasks' namespaces come from, and bridges that were there before.

use std::os::unix::fs::symlink;

use anyhow::ensure;
use hiveway_tests::{
    agent::{Agent, AgentOptions},
    lab::{Lab, Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    table::Table,
};
use serde_json::json;

fn start(lab: &Lab, node: &Netns, table: &Table) -> anyhow::Result<std::sync::Arc<Agent>> {
    let (file, directory) = (lab.directory().join("table.json"), lab.directory().join("netns"));
    std::fs::create_dir_all(&directory)?;
    table.write(&file)?;
    let options = AgentOptions {
        node: node.label().to_owned(),
        table: format!("file:{}", file.display()),
        netns_dir: Some(directory),
        extra: Vec::new(),
    };
    Agent::start(lab, node, options)
}

fn wait_connected(task: &Netns, address: &str) -> anyhow::Result<()> {
    wait_for(&format!("{} to have {address}", task.label()), PATIENCE, || {
        let seen = task.run("ip -4 -br addr")?;
        ensure!(seen.contains(&format!("{address}/")), "it has {seen}");
        Ok(())
    })
}

#[test]
fn a_namespace_that_comes_after_the_table_is_connected_when_it_comes() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        let table = Table::with_nodes(1)
            .network("app", "10.0.1", 4097)
            .service("a")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("a.2", "a", "n1", &[("app", "10.0.1.4")]);
        let path = format!("/run/netns/{}-named", lab.prefix());
        let mut table = table;
        table.item_mut("tasks", "a.2")["netns"] = json!(path);
        let agent = start(lab, &node, &table)?;
        let status = agent.cli(&["status"])?;
        ensure!(status.contains("a.1") && status.contains("a.2"), "status does not name who is waited for: {status}");
        // By task id in the directory of namespaces.
        let first = lab.namespace("by-id")?;
        symlink(first.path(), lab.directory().join("netns/a.1"))?;
        wait_connected(&first, "10.0.1.3")?;
        // By the path in the table.
        let second = lab.namespace("named")?;
        ensure!(second.path().display().to_string() == path);
        wait_connected(&second, "10.0.1.4")?;
        first.run("ping -c 2 -i 0.05 -W 5 10.0.1.4")?;
        wait_for("status to be content", PATIENCE, || {
            let status = agent.cli(&["status"])?;
            ensure!(status.contains("healthy"), "{status}");
            Ok(())
        })
    });
}

#[test]
fn a_namespace_that_is_a_pipe_is_named_and_the_rest_goes_on() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        let (fifo, other) = (lab.directory().join("fifo"), lab.namespace("other")?);
        node.run(&format!("mkfifo {}", fifo.display()))?;
        let mut table = Table::with_nodes(1)
            .network("app", "10.0.1", 4097)
            .service("a")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("a.2", "a", "n1", &[("app", "10.0.1.4")]);
        table.item_mut("tasks", "a.1")["netns"] = json!(fifo);
        table.item_mut("tasks", "a.2")["netns"] = json!(other.path());
        let agent = start(lab, &node, &table)?;
        wait_connected(&other, "10.0.1.4")?;
        let status = agent.json(&["status"])?;
        let failing = &status["failing"][0];
        let why = failing["why"].as_str().unwrap_or_default();
        let named = why.contains("it is a pipe, not a network namespace") && why.contains(&fifo.display().to_string());
        ensure!(failing["item"] == "task a.1" && named && status["healthy"] == false, "{status:#}");
        // The loop goes on: the next table is taken.
        let right = lab.namespace("right")?;
        table.item_mut("tasks", "a.1")["netns"] = json!(right.path());
        table.write(&lab.directory().join("table.json"))?;
        wait_connected(&right, "10.0.1.3")
    });
}

#[test]
fn two_tasks_whose_paths_lead_to_one_namespace_do_not_fight_over_it() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        let (space, link) = (lab.namespace("space")?, lab.directory().join("link"));
        symlink(space.path(), &link)?;
        let mut table = Table::with_nodes(1)
            .network("app", "10.0.1", 4097)
            .service("a")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("a.2", "a", "n1", &[("app", "10.0.1.4")]);
        table.item_mut("tasks", "a.1")["netns"] = json!(space.path());
        table.item_mut("tasks", "a.2")["netns"] = json!(link);
        let agent = start(lab, &node, &table)?;
        wait_connected(&space, "10.0.1.3")?;
        let before = space.run("ip -br link")?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        let after = space.run("ip -br link")?;
        ensure!(before == after, "the interfaces were made anew:\n{before}\n{after}");
        let status = agent.json(&["status"])?;
        let failing = &status["failing"][0];
        let why = failing["why"].as_str().unwrap_or_default();
        ensure!(failing["item"] == "task a.2" && why.contains("that of task a.1 too"), "{status:#}");
        // Once the table is right the other one gets it.
        table.item_mut("tasks", "a.1")["state"] = json!("shutdown");
        table.write(&lab.directory().join("table.json"))?;
        wait_connected(&space, "10.0.1.4")?;
        wait_for("status to be content", PATIENCE, || {
            let status = agent.json(&["status"])?;
            ensure!(status["healthy"] == true, "{status:#}");
            Ok(())
        })
    });
}

#[test]
fn dockers_gateway_bridge_is_used_as_it_is() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        node.run("ip link add docker_gwbridge address 02:42:00:00:00:19 type bridge")?;
        node.run("ip addr add 172.19.0.1/16 dev docker_gwbridge")?;
        node.run("ip link set docker_gwbridge up")?;
        let before = node.run("ip -d addr show docker_gwbridge")?;
        let task = lab.namespace("task")?;
        let mut table = Table::with_nodes(1).network("app", "10.0.1", 4097).service("a").task(
            "a.1",
            "a",
            "n1",
            &[("app", "10.0.1.3")],
        );
        table.item_mut("tasks", "a.1")["netns"] = json!(task.path());
        let agent = start(lab, &node, &table)?;
        wait_for("an address on the bridge", PATIENCE, || {
            let seen = task.run("ip -4 -br addr")?;
            ensure!(seen.contains("172.19."), "{seen}");
            Ok(())
        })?;
        task.run("ping -c 2 -i 0.05 -W 5 172.19.0.1")?;
        ensure!(task.run("ip route")?.contains("default via 172.19.0.1"), "no default route over the bridge");
        let rules = node.run("nft list ruleset")?;
        ensure!(!rules.contains("masquerade"), "masquerade of an adopted bridge is its owner's: {rules}");
        ensure!(!node.interfaces()?.contains(&"hw-gwbridge".to_owned()), "a second gateway bridge was made");
        agent.terminate()?;
        agent.teardown()?;
        let keep = |text: &str| {
            text.lines().filter(|line| !line.contains("timer") && !line.contains("state")).collect::<String>()
        };
        let after = node.run("ip -d addr show docker_gwbridge")?;
        ensure!(keep(&before) == keep(&after), "the bridge was changed:\n{before}\n{after}");
        Ok(())
    });
}

#[test]
fn a_network_with_two_subnets_is_one_network() {
    with_and_without_offloads(|lab| {
        let subnets = json!([
            {"subnet": "10.0.1.0/24", "gateway": "10.0.1.1", "vni": 4097},
            {"subnet": "10.0.2.0/24", "gateway": "10.0.2.1", "vni": 4098},
        ]);
        let table = Table::with_nodes(2)
            .network("app", "10.0.1", 4097)
            .set("networks", "subnets", subnets)
            .service("a")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("a.2", "a", "n2", &[("app", "10.0.2.4")])
            .task("a.3", "a", "n1", &[("app", "10.0.2.5")]);
        let mut cluster = crate::support::Cluster::start(lab, 2, table)?;
        cluster.serve(&["a.2", "a.3"])?;
        for (target, name) in [("10.0.2.4", "a.2"), ("10.0.2.5", "a.3")] {
            let tally = hiveway_tests::peer::tcp_load(cluster.task("a.1"), &format!("{target}:80"), 5, 1)?;
            crate::support::assert_even(&tally, &[name], 5)?;
            crate::support::assert_peer(&tally, "10.0.1.3")?;
        }
        Ok(())
    });
}
