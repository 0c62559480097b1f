//! Paths between nodes that take less than the nodes' own interfaces.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    agent::Agent,
    lab::{Lab, Netns, PATIENCE, scenario, wait_for, with_and_without_offloads},
    peer,
    table::Table,
};
use serde_json::Value;

use crate::support::{Cluster, web_table};

/// web.1 on n2, user.1 on n1.
fn table() -> Table {
    web_table(&["n2"], &[("tcp", 8080, 80), ("udp", 7000, 7777)], "n1")
}

/// Leads what n1 and n2 send to each other through a router, which passes on packets of `mtu` bytes at most.
fn narrow(lab: &Lab, cluster: &Cluster<'_>, mtu: u16) -> Result<()> {
    let switch = lab.switch();
    for name in ["all", "br0"] {
        switch.run(&format!("sysctl -qw net.ipv4.conf.{name}.send_redirects=0"))?;
    }
    for (node, other) in [(&cluster.nodes[0], "192.168.77.12"), (&cluster.nodes[1], "192.168.77.11")] {
        switch.run(&format!("ip route replace {other}/32 dev br0 mtu {mtu}"))?;
        node.run(&format!("ip route replace {other}/32 via 192.168.77.1"))?;
    }
    Ok(())
}

/// A megabyte each way through the mesh, a VIP and the overlay.
fn transfers(client: &Netns, user: &Netns) -> Result<()> {
    for (from, target) in [(client, "192.168.77.11:8080"), (user, "10.0.1.2:80"), (user, "10.0.1.3:80")] {
        peer::transfer(from, target, 1_000_000).with_context(|| format!("{} to {target}", from.label()))?;
    }
    Ok(())
}

fn finds(user: &Netns, target: &str, mtu: u16) -> Result<()> {
    user.run("ip route flush cache")?;
    let text = user.run(&format!("tracepath -n -m 3 {target}"))?;
    ensure!(text.contains(&format!("pmtu {mtu} hops 1")), "{target}, not {mtu}: {text}");
    Ok(())
}

#[test]
fn a_router_with_a_smaller_mtu_is_believed() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, table())?;
        cluster.serve(&["web.1"])?;
        let _server = peer::fragmentable_udp_server(lab, cluster.task("web.1"), 7777, "web.1")?;
        narrow(lab, &cluster, 1400)?;
        let user = cluster.task("user.1");
        transfers(&client, user)?;
        for target in ["10.0.1.2", "10.0.1.3"] {
            finds(user, target, 1350)?;
        }
        // Without DF the outer packet is fragmented.
        let echo = peer::udp_echo_fragmentable(&client, "192.168.77.11:7000", 1440, 4)?;
        ensure!(echo.ok == 4, "UDP without DF: {echo:?}");
        // What is known outlives the agents.
        for agent in &cluster.agents {
            agent.sigkill();
        }
        transfers(&client, user)
    });
}

#[test]
fn a_route_with_a_smaller_mtu_counts() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 2, table())?;
        let user = cluster.task("user.1");
        finds(user, "10.0.1.3", 1450)?;
        cluster.nodes[0].run("ip route replace 192.168.77.12/32 dev eth0 mtu 1380")?;
        wait_for("n1 to keep to the route's MTU", PATIENCE, || finds(user, "10.0.1.3", 1330))?;
        // What the kernel was told about the path counts as well.
        cluster.nodes[0].run("ip route del 192.168.77.12/32")?;
        wait_for("n1 to forget it", PATIENCE, || finds(user, "10.0.1.3", 1450))?;
        narrow(lab, &cluster, 1400)?;
        // No packet of a tunnel has met the router yet.
        let ping = cluster.nodes[0].output("ping -c 1 -W 1 -M do -s 1450 192.168.77.12")?;
        ensure!(!ping.status.success(), "the path is not narrow");
        let route = cluster.nodes[0].run("ip route get 192.168.77.12")?;
        ensure!(route.contains("mtu 1400"), "the kernel has not learned it: {route}");
        wait_for("n1 to keep to what the kernel knows", PATIENCE, || {
            let paths = path_limits(&cluster)?;
            ensure!(paths.contains("\"route\":1400"), "{paths}");
            Ok(())
        })?;
        finds(user, "10.0.1.3", 1350)
    });
}

