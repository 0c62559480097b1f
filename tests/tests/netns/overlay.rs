//! Containers on overlay networks.

use std::process::Command;

use anyhow::ensure;
use hiveway_tests::{
    lab::{Netns, Offloads, scenario, with_and_without_offloads},
    peer,
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_peer};

/// a.1 and a.3 on n1, a.2 on n2.
fn three_tasks() -> Table {
    Table::with_nodes(2)
        .network("app", "10.0.1", 4097)
        .service("a")
        .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
        .task("a.2", "a", "n2", &[("app", "10.0.1.4")])
        .task("a.3", "a", "n1", &[("app", "10.0.1.5")])
}

#[test]
fn containers_reach_each_other_on_the_same_node_and_across_nodes() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 2, three_tasks())?;
        cluster.serve(&["a.1", "a.2", "a.3"])?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (from, own, to) in [
                ("a.1", "10.0.1.3", "10.0.1.4"),
                ("a.2", "10.0.1.4", "10.0.1.3"),
                ("a.2", "10.0.1.4", "10.0.1.5"),
                ("a.1", "10.0.1.3", "10.0.1.5"),
                ("a.3", "10.0.1.5", "10.0.1.3"),
            ] {
                let from = cluster.task(from);
                from.run(&format!("ping -c 3 -i 0.05 -W 5 {to}"))?;
                let tcp = peer::tcp_load(from, &format!("{to}:80"), 30, 3)?;
                ensure!(tcp.ok == 30, "{offloads:?} TCP {own} to {to}: {tcp:?}");
                assert_peer(&tcp, own)?;
                let udp = peer::udp_load(from, &format!("{to}:53"), 30)?;
                ensure!(udp.ok == 30, "{offloads:?} UDP {own} to {to}: {udp:?}");
                assert_peer(&udp, own)?;
                peer::transfer(from, &format!("{to}:80"), 3_000_000)?;
            }
        }
        Ok(())
    });
}

