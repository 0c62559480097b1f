//! Connections that would be one and the same to a backend, were their addresses just rewritten.

use anyhow::{Context as _, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, with_and_without_offloads},
    peer::LoadLoop,
    table::Table,
};

use crate::support::Cluster;

/// One backend on n2 behind a VIP and two published ports, user.1 on n1.
fn one_backend() -> Table {
    Table::with_nodes(3)
        .ingress()
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", "10.0.1.2")
        .publish("tcp", 8080, 80)
        .publish("tcp", 8081, 80)
        .task("web.1", "web", "n2", &[("ingress", "10.0.0.6"), ("app", "10.0.1.3")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9")])
}

/// Holds a connection to each target from one and the same port at once: all have to live.
fn live_side_by_side(lab: &Lab, client: &Netns, port: u16, targets: &[&str]) -> anyhow::Result<()> {
    let mut loops = Vec::new();
    for target in targets {
        loops.push((target, LoadLoop::from_port(lab, client, target, port)?));
    }
    // All of them go on, with the others beside them.
    for (target, running) in &loops {
        running.wait_answers(60).with_context(|| format!("{target} among {targets:?} from port {port}"))?;
    }
    for (target, running) in loops {
        let tally = running.stop()?;
        ensure!(tally.failed == 0, "{target} among {targets:?} from port {port}: {tally:?}");
    }
    Ok(())
}

#[test]
fn mesh_connections_from_the_same_port_through_two_nodes_or_ports_live_side_by_side() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, one_backend())?;
        cluster.serve(&["web.1"])?;
        let all = ["192.168.77.11:8080", "192.168.77.12:8080", "192.168.77.13:8080"];
        live_side_by_side(lab, &client, 21003, &all)?;
        live_side_by_side(lab, &client, 21004, &["192.168.77.13:8080", "192.168.77.13:8081"])?;
        live_side_by_side(lab, &client, 21005, &["192.168.77.12:8081", "192.168.77.12:8080"])
    });
}
