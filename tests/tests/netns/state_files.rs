//! The agent's state files: they cannot be written, or somebody removes them.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Netns, PATIENCE, scenario, wait_for},
    table::Table,
};

use crate::support::{Cluster, web_table};

/// What a container has on the gateway bridge.
fn gateway_address(task: &Netns) -> Result<Ipv4Addr> {
    let text = task.run("ip -4 -br addr")?;
    let found = text.split_whitespace().filter_map(|word| word.split_once('/')?.0.parse::<Ipv4Addr>().ok());
    let mut found = found.filter(|address| address.octets()[..2] == [172, 18]);
    found.next_back().with_context(|| format!("no address on the gateway bridge: {text}"))
}

fn add(table: &mut Table, slot: u8) {
    let (ingress, app) = (format!("10.0.0.{}", 5 + slot), format!("10.0.1.{}", 2 + slot));
    *table = table.clone().task(&format!("web.{slot}"), "web", "n1", &[("ingress", &ingress), ("app", &app)]);
}

#[test]
fn addresses_on_the_gateway_bridge_stay_while_the_state_directory_cannot_be_written() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 1, web_table(&["n1"], &[("tcp", 8080, 80)], "n1"))?;
        let agent = cluster.agents[0].clone();
        // The new version of the file has no place: root is refused nothing else.
        let obstacle = agent.state_dir().join(".gateway-addresses.json.tmp");
        fs::create_dir(&obstacle)?;
        let failing = || -> Result<bool> {
            let status = agent.json(&["status"])?;
            let all = status["failing"].as_array().context("no list")?;
            Ok(all.iter().any(|item| item["item"] == "state directory"))
        };
        // It does not settle meanwhile.
        cluster.write(|table| add(table, 9))?;
        wait_for("the state directory to be named", PATIENCE, || {
            ensure!(failing()?, "{:#}", agent.json(&["status"])?["failing"]);
            Ok(())
        })?;
        let task = cluster.task("web.9").clone();
        wait_for("the container's address", PATIENCE, || gateway_address(&task))?;
        let before = gateway_address(&task)?;
        // In order of their names this one comes first.
        cluster.write(|table| add(table, 2))?;
        let other = cluster.task("web.2").clone();
        wait_for("the other container's address", PATIENCE, || gateway_address(&other))?;
        ensure!(gateway_address(&task)? == before, "a running container had {before}, and has another one");
        ensure!(gateway_address(&other)? != before, "{before} is given to both");
        ensure!(failing()?, "it is not said any more");
        fs::remove_dir(&obstacle)?;
        wait_for("the addresses to be saved", 2 * PATIENCE, || {
            ensure!(!failing()?, "{:#}", agent.json(&["status"])?["failing"]);
            Ok(())
        })?;
        let saved = fs::read_to_string(agent.state_dir().join("gateway-addresses.json"))?;
        for task in ["web.1", "web.2", "web.9"] {
            let has = gateway_address(cluster.task(task))?;
            ensure!(saved.contains(&format!("\"{task}\": \"{has}\"")), "{task} has {has}: {saved}");
        }
        Ok(())
    });
}

#[test]
fn state_files_that_are_removed_are_written_again_and_teardown_knows_the_originals() {
    scenario(|lab| {
        let node = lab.node("n1", 11)?;
        node.run("sysctl -qw net.ipv4.ip_forward=0")?;
        node.run("sysctl -qw net.ipv4.ip_local_reserved_ports=12345")?;
        let cluster = Cluster::start_on(lab, vec![node], web_table(&["n1"], &[("tcp", 8080, 80)], "n1"), &[])?;
        let (node, agent) = (&cluster.nodes[0], &cluster.agents[0]);
        let reserved = || node.run("sysctl -n net.ipv4.ip_local_reserved_ports");
        ensure!(reserved()?.trim() == "8080,12345", "{}", reserved()?);
        let file = agent.state_dir().join("sysctls.json");
        let before = fs::read_to_string(&file)?;
        for remove in [file.clone(), agent.state_dir()] {
            match remove.is_dir() {
                true => fs::remove_dir_all(&remove)?,
                false => fs::remove_file(&remove)?,
            }
            wait_for("the file to be there again", PATIENCE, || {
                let now = fs::read_to_string(&file)?;
                ensure!(now == before, "{now}, before: {before}");
                Ok(())
            })?;
        }
        agent.wait_log("sysctls.json was removed")?;
        agent.terminate()?;
        agent.teardown()?;
        ensure!(reserved()?.trim() == "12345", "left: {}", reserved()?);
        let forward = node.run("sysctl -n net.ipv4.ip_forward")?;
        ensure!(forward.trim() == "0", "left: ip_forward = {forward}");
        ensure!(!agent.state_dir().exists(), "the state directory is left");
        Ok(())
    });
}
