//! Virtual addresses of services.

use anyhow::ensure;
use hiveway_tests::{
    lab::{Offloads, PATIENCE, scenario, wait_until, with_and_without_offloads},
    peer,
    table::Table,
};

use crate::support::{Cluster, assert_even, assert_peer, assert_refused};

const WEB: [&str; 3] = ["web.1", "web.2", "web.3"];

/// web.1 to web.3 on n1 to n3 behind 10.0.1.2, and a client container on n1.
fn web() -> Table {
    Table::with_nodes(3)
        .network("app", "10.0.1", 4097)
        .service("web")
        .vip("app", "10.0.1.2")
        .task("web.1", "web", "n1", &[("app", "10.0.1.3")])
        .task("web.2", "web", "n2", &[("app", "10.0.1.4")])
        .task("web.3", "web", "n3", &[("app", "10.0.1.5")])
        .service("user")
        .task("user.1", "user", "n1", &[("app", "10.0.1.9")])
}

#[test]
fn a_vip_gives_each_backend_exactly_its_share_and_shows_it_the_client() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let user = cluster.task("user.1");
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let tcp = peer::tcp_load(user, "10.0.1.2:80", 300, 4)?;
            assert_even(&tcp, &WEB, 100)?;
            assert_peer(&tcp, "10.0.1.9")?;
            let udp = peer::udp_load(user, "10.0.1.2:53", 300)?;
            assert_even(&udp, &WEB, 100)?;
            assert_peer(&udp, "10.0.1.9")?;
            // Three in a row, so that each backend is met with and without the tunnel.
            for _ in WEB {
                peer::transfer(user, "10.0.1.2:80", 2_000_000)?;
                let echo = peer::udp_echo(user, "10.0.1.2:53", 1422, 1)?;
                ensure!(echo.ok == 1, "{offloads:?}: MTU-sized UDP to the VIP: {echo:?}");
            }
            user.run("ping -c 3 -i 0.05 -W 5 10.0.1.2")?;
        }
        Ok(())
    });
}

#[test]
fn a_backend_can_use_its_own_services_vip() {
    scenario(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let tcp = peer::tcp_load(cluster.task("web.1"), "10.0.1.2:80", 30, 1)?;
            assert_even(&tcp, &WEB, 10)?;
            // Its own answer comes back through the VIP, so that is what it sees as its client.
            ensure!(tcp.peers.get("10.0.1.2") == Some(&10), "hairpin shows {:?}", tcp.peers);
            ensure!(tcp.peers.get("10.0.1.3") == Some(&20), "other backends see {:?}", tcp.peers);
            let udp = peer::udp_load(cluster.task("web.1"), "10.0.1.2:53", 30)?;
            assert_even(&udp, &WEB, 10)?;
        }
        Ok(())
    });
}

#[test]
fn a_connection_to_a_backend_itself_is_no_vip_connection() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        let user = cluster.task("user.1");
        for (name, address) in WEB.iter().zip(["10.0.1.3", "10.0.1.4", "10.0.1.5"]) {
            let direct = peer::tcp_load(user, &format!("{address}:80"), 10, 2)?;
            assert_even(&direct, &[name], 10)?;
        }
        // The round robin has not moved.
        assert_even(&peer::tcp_load(user, "10.0.1.2:80", 3, 1)?, &WEB, 1)
    });
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    with_and_without_offloads(|lab| {
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        cluster.change(|table| WEB.iter().for_each(|task| table.set_states(task, "shutdown", "shutdown")))?;
        let user = cluster.task("user.1");
        let tcp = peer::tcp_load(user, "10.0.1.2:80", 3, 1)?;
        assert_refused(&tcp, 3)?;
        ensure!(!user.succeeds("ping -c 2 -i 0.1 -W 1 10.0.1.2"), "the VIP of a dead service answers a ping");
        ensure!(cluster.agents[0].dropped("no_backend")? >= 3, "drops of no_backend are not counted");
        // They come back, in new containers' places.
        cluster.change(|table| WEB.iter().for_each(|task| table.set_states(task, "running", "running")))?;
        wait_until("the VIP to answer again", PATIENCE, || {
            peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 3, 1).is_ok_and(|tally| tally.ok == 3)
        })
    });
}
