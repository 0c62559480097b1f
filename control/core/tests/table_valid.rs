//! Tables that are accepted, and what they mean.

mod support;

use std::{net::Ipv4Addr, path::Path};

use hiveway_core::{
    Severity, TaskRole,
    model::{Dataplane, EndpointMode, NodeState, PublishMode, TaskState},
    table::{Table, parse_file},
};
use support::{BASE, base_with};

#[track_caller]
fn parse(text: &str) -> Table {
    parse_file(text, Path::new("table.yaml")).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn the_contract_s_example() {
    let Table { model, warnings } = parse(BASE);
    assert_eq!(warnings, []);
    let node = &model.nodes["n1"];
    assert_eq!((node.state, node.dataplane), (NodeState::Ready, Dataplane::Hiveway));
    assert_eq!((node.address, node.vtep), (Ipv4Addr::new(192, 168, 77, 11), Ipv4Addr::new(192, 168, 77, 11)));
    let app = &model.networks["app"];
    assert_eq!((app.mtu, app.ingress, app.internal, app.vni().get()), (1450, false, false, 4097));
    assert!(model.networks["ingress"].ingress);
    let web = &model.services["web"];
    assert_eq!(web.endpoint_mode, EndpointMode::Vip);
    assert_eq!(web.virtual_ips["app"], Ipv4Addr::new(10, 0, 1, 2));
    assert_eq!(web.ports[0].ingress(), Some((6, 8080)));
    let task = &model.tasks["web.1"];
    assert_eq!((task.desired_state, task.state), (TaskState::Running, TaskState::Running));
    assert_eq!(task.addresses["app"].mac, [0x02, 0x42, 10, 0, 1, 3]);
    assert_eq!(task.netns.as_deref(), Some(Path::new("/run/netns/web1")));
    assert_eq!(task.ports, web.ports, "ports default to the service's");
    assert_eq!(model.role(task), TaskRole::Backend);
}

#[test]
fn json_says_the_same() {
    let yaml = parse(BASE).model;
    let value: serde_json::Value = serde_saphyr::from_str(BASE).expect("valid YAML");
    let json = serde_json::to_string_pretty(&value).expect("serialisable");
    for path in ["table.json", "table.yaml", "table", "table.JSON"] {
        assert_eq!(parse_file(&json, Path::new(path)).expect("valid").model, yaml, "{path}");
    }
    assert_eq!(parse_file(BASE, Path::new("no-extension")).expect("valid").model, yaml);
}

#[test]
fn smallest_table() {
    assert_eq!(parse("version: 1").model, Default::default());
    assert_eq!(parse("version: 1\nnodes: []\nnetworks: null\n").model, Default::default());
}

#[test]
fn networks_by_name_where_unique() {
    let text = base_with("{id: app, name: app,", "{id: k9zq, name: app,");
    let model = parse(&text).model;
    assert!(model.tasks["web.1"].addresses.contains_key("k9zq"));
    assert!(model.services["web"].virtual_ips.contains_key("k9zq"));
}

#[test]
fn an_id_wins_over_a_name() {
    let text = base_with(
        "services:\n",
        "  - {id: other, name: app, subnets: [{subnet: 10.0.2.0/24, vni: 4098}]}\nservices:\n",
    );
    let model = parse(&text).model;
    assert!(model.tasks["web.1"].addresses.contains_key("app"));
    assert_eq!(model.networks["other"].subnets[0].gateway, Ipv4Addr::new(10, 0, 2, 1), "default gateway");
}

#[test]
fn every_optional_field() {
    let model = parse(
        r#"
version: 1
nodes:
  - {id: n1, address: 192.168.77.11, vtep: 10.9.0.1, state: unknown, addresses: {app: 10.0.1.6}}
  - {id: n2, hostname: two, address: 192.168.77.12, dataplane: none, state: disconnected}
networks:
  - {id: app, subnets: [{subnet: 10.60.1.0/24, vni: 4106}, {subnet: 10.0.1.0/24, vni: 4097}], mtu: 1200, internal: true}
services:
  - {id: rr, endpoint_mode: dnsrr, labels: {hiveway.allow: 10.0.0.0/8, empty: ""}}
  - {id: h, ports: [{target_port: 53, protocol: udp, published_port: 5300, publish_mode: host}, {target_port: 80}]}
tasks:
  - {id: a, desired_state: running, state: pending}
  - {id: b, service_id: h, node_id: n1, desired_state: complete, state: running, addresses: {app: 10.60.1.9},
     mac: {app: "02:42:00:00:00:09"}, ports: [{target_port: 8000, published_port: 81}]}
"#,
    )
    .model;
    let n1 = &model.nodes["n1"];
    assert_eq!((n1.hostname.as_str(), n1.vtep, n1.state), ("n1", Ipv4Addr::new(10, 9, 0, 1), NodeState::Unknown));
    assert_eq!(n1.addresses["app"], Ipv4Addr::new(10, 0, 1, 6));
    assert_eq!(model.nodes["n2"].dataplane, Dataplane::None);
    let app = &model.networks["app"];
    assert_eq!((app.name.as_str(), app.mtu, app.internal), ("app", 1200, true));
    assert_eq!(app.subnets.iter().map(|s| s.vni.get()).collect::<Vec<_>>(), [4097, 4106], "sorted by VNI");
    assert_eq!(model.services["rr"].endpoint_mode, EndpointMode::Dnsrr);
    assert_eq!(model.services["rr"].labels["empty"], "");
    let h = &model.services["h"];
    assert!(h.ports.iter().any(|p| p.publish_mode == PublishMode::Host && p.ingress().is_none()));
    assert!(h.ports.iter().all(|p| p.ingress().is_none()), "a port without published_port is not published yet");
    let b = &model.tasks["b"];
    assert_eq!(b.addresses["app"].mac, [2, 0x42, 0, 0, 0, 9]);
    assert_eq!(b.ports.len(), 1);
    assert_eq!(b.ports[0].ingress(), Some((6, 81)), "its own ports, not the service's");
    assert_eq!(model.role(b), TaskRole::Endpoint, "in a file a job is an endpoint and never a backend");
    assert_eq!(model.role(&model.tasks["a"]), TaskRole::Absent);
}

#[test]
fn one_port_in_several_protocols() {
    let ports = "ports: [{target_port: 80, published_port: 8080}, {protocol: udp, target_port: 80, published_port: 8080}, \
                 {protocol: sctp, target_port: 8080, published_port: 8080, publish_mode: host}]";
    let text =
        base_with("ports: [{protocol: tcp, target_port: 80, published_port: 8080, publish_mode: ingress}]", ports);
    assert_eq!(parse(&text).model.services["web"].ports.len(), 3);
}

#[test]
fn ended_tasks_may_share_addresses() {
    let text = base_with(
        "  - {id: web.2,",
        "  - {id: old, service_id: web, node_id: n1, desired_state: shutdown, state: failed, addresses: {app: 10.0.1.3}}\n  - {id: web.2,",
    );
    let model = parse(&text).model;
    assert_eq!(model.role(&model.tasks["old"]), TaskRole::Absent);
}

/// SCTP needs no translation where published and target port are the same, nor where nothing is published.
#[test]
fn sctp_ports() {
    let sctp = |more: &str| {
        let own = format!("ports: [{{protocol: sctp, target_port: 3868{more}}}]");
        parse(&base_with(
            "ports: [{protocol: tcp, target_port: 80, published_port: 8080, publish_mode: ingress}]",
            &own,
        ))
    };
    for more in ["", ", published_port: 0", ", published_port: 3868", ", published_port: 3868, publish_mode: host"] {
        assert_eq!(sctp(more).warnings, [], "{more:?}");
    }
}

#[test]
fn allow_lists() {
    let label = |list: &str| parse(&base_with("labels: {}", &format!("labels: {{hiveway.allow: \"{list}\"}}")));
    assert_eq!(label("10.0.0.0/8, 192.0.2.7").warnings, []);
    let table = label("10.0.0.0/8,fd00::/8");
    let [warning] = &table.warnings[..] else { panic!("{:?}", table.warnings) };
    assert_eq!(warning.path, "services[0].labels.hiveway.allow");
    assert_eq!(warning.message, "fd00::/8 is ignored: IPv6 is not supported yet");
}

#[test]
fn tasks_that_claim_one_port_of_a_node_are_warned_of() {
    let host = BASE.replace("publish_mode: ingress", "publish_mode: host");
    assert_eq!(parse(&host).warnings, [], "on two nodes");
    let table = parse(&host.replace("node_id: n2", "node_id: n1"));
    let [warning] = &table.warnings[..] else { panic!("{:?}", table.warnings) };
    assert_eq!(warning.path, "tasks[1].ports");
    assert!(warning.message.contains("8080/tcp is published in host mode by tasks[0] on the same node"), "{warning}");
}

#[test]
fn warnings_do_not_refuse() {
    let text = base_with("{id: n2, hostname: n2,", "{id: n2, hostname: n1, state: down,");
    let table = parse(&text);
    let warnings: Vec<_> = table.warnings.iter().map(|w| (w.path.as_str(), w.severity)).collect();
    assert_eq!(warnings, [("nodes[1].hostname", Severity::Warning), ("tasks[1].node_id", Severity::Warning)]);

    let text = base_with("addresses: {app: 10.0.1.4, ingress: 10.0.0.7}}", "addresses: {app: 10.0.1.4}}");
    let warnings = parse(&text).warnings;
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].path, "tasks[1].addresses");
    assert!(warnings[0].message.contains("8080/tcp"), "{}", warnings[0]);

    let text = base_with("endpoint_mode: vip", "endpoint_mode: dnsrr");
    let table = parse(&text);
    assert_eq!(table.warnings[0].path, "services[0].virtual_ips");
    assert!(table.model.services["web"].virtual_ips.is_empty());

    let text = base_with("slot: 1, node_id: n1,", "slot: 1,");
    let table = parse(&text);
    assert_eq!(table.warnings[0].path, "tasks[0].node_id");
    assert_eq!(table.model.role(&table.model.tasks["web.1"]), TaskRole::Absent);

    let other = "  - {id: b, ports: [{target_port: 1, published_port: 9000}]}\ntasks:\n";
    let text = base_with("tasks:\n", other)
        .replace("netns: /run/netns/web1", "ports: [{target_port: 2, published_port: 9000}]");
    let warnings = parse(&text).warnings;
    assert_eq!((warnings.len(), warnings[0].path.as_str()), (1, "tasks[0].ports"));
    assert!(warnings[0].message.contains("published by service b now"), "{}", warnings[0]);
}

#[test]
fn macs_need_no_quotes() {
    for (mac, first) in [("02:42:10:00:01:03", 2), ("06:07:08:09:10:11", 6), ("\"0a-42-10-00-01-03\"", 10)] {
        let text = base_with("netns: /run/netns/web1", &format!("mac: {{app: {mac}}}"));
        assert_eq!(parse(&text).model.tasks["web.1"].addresses["app"].mac[0], first, "{mac}");
    }
}
