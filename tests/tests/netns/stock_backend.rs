//! A backend on a node without Hiveway, beside an engine: the ingress node shows it all clients with one address.

use std::time::Instant;

use anyhow::{Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, scenario},
    peer,
    stock::{self, Stock},
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, web_table};

/// The ingress node's own address on the ingress network, which its clients are shown with.
const SHOWN: &str = "10.0.0.201";
const CLIENTS: u8 = 12;
const CONNECTIONS: u64 = 5_000;

/// web.1 on n2, which runs no Hiveway; clients ask n1, which does.
fn backend(lab: &Lab) -> Result<(Netns, Cluster<'_>, Stock, Netns)> {
    let client = lab.client()?;
    let (n1, n2) = (lab.node("n1", 11)?, lab.node("n2", 12)?);
    let mut table = web_table(&["n2"], &[("tcp", 8080, 80)], "n2");
    for network in ["ingress", "app"] {
        table.item_mut("networks", network)["carrier"] = json!("engine");
    }
    for n in 1..=3 {
        let node = table.item_mut("nodes", &format!("n{n}"));
        node["addresses"] = json!({"ingress": format!("10.0.0.20{n}"), "app": format!("10.0.1.20{n}")});
        if n > 1 {
            node["dataplane"] = json!("none");
        }
    }
    [&n1, &n2].into_iter().try_for_each(stock::gateway_bridge)?;
    let mut cluster = Cluster::start_on(lab, vec![n1], table, &[])?;
    let mut engine = Stock::default();
    let table = cluster.table.value();
    let task = table["tasks"].as_array().into_iter().flatten().find(|task| task["id"] == "web.1");
    engine.plug(lab, std::slice::from_ref(&n2), table, task.unwrap_or(&table["tasks"][0]), cluster.task("web.1"))?;
    engine.sync(table)?;
    cluster.serve(&["web.1"])?;
    Ok((client, cluster, engine, n2))
}

/// Many clients use the same ports, one after the other, each connection new and ended at once. All of them are in
/// TIME-WAIT until the end, so that what is left of the ports gets fewer all the time.
#[test]
fn short_connections_of_many_clients_do_not_run_out_of_source_ports() {
    scenario(|lab| {
        let (client, cluster, _engine, _) = backend(lab)?;
        let started = Instant::now();
        for number in 0..CLIENTS {
            client.run("ip addr flush dev eth0")?;
            client.run(&format!("ip addr add 192.168.77.{}/24 dev eth0", 100 + number))?;
            let tally = peer::tcp_load_from(&client, "192.168.77.11:8080", 10_000, CONNECTIONS, 8)?;
            assert_even(&tally, &["web.1"], CONNECTIONS)?;
            assert_peer(&tally, SHOWN)?;
        }
        let rate = u64::from(CLIENTS) * CONNECTIONS * 1000 / started.elapsed().as_millis().max(1) as u64;
        eprintln!("{rate} connections a second");
        ensure!(cluster.agents[0].dropped("flow_collision")? == 0, "at {rate} connections a second");
        // Connection attempts that the backend has taken for stale segments, each of which has cost its client a
        // second.
        let stale = cluster.task("web.1").run("nstat -az TcpExtPAWSTimewait")?;
        ensure!(stale.lines().any(|line| line.split_whitespace().nth(1) == Some("0")), "{stale}");
        let counters = &cluster.agents[0].json(&["status"])?["dataplane"]["counters"];
        let flows = counters["mesh_stock"].as_u64();
        ensure!(flows >= Some(u64::from(CLIENTS) * CONNECTIONS), "they took another way: {counters:#}");
        Ok(())
    });
}

/// Nobody tries the path, and its router says nothing: it may fragment, as what the kernel's own tunnels carry.
#[test]
fn a_narrow_path_to_a_backend_without_hiveway_swallows_nothing() {
    scenario(|lab| {
        let (client, cluster, _engine, n2) = backend(lab)?;
        let switch = lab.switch();
        for name in ["all", "br0"] {
            switch.run(&format!("sysctl -qw net.ipv4.conf.{name}.send_redirects=0"))?;
        }
        for (node, other) in [(&cluster.nodes[0], "192.168.77.12"), (&n2, "192.168.77.11")] {
            switch.run(&format!("ip route replace {other}/32 dev br0 mtu 1400"))?;
            node.run(&format!("ip route replace {other}/32 via 192.168.77.1"))?;
        }
        for rule in ["add table inet mute", "add chain inet mute out { type filter hook output priority 0 ; }"] {
            switch.run(&format!("nft {rule}"))?;
        }
        switch.run("nft add rule inet mute out icmp type destination-unreachable drop")?;
        // What comes back is cut as well, which the engine's tunnel device puts together for the engine, and shows how
        // narrow the path is: from then on connections keep to it.
        let first = peer::transfer(&client, "192.168.77.11:8080", 1_000_000);
        ensure!(first.is_ok() || learned(&cluster)? > 0, "{first:?}");
        peer::transfer(&client, "192.168.77.11:8080", 1_000_000)?;
        Ok(())
    });
}

/// How often the data plane of n1 has noted that a path is narrow.
fn learned(cluster: &Cluster<'_>) -> Result<u64> {
    let counters = &cluster.agents[0].json(&["status"])?["dataplane"]["counters"];
    Ok(counters["path_mtu_learned"].as_u64().unwrap_or(0))
}
