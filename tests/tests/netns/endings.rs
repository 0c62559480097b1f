//! What a client notices when the task that it talks to is gone.

use anyhow::{Context as _, ensure};
use hiveway_tests::{
    lab::{PATIENCE, wait_for, with_and_without_offloads},
    peer::{self, LoadLoop},
    table::Table,
};

use crate::support::{Cluster, web_table};

/// web.1 on n1 and web.2 on n2, user.1 on n1; published as 8080/tcp and 5353/udp.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n1")
}

#[test]
fn a_connection_to_a_task_that_is_gone_is_reset_and_not_left_hanging() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1", "web.2"])?;
        let kept = [
            ("VIP", LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 4, true)?),
            ("mesh, other node", LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 4, true)?),
            ("mesh, same node", LoadLoop::tcp(lab, &client, "192.168.77.12:8080", 4, true)?),
        ];
        cluster.crash_task("web.2")?;
        cluster.change(|table| table.set_states("web.2", "shutdown", "failed"))?;
        for (what, running) in &kept {
            // Two of four were on web.2.
            running.wait_failures(2).with_context(|| format!("{what}: nothing broke"))?;
            running.wait_answers(100).with_context(|| format!("{what}: no way to another backend"))?;
        }
        for (what, running) in kept {
            let tally = running.stop()?;
            ensure!(tally.names.contains_key("web.2"), "{what}: nothing was connected to web.2: {tally:?}");
            ensure!(!tally.errors.keys().any(|why| why.contains("no answer")), "{what}: left hanging: {tally:?}");
            // Who connects again may be refused first: the ingress node's agent may learn of it after the task's own.
            let again: u64 = tally.errors.iter().filter(|(why, _)| why.starts_with("connect:")).map(|(_, n)| *n).sum();
            ensure!(tally.failed - again == 2, "{what}: more broke than was on web.2: {tally:?}");
        }
        Ok(())
    });
}

#[test]
fn a_udp_client_gets_another_backend_when_its_own_is_gone() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1", "web.2"])?;
        // Four clients, so that some of them are on web.2.
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(LoadLoop::udp(lab, cluster.task("user.1"), "10.0.1.2:53")?);
            clients.push(LoadLoop::udp(lab, &client, "192.168.77.13:5353")?);
        }
        cluster.crash_task("web.2")?;
        cluster.change(|table| table.set_states("web.2", "shutdown", "failed"))?;
        let mut moved = 0;
        for client in clients {
            client.wait_answers(40).context("a UDP client was left behind")?;
            let tally = client.stop()?;
            ensure!(tally.names.contains_key("web.1"), "{tally:?}");
            moved += u32::from(tally.names.len() == 2);
        }
        // Two of four of each kind.
        ensure!(moved == 4, "{moved} clients were on the task that went away");
        Ok(())
    });
}

#[test]
fn backends_on_a_node_that_is_down_get_nothing() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&["web.1", "web.2"])?;
        cluster.table.item_mut("nodes", "n2")["state"] = serde_json::json!("down");
        cluster.table.write(&cluster.file)?;
        wait_for("a table in which n2 is down", PATIENCE, || {
            let vip = peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 2, 1)?;
            let mesh = peer::tcp_load(&client, "192.168.77.13:8080", 2, 1)?;
            ensure!(!vip.names.contains_key("web.2") && !mesh.names.contains_key("web.2"), "{vip:?} {mesh:?}");
            Ok(())
        })?;
        let vip = peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 10, 1)?;
        let mesh = peer::tcp_load(&client, "192.168.77.13:8080", 10, 1)?;
        for tally in [vip, mesh] {
            ensure!(tally.names.get("web.1") == Some(&10), "{tally:?}");
        }
        // Unknown is what every node is for a moment when the swarm changes its leader: nothing happens.
        cluster.table.item_mut("nodes", "n2")["state"] = serde_json::json!("unknown");
        cluster.change(|_| ())?;
        let vip = peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 10, 1)?;
        ensure!(vip.names.get("web.2") == Some(&5), "{vip:?}");
        Ok(())
    });
}
