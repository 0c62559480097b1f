//! Links, addresses and routes that follow from captures and from small tables.

mod support;

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path};

use hiveway_core::{
    DeriveError, Desired, GatewayAddresses, Model, Settings, derive,
    desired::{Interface, Peer, Role},
    model::NodeLookup,
    table::parse_file,
    tag,
};
use support::{BASE, base_with, capture};

fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn node(model: &Model, node: &str) -> Desired {
    derive(model, &Settings::new(node), &mut GatewayAddresses::new()).expect("derivable")
}

fn table(text: &str) -> Model {
    parse_file(text, Path::new("t.yaml")).unwrap_or_else(|p| panic!("{p:#?}")).model
}

/// `eth0 10.0.1.4/24 02:42:0a:00:01:04 mtu 1450 on hwb4097 [routes]`
fn show(i: &Interface) -> String {
    let mac = i.mac.map(|b| format!("{b:02x}")).join(":");
    let routes: Vec<_> = i.routes.iter().map(|(to, via)| format!("{to} via {via}")).collect();
    format!("{} {} {mac} mtu {} on {} {routes:?}", i.container, i.address, i.mtu, i.bridge)
}

fn left_out(desired: &Desired) -> Vec<String> {
    desired.left_out.iter().map(|l| format!("{}: {}", l.what, l.why)).collect()
}

#[test]
fn three_replicas() {
    let model = capture("02b-web3-running").model;
    let n1 = node(&model, "n1");
    assert_eq!((n1.node.as_str(), n1.vtep), ("wy9v8f6l1p7n46ltuh8h5giv0", Some(ip("192.168.77.11"))));
    assert_eq!(n1.vteps, BTreeSet::from([ip("192.168.77.12"), ip("192.168.77.13")]));
    assert_eq!(n1.published, BTreeSet::from([(6, 8080)]));
    assert_eq!(left_out(&n1), [""; 0]);

    let [task] = &n1.tasks[..] else { panic!("one task on n1: {:#?}", n1.tasks) };
    assert_eq!((task.id.as_str(), task.tag), ("zq82gd7vkhc9f1sdf7iogk7o2", tag("zq82gd7vkhc9f1sdf7iogk7o2")));
    assert_eq!(
        task.interfaces.iter().map(show).collect::<Vec<_>>(),
        [
            "eth0 10.0.1.4/24 02:42:0a:00:01:04 mtu 1450 on hwb4097 []",
            "eth1 10.0.0.7/24 02:42:0a:00:00:07 mtu 1450 on hwb4096 []",
            "eth2 172.18.0.2/16 02:42:ac:12:00:02 mtu 1500 on hw-gwbridge [\"0.0.0.0/0 via 172.18.0.1\"]",
        ]
    );
    assert_eq!(task.interfaces[0].role, Role::Overlay { net: 4097, vni: 4097 });
    assert_eq!(task.interfaces[2].role, Role::Gateway);
    let hosts: BTreeSet<_> = task.interfaces.iter().map(|i| &i.host).collect();
    assert!(hosts.len() == 3 && hosts.iter().all(|h| h.starts_with("hwv") && h.len() == 15), "{hosts:?}");
    assert_eq!(n1.gateway.expect("a gateway bridge").address.to_string(), "172.18.0.1/16");

    let names: Vec<_> = n1.networks.iter().map(|n| (n.name.as_str(), n.bridge.as_str(), n.mtu)).collect();
    assert_eq!(names, [("app1", "hwb4097", 1450), ("ingress", "hwb4096", 1450)]);
    let app1 = &n1.networks[0].subnets[0];
    assert_eq!((app1.vni, app1.vxlan.as_str(), app1.gateway), (4097, "hwx4097", ip("10.0.1.1")));
    let peer =
        |last: u8, vtep: &str| Peer { ip: [10, 0, 1, last].into(), mac: [2, 0x42, 10, 0, 1, last], vtep: ip(vtep) };
    assert_eq!(app1.peers, BTreeSet::from([peer(3, "192.168.77.13"), peer(5, "192.168.77.12")]));
    assert_eq!(app1.flood, BTreeSet::from([ip("192.168.77.12"), ip("192.168.77.13")]));
}

#[test]
fn node_without_tasks() {
    let n3 = node(&capture("01-networks-no-services").model, "n3");
    assert!(n3.networks.is_empty() && n3.tasks.is_empty() && n3.gateway.is_none() && n3.published.is_empty());
    assert_eq!(n3.vteps.len(), 2);
}

