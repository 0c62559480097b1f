//! Connections that would be one and the same to a backend, were their addresses just rewritten. Whatever is done about
//! it, the server sees the address that it is promised.

use anyhow::{Context as _, Result, ensure};
use hiveway_tests::{
    lab::{Lab, Netns, PATIENCE, Process, with_and_without_offloads},
    load::Tally,
    peer::{self, LoadLoop},
    table::Table,
};

use crate::support::{Cluster, assert_even, assert_peer, web_table};

/// One backend behind a VIP and two published ports, user.1 on n1.
fn one_backend(node: &str) -> Table {
    web_table(&[node], &[("tcp", 8080, 80), ("tcp", 8081, 80)], "n1")
}

/// Holds a connection to each target from one and the same port at once: all have to live, and to show one address.
fn live_side_by_side(lab: &Lab, clients: &[(&Netns, &str)], port: u16, seen: &str) -> Result<()> {
    let mut loops = Vec::new();
    for (client, target) in clients {
        loops.push((target, LoadLoop::from_port(lab, client, target, port)?));
    }
    // All of them go on, with the others beside them.
    for (target, running) in &loops {
        running.wait_answers(60).with_context(|| format!("{target} from port {port}"))?;
    }
    for (target, running) in loops {
        let tally = running.stop()?;
        ensure!(tally.failed == 0, "{target} from port {port}: {tally:?}");
        assert_peer(&tally, seen).with_context(|| format!("{target} from port {port}"))?;
    }
    Ok(())
}

#[test]
fn mesh_connections_from_the_same_port_through_two_nodes_or_ports_live_side_by_side() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, one_backend("n2"))?;
        cluster.serve(&["web.1"])?;
        for (port, targets) in [
            (21003, &["192.168.77.11:8080", "192.168.77.12:8080", "192.168.77.13:8080"][..]),
            (21004, &["192.168.77.13:8080", "192.168.77.13:8081"]),
            (21005, &["192.168.77.12:8081", "192.168.77.12:8080"]),
        ] {
            let all: Vec<_> = targets.iter().map(|&target| (&client, target)).collect();
            live_side_by_side(lab, &all, port, "192.168.77.100")?;
        }
        Ok(())
    });
}

#[test]
fn vip_and_direct_connections_from_the_same_port_live_side_by_side_whichever_came_first() {
    with_and_without_offloads(|lab| {
        // The client's own node and another one.
        let table = one_backend("n1").service("db").vip("app", "10.0.1.30");
        let table = table.task("db.1", "db", "n2", &[("app", "10.0.1.31")]);
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&["web.1", "db.1"])?;
        let user = cluster.task("user.1");
        for (port, vip, direct) in [(22001, "10.0.1.2:80", "10.0.1.3:80"), (22003, "10.0.1.30:80", "10.0.1.31:80")] {
            live_side_by_side(lab, &[(user, vip), (user, direct)], port, "10.0.1.9")?;
            live_side_by_side(lab, &[(user, direct), (user, vip)], port + 1, "10.0.1.9")?;
        }
        Ok(())
    });
}

#[test]
fn containers_behind_one_masquerade_keep_their_connections_apart() {
    with_and_without_offloads(|lab| {
        let table = one_backend("n2").task("user.2", "user", "n1", &[("app", "10.0.1.10")]);
        let mut cluster = Cluster::start(lab, 3, table)?;
        cluster.serve(&["web.1"])?;
        for target in ["192.168.77.13:8080", "192.168.77.12:8080"] {
            let clients = [(cluster.task("user.1"), target), (cluster.task("user.2"), target)];
            live_side_by_side(lab, &clients, 22010, "192.168.77.11")?;
        }
        Ok(())
    });
}

#[test]
fn a_task_that_is_its_own_backend_again_and_again_sees_the_vip() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, one_backend("n1"))?;
        cluster.serve(&["web.1"])?;
        let web = cluster.task("web.1");
        let tally = peer::tcp_load(web, "10.0.1.2:80", 40, 4)?;
        assert_even(&tally, &["web.1"], 40)?;
        assert_peer(&tally, "10.0.1.2")?;
        // From one port: the one before may still be in TIME-WAIT.
        for round in 0..5 {
            let command = peer::command(web, &["tcp-load", "--target", "10.0.1.2:80", "--first-port", "22020"])?;
            let text = Process::start(command, lab.directory(), &lab.unique("hairpin"))?.finish(PATIENCE)?;
            let tally: Tally = serde_json::from_str(&text)?;
            assert_even(&tally, &["web.1"], 1).with_context(|| format!("round {round}"))?;
            assert_peer(&tally, "10.0.1.2")?;
        }
        Ok(())
    });
}
