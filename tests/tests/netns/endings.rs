//! What a client notices when the task that it talks to is gone.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use hiveway_tests::{
    lab::{Process, with_and_without_offloads},
    load::Tally,
    peer::{self, LoadLoop},
    table::Table,
};

use crate::support::Cluster;

/// web.1 on n1 and web.2 on n2, user.1 on n1; published as 8080/tcp and 5353/udp.
fn web() -> Table {
    Table::with_nodes(3)
        .ingress()
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", "10.0.1.2")
        .publish("tcp", 8080, 80)
        .publish("udp", 5353, 53)
        .task("web.1", "web", "n1", &[("ingress", "10.0.0.6"), ("app", "10.0.1.3")])
        .task("web.2", "web", "n2", &[("ingress", "10.0.0.7"), ("app", "10.0.1.4")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9")])
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
        std::thread::sleep(Duration::from_millis(400));
        cluster.crash_task("web.2")?;
        cluster.change(|table| table.set_states("web.2", "shutdown", "failed"))?;
        std::thread::sleep(Duration::from_millis(3000));
        for (what, running) in kept {
            let tally = running.stop()?;
            ensure!(tally.names.contains_key("web.2"), "{what}: nothing was connected to web.2: {tally:?}");
            ensure!(tally.failed >= 1, "{what}: nothing broke: {tally:?}");
            ensure!(!tally.errors.keys().any(|why| why.contains("no answer")), "{what}: left hanging: {tally:?}");
            ensure!(tally.slowest_ms < 1500, "{what}: the way to another backend took long: {tally:?}");
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
        let ask = |netns: &hiveway_tests::lab::Netns, target: &str| -> anyhow::Result<Process> {
            let arguments = ["--count", "60", "--same-port", "--pause-ms", "40", "--timeout-ms", "300"];
            let mut command = peer::command(netns, &[&["udp-load", "--target", target], &arguments[..]].concat())?;
            command.stdin(Stdio::null());
            Process::start(command, lab.directory(), &lab.unique("udp"))
        };
        // Four clients, so that some of them are on web.2.
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(ask(cluster.task("user.1"), "10.0.1.2:53")?);
            clients.push(ask(&client, "192.168.77.13:5353")?);
        }
        std::thread::sleep(Duration::from_millis(600));
        cluster.crash_task("web.2")?;
        cluster.change(|table| table.set_states("web.2", "shutdown", "failed"))?;
        let mut moved = 0;
        for client in clients {
            let text = client.finish(Duration::from_secs(30))?;
            let tally: Tally = serde_json::from_str(&text).with_context(|| text)?;
            ensure!(tally.ok > 45, "a UDP client was left behind: {tally:?}");
            moved += u32::from(tally.names.len() == 2);
        }
        ensure!(moved >= 2, "no client was on the task that went away");
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
        std::thread::sleep(Duration::from_millis(1500));
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
