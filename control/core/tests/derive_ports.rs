//! Ports in host mode, who may use published ports, and which ports can be published at all.

mod support;

use std::{net::Ipv4Addr, sync::Arc};

use dataplane_common::{
    mesh::{TargetKey, target_flag::LOCAL_ONLY},
    service::PortKey,
    state::{MapState, SetKey},
};
use hiveway_core::{
    Desired, GatewayAddresses, Model, Settings, derive, map_state,
    model::{AllowEntry, AllowList, Service, Task, parse_allow},
    names, tag,
};
use support::{
    BASE, base_with, capture, facts,
    maps::{maps, maps_with, port, set, table},
};

const PORTS: &str = "ports: [{protocol: tcp, target_port: 80, published_port: 8080, publish_mode: ingress}]";
const HOST_MODE: &str = "ports: [{target_port: 80, published_port: 8080, publish_mode: host}]";

/// Two more tasks of the service on n1, `web.8` and `web.9`.
fn with_two_more(text: &str, (eight, nine): (&str, &str)) -> String {
    let task = |id: u8, more: &str| {
        format!(
            "  - {{id: web.{id}, service_id: web, node_id: n1, addresses: {{app: 10.0.1.1{id}, ingress: 10.0.0.1{id}}}, {more}}}\n"
        )
    };
    format!("{text}{}{}", task(8, eight), task(9, nine))
}

fn left_out(model: &Model, node: &str) -> Vec<String> {
    let desired = derive(model, &Settings::new(node), &mut GatewayAddresses::new()).expect("derivable");
    desired.left_out.iter().map(|l| format!("{}: {}", l.what, l.why)).collect()
}

fn published(model: &Model, node: &str) -> Vec<(u8, u16)> {
    derive(model, &Settings::new(node), &mut GatewayAddresses::new())
        .expect("derivable")
        .published
        .into_iter()
        .collect()
}

/// Tasks behind a port, by their tags.
fn behind<'m>(state: &MapState, model: &'m Model, key: SetKey) -> Vec<&'m str> {
    let tags = state.sets[&key].iter().map(|backend| backend.tag);
    tags.map(|t| model.tasks.keys().find(|id| tag(id) == t).expect("a task").as_str()).collect()
}

#[test]
fn captured_host_mode() {
    let model = capture("11-publish-host-global").model;
    for (node, vtep, task) in [("n1", 11, "gnfu6"), ("n2", 12, "urwgz"), ("n3", 13, "pdzn1")] {
        assert_eq!(left_out(&model, node), [""; 0]);
        let mut gateway = 0;
        let id = model.tasks.keys().find(|id| id.starts_with(task)).expect("captured");
        let state = maps_with(&model, node, |_, f| gateway = f.ifindex[&names::veth(id, names::GATEWAY)]);
        let [backend] = &state.sets[&port(6, 8081)][..] else { panic!("{:?}", state.sets) };
        assert_eq!((backend.tag, backend.vtep), (tag(id), [192, 168, 77, vtep]));
        assert_eq!(backend.ip[..2], [172, 18], "its address on the gateway bridge");
        let target = state.targets[&TargetKey { ip: backend.ip, port: 8081u16.to_be_bytes(), proto: 6, _pad: 0 }];
        assert_eq!((target.tag, target.ifindex, target.ip), (backend.tag, gateway, backend.ip));
        assert_eq!((u16::from_be_bytes(target.port), target.flags), (80, LOCAL_ONLY));
        assert!(state.clients.keys().any(|(_, c)| c.ifindex == gateway.to_be_bytes()));
        // What mesh frames may name has no such flag.
        assert!(state.targets.iter().all(|(k, t)| (t.flags == LOCAL_ONLY) == (k.port == 8081u16.to_be_bytes())));
    }
}

#[test]
fn a_node_without_a_task_has_no_such_port() {
    let model = table(&BASE.replace(PORTS, HOST_MODE).replace("node_id: n2", "node_id: n1"));
    assert_eq!((published(&model, "n1"), published(&model, "n2")), (vec![(6, 8080)], vec![]));
    let state = maps(&model, "n2");
    assert!(state.sets.is_empty() && state.targets.is_empty() && state.restricted.is_empty());
    // Nor does anybody need the ingress network for it.
    let desired = derive(&model, &Settings::new("n2"), &mut GatewayAddresses::new()).expect("derivable");
    assert!(desired.networks.is_empty());
}