/// Map `PATHS` on n1.
fn path_limits(cluster: &Cluster<'_>) -> Result<String> {
    let map = cluster.agents[0].bpffs().join("maps/PATHS");
    let dump = cluster.nodes[0].run(&format!("bpftool -j map dump pinned {}", map.display()))?;
    Ok(dump.replace(' ', ""))
}

/// What `hiveway check --json` says, and whether its exit code says that all is well.
fn check(agent: &Agent) -> Result<(Value, bool)> {
    let mut command = agent.command(&["check", "--json", "--wait", "0", "--socket"])?;
    let output = command.arg(agent.socket()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text).with_context(|| format!("check said {text}"))?;
    Ok((value, output.status.success()))
}

/// Waits until all paths of these agents pass.
fn pass(agents: &[Arc<Agent>]) -> Result<()> {
    for agent in agents {
        wait_for(&format!("all paths of {} to pass", agent.netns().label()), PATIENCE, || {
            let (value, fine) = check(agent)?;
            ensure!(fine, "{value:#}");
            ensure!(agent.json(&["status"])?["healthy"] == true, "status is not healthy");
            Ok(())
        })?;
    }
    Ok(())
}

/// Waits until `agent` is not healthy any more and names a problem with these words.
fn complains(agent: &Agent, words: &[&str]) -> Result<Value> {
    wait_for(&format!("{} to say {words:?}", agent.netns().label()), PATIENCE, || {
        let (value, fine) = check(agent)?;
        let problems: Vec<_> = value["problems"].as_array().into_iter().flatten().collect();
        let named = problems.iter().any(|problem| {
            let text = problem["problem"].as_str().unwrap_or_default();
            problem["severity"] == "error" && words.iter().all(|word| text.contains(word))
        });
        ensure!(named && !fine, "{value:#}");
        ensure!(agent.json(&["status"])?["healthy"] == false, "status is healthy all the same");
        ensure!(agent.cli(&["status"])?.contains("degraded"), "its text is not degraded");
        Ok(value)
    })
}

/// Has what `from` sends to `to`, UDP port 4789, dropped between them; undone with [`open_way`].
fn close_way(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let switch = lab.switch();
    switch.run("nft add table netdev paths")?;
    switch
        .run(&format!("nft add chain netdev paths closed {{ type filter hook ingress device {from} priority 0 ; }}"))?;
    switch.run(&format!("nft add rule netdev paths closed ip daddr {to} udp dport 4789 drop")).map(drop)
}

fn open_way(lab: &Lab) -> Result<()> {
    lab.switch().run("nft delete table netdev paths").map(drop)
}

#[test]
fn nodes_try_the_paths_between_them() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 3, table())?;
        pass(&cluster.agents)?;
        let [n1, n2, n3] = [0, 1, 2].map(|n| cluster.agents[n].clone());
        wait_for("full-size probes to pass", PATIENCE, || {
            for agent in &cluster.agents {
                let (value, _) = check(agent)?;
                let rows = value["paths"].as_array().context("no paths")?;
                ensure!(rows.len() == 2, "{value:#}");
                for row in rows {
                    ensure!(row["state"] == "passing" && row["mtu"] == 1500 && row["passed"] == 1500, "{row}");
                    ensure!(row["rtt_microseconds"].as_u64().is_some_and(|rtt| rtt > 0), "{row}");
                    ensure!(row["their_mtu"] == 1500 && row["heard_seconds_ago"].is_u64(), "{row}");
                }
            }
            Ok(())
        })?;
        let text = n1.cli(&["check"])?;
        ensure!(text.contains("n1    n2") && text.contains("passing"), "{text}");
        // A firewall in one direction.
        close_way(lab, "n1", "192.168.77.12")?;
        complains(&n1, &["n2", "packets from 192.168.77.11 to 192.168.77.12, UDP port 4789, are lost on the way"])?;
        complains(&n2, &["n1", "nothing arrives from it"])?;
        pass(std::slice::from_ref(&n3))?;
        open_way(lab)?;
        pass(&cluster.agents)?;
        // The data plane answers, whatever becomes of the agent.
        n2.sigkill();
        std::thread::sleep(Duration::from_secs(6));
        pass(&[n1.clone(), n3])?;
        n2.launch()?;
        n2.wait_ready()?;
        pass(&cluster.agents)?;
        // A node that is down is not asked.
        let mut cluster = cluster;
        n2.sigkill();
        cluster.nodes[1].run("ip link set eth0 down")?;
        complains(&n1, &["n2"])?;
        cluster.table.item_mut("nodes", "n2")["state"] = serde_json::json!("down");
        cluster.table.write(&cluster.file)?;
        pass(&[n1])
    });
}

