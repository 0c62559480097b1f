//! The gateway bridge: containers and the outside.

use anyhow::ensure;
use hiveway_tests::{
    lab::{Offloads, scenario},
    peer,
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_peer};

#[test]
fn a_container_reaches_the_outside_but_not_its_neighbours_on_the_gateway_bridge() {
    scenario(|lab| {
        let far = lab.far_client()?;
        let table = Table::with_nodes(2)
            .network("app", "10.0.1", 4097)
            .network("inside", "10.0.2", 4098)
            .set("networks", "internal", json!(true))
            .service("a")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("a.2", "a", "n1", &[("app", "10.0.1.4")])
            .task("in.1", "a", "n1", &[("inside", "10.0.2.3")])
            .task("in.2", "a", "n2", &[("inside", "10.0.2.4")]);
        let mut cluster = Cluster::start(lab, 2, table)?;
        cluster.serve(&["a.1", "a.2", "in.2"])?;
        let _tcp = peer::http_server(lab, &far, 80, "outside")?;
        let _udp = peer::udp_server(lab, &far, 53, "outside")?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let container = cluster.task("a.1");
            let tcp = peer::tcp_load(container, "192.168.88.100:80", 20, 2)?;
            ensure!(tcp.ok == 20, "{offloads:?}: {tcp:?}");
            assert_peer(&tcp, "192.168.77.11")?;
            let udp = peer::udp_load(container, "192.168.88.100:53", 20)?;
            ensure!(udp.ok == 20, "{offloads:?}: {udp:?}");
            assert_peer(&udp, "192.168.77.11")?;
            peer::transfer(container, "192.168.88.100:80", 3_000_000)?;
            container.run("ping -c 2 -i 0.05 -W 5 192.168.88.100")?;
            // Isolated on the bridge, connected on the overlay.
            let neighbour = gateway_address(&cluster, "a.2")?;
            ensure!(
                !container.succeeds(&format!("ping -c 2 -i 0.1 -W 1 {neighbour}")),
                "a container reached {neighbour} over the gateway bridge"
            );
            container.run("ping -c 2 -i 0.05 -W 5 10.0.1.4")?;
            cluster.task("in.1").run("ping -c 2 -i 0.05 -W 5 10.0.2.4")?;
        }
        let routes = cluster.task("in.1").run("ip route")?;
        ensure!(!routes.contains("default"), "a task on internal networks has a default route: {routes}");
        let interfaces = cluster.task("in.1").interfaces()?;
        ensure!(interfaces.len() == 1, "a task on one internal network has {interfaces:?}");
        Ok(())
    });
}

/// The address on a 172.18.0.0/16 interface.
fn gateway_address(cluster: &Cluster<'_>, task: &str) -> anyhow::Result<String> {
    let addresses = cluster.task(task).run("ip -4 -br addr")?;
    let found = addresses.split_whitespace().find_map(|word| word.strip_suffix("/16"));
    found.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("{task} is not on the gateway bridge: {addresses}"))
}
