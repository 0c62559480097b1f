//! Changes of a service under load: nobody notices.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hiveway_tests::{
    lab::{Netns, Offloads, scenario, with_and_without_offloads},
    peer::{self, LoadLoop},
    table::Table,
};

use crate::support::{Cluster, assert_even};

/// Slots 1 to 6: node and last byte of the addresses (ingress and app).
const SLOTS: [(&str, &str, u8); 6] = [
    ("web.1", "n1", 11),
    ("web.2", "n2", 12),
    ("web.3", "n3", 13),
    ("web.4", "n1", 14),
    ("web.5", "n2", 15),
    ("web.6", "n3", 16),
];

fn with_task(table: Table, slot: usize) -> Table {
    let (task, node, host) = SLOTS[slot];
    table.task(task, "web", node, &[("ingress", &format!("10.0.0.{host}")), ("app", &format!("10.0.1.{host}"))])
}

fn web(count: usize) -> Table {
    let base = Table::with_nodes(3)
        .ingress()
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("ingress", "10.0.0.5")
        .vip("app", "10.0.1.2")
        .publish("tcp", 8080, 80)
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9")]);
    (0..count).fold(base, with_task)
}

fn names(range: std::ops::Range<usize>) -> Vec<&'static str> {
    SLOTS[range].iter().map(|slot| slot.0).collect()
}

#[test]
fn scaling_up_and_down_breaks_no_request_and_no_connection() {
    scenario(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web(3))?;
        cluster.serve(&names(0..3))?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let mut loops = Vec::new();
            for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
                loops.push(LoadLoop::tcp(lab, &client, &format!("{node}:8080"), 1, false)?);
            }
            loops.push(LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 1, false)?);
            // Each loop has seen enough of a phase when it has had so many answers in it.
            let pause = |loops: &[LoadLoop]| loops.iter().try_for_each(|running| running.wait_answers(60));
            pause(&loops)?;
            // 3 to 6, as the engine does it: networking first, backends when they run.
            cluster.change(|table| {
                *table = (3..6).fold(table.clone(), with_task);
                names(3..6).iter().for_each(|task| table.set_states(task, "running", "starting"));
            })?;
            cluster.serve(&names(3..6))?;
            cluster.change(|table| names(3..6).iter().for_each(|task| table.set_states(task, "running", "running")))?;
            pause(&loops)?;
            // While they are all there: exact, and connections that will have to survive the way down.
            let kept = [
                LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 12, true)?,
                LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 12, true)?,
            ];
            pause(&kept)?;
            // 6 to 2: four drain for a moment, then they are gone.
            cluster.change(|table| names(2..6).iter().for_each(|task| table.set_states(task, "remove", "running")))?;
            pause(&kept)?;
            pause(&loops)?;
            for kept in kept {
                let tally = kept.stop()?;
                ensure!(tally.failed == 0, "draining broke connections: {tally:?}");
                let drained = names(2..6).iter().filter(|&&name| tally.names.contains_key(name)).count();
                // Others take turns meanwhile: who gets which is chance.
                ensure!(drained >= 1, "no kept connection was on a draining task: {tally:?}");
            }
            cluster.change(|table| names(2..6).iter().for_each(|task| table.remove("tasks", task)))?;
            names(2..6).iter().for_each(|task| cluster.end_task(task));
            pause(&loops)?;
            check_loops(loops, [&client, cluster.task("user.1")])?;
            assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 20, 1)?, &names(0..2), 10)?;
            assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 20, 1)?, &names(0..2), 10)?;
            // Back to 3 for the next round.
            cluster.change(|table| *table = with_task(table.clone(), 2))?;
            cluster.serve(&names(2..3))?;
        }
        Ok(())
    });
}