#[test]
fn a_node_is_not_healthy_before_traffic_was_seen_to_pass() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 3, table())?;
        pass(&cluster.agents)?;
        let [n1, n3] = [0, 2].map(|n| cluster.agents[n].clone());
        close_way(lab, "n1", "192.168.77.12")?;
        n1.terminate()?;
        n1.launch()?;
        // From the first answer until the path is known to fail, and beyond.
        let (started, mut ready) = (Instant::now(), None);
        let (mut waited, mut said) = (false, String::new());
        while ready.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(15)) {
            ensure!(started.elapsed() < 2 * PATIENCE, "the agent is not ready after {:?}", started.elapsed());
            let Ok(status) = n1.json(&["status"]) else { continue };
            ensure!(status["healthy"] != true, "healthy after {:?}: {}", started.elapsed(), status["paths"]);
            if status["ready"] == true {
                ready.get_or_insert_with(Instant::now);
            }
            said = status["path_problems"].to_string();
            waited |= said.contains("waiting for the first probe to pass to n2 (192.168.77.12)");
        }
        ensure!(waited, "nothing was said of the first probe; at last: {said}");
        complains(&n1, &["n2", "packets from 192.168.77.11 to 192.168.77.12, UDP port 4789, are lost on the way"])?;
        open_way(lab)?;
        pass(&cluster.agents)?;
        // Where traffic passes that is known soon.
        n3.terminate()?;
        n3.restart()?;
        let started = Instant::now();
        pass(std::slice::from_ref(&n3))?;
        ensure!(started.elapsed() < Duration::from_secs(10), "healthy only after {:?}", started.elapsed());
        Ok(())
    });
}

#[test]
fn nodes_that_use_another_port_are_named_on_both_sides() {
    scenario(|lab| {
        let cluster = Cluster::start(lab, 3, table())?;
        pass(&cluster.agents)?;
        let [n1, n2, n3] = [0, 1, 2].map(|n| cluster.agents[n].clone());
        n2.restart_with(&["--vxlan-port", "7789"])?;
        complains(&n1, &["n2", "UDP port 7789, this node uses port 4789"])?;
        complains(&n3, &["n2", "UDP port 7789, this node uses port 4789"])?;
        complains(&n2, &["n1", "UDP port 4789, this node uses port 7789"]).map(drop)
    });
}

#[test]
fn a_path_that_swallows_large_packets_without_a_word_is_measured() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 2, table_of_two())?;
        cluster.serve(&["web.1"])?;
        narrow(lab, &cluster, 1400)?;
        for rule in ["add table inet mute", "add chain inet mute out { type filter hook output priority 0 ; }"] {
            lab.switch().run(&format!("nft {rule}"))?;
        }
        lab.switch().run("nft add rule inet mute out icmp type destination-unreachable drop")?;
        for agent in &cluster.agents {
            wait_for("the path to be measured", 3 * PATIENCE, || {
                let (value, _) = check(agent)?;
                let row = &value["paths"][0];
                ensure!(row["mtu"] == 1400 && row["passed"] == 1400, "{value:#}");
                let problems = value["problems"].to_string();
                ensure!(
                    problems.contains("vanish") && problems.contains("network app has an MTU of 1450"),
                    "{value:#}"
                );
                Ok(())
            })?;
        }
        transfers(&client, cluster.task("user.1"))
    });
}

/// As [`table`], with two nodes.
fn table_of_two() -> Table {
    let mut table = table();
    table.remove("nodes", "n3");
    table
}
