//! Tables that are refused: every problem, each with its path. Conflicts between parts of a table are in
//! `table_conflicts`.

mod support;

use std::path::Path;

use hiveway_core::table::parse_file;
use support::{
    BASE, base_with,
    refused::{problems, refused, with},
};

#[test]
fn syntax() {
    for (text, part) in [
        ("", "empty"),
        ("  \n", "empty"),
        ("version: 1\nnodes: [", "not valid YAML"),
        ("version: 1\nversion: 1\n", "not valid YAML"),
        ("{\"version\": 1,", "not valid JSON"),
        ("{\"version\": 1, \"version\": 1}", "duplicate key"),
        ("just text", "expected an object"),
        ("[1, 2]", "expected an object"),
    ] {
        let problems = parse_file(text, Path::new("table")).expect_err(text);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].message.contains(part), "{text}: {}", problems[0]);
        assert_eq!(problems[0].path, "");
    }
    let message = problems("version: 1\nnodes:\n  - {id: n1\n")[0].message.clone();
    assert!(message.contains("line"), "says where: {message}");
}

#[test]
fn version() {
    refused("nodes: []", &[("version", "missing")]);
    refused("version: 2", &[("version", "version 1 of the format, found the number 2")]);
    refused("version: \"1\"", &[("version", "found the text")]);
}

#[test]
fn unknown_fields() {
    with("mtu: 1450", "mut: 1450", &[("networks[1].mut", "did you mean `mtu`?")]);
    with("service_id: web, slot: 1", "service: web, slot: 1", &[("tasks[0].service", "known here: id, service_id")]);
    with("published_port", "publish_port", &[("services[0].ports[0].publish_port", "did you mean `published_port`?")]);
    with("version: 1", "version: 1\nnetwork: []", &[("network", "did you mean `networks`?")]);
    with("gateway: 10.0.1.1", "gatway: 10.0.1.1", &[("networks[1].subnets[0].gatway", "did you mean `gateway`?")]);
}

#[test]
fn wrong_types() {
    with("address: 192.168.77.11", "address: 7", &[("nodes[0].address", "put it in quotes")]);
    with(
        "internal: false",
        "internal: no",
        &[("networks[1].internal", "expected true or false, found the text \"no\"")],
    );
    with("slot: 1", "slot: -1", &[("tasks[0].slot", "whole number")]);
    with("vni: 4097", "vni: 16777216", &[("networks[1].subnets[0].vni", "1 to 16777215")]);
    with("vni: 4097", "vni: 0", &[("networks[1].subnets[0].vni", "1 to 16777215")]);
    with("target_port: 80,", "target_port: 65536,", &[("services[0].ports[0].target_port", "1 to 65535")]);
    with("target_port: 80,", "target_port: 0,", &[("services[0].ports[0].target_port", "1 to 65535")]);
    with("mtu: 1450", "mtu: 67", &[("networks[1].mtu", "68 to 65485")]);
    with("labels: {}", "labels: []", &[("services[0].labels", "expected a map, found a list")]);
    with("[{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]", "{}", &[("networks[1].subnets", "expected a list")]);
    with("[{subnet: 10.0.1.0/24, gateway: 10.0.1.1, vni: 4097}]", "[]", &[("networks[1].subnets", "at least one")]);
    with("netns: /run/netns/web1", "netns: web1", &[("tasks[0].netns", "not an absolute path")]);
    refused("version: 1\nnodes: {}", &[("nodes", "expected a list, found an object")]);
    refused("version: 1\nnodes: [n1]", &[("nodes[0]", "expected an object, found the text \"n1\"")]);
}

#[test]
fn missing_fields() {
    with(", address: 192.168.77.11", "", &[("nodes[0].address", "missing")]);
    with(", vni: 4097", "", &[("networks[1].subnets[0].vni", "missing")]);
    with("protocol: tcp, target_port: 80,", "", &[("services[0].ports[0].target_port", "missing")]);
    with("id: web.1, ", "", &[("tasks[0].id", "missing")]);
    with(
        "slot: 1, node_id: n1, desired_state: running, state: running",
        "slot: 1, node_id: n1",
        &[("tasks[0].desired_state", "missing"), ("tasks[0].state", "missing")],
    );
}

#[test]
fn unknown_names() {
    let states = "one of: new, pending, assigned, accepted, preparing, ready, starting, running, complete, shutdown, \
                  failed, rejected, remove, orphaned";
    with(
        "slot: 1, node_id: n1, desired_state: running, state: running",
        "node_id: n1, desired_state: Running, state: up",
        &[("tasks[0].desired_state", states), ("tasks[0].state", states)],
    );
    with(
        "hostname: n1,",
        "hostname: n1, state: gone,",
        &[("nodes[0].state", "one of: ready, down, disconnected, unknown")],
    );
    with("hostname: n1,", "hostname: n1, dataplane: ipvs,", &[("nodes[0].dataplane", "one of: hiveway, none")]);
    with("endpoint_mode: vip", "endpoint_mode: lb", &[("services[0].endpoint_mode", "one of: vip, dnsrr")]);
    with("protocol: tcp", "protocol: icmp", &[("services[0].ports[0].protocol", "one of: tcp, udp, sctp")]);
    with(
        "publish_mode: ingress",
        "publish_mode: mesh",
        &[("services[0].ports[0].publish_mode", "one of: ingress, host")],
    );
}

