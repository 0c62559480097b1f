//! A backend on a node without Hiveway, beside an engine: the ingress node shows it all clients with one address.

use std::time::Instant;

use anyhow::ensure;
use hiveway_tests::{
    lab::scenario,
    peer,
    stock::{self, Stock},
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer, web_table};

/// The ingress node's own address on the ingress network, which its clients are shown with.
const SHOWN: &str = "10.0.0.201";
const CLIENTS: u8 = 12;
const CONNECTIONS: u64 = 5_000;

/// Many clients use the same ports, one after the other, each connection new and ended at once. All of them are in
/// TIME-WAIT until the end, so that what is left of the ports gets fewer all the time.
#[test]
fn short_connections_of_many_clients_do_not_run_out_of_source_ports() {
    scenario(|lab| {
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
        engine.plug(lab, &[n2], table, task.unwrap_or(&table["tasks"][0]), cluster.task("web.1"))?;
        engine.sync(table)?;
        cluster.serve(&["web.1"])?;

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
        // Connection attempts that the backend has taken for stale segments, each of which has cost its client a second.
        let stale = cluster.task("web.1").run("nstat -az TcpExtPAWSTimewait")?;
        ensure!(stale.lines().any(|line| line.split_whitespace().nth(1) == Some("0")), "{stale}");
        let counters = &cluster.agents[0].json(&["status"])?["dataplane"]["counters"];
        let flows = counters["mesh_stock"].as_u64();
        ensure!(flows >= Some(u64::from(CLIENTS) * CONNECTIONS), "they took another way: {counters:#}");
        Ok(())
    });
}