#[test]
fn the_newest_running_task_has_the_port() {
    let run = "desired_state: running, state: running";
    let at = |hour: u8| format!("{run}, created_at: \"2026-11-21T{hour:02}:00:00.5Z\"");
    let alone = BASE.replace(PORTS, HOST_MODE).replace("node_id: n1", "node_id: n2");
    for (eight, nine, newest) in [
        (at(2), at(1), "web.8"),
        (at(1), at(2), "web.9"),
        // The table does not say: the last by id.
        (run.to_owned(), run.to_owned(), "web.9"),
        (at(1), run.to_owned(), "web.8"),
    ] {
        let model = table(&with_two_more(&alone, (&eight, &nine)));
        let state = maps(&model, "n1");
        assert_eq!(behind(&state, &model, port(6, 8080)), [newest], "{eight} and {nine}");
        assert_eq!(state.targets.len(), 2, "what the other one has goes on");
        let other = if newest == "web.8" { "web.9" } else { "web.8" };
        let why = format!(
            "port 8080/tcp of task {other}: task {newest}, which is newer, has it on this node; stop one of them"
        );
        assert_eq!(left_out(&model, "n1"), [why]);
    }
    // Draining ones and those that start are no rivals.
    for other in ["desired_state: shutdown, state: running", "desired_state: running, state: starting"] {
        let model = table(&with_two_more(&alone, (run, other)));
        assert_eq!(behind(&maps(&model, "n1"), &model, port(6, 8080)), ["web.8"]);
        assert_eq!(left_out(&model, "n1"), [""; 0]);
    }
}

/// Its established flows go on, new ones find nobody: the port has an empty set and the task its target.
#[test]
fn the_last_task_drains() {
    let drain = "desired_state: shutdown, state: running";
    let text = BASE.replace(PORTS, HOST_MODE).replace("desired_state: running, state: running", drain);
    let state = maps(&table(&text), "n1");
    assert_eq!(set(&state, port(6, 8080)), [""; 0]);
    assert_eq!(state.targets.values().map(|t| t.flags).collect::<Vec<_>>(), [LOCAL_ONLY]);
    // A task that only starts opens nothing.
    let starts = text.replace(drain, "desired_state: running, state: starting");
    assert_eq!(published(&table(&starts), "n1"), []);
}

#[test]
fn without_an_interface_there_is_nobody_behind_the_port() {
    let model = table(&BASE.replace(PORTS, HOST_MODE));
    let state =
        maps_with(&model, "n1", |_, f| f.ifindex.retain(|name, _| *name != names::veth("web.1", names::GATEWAY)));
    assert_eq!(set(&state, port(6, 8080)), [""; 0]);
    assert!(state.targets.is_empty());
    let unopened = maps_with(&model, "n1", |_, f| {
        f.unopened.insert(names::veth("web.1", names::GATEWAY));
    });
    assert_eq!(set(&unopened, port(6, 8080)), [""; 0]);
    assert_eq!(unopened.targets.len(), 1);
    let internal = BASE.replace(PORTS, HOST_MODE).replace("internal: false", "internal: true");
    let model = table(&internal.replace(", ingress: 10.0.0.6", ""));
    assert_eq!(published(&model, "n1"), []);
    assert!(left_out(&model, "n1")[0].contains("all its networks are internal"), "{:?}", left_out(&model, "n1"));
}

#[test]
fn host_mode_without_the_ingress_network() {
    let text = BASE.replace(PORTS, HOST_MODE).replace(", ingress: 10.0.0.6", "").replace(", ingress: 10.0.0.7", "");
    let text = text.replace(", ingress: 10.0.0.5", "");
    let no_ingress = text.lines().filter(|line| !line.contains("id: ingress")).collect::<Vec<_>>().join("\n");
    let model = table(&no_ingress);
    assert_eq!(set(&maps(&model, "n1"), port(6, 8080)), ["172.18.0.2@11"]);
}

#[test]
fn ports_that_another_service_has_everywhere() {
    let mut model = table(BASE);
    let mut other = Service::clone(&model.services["web"]);
    (other.id, other.name) = ("host".into(), "host".into());
    other.virtual_ips.clear();
    other.ports = table(&BASE.replace(PORTS, HOST_MODE)).services["web"].ports.clone();
    let mut task = Task::clone(&model.tasks["web.1"]);
    (task.id, task.service, task.ports) = ("host.1".into(), Some("host".into()), other.ports.clone());
    task.addresses.retain(|network, _| network == "app");
    task.addresses.values_mut().for_each(|a| a.ip = Ipv4Addr::new(10, 0, 1, 9));
    model.services.insert("host".into(), other.into());
    model.tasks.insert("host.1".into(), task.into());
    let expected = "port 8080/tcp of service host (host): service web publishes it in ingress mode, which answers on every \
                    node; publish another port";
    assert_eq!(left_out(&model, "n1"), [expected]);
    assert_eq!(set(&maps(&model, "n1"), port(6, 8080)), ["10.0.0.6@11", "10.0.0.7@12"]);
}

