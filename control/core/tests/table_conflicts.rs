//! Tables that are refused because two of their parts do not go together.

mod support;

use std::path::Path;

use hiveway_core::table::{Reserved, parse_file_with};
use support::{
    BASE, base_with,
    refused::{refused, with, with_more},
};

#[test]
fn ambiguous_network_names() {
    let text = base_with("{id: app, name: app,", "{id: k9zq, name: app,")
        .replace("services:\n", "  - {id: other, name: app, subnets: [{subnet: 10.0.2.0/24, vni: 4098}]}\nservices:\n");
    refused(
        &text,
        &[
            ("services[0].virtual_ips.app", "ambiguous; use one of the ids k9zq, other"),
            ("tasks[0].addresses.app", "ambiguous"),
            ("tasks[1].addresses.app", "ambiguous"),
        ],
    );
    // One network by id and by name.
    let text = base_with("{id: app, name: app,", "{id: k9zq, name: app,")
        .replace("{app: 10.0.1.3,", "{app: 10.0.1.3, k9zq: 10.0.1.8,");
    refused(&text, &[("tasks[0].addresses.k9zq", "the same network as tasks[0].addresses.app")]);
}

#[test]
fn duplicate_ids() {
    with_more("nodes", "  - {id: n1, hostname: other, address: 192.168.77.13}", &[("nodes[2].id", "already nodes[0]")]);
    with_more(
        "networks",
        "  - {id: app, name: b, subnets: [{subnet: 10.0.2.0/24, vni: 4098}]}",
        &[("networks[2].id", "already networks[1]")],
    );
    with_more("services", "  - {id: web, name: other}", &[("services[1].id", "already services[0]")]);
    with_more(
        "tasks",
        "  - {id: web.1, service_id: web, desired_state: running, state: new}",
        &[("tasks[2].id", "already tasks[0]")],
    );
    with("id: web.1,", "id: ../web,", &[("tasks[0].id", "slashes")]);
}

#[test]
fn duplicate_tunnel_addresses() {
    with_more("nodes", "  - {id: n3, address: 192.168.77.11}", &[("nodes[2].address", "that of nodes[0]")]);
    with_more(
        "nodes",
        "  - {id: n3, address: 192.168.77.13, vtep: 192.168.77.12}",
        &[("nodes[2].vtep", "that of nodes[1]")],
    );
}

#[test]
fn a_network_namespace_of_two_tasks() {
    let more = |netns: &str, rest: &str| {
        format!("  - {{id: web.3, service_id: web, slot: 3, desired_state: running, netns: {netns}, {rest}}}")
    };
    let here = "node_id: n1, state: running, addresses: {app: 10.0.1.5}";
    for netns in ["/run/netns/web1", "/run//netns/./web1"] {
        with_more("tasks", &more(netns, here), &[("tasks[2].netns", "the network namespace of tasks[0] already")]);
    }
    let fine = [
        ("/run/netns/web3", here),
        ("/run/netns/web1", "node_id: n2, state: running, addresses: {app: 10.0.1.5}"),
        ("/run/netns/web1", "node_id: n1, state: shutdown, addresses: {app: 10.0.1.5}"),
    ];
    for (netns, rest) in fine {
        let text = format!("{BASE}{}\n", more(netns, rest));
        parse_file_with(&text, Path::new("table.yaml"), Reserved::default())
            .unwrap_or_else(|why| panic!("{rest}: {why:?}"));
    }
    // A container with two attachments, as an engine makes it.
    let engine = BASE.replace("mtu: 1450,", "mtu: 1450, carrier: engine,").replace(", ingress: 10.0.0.6", "");
    let text = format!("{engine}{}\n", more("/run/netns/web1", here));
    parse_file_with(&text, Path::new("table.yaml"), Reserved::default()).expect("shared by one container's tasks");
}

#[test]
fn addresses_outside_their_subnet() {
    with("app: 10.0.1.3", "app: 10.0.2.3", &[("tasks[0].addresses.app", "outside network app's 10.0.1.0/24")]);
    with("app: 10.0.1.3", "app: 10.0.1.0", &[("tasks[0].addresses.app", "network or broadcast address")]);
    with("app: 10.0.1.3", "app: 10.0.1.255", &[("tasks[0].addresses.app", "network or broadcast address")]);
    with("app: 10.0.1.2", "app: 10.1.1.2", &[("services[0].virtual_ips.app", "outside")]);
    with("gateway: 10.0.1.1", "gateway: 10.0.2.1", &[("networks[1].subnets[0].gateway", "no usable address")]);
    with("gateway: 10.0.1.1", "gateway: 10.0.1.255", &[("networks[1].subnets[0].gateway", "no usable address")]);
    with("hostname: n1,", "hostname: n1, addresses: {app: 10.7.0.1},", &[("nodes[0].addresses.app", "outside")]);
}