#[test]
fn packets_up_to_the_mtu_pass_and_larger_ones_are_refused_or_fragmented() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 2, three_tasks())?;
        cluster.serve(&["a.2", "a.3"])?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let from = cluster.task("a.1");
            for to in ["10.0.1.4", "10.0.1.5"] {
                from.run(&format!("ping -c 2 -i 0.05 -W 5 -M do -s 1422 {to}"))?;
                ensure!(!from.succeeds(&format!("ping -c 1 -W 1 -M do -s 1423 {to}")), "1451 bytes passed to {to}");
                from.run(&format!("ping -c 2 -i 0.05 -W 5 -M dont -s 4000 {to}"))?;
                // 1422 bytes of UDP payload fill the MTU exactly; 9000 travel as fragments.
                for size in [1422, 9000] {
                    let echo = peer::udp_echo(from, &format!("{to}:53"), size, 5)?;
                    ensure!(echo.ok == 5, "{offloads:?}: UDP of {size} bytes to {to}: {echo:?}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn two_networks_with_the_same_macs_stay_apart() {
    scenario(|lab| {
        let mac = |table: Table, network: &str, mac: &str| table.set("tasks", "macs", json!({network: mac}));
        let table = Table::with_nodes(2)
            .network("app", "10.0.1", 4097)
            .network("other", "10.0.2", 4098)
            .service("a")
            .service("b");
        let table = mac(table.task("a.1", "a", "n1", &[("app", "10.0.1.3")]), "app", "02:42:00:00:00:01");
        let table = mac(table.task("a.2", "a", "n2", &[("app", "10.0.1.4")]), "app", "02:42:00:00:00:02");
        let table = mac(table.task("b.1", "b", "n1", &[("other", "10.0.2.3")]), "other", "02:42:00:00:00:01");
        let table = mac(table.task("b.2", "b", "n2", &[("other", "10.0.2.4")]), "other", "02:42:00:00:00:02");
        let mut cluster = Cluster::start(lab, 2, table)?;
        cluster.serve(&["a.1", "a.2", "b.1", "b.2"])?;
        ensure!(cluster.task("b.1").run("ip link show eth0")?.contains("02:42:00:00:00:01"), "MAC not as in the table");
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (from, to, name) in [
                ("a.1", "10.0.1.4", "a.2"),
                ("a.2", "10.0.1.3", "a.1"),
                ("b.1", "10.0.2.4", "b.2"),
                ("b.2", "10.0.2.3", "b.1"),
            ] {
                let tcp = peer::tcp_load(cluster.task(from), &format!("{to}:80"), 10, 1)?;
                ensure!(tcp.names.get(name) == Some(&10), "{from} to {to}: {tcp:?}");
            }
        }
        // From one network to the other there is no way, not even with a route that claims one.
        let stranger = cluster.task("a.1");
        stranger.run("ip route add 10.0.2.0/24 dev eth0")?;
        ensure!(!reaches(stranger, "10.0.2.4"), "a container reached a network that it is not in");
        ensure!(!reaches(stranger, "10.0.2.3"), "a container reached a network that it is not in");
        Ok(())
    });
}

#[test]
fn a_task_in_two_networks_talks_on_both() {
    with_and_without_offloads(|lab| {
        let table = Table::with_nodes(2)
            .network("app", "10.0.1", 4097)
            .network("other", "10.0.2", 4098)
            .service("a")
            .task("both.1", "a", "n1", &[("app", "10.0.1.3"), ("other", "10.0.2.3")])
            .task("app.1", "a", "n2", &[("app", "10.0.1.4")])
            .task("other.1", "a", "n2", &[("other", "10.0.2.4")]);
        let mut cluster = Cluster::start(lab, 2, table)?;
        cluster.serve(&["both.1", "app.1", "other.1"])?;
        for (from, to, own) in [
            ("both.1", "10.0.1.4", "10.0.1.3"),
            ("both.1", "10.0.2.4", "10.0.2.3"),
            ("app.1", "10.0.1.3", "10.0.1.4"),
            ("other.1", "10.0.2.3", "10.0.2.4"),
        ] {
            let tcp = peer::tcp_load(cluster.task(from), &format!("{to}:80"), 5, 1)?;
            ensure!(tcp.ok == 5, "{from} to {to}: {tcp:?}");
            assert_peer(&tcp, own)?;
        }
        Ok(())
    });
}

fn reaches(from: &Netns, to: &str) -> bool {
    from.command("ping")
        .and_then(|mut ping: Command| Ok(ping.args(["-c", "2", "-i", "0.1", "-W", "1", to]).output()?.status.success()))
        .unwrap_or(false)
}

#[test]
fn a_broadcast_takes_the_slow_path_and_reaches_every_node() {
    with_and_without_offloads(|lab| {
        let cluster = Cluster::start(lab, 2, three_tasks())?;
        let from = cluster.task("a.1");
        for task in ["a.2", "a.3"] {
            cluster.task(task).run("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")?;
        }
        let seen = from.run("ping -b -c 2 -i 0.3 -W 5 10.0.1.255")?;
        for address in ["10.0.1.4", "10.0.1.5"] {
            ensure!(seen.contains(&format!("from {address}")), "no answer of {address} to a broadcast: {seen}");
        }
        Ok(())
    });
}

#[test]
fn datagrams_that_are_segmented_late_arrive_one_by_one() {
    scenario(|lab| {
        let table = three_tasks().service("web").vip("app", "10.0.1.2");
        let table = table.task("web.1", "web", "n2", &[("app", "10.0.1.7")]);
        let mut cluster = Cluster::start(lab, 2, table)?;
        cluster.serve(&["a.2", "a.3", "web.1"])?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            // On this node, on the other one, through a VIP.
            for target in ["10.0.1.4:53", "10.0.1.5:53", "10.0.1.2:53"] {
                let echo = peer::udp_segmented(cluster.task("a.1"), target, 1300, 20)?;
                ensure!(echo.ok == 5, "{offloads:?}: {target}: {echo:?}");
            }
        }
        Ok(())
    });
}