#[test]
fn a_node_leads_nobody_to_a_task_that_it_is_still_connecting() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let count = 12;
        let task = |number: usize| format!("web.{number}");
        let with = |table: Table, number: usize| {
            let ips = [format!("10.0.0.{}", 20 + number), format!("10.0.1.{}", 20 + number)];
            table.task(&task(number), "web", "n1", &[("ingress", &ips[0]), ("app", &ips[1])])
        };
        let base = Table::with_nodes(1).ingress().network("app", "10.0.1", 4097);
        let base = base.service("web").vip("ingress", "10.0.0.5").vip("app", "10.0.1.2").publish("tcp", 8080, 80);
        let base = base.service("user").task("user.1", "user", "n1", &[("app", "10.0.1.9")]);
        let mut cluster = Cluster::start(lab, 1, with(base, 0))?;
        cluster.serve(&[&task(0)])?;
        let loops = vec![
            LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 2, false)?,
            LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, false)?,
        ];
        for number in 1..=count {
            // It runs, and listens, before anything connects it.
            cluster.table = with(cluster.table.clone(), number);
            cluster.create_task_namespaces()?;
            cluster.serve(&[&task(number)])?;
            cluster.change(|_| {})?;
        }
        check_loops(loops, [&client, cluster.task("user.1")])?;
        let names: Vec<_> = (0..=count).map(task).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert_even(&peer::tcp_load(&client, "192.168.77.11:8080", 26, 1)?, &names, 2)
    });
}

/// No request of the loops failed, and no SYN of the clients was lost.
fn check_loops(loops: Vec<LoadLoop>, clients: [&Netns; 2]) -> Result<()> {
    for running in loops {
        let tally = running.stop()?;
        ensure!(tally.failed == 0, "{} of {} requests failed: {tally:?}", tally.failed, tally.ok + tally.failed);
        ensure!(tally.ok > 100, "the loop has hardly run: {tally:?}");
    }
    for client in clients {
        let lost = syn_retransmits(client)?;
        ensure!(lost == 0, "{lost} SYNs of {} were lost", client.label());
    }
    Ok(())
}

/// SYNs that this namespace's sockets had to send again, ever.
fn syn_retransmits(netns: &Netns) -> Result<u64> {
    let table = netns.run("cat /proc/net/netstat")?;
    let mut rows = table.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (Some(names), Some(numbers)) = (rows.next(), rows.next()) else { bail!("no TcpExt in {table}") };
    let found = names.zip(numbers).find(|(name, _)| *name == "TCPSynRetrans").context("no TCPSynRetrans")?;
    Ok(found.1.parse()?)
}

#[test]
fn an_address_used_again_by_another_task_inherits_no_connection() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, web(2))?;
        cluster.serve(&names(0..2))?;
        let kept = LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, true)?;
        cluster.crash_task("web.2")?;
        cluster.change(|table| table.remove("tasks", "web.2"))?;
        // Another service's task with the same address, on the same node.
        cluster.change(|table| {
            *table = table.clone().service("db").task("db.1", "db", "n2", &[("app", "10.0.1.12")]);
        })?;
        cluster.serve(&["db.1"])?;
        kept.wait_failures(1)?;
        kept.wait_answers(60)?;
        let tally = kept.stop()?;
        ensure!(!tally.names.contains_key("db.1"), "a web connection reached the database: {tally:?}");
        ensure!(tally.names.contains_key("web.2"), "no connection was on the task that went away: {tally:?}");
        ensure!(tally.failed >= 1 && tally.errors.keys().all(|why| !why.contains("no answer")), "no RST: {tally:?}");
        Ok(())
    });
}

#[test]
fn a_service_that_changes_all_the_time_loses_no_request() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web(4))?;
        cluster.serve(&names(0..4))?;
        let loops = vec![
            LoadLoop::tcp(lab, &client, "192.168.77.13:8080", 2, false)?,
            LoadLoop::tcp(lab, &client, "192.168.77.11:8080", 2, true)?,
            LoadLoop::tcp(lab, cluster.task("user.1"), "10.0.1.2:80", 2, false)?,
        ];
        // Faster than an agent applies one: what is in force is always some recent table.
        for round in 0..80 {
            let task = SLOTS[round % 4].0;
            let desired = if round % 3 == 0 { "running" } else { "shutdown" };
            cluster.table.set_states(task, desired, "running");
            cluster.table.set_states("web.1", "running", "running");
            cluster.table.write(&cluster.file)?;
            std::thread::sleep(Duration::from_millis(40));
        }
        cluster.change(|table| names(0..4).iter().for_each(|task| table.set_states(task, "running", "running")))?;
        check_loops(loops, [&client, cluster.task("user.1")])?;
        assert_even(&peer::tcp_load(&client, "192.168.77.12:8080", 40, 4)?, &names(0..4), 10)?;
        assert_even(&peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 40, 4)?, &names(0..4), 10)
    });
}