#[test]
fn duplicate_addresses() {
    with("app: 10.0.1.4", "app: 10.0.1.3", &[("tasks[1].addresses.app", "already taken by tasks[0].addresses.app")]);
    with(
        "app: 10.0.1.3",
        "app: 10.0.1.2",
        &[("tasks[0].addresses.app", "already taken by services[0].virtual_ips.app")],
    );
    with("app: 10.0.1.3", "app: 10.0.1.1", &[("tasks[0].addresses.app", "its subnet's gateway")]);
    with("app: 10.0.1.2", "app: 10.0.1.1", &[("services[0].virtual_ips.app", "its subnet's gateway")]);
    with(
        "hostname: n1,",
        "hostname: n1, addresses: {app: 10.0.1.2},",
        &[("services[0].virtual_ips.app", "already taken by nodes[0].addresses.app")],
    );
    with_more(
        "services",
        "  - {id: b, virtual_ips: {app: 10.0.1.2}}",
        &[("services[1].virtual_ips.app", "already taken by services[0].virtual_ips.app")],
    );
}

#[test]
fn networks_that_clash() {
    let more = |subnet: &str, vni: u32| format!("  - {{id: b, name: b, subnets: [{{subnet: {subnet}, vni: {vni}}}]}}");
    with_more(
        "networks",
        &more("10.0.0.0/16", 4098),
        &[
            ("networks[2].subnets[0].subnet", "overlaps 10.0.0.0/24 of networks[0].subnets[0]"),
            ("networks[2].subnets[0].subnet", "overlaps 10.0.1.0/24 of networks[1].subnets[0]"),
        ],
    );
    with_more(
        "networks",
        &more("10.0.2.0/24", 4097),
        &[("networks[2].subnets[0].vni", "VNI 4097 is used by networks[1].subnets[0] already")],
    );
    with_more("networks", &more("10.0.2.0/24", 16_777_214), &[("networks[2].subnets[0].vni", "--mesh-vni")]);
    with_more("networks", &more("10.0.2.0/31", 4098), &[("networks[2].subnets[0].subnet", "/30 at least")]);
    with_more(
        "networks",
        "  - {id: b, subnets: [{subnet: 10.0.2.0/24, vni: 7}, {subnet: 10.0.2.128/25, vni: 7}]}",
        &[
            ("networks[2].subnets[1].subnet", "overlaps 10.0.2.0/24 of networks[2].subnets[0]"),
            ("networks[2].subnets[1].vni", "used by networks[2].subnets[0]"),
        ],
    );
    with("mtu: 1450,", "ingress: true,", &[("networks[1].ingress", "networks[0] is the ingress network already")]);
    with(
        "vni: 4096}], ingress: true",
        "vni: 4096}], ingress: true, internal: true",
        &[("networks[0].internal", "can't be internal")],
    );
}

#[test]
fn ports_that_clash() {
    let service = |ports: &str| format!("  - {{id: b, ports: [{ports}]}}");
    with_more(
        "services",
        &service("{target_port: 81, published_port: 8080}"),
        &[(
            "services[1].ports[0].published_port",
            "8080/tcp is published in ingress mode by services[0].ports[0] already",
        )],
    );
    let twice = "{target_port: 81, published_port: 9}, {target_port: 82, published_port: 9}";
    with_more(
        "services",
        &service(twice),
        &[("services[1].ports[1].published_port", "by services[1].ports[0] already")],
    );
    with_more(
        "services",
        &service("{protocol: udp, target_port: 81, published_port: 4789}"),
        &[("services[1].ports[0].published_port", "--vxlan-port")],
    );
    with_more(
        "services",
        &service("{protocol: sctp, target_port: 81, published_port: 82}"),
        &[("services[1].ports[0].published_port", "publish the target port 81 itself")],
    );
    with_more(
        "services",
        &service("{protocol: sctp, target_port: 81, published_port: 82, publish_mode: host}"),
        &[("services[1].ports[0].published_port", "publish the target port 81 itself")],
    );
    with_more(
        "services",
        &service("{protocol: udp, target_port: 81, published_port: 4789, publish_mode: host}"),
        &[("services[1].ports[0].published_port", "--vxlan-port")],
    );
    // A port in ingress mode answers on every node, whichever service comes first.
    with_more(
        "services",
        &service("{target_port: 81, published_port: 8080, publish_mode: host}"),
        &[("services[1].ports[0].published_port", "in ingress mode by services[0].ports[0]")],
    );
    let first = BASE.replace("publish_mode: ingress", "publish_mode: host");
    let second = service("{target_port: 81, published_port: 8080}");
    refused(
        &first.replace("tasks:\n", &format!("{second}\ntasks:\n")),
        &[("services[0].ports[0].published_port", "in ingress mode by services[1].ports[0]")],
    );
    with_more(
        "services",
        &service("{target_port: 1, published_port: 9}, {target_port: 2, published_port: 9, publish_mode: host}"),
        &[("services[1].ports[1].published_port", "in ingress mode by services[1].ports[0]")],
    );
    with(
        "netns: /run/netns/web1",
        "ports: [{target_port: 1, published_port: 7}, {target_port: 2, published_port: 7}]",
        &[("tasks[0].ports[1].published_port", "by tasks[0].ports[0] already")],
    );
}

#[test]
fn other_reserved_numbers() {
    let text = base_with("services:\n", "  - {id: b, subnets: [{subnet: 10.0.2.0/24, vni: 16777214}]}\nservices:\n");
    let other = Reserved { mesh_vni: 4097, vxlan_port: 8472 };
    let problems = parse_file_with(&text, Path::new("t.yaml"), other).expect_err("4097 is the mesh's now");
    assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["networks[1].subnets[0].vni"]);
}