/// What is draining or about to start keeps or gets its links; what has ended does not.
#[test]
fn drained_node() {
    let model = capture("05b-drain-n3-done").model;
    let ids = |name: &str| -> Vec<_> { node(&model, name).tasks.iter().map(|t| t.id[..5].to_owned()).collect() };
    assert_eq!(ids("n3"), ["xa83f", "xuyhq"]);
    assert_eq!(ids("n1"), ["i4n1s", "xt2ll", "xzj6v"]);
    assert_eq!(ids("n2"), ["p7afc", "pj51h", "ymv53"]);
}

#[test]
fn kinds_of_networks() {
    let model = capture("20-plugin-network-global").model;
    let n1 = node(&model, "n1");
    let task = |prefix: &str| n1.tasks.iter().find(|t| t.id.starts_with(prefix)).unwrap_or_else(|| panic!("{prefix}"));
    let shown = |prefix: &str| task(prefix).interfaces.iter().map(show).collect::<Vec<_>>();

    let small = &shown("3sec6")[0];
    assert_eq!(small, "eth0 10.50.0.5/24 02:42:0a:32:00:05 mtu 1200 on hwb4100 []");
    assert_eq!(shown("a20vi"), ["eth0 10.0.4.4/24 02:42:0a:00:04:04 mtu 1450 on hwb4101 []"], "internal: no way out");
    // Two subnets: the other one is reached through the own one's gateway.
    let vn = shown("0ba1o");
    assert_eq!(vn[0], "eth0 10.60.0.3/24 02:42:0a:3c:00:03 mtu 1450 on hwb4105 [\"10.60.1.0/24 via 10.60.0.1\"]");
    assert_eq!(vn[1], "eth1 10.0.6.4/24 02:42:0a:00:06:04 mtu 1450 on hwb7777 []");
    assert!(vn[2].starts_with("eth2 172.18.0."), "{vn:?}");
    let twosub = n1.networks.iter().find(|n| n.name == "twosub").expect("joined");
    assert_eq!(twosub.subnets.iter().map(|s| s.vxlan.as_str()).collect::<Vec<_>>(), ["hwx4105", "hwx4106"]);
    // The plugin network is left out; the ingress network of the same task is not.
    assert!(shown("29bxj")[0].starts_with("eth0 10.0.0.37/24"), "{:?}", shown("29bxj"));
    // Only on the encrypted network, or only IPv6: nothing to do.
    assert!(n1.tasks.iter().all(|t| !t.id.starts_with("xuw6a") && !t.id.starts_with("l27g8")));
    // 8081 and 8095 are published in host mode.
    let everywhere = [(6, 8080), (6, 8085), (6, 9090), (6, 30000), (17, 5353), (17, 9090)];
    assert_eq!(n1.published, everywhere.into_iter().chain([(6, 8081), (6, 8095)]).collect());
    assert_eq!(left_out(&n1), [""; 0]);
}

#[test]
fn node_by_id_or_host_name() {
    let model = capture("02b-web3-running").model;
    assert_eq!(node(&model, "ceaqvo2hfcnhuruxkl821cj75"), node(&model, "n2"));
    let error = derive(&model, &Settings::new("n9"), &mut GatewayAddresses::new()).expect_err("no such node");
    assert!(matches!(error, DeriveError::Node(NodeLookup::Unknown { .. })));
    assert!(
        error.to_string().contains("\"n9\"") && error.to_string().contains("ceaqvo2hfcnhuruxkl821cj75 (n2)"),
        "{error}"
    );
    let twins = table(
        &base_with("{id: n2, hostname: n2,", "{id: n2, hostname: twin,").replace("hostname: n1,", "hostname: twin,"),
    );
    let error = derive(&twins, &Settings::new("twin"), &mut GatewayAddresses::new()).expect_err("ambiguous");
    assert!(error.to_string().contains("n1, n2"), "{error}");
    // A former self that is down does not stand in the way.
    let rejoined = table(
        &BASE
            .replace("{id: n2, hostname: n2,", "{id: n2, hostname: n1, state: down,")
            .replace("id: n1, hostname: n1", "id: new, hostname: n1")
            .replace("node_id: n1", "node_id: new"),
    );
    assert_eq!(node(&rejoined, "n1").node, "new");
}

