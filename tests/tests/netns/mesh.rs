//! The routing mesh: a published port answers on every node.

use anyhow::ensure;
use hiveway_tests::{
    lab::{Offloads, scenario, with_and_without_offloads},
    peer,
    table::Table,
};

use crate::support::{Cluster, assert_even, assert_peer, assert_refused, web_table};

const WEB: [&str; 2] = ["web.1", "web.2"];

/// web.1 and web.2 on n1 and n2, published as 8080/tcp and 5353/udp; n3 has only user.1.
fn web() -> Table {
    web_table(&["n1", "n2"], &[("tcp", 8080, 80), ("udp", 5353, 53)], "n3")
}

#[test]
fn a_published_port_answers_on_every_node_and_shows_the_clients_own_address() {
    scenario(|lab| {
        let clients = [(lab.client()?, "192.168.77.100"), (lab.far_client()?, "192.168.88.100")];
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for (client, address) in &clients {
                for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
                    let tcp = peer::tcp_load(client, &format!("{node}:8080"), 40, 2)?;
                    assert_even(&tcp, &WEB, 20)?;
                    assert_peer(&tcp, address)?;
                    let udp = peer::udp_load(client, &format!("{node}:5353"), 40)?;
                    assert_even(&udp, &WEB, 20)?;
                    assert_peer(&udp, address)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn large_bodies_pass_the_mesh_in_both_directions() {
    scenario(|lab| {
        let clients = [lab.client()?, lab.far_client()?];
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            for client in &clients {
                for node in ["192.168.77.11", "192.168.77.13"] {
                    // Two transfers, so that each backend has one, local to its ingress node or not.
                    for _ in WEB {
                        peer::transfer(client, &format!("{node}:8080"), 3_000_000)?;
                    }
                    let echo = peer::udp_echo(client, &format!("{node}:5353"), 1400, 4)?;
                    ensure!(echo.ok == 4, "{offloads:?}: UDP of 1400 bytes through {node}: {echo:?}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_nodes_own_traffic_is_left_alone() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        // A service of the node itself, and the node as a client of others.
        let _own = peer::http_server(lab, &cluster.nodes[0], 9000, "node")?;
        let _outside = peer::http_server(lab, &client, 8080, "outside")?;
        assert_even(&peer::tcp_load(&client, "192.168.77.11:9000", 20, 2)?, &["node"], 20)?;
        assert_even(&peer::tcp_load(&cluster.nodes[0], "192.168.77.100:8080", 20, 2)?, &["outside"], 20)?;
        assert_even(&peer::tcp_load(&cluster.nodes[1], "192.168.77.11:9000", 20, 2)?, &["node"], 20)?;
        client.run("ping -c 2 -i 0.05 -W 5 192.168.77.11")?;
        // A port that nobody published is refused as ever.
        let closed = peer::tcp_load(&client, "192.168.77.11:8081", 2, 1)?;
        assert_refused(&closed, 2)?;
        // A node is a client like any other.
        let node = peer::tcp_load(&cluster.nodes[2], "192.168.77.11:8080", 10, 1)?;
        assert_even(&node, &WEB, 5)?;
        assert_peer(&node, "192.168.77.13")
    });
}

#[test]
fn a_service_that_nobody_runs_refuses_and_an_unpublished_port_is_free_again() {
    with_and_without_offloads(|lab| {
        let client = lab.client()?;
        let mut cluster = Cluster::start(lab, 3, web())?;
        cluster.serve(&WEB)?;
        cluster.change(|table| WEB.iter().for_each(|task| table.set_states(task, "shutdown", "shutdown")))?;
        let refused = peer::tcp_load(&client, "192.168.77.13:8080", 2, 1)?;
        assert_refused(&refused, 2)?;
        cluster.change(|table| {
            for task in WEB {
                table.remove("tasks", task);
            }
            table.remove("services", "web");
        })?;
        let _own = peer::http_server(lab, &cluster.nodes[2], 8080, "node")?;
        assert_even(&peer::tcp_load(&client, "192.168.77.13:8080", 5, 1)?, &["node"], 5)
    });
}
