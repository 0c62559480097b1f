//! Beside a node without Hiveway: plain Linux with a bridge, a kernel vxlan device and static entries.

use anyhow::ensure;
use hiveway_tests::{
    lab::{BAD_CHECKSUM, Capture, MESH_VNI, Offloads, scenario},
    peer,
    plain::{self, PlainEndpoint},
    table::Table,
};
use serde_json::json;

use crate::support::{Cluster, assert_even, assert_peer};

const VNI: u32 = 4097;

#[test]
fn a_plain_linux_node_and_hiveway_exchange_full_size_traffic_both_ways() {
    scenario(|lab| {
        let table = Table::with_nodes(3)
            .set("nodes", "dataplane", json!("none"))
            .network("app", "10.0.1", VNI)
            .service("a")
            .vip("app", "10.0.1.2")
            .task("a.1", "a", "n1", &[("app", "10.0.1.3")])
            .task("p.1", "a", "n3", &[("app", "10.0.1.5")])
            .service("user")
            .task("user.1", "user", "n2", &[("app", "10.0.1.9")]);
        let node = lab.node("n3", 13)?;
        let mut cluster = Cluster::start(lab, 2, table)?;
        plain::network(&node, VNI, "192.168.77.13")?;
        plain::attach(&node, VNI, cluster.task("p.1"), "10.0.1.5")?;
        for (ip, vtep) in [("10.0.1.3", "192.168.77.11"), ("10.0.1.9", "192.168.77.12")] {
            plain::remote(&node, VNI, &PlainEndpoint { ip, vtep: vtep.to_owned() })?;
        }
        cluster.serve(&["a.1", "p.1", "user.1"])?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let wire = Capture::start(lab, lab.switch(), "n1", "udp port 4789")?;
            for (from, own, to, name) in [
                ("a.1", "10.0.1.3", "10.0.1.5", "p.1"),
                ("p.1", "10.0.1.5", "10.0.1.3", "a.1"),
                ("p.1", "10.0.1.5", "10.0.1.9", "user.1"),
            ] {
                let from = cluster.task(from);
                from.run(&format!("ping -c 2 -i 0.05 -W 5 -M do -s 1422 {to}"))?;
                let tcp = peer::tcp_load(from, &format!("{to}:80"), 20, 2)?;
                assert_even(&tcp, &[name], 20)?;
                assert_peer(&tcp, own)?;
                peer::transfer(from, &format!("{to}:80"), 3_000_000)?;
                for size in [1, 1422] {
                    let udp = peer::udp_echo(from, &format!("{to}:53"), size, 10)?;
                    ensure!(udp.ok == 10, "{offloads:?}: UDP of {size} bytes: {udp:?}");
                }
            }
            // A VIP's backend on the plain node is a backend like any other.
            let vip = peer::tcp_load(cluster.task("user.1"), "10.0.1.2:80", 20, 1)?;
            assert_even(&vip, &["a.1", "p.1"], 10)?;
            let file = wire.stop()?;
            let rows = |filter: &str, fields: &[&str]| hiveway_tests::lab::tshark(&file, filter, fields);
            // Probes go through the mesh's VNI.
            let filter = format!("vxlan && ip.src == 192.168.77.11 && vxlan.vni != {MESH_VNI}");
            let frames = rows(&filter, &["vxlan.vni", "udp.srcport"])?;
            ensure!(frames.len() > 100, "only {} frames of ours captured", frames.len());
            ensure!(frames.iter().all(|row| row[0] == "4097"), "wrong VNI in {frames:?}");
            let ports: std::collections::BTreeSet<_> =
                frames.iter().filter_map(|row| row[1].split(',').next()).collect();
            ensure!(ports.len() > 5, "flows do not spread over source ports: {ports:?}");
            let bad = rows(
                "_ws.malformed || ip.checksum.status == \"Bad\" || !vxlan",
                &[
                    "frame.protocols",
                    "frame.len",
                    "ip.src",
                    "ip.len",
                    "udp.length",
                    "ip.checksum.status",
                    "_ws.expert.message",
                ],
            )?;
            ensure!(bad.is_empty(), "{offloads:?}: {} malformed frames: {:?}", bad.len(), bad.first());
            if offloads == Offloads::Off {
                let fields = ["frame.number", "frame.protocols", "ip.src", "tcp.checksum", "tcp.checksum_calculated"];
                let bad = rows(BAD_CHECKSUM, &fields)?;
                ensure!(bad.is_empty(), "bad checksums on the wire: {bad:?}");
            }
        }
        Ok(())
    });
}