#[test]
fn unknown_references() {
    with("service_id: web, slot: 1", "service_id: wep, slot: 1", &[("tasks[0].service_id", "did you mean \"web\"?")]);
    with("slot: 1, node_id: n1", "slot: 1, node_id: n9", &[("tasks[0].node_id", "unknown node \"n9\"")]);
    with(
        "addresses: {app: 10.0.1.3,",
        "addresses: {apq: 10.0.1.3,",
        &[("tasks[0].addresses.apq", "did you mean \"app\"?")],
    );
    with("virtual_ips: {app:", "virtual_ips: {backend:", &[("services[0].virtual_ips.backend", "unknown network")]);
    with("hostname: n1,", "hostname: n1, addresses: {x: 10.0.1.9},", &[("nodes[0].addresses.x", "unknown network")]);
}

/// A reference to an item that is itself wrong is no second error.
#[test]
fn no_follow_up_errors() {
    with(
        "subnet: 10.0.1.0/24",
        "subnet: 10.0.1.7/24",
        &[("networks[1].subnets[0].subnet", "did you mean 10.0.1.0/24?")],
    );
    with("endpoint_mode: vip", "endpoint_mode: 1", &[("services[0].endpoint_mode", "expected text")]);
    with(
        "id: n1, hostname: n1, address: 192.168.77.11",
        "id: n1, hostname: n1, address: x",
        &[("nodes[0].address", "no IPv4 address")],
    );
}

#[test]
fn encryption_is_never_cleartext() {
    with("encrypted: false", "encrypted: true", &[("networks[1].encrypted", "never carried in cleartext")]);
}

#[test]
fn allow_lists_that_cannot_be_read() {
    for (list, hint) in
        [("", "is empty"), ("10.0.0.5/24", "did you mean 10.0.0.0/24"), ("10.0.0.0/8;all", "is no CIDR")]
    {
        let label = format!("labels: {{hiveway.allow: \"{list}\"}}");
        with("labels: {}", &label, &[("services[0].labels.hiveway.allow", hint)]);
    }
}

#[test]
fn labels_that_there_are_not() {
    for (label, hint) in [
        ("hiveway.alow: 10.0.0.0/8", "did you mean hiveway.allow?"),
        ("hiveway.Deny: 10.0.0.0/8", "did you mean hiveway.deny?"),
        ("hiveway.timeout: 5s", "there are hiveway.allow, hiveway.deny, hiveway.addresses"),
    ] {
        let path = format!("services[0].labels.{}", label.split(':').next().unwrap_or_default());
        with("labels: {}", &format!("labels: {{{label}}}"), &[(&path, hint)]);
    }
}

#[test]
fn times_that_are_none() {
    with(
        "netns: /run/netns/web1",
        "created_at: yesterday",
        &[("tasks[0].created_at", "is no time like 2026-11-21T00:27:35.5Z")],
    );
}

#[test]
fn macs() {
    with("netns: /run/netns/web1", "mac: {app: 02:42:0a:00:01}", &[("tasks[0].mac.app", "six pairs")]);
    with("netns: /run/netns/web1", "mac: {app: 01:00:5e:00:00:01}", &[("tasks[0].mac.app", "multicast")]);
    with(
        "slot: 2, node_id: n2",
        "slot: 2, mac: {ingres: 02:42:00:00:00:01}, node_id: n2",
        &[("tasks[1].mac.ingres", "did you mean \"ingress\"?")],
    );
    let text = base_with("{app: 10.0.1.4, ingress: 10.0.0.7}", "{app: 10.0.1.4}, mac: {ingress: 02:42:00:00:00:01}");
    refused(&text, &[("tasks[1].mac.ingress", "no (valid) address on this network")]);
}

#[test]
fn ipv6() {
    with("app: 10.0.1.3", "app: \"fd00::3\"", &[("tasks[0].addresses.app", "IPv6, which is not supported yet")]);
    with("subnet: 10.0.1.0/24", "subnet: \"fd00:51::/64\"", &[("networks[1].subnets[0].subnet", "not supported yet")]);
    with("address: 192.168.77.12", "address: \"fd00::12\"", &[("nodes[1].address", "not supported yet")]);
}

/// One mistake is one problem: what is unknown because of it is not told as well.
#[test]
fn no_follow_ups() {
    for (from, to, path) in [
        ("networks:\n", "netwrks:\n", "netwrks"),
        ("networks:\n", "networkss:\n", "networkss"),
        ("id: n1,", "", "nodes[0].id"),
        ("id: n1,", "id: 7,", "nodes[0].id"),
        ("id: n1,", "id: n1/ is already known,", "nodes[0].id"),
    ] {
        let text = BASE.replacen(from, to, 1);
        assert_ne!(text, BASE, "{from:?} is not in the table");
        let problems = problems(&text);
        let places: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(places, [path], "{problems:?}");
    }
    let text = "version: 1\nnodes: [{id: n1, address: 192.0.2.1, address: 192.0.2.2}]\n";
    let message = problems(text)[0].message.clone();
    assert!(message.contains("duplicate mapping key: address at line 2"), "{message}");
}

/// Not just the first problem, and in the order of the file.
#[test]
fn all_at_once() {
    let text = BASE
        .replace("hostname: n2, address: 192.168.77.12", "hostname: n2, address: x")
        .replace("encrypted: false", "encrypted: true, mut: 7")
        .replace("published_port: 8080", "published_port: 70000")
        .replace("slot: 1, node_id: n1, desired_state: running", "slot: 1, node_id: n7, desired_state: runing")
        .replace("app: 10.0.1.4", "app: 10.9.9.9");
    let places: Vec<_> = problems(&text).into_iter().map(|p| p.path).collect();
    assert_eq!(
        places,
        [
            "nodes[1].address",
            "networks[1].encrypted",
            "networks[1].mut",
            "services[0].ports[0].published_port",
            "tasks[0].desired_state",
            "tasks[1].addresses.app",
        ]
    );
}