#[test]
fn ports_that_the_manager_does_not_number() {
    for unnumbered in ["published_port: 0, ", ""] {
        let own = format!("ports: [{{target_port: 80, {unnumbered}publish_mode: host}}]");
        let model = table(&base_with(PORTS, &own));
        let expected = "port unpublished 80/tcp of service web (web): published in host mode without a port number; publish a \
                        fixed one";
        assert_eq!(left_out(&model, "n1"), [expected]);
        assert_eq!(published(&model, "n1"), []);
    }
}

#[test]
fn the_vxlan_port_is_not_published_in_host_mode_either() {
    let host = "ports: [{protocol: udp, target_port: 80, published_port: 8472, publish_mode: host}]";
    let model = table(&base_with(PORTS, host));
    let settings = Settings { vxlan_port: 8472, ..Settings::new("n1") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    assert!(desired.published.is_empty() && desired.left_out[0].why.contains("--vxlan-port"), "{:?}", desired.left_out);
}

/// A live source may say anything: an SCTP port that had to be translated is left out alone.
#[test]
fn sctp_where_nothing_is_translated() {
    let same =
        "ports: [{protocol: sctp, target_port: 8080, published_port: 8080}, {target_port: 80, published_port: 80}]";
    for text in [base_with(PORTS, same), base_with(PORTS, &same.replace("8080}", "8080, publish_mode: host}"))] {
        let mut model = table(&text);
        let state = maps(&model, "n1");
        assert_eq!(state.sets[&port(132, 8080)].iter().filter(|b| b.tag == tag("web.1")).count(), 1);
        assert!(state.targets.keys().any(|key| key.proto == 132));

        let mut translate = |port: &mut hiveway_core::model::Port| {
            if port.protocol.number() == 132 {
                port.target_port = 9.try_into().expect("not zero");
            }
        };
        model.services.values_mut().for_each(|s| Arc::make_mut(s).ports.change(&mut translate));
        // A task's own old port is not translated either while the service has a right one by now.
        model.tasks.values_mut().for_each(|t| Arc::make_mut(t).ports.change(&mut translate));
        let state = maps(&model, "n1");
        assert!(!state.sets.contains_key(&port(132, 8080)) && state.sets.contains_key(&port(6, 80)));
        assert!(state.targets.keys().all(|key| key.proto == 6));
        assert_eq!(
            left_out(&model, "n1"),
            ["port 8080/sctp of service web (web): SCTP ports can't be translated; publish the target port 9 itself"]
        );
    }
}

#[test]
fn a_task_whose_sctp_port_had_to_be_translated_is_no_backend() {
    let same = "ports: [{protocol: sctp, target_port: 8080, published_port: 8080}]";
    let mut model = table(&base_with(PORTS, same));
    let other = Arc::make_mut(model.tasks.get_mut("web.2").expect("web.2"));
    other.ports.change(|port| port.target_port = 9.try_into().expect("not zero"));
    assert_eq!(set(&maps(&model, "n1"), port(132, 8080)), ["10.0.0.6@11"]);
    assert_eq!(set(&maps(&model, "n2"), port(132, 8080)), ["10.0.0.6@11"]);
    assert!(maps(&model, "n2").targets.is_empty());
}

fn with_settings(model: &Model, mesh_allow: Option<&str>) -> (Desired, MapState) {
    let list = |text: &str| AllowList::new(&parse_allow(text).expect("a list"));
    let settings = Settings { mesh_allow: mesh_allow.map(list), ..Settings::new("n1") };
    let desired = derive(model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let state = map_state(model, &desired, &settings, &facts(&desired));
    (desired, state)
}

/// Restricted ports and who may use them: `tcp 8080: 10.0.0.0/8 …`.
fn restricted(state: &MapState) -> Vec<String> {
    let of = |key: &PortKey| -> Vec<String> {
        let own = state.allow.iter().filter(|(_, prefix)| prefix.port == *key);
        own.map(|(length, prefix)| format!("{}/{}", Ipv4Addr::from(prefix.ip), length - 32)).collect()
    };
    let line = |key: &PortKey| format!("{} {}: {}", key.proto, u16::from_be_bytes(key.port), of(key).join(" "));
    let lines: Vec<_> = state.restricted.iter().map(line).collect();
    assert!(state.allow.iter().all(|(_, prefix)| state.restricted.contains(&prefix.port)));
    lines
}

#[test]
fn allow_lists_of_node_and_service_both_count() {
    let label = |list: &str| base_with("labels: {}", &format!("labels: {{hiveway.allow: \"{list}\"}}"));
    for (text, node, expected) in [
        (BASE.to_owned(), None, None),
        (BASE.to_owned(), Some("10.0.0.0/8,192.0.2.7"), Some("10.0.0.0/8 192.0.2.7/32")),
        (label("10.1.0.0/16, 192.0.2.7"), None, Some("10.1.0.0/16 192.0.2.7/32")),
        (label("10.1.0.0/16,192.0.2.0/24"), Some("10.0.0.0/8,192.0.2.7"), Some("10.1.0.0/16 192.0.2.7/32")),
        (label("10.1.0.0/16"), Some("192.0.2.0/24"), Some("")),
        (label("0.0.0.0/0"), None, Some("0.0.0.0/0")),
        // Only IPv6 clients: no others.
        (label("fd00::/8"), None, Some("")),
        (BASE.to_owned(), Some("fd00::/8"), Some("")),
    ] {
        let (_, state) = with_settings(&table(&text), node);
        let expected: Vec<_> = expected.map(|nets| format!("6 8080: {nets}")).into_iter().collect();
        assert_eq!(restricted(&state), expected, "{node:?} and {text}");
    }
}

#[test]
fn deny_lists_of_node_and_service_win_over_allow_lists() {
    let labels = |labels: &str| base_with("labels: {}", &format!("labels: {{{labels}}}"));
    for (text, node, allow, deny) in [
        (BASE.to_owned(), "192.0.2.0/24", "0.0.0.0/0", "192.0.2.0/24"),
        (
            labels("hiveway.deny: \"192.0.2.7,198.51.100.0/24\""),
            "192.0.2.0/24",
            "0.0.0.0/0",
            "192.0.2.0/24 198.51.100.0/24",
        ),
        (
            labels("hiveway.allow: \"10.0.0.0/8,192.0.2.9\", hiveway.deny: 10.1.0.0/16"),
            "192.0.2.0/24",
            "10.0.0.0/8",
            "10.1.0.0/16",
        ),
        (labels("hiveway.deny: \"fd00::/8\""), "192.0.2.0/24", "0.0.0.0/0", "192.0.2.0/24"),
    ] {
        let settings =
            Settings { mesh_deny: AllowList::new(&parse_allow(node).expect("a list")), ..Settings::new("n1") };
        let model = table(&text);
        let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
        let state = map_state(&model, &desired, &settings, &facts(&desired));
        assert_eq!(restricted(&state), [format!("6 8080: {allow}")], "{text}");
        let denied = MapState { allow: state.deny.clone(), ..state };
        assert_eq!(restricted(&denied), [format!("6 8080: {deny}")], "{text}");
    }
    let (_, open) = with_settings(&table(&labels("hiveway.deny: \"fd00::/8\"")), None);
    assert_eq!(restricted(&open), [""; 0], "no IPv4 client is denied");
}

#[test]
fn lists_that_the_map_has_no_room_for_close_their_port_and_are_named() {
    let model = table(BASE);
    let hosts = (0..70_000u32).map(|n| AllowEntry::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + 2 * n).into()));
    let settings = Settings { mesh_deny: AllowList::new(&hosts.collect::<Vec<_>>()), ..Settings::new("n1") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let state = map_state(&model, &desired, &settings, &facts(&desired));
    assert_eq!((restricted(&state), state.deny.len()), (vec!["6 8080: ".to_owned()], 0));
    assert!(desired.left_out.iter().any(|l| l.what.starts_with("port 8080") && l.why.contains("closed to all")));
}

#[test]
fn a_label_that_cannot_be_read_closes_the_ports_of_its_service_alone() {
    let mut model = table(&base_with(
        PORTS,
        "ports: [{target_port: 1, published_port: 1}, {target_port: 2, published_port: 2, publish_mode: host}]",
    ));
    let mut other = Service::clone(&model.services["web"]);
    (other.id, other.name) = ("open".into(), "open".into());
    other.virtual_ips.clear();
    other.ports = other.ports.iter().take(1).copied().collect();
    other.ports.change(|port| port.published_port = 3.try_into().ok());
    model.services.insert("open".into(), other.into());
    Arc::make_mut(model.services.get_mut("web").expect("web")).labels.insert("hiveway.allow".into(), "intranet".into());
    let (_, state) = with_settings(&model, None);
    assert_eq!(restricted(&state), ["6 1: ", "6 2: "]);
    assert!(state.sets.contains_key(&port(6, 3)), "open to all");
}

#[test]
fn views_show_who_may_use_a_port() {
    let model = table(&base_with("labels: {}", "labels: {hiveway.allow: \"10.1.0.0/16,192.0.2.7\"}"));
    let node = AllowList::new(&parse_allow("10.0.0.0/8").expect("a list"));
    let shown = |node: Option<&AllowList>| {
        let views = hiveway_core::views::services(&model, node, &AllowList::default());
        serde_json::to_value(views).expect("JSON")[0]["allow"].clone()
    };
    assert_eq!(shown(None), serde_json::json!(["10.1.0.0/16", "192.0.2.7/32"]));
    assert_eq!(shown(Some(&node)), serde_json::json!(["10.1.0.0/16"]));
}

/// `192.0.2.1: 1` for each address, with the bits of its classes.
fn bound(label: Option<&str>, node: Option<&str>) -> (Vec<String>, Option<u8>) {
    let text = label.map_or_else(
        || BASE.to_owned(),
        |label| base_with("labels: {}", &format!("labels: {{hiveway.addresses: \"{label}\"}}")),
    );
    let places = |text: &str| hiveway_core::model::Places::parse(text).expect("places");
    let settings = Settings { mesh_addresses: node.map(places), ..Settings::new("n1") };
    let model = table(&text);
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let mut facts = facts(&desired);
    facts.node_addresses.insert(Ipv4Addr::new(203, 0, 113, 5), 3);
    // A floating address may be on lo as well.
    for interface in ["eth1", "lo"] {
        facts.carried.insert(interface.into(), vec!["203.0.113.5/32".parse().expect("an address")]);
    }
    let state = map_state(&model, &desired, &settings, &facts);
    let line = |(ip, address): (&[u8; 4], &dataplane_common::mesh::NodeAddress)| {
        format!("{}: {:x}", Ipv4Addr::from(*ip), address.classes)
    };
    (state.node_addresses.iter().map(line).collect(), state.bound.values().next().copied())
}

#[test]
fn bound_ports_have_a_class_of_addresses() {
    assert_eq!(bound(None, None).1, None);
    for (label, node, own, other) in [
        (Some("192.168.77.0/24"), None, "1", "0"),
        (Some("eth1"), None, "0", "1"),
        (Some("lo"), None, "0", "1"),
        (None, Some("eth1,192.168.77.11"), "1", "1"),
        (Some("0.0.0.0/0"), Some("eth1"), "0", "1"),
        (Some("192.168.77.0/24"), Some("eth1"), "0", "0"),
        (Some("gone0"), None, "0", "0"),
    ] {
        let (addresses, class) = bound(label, node);
        let own = [format!("192.168.77.11: {own}"), format!("203.0.113.5: {other}")];
        assert!(own.iter().all(|line| addresses.contains(line)), "{label:?} {node:?}: {addresses:?}");
        assert_eq!(class, Some(0));
    }
}

#[test]
fn ports_of_too_many_different_bindings_answer_nowhere_and_are_named() {
    let mut model = table(BASE);
    let web = Service::clone(&model.services["web"]);
    for n in 0..40u16 {
        let mut service = web.clone();
        (service.id, service.name) = (format!("s{n:02}").into(), format!("s{n:02}"));
        service.virtual_ips.clear();
        service.ports.change(|port| port.published_port = (9000 + n).try_into().ok());
        service.labels.insert("hiveway.addresses".into(), format!("10.0.0.{n}"));
        model.services.insert(service.id.clone(), service.into());
    }
    let (desired, state) = with_settings(&model, None);
    assert_eq!(state.bound.values().filter(|class| **class == 31).count(), 9);
    let named = desired.left_out.iter().filter(|l| l.why.contains("different sets of addresses"));
    assert_eq!(named.count(), 9, "{:?}", desired.left_out);
    assert!(state.node_addresses.values().all(|address| address.classes >> 31 == 0));
}