#[test]
fn gateway_addresses_stay_and_are_lowest_free() {
    let settings = Settings::new("n1");
    let mut addresses = GatewayAddresses::new();
    let at = |capture_name: &str, addresses: &mut GatewayAddresses| {
        derive(&capture(capture_name).model, &settings, addresses).expect("derivable");
        let last: Vec<_> = addresses.iter().map(|(id, ip)| format!("{}={}", &id[..5], ip.octets()[3])).collect();
        last.join(" ")
    };
    assert_eq!(at("02b-web3-running", &mut addresses), "zq82g=2");
    assert_eq!(at("03b-scale-6-done", &mut addresses), "odjap=3 zq82g=2");
    // zq82g has ended but is still in the table: its address is not given to its replacement.
    assert_eq!(at("04a-rolling-update-mid", &mut addresses), "odjap=3 xt2ll=4 zq82g=2");
    assert_eq!(at("04b-rolling-update-done", &mut addresses), "i4n1s=5 odjap=3 xt2ll=4 zq82g=2");
    // Gone from the table: free again.
    assert_eq!(at("02b-web3-running", &mut addresses), "zq82g=2");
    assert_eq!(at("03b-scale-6-done", &mut addresses), "odjap=3 zq82g=2");
}

#[test]
fn gateway_subnet() {
    let model = capture("04b-rolling-update-done").model;
    let with = |subnet: &str, addresses: &mut GatewayAddresses| {
        let settings = Settings { gwbridge_subnet: subnet.parse().expect("a subnet"), ..Settings::new("n1") };
        derive(&model, &settings, addresses)
    };
    // Host bits are the bridge's own address, as on an adopted bridge; what was handed out in another subnet is void.
    let mut addresses = GatewayAddresses::from([("xt2ll9bclseeriow27t5v31g3".to_owned(), ip("172.18.0.9"))]);
    let desired = with("192.168.5.2/24", &mut addresses).expect("derivable");
    assert_eq!(desired.gateway.expect("needed").address.to_string(), "192.168.5.2/24");
    let given: Vec<_> = addresses.values().map(ToString::to_string).collect();
    assert_eq!(given, ["192.168.5.254", "192.168.5.253"], "from above: the owner hands out from below");
    // .0 and .3 can't be had, .1 is the bridge: room for one.
    let desired = with("192.168.5.0/30", &mut GatewayAddresses::new()).expect("derivable");
    assert_eq!(
        left_out(&desired),
        [
            "gateway bridge interface of task xt2ll9bclseeriow27t5v31g3: no free address in 192.168.5.0/30; start the agent \
         with a larger --gwbridge-subnet",
        ]
    );
    assert_eq!(
        with("192.168.5.0/31", &mut GatewayAddresses::new()).map(|_| ()),
        Err(DeriveError::GatewaySubnet("192.168.5.0/31".parse().expect("a subnet")))
    );
}

/// The same settings that the file was checked with may not be the agent's.
#[test]
fn clashes_with_the_settings() {
    let model = table(BASE);
    let settings = Settings { mesh_vni: 4097, ..Settings::new("n1") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    assert_eq!(desired.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["ingress"]);
    assert_eq!(
        left_out(&desired),
        ["network app (app): VNI 4097 is the routing mesh's; start the agents with another --mesh-vni"]
    );

    let settings = Settings { gwbridge_subnet: "10.0.0.0/16".parse().expect("a subnet"), ..Settings::new("n1") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    assert!(desired.networks.is_empty() && desired.tasks.is_empty());
    assert_eq!(desired.left_out.len(), 2);
    assert!(desired.left_out[0].why.contains("--gwbridge-subnet"));

    let model = table(&base_with("protocol: tcp,", "protocol: udp,"));
    let settings = Settings { vxlan_port: 8080, ..Settings::new("n1") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    assert!(desired.published.is_empty());
    assert!(desired.left_out[0].why.contains("--vxlan-port"), "{:?}", desired.left_out);
}

/// Addresses that a stock node sources its traffic from are peers as well.
#[test]
fn node_addresses_are_peers() {
    let model = table(&base_with("hostname: n2,", "hostname: n2, dataplane: none, addresses: {app: 10.0.1.6},"));
    let n1 = node(&model, "n1");
    let app = n1.networks.iter().find(|n| n.name == "app").expect("joined");
    let peers: Vec<_> = app.subnets[0].peers.iter().map(|p| p.ip.to_string()).collect();
    assert_eq!(peers, ["10.0.1.4", "10.0.1.6"]);
    assert_eq!(
        left_out(&n1),
        ["task web.2 as backend of published port 8080: its node n2 does not run Hiveway and takes no mesh frames"]
    );
    assert!(left_out(&node(&model, "n2"))[0].starts_with("node n2 (n2): the table says `dataplane: none`"));
}
