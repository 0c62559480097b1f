//! The lab proves itself with plain Linux on both sides: what fails here is the lab's fault, not Hiveway's.

use hiveway_tests::{
    lab::{Capture, Offloads, scenario},
    peer,
    plain::{self, PlainEndpoint},
};

#[test]
fn plain_linux_nodes_exchange_overlay_traffic_in_the_lab() {
    scenario(|lab| {
        let nodes = [lab.node("n1", 11)?, lab.node("n2", 12)?];
        let tasks = [lab.namespace("t1")?, lab.namespace("t2")?];
        let endpoints = [("10.0.1.3", "192.168.77.11"), ("10.0.1.4", "192.168.77.12")];
        for (here, (ip, vtep)) in endpoints.into_iter().enumerate() {
            let (other_ip, other_vtep) = endpoints[1 - here];
            plain::network(&nodes[here], 4097, vtep)?;
            plain::attach(&nodes[here], 4097, &tasks[here], ip)?;
            plain::remote(&nodes[here], 4097, &PlainEndpoint { ip: other_ip, vtep: other_vtep.to_owned() })?;
        }
        let _http = peer::http_server(lab, &tasks[1], 80, "t2")?;
        let _udp = peer::udp_server(lab, &tasks[1], 53, "t2")?;
        for offloads in Offloads::BOTH {
            lab.set_offloads(offloads)?;
            let capture = Capture::start(lab, lab.switch(), "n1", "udp port 4789")?;
            tasks[0].run("ping -c 2 -i 0.2 -W 5 10.0.1.4")?;
            let tcp = peer::tcp_load(&tasks[0], "10.0.1.4:80", 20, 4)?;
            assert_eq!((tcp.ok, tcp.failed, tcp.peers["10.0.1.3"]), (20, 0, 20), "{tcp:?}");
            let udp = peer::udp_load(&tasks[0], "10.0.1.4:53", 20)?;
            assert_eq!((udp.ok, udp.names["t2"]), (20, 20), "{udp:?}");
            assert_eq!(peer::udp_echo(&tasks[0], "10.0.1.4:53", 1422, 1)?.ok, 1);
            peer::transfer(&tasks[0], "10.0.1.4:80", 2_000_000)?;
            let vnis = capture.dissect("vxlan", &["vxlan.vni"])?;
            assert!(vnis.len() > 40, "only {} frames captured", vnis.len());
            assert!(vnis.iter().all(|row| row[0] == "4097"), "{vnis:?}");
        }
        Ok(())
    });
}

#[test]
fn a_failed_load_is_seen_as_failed() {
    scenario(|lab| {
        let (client, far) = (lab.client()?, lab.far_client()?);
        let _http = peer::http_server(lab, &far, 80, "far")?;
        let answered = peer::tcp_load(&client, "192.168.88.100:80", 3, 1)?;
        assert_eq!((answered.ok, answered.failed), (3, 0), "{answered:?}");
        let refused = peer::tcp_load(&client, "192.168.88.100:81", 3, 1)?;
        assert_eq!((refused.ok, refused.failed), (0, 3), "{refused:?}");
        Ok(())
    });
}
