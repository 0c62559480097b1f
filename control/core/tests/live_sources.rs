//! Live tables are inconsistent for a moment, and the Engine API forgets early.

mod support;

use std::{num::NonZeroU16, sync::Arc};

use dataplane_common::state::SetKey;
use hiveway_core::{
    GatewayAddresses, Settings, TaskRole, derive,
    docker_api::{EngineCapture, Loaded, parse},
    filter, map_state,
};
use serde_json::{Value, json};
use support::{capture, facts};

/// A capture's four files, to be changed.
struct Files {
    nodes: Value,
    services: Value,
    tasks: Value,
    networks: Value,
}

impl Files {
    fn of(name: &str) -> Self {
        let read = |file| {
            let path = format!("{}/../../tests/fixtures/swarm/{name}/{file}.json", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            serde_json::from_str(&text).expect("JSON")
        };
        Self { nodes: read("nodes"), services: read("services"), tasks: read("tasks"), networks: read("networks") }
    }

    fn load(&self) -> Loaded {
        let text = Value::to_string;
        let (nodes, services, tasks) = (text(&self.nodes), text(&self.services), text(&self.tasks));
        let networks = text(&self.networks);
        parse(&EngineCapture { nodes: &nodes, services: &services, tasks: &tasks, networks: &networks }).expect("lists")
    }
}

fn left_out(loaded: &Loaded) -> Vec<String> {
    loaded.left_out.iter().map(|l| format!("{}: {}", l.what, l.why)).collect()
}

#[test]
fn tasks_of_a_vanished_service_drain() {
    let mut files = Files::of("02b-web3-running");
    files.services = json!([]);
    let mut loaded = files.load();
    assert_eq!(left_out(&loaded), [""; 0]);
    assert!(loaded.model.tasks.values().all(|t| loaded.model.role(t) == TaskRole::Draining));

    // With the table before at hand, what established flows need stays.
    let before = capture("02b-web3-running").model;
    loaded.remember(&before);
    let web = loaded.model.services.values().next().expect("kept");
    assert!(web.vanished && web.virtual_ips.len() == 2);
    assert!(loaded.model.tasks.values().all(|t| loaded.model.role(t) == TaskRole::Draining && t.ports == web.ports));
    let settings = Settings::new("n1");
    let desired = derive(&loaded.model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    assert_eq!((desired.tasks.len(), desired.networks.len()), (1, 2));
    let state = map_state(&loaded.model, &desired, &settings, &facts(&desired));
    assert_eq!(state.targets.len(), 1);
    assert_eq!(state.sets.len(), 3);
    assert!(state.sets.values().all(Vec::is_empty));
    assert!(state.sets.contains_key(&SetKey::Port { proto: 6, port: 8080u16.to_be_bytes() }));

    // Once its tasks have ended it is forgotten.
    for task in files.tasks.as_array_mut().expect("a list") {
        task["Status"]["State"] = "shutdown".into();
    }
    let mut later = files.load();
    later.remember(&loaded.model);
    assert!(later.model.services.is_empty());
}

/// An engine's own balancer holds every task with an endpoint that has started, whatever its service's mode.
#[test]
fn running_tasks_of_a_job_serve() {
    let mut files = Files::of("02b-web3-running");
    for task in files.tasks.as_array_mut().expect("a list") {
        task["DesiredState"] = "complete".into();
    }
    let backends = |files: &Files| {
        let loaded = files.load();
        let desired = derive(&loaded.model, &Settings::new("n1"), &mut GatewayAddresses::new()).expect("derivable");
        let state = map_state(&loaded.model, &desired, &Settings::new("n1"), &facts(&desired));
        let port = SetKey::Port { proto: 6, port: 8080u16.to_be_bytes() };
        (state.sets[&port].len(), state.sets.values().map(Vec::len).sum::<usize>())
    };
    assert_eq!(backends(&files), (3, 9), "the published port's and two virtual addresses'");
    // Ended by itself, or taken out of service by its health check.
    files.tasks[0]["Status"]["State"] = "complete".into();
    assert_eq!(backends(&files), (2, 6));
    files.tasks[1]["DesiredState"] = "remove".into();
    assert_eq!(backends(&files), (1, 3));
    let mut loaded = files.load();
    let job =
        loaded.model.tasks.values().find(|task| loaded.model.role(task) == TaskRole::Backend).expect("one").clone();
    let unhealthy = hiveway_core::model::Task { unhealthy: true, ..(*job).clone() };
    loaded.model.tasks.insert(job.id.clone(), Arc::new(unhealthy));
    assert_eq!(loaded.model.role(&loaded.model.tasks[&job.id]), TaskRole::Draining);
    // A worker gets it from its manager's agent.
    assert!(filter(&loaded, "n1").model.jobs_serve);
}

/// Fail closed: a label that can't be read closes the ports of its service, and says so.
#[test]
fn an_allow_label_that_makes_no_sense() {
    let mut files = Files::of("02b-web3-running");
    files.services[0]["Spec"]["Labels"] = json!({"hiveway.allow": "10.0.0.0/8 192.0.2.0/24"});
    let loaded = files.load();
    let [why] = &left_out(&loaded)[..] else { panic!("{:?}", loaded.left_out) };
    assert!(why.starts_with("label hiveway.allow of service web (xqxsv2mjdqjbymxtrni2mv8bw): "), "{why}");
    assert!(why.ends_with("until it is right its published ports are closed to all"), "{why}");
    let settings = Settings::new("n1");
    let desired = derive(&loaded.model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let state = map_state(&loaded.model, &desired, &settings, &facts(&desired));
    assert_eq!((state.restricted.len(), state.allow.len()), (1, 0));

    for label in ["hiveway.deny", "hiveway.addresses"] {
        files.services[0]["Spec"]["Labels"] = json!({label: "10.0.0.1/8"});
        let loaded = files.load();
        let [why] = &left_out(&loaded)[..] else { panic!("{:?}", loaded.left_out) };
        assert!(why.starts_with(&format!("label {label} of service web ")) && why.ends_with("closed to all"), "{why}");
        let state = map_state(&loaded.model, &desired, &settings, &facts(&desired));
        assert_eq!((state.restricted.len(), state.allow.len() + state.deny.len()), (1, 0), "{label}");
    }

    // There is no such label: read as if it were not there, it would leave the port open to everybody.
    files.services[0]["Spec"]["Labels"] = json!({"hiveway.alow": "10.0.0.0/8", "com.example": "x"});
    let loaded = files.load();
    let want = "label hiveway.alow of service web (xqxsv2mjdqjbymxtrni2mv8bw): there is no such label; did you mean \
                hiveway.allow?; until it is right its published ports are closed to all";
    assert_eq!(left_out(&loaded), [want]);
    let state = map_state(&loaded.model, &desired, &settings, &facts(&desired));
    assert_eq!((state.restricted.len(), state.allow.len()), (1, 0));
    // A worker is told, too, and whoever gets its table from a version that did not say it.
    for table in [filter(&loaded, "n1"), Loaded { left_out: Vec::new(), ..filter(&loaded, "n1") }] {
        let desired = derive(&table.model, &settings, &mut GatewayAddresses::new()).expect("derivable");
        let both: std::collections::BTreeSet<_> = table.left_out.iter().chain(&desired.left_out).collect();
        let said = both.iter().filter(|item| item.what.starts_with("label hiveway.alow")).count();
        assert_eq!((said, map_state(&table.model, &desired, &settings, &facts(&desired)).allow.len()), (1, 0));
    }

    files.services[0]["Spec"]["Labels"] = json!({"hiveway.allow": "fd00::/8,10.0.0.0/8"});
    let loaded = files.load();
    let what = "fd00::/8 in label hiveway.allow of service web (xqxsv2mjdqjbymxtrni2mv8bw): IPv6 is not supported yet";
    assert_eq!(left_out(&loaded), [what]);
}

#[test]
fn a_vanished_service_gives_way() {
    let mut files = Files::of("02b-web3-running");
    let mut heir = files.services[0].clone();
    heir["ID"] = "heir".into();
    files.services = json!([heir]);
    let mut loaded = files.load();
    loaded.remember(&capture("02b-web3-running").model);
    assert_eq!(loaded.model.services.len(), 2);
    let old = &loaded.model.services["xqxsv2mjdqjbymxtrni2mv8bw"];
    assert!(old.vanished && old.virtual_ips.is_empty(), "its addresses are somebody else's now");
    let desired = derive(&loaded.model, &Settings::new("n1"), &mut GatewayAddresses::new()).expect("derivable");
    assert_eq!(desired.left_out.len(), 1, "{:?}", desired.left_out);
    assert!(desired.left_out[0].what.starts_with("port 8080/tcp of service web (xqxsv"), "{:?}", desired.left_out);
}

#[test]
fn tasks_keep_their_ports_while_the_service_changes() {
    let before = capture("02b-web3-running").model;
    let mut files = Files::of("02b-web3-running");
    files.services[0]["Endpoint"]["Ports"][0]["PublishedPort"] = 9999.into();
    let mut loaded = files.load();
    loaded.remember(&before);
    let ports = |l: &Loaded| -> Vec<_> {
        l.model.tasks.values().flat_map(|t| t.ports.iter().filter_map(|p| p.ingress())).collect()
    };
    assert_eq!(ports(&loaded), [(6, 8080); 3]);
    let desired = derive(&loaded.model, &Settings::new("n1"), &mut GatewayAddresses::new()).expect("derivable");
    assert_eq!(desired.published, [(6, 8080), (6, 9999)].into());

    // A port that the manager assigns late is taken over.
    let mut unassigned = before.clone();
    for task in unassigned.tasks.values_mut() {
        Arc::make_mut(task).ports.change(|port| port.published_port = None);
    }
    let mut loaded = files.load();
    loaded.remember(&unassigned);
    assert_eq!(ports(&loaded), [(6, 9999); 3]);
}

#[test]
fn unpublished_yet() {
    let mut files = Files::of("02b-web3-running");
    files.services[0]["Endpoint"]["Ports"][0]["PublishedPort"] = 0.into();
    let loaded = files.load();
    let port = loaded.model.services.values().next().expect("web").ports[0];
    assert_eq!((port.published_port, port.target_port), (None, NonZeroU16::new(80).expect("not zero")));
    assert_eq!(left_out(&loaded), [""; 0]);
}

/// Each broken item is left out and named; the rest stays.
#[test]
fn broken_items_alone_are_left_out() {
    let change = |change: &dyn Fn(&mut Files)| {
        let mut files = Files::of("02b-web3-running");
        change(&mut files);
        let loaded = files.load();
        let m = &loaded.model;
        let counts = (m.nodes.len(), m.networks.len(), m.services.len(), m.tasks.len());
        (counts, left_out(&loaded))
    };
    let whole = (3, 3, 1, 3);
    let one = |text: &str| vec![text.to_owned()];

    assert_eq!(change(&|_| {}), (whole, vec![]));
    let (counts, why) = change(&|f| f.tasks[0] = json!({"ID": 7}));
    assert_eq!((counts, why.len()), ((3, 3, 1, 2), 1));
    assert!(why[0].starts_with("task tasks.json[0]: unreadable"), "{why:?}");
    let task = "task web.1 (5kjv4jsfuqb08390uuegqss8z)";
    let (counts, why) = change(&|f| f.tasks[0]["Status"]["State"] = "paused".into());
    assert_eq!(counts, (3, 3, 1, 2));
    assert!(why[0].starts_with(&format!("{task}: unknown task state \"paused\"")), "{why:?}");
    let (counts, why) = change(&|f| f.tasks[0]["NodeID"] = "gone".into());
    assert_eq!((counts, why), ((3, 3, 1, 2), one(&format!("{task}: its node gone is unknown"))));
    let (counts, why) = change(&|f| f.tasks[0]["NetworksAttachments"][1]["Network"]["ID"] = "gone".into());
    assert_eq!((counts, why), (whole, one(&format!("{task} on network gone: the network is unknown"))));
    let (counts, why) = change(&|f| f.tasks[0]["NetworksAttachments"][1]["Addresses"][0] = "10.9.9.9/24".into());
    assert_eq!(
        (counts, why),
        (whole, one(&format!("address 10.9.9.9/24 of {task} on network app1: it is outside network app1")))
    );
    let (counts, why) = change(&|f| f.tasks[0]["NetworksAttachments"] = Value::Null);
    assert_eq!((counts, why), (whole, vec![]));

    // An address twice: the task that serves has it, not the one that is about to.
    let (counts, why) = change(&|f| {
        f.tasks[0]["Status"]["State"] = "starting".into();
        f.tasks[0]["NetworksAttachments"][1]["Addresses"][0] = "10.0.1.4/24".into();
    });
    let taken = "address 10.0.1.4 of task 5kjv4jsfuqb08390uuegqss8z: it is taken by task zq82gd7vkhc9f1sdf7iogk7o2";
    assert_eq!((counts, why), (whole, one(taken)));
    let (_, why) = change(&|f| f.tasks[0]["NetworksAttachments"][1]["Addresses"][0] = "10.0.1.2/24".into());
    assert_eq!(
        why,
        ["address 10.0.1.2 of task 5kjv4jsfuqb08390uuegqss8z: it is taken by the virtual address of service web"]
    );

    let (counts, why) = change(&|f| f.services[0]["Endpoint"]["VirtualIPs"][0]["NetworkID"] = "gone".into());
    assert_eq!(
        (counts, why),
        (whole, one("virtual address 10.0.0.5/24 of service web (xqxsv2mjdqjbymxtrni2mv8bw): network gone is unknown"))
    );
    let (counts, why) = change(&|f| f.services[0]["Endpoint"]["Ports"][0]["TargetPort"] = 70000.into());
    assert_eq!(
        (counts, why),
        (whole, one("port 8080/tcp of service web (xqxsv2mjdqjbymxtrni2mv8bw): 70000 is no port"))
    );

    // Networks: VNIs missing, too few, shared.
    let vnis = "com.docker.network.driver.overlay.vxlanid_list";
    let app2 = "network app2 (jk9zh7owb3jq8ad1s8mf7x4rb)";
    let at = |f: &Files| f.networks.as_array().expect("a list").iter().position(|n| n["Name"] == "app2").expect("app2");
    for (list, why_not) in [
        (Value::Null, "the manager has not given it a VNI yet"),
        ("4098,4099".into(), "it has 2 VNIs for 1 subnets; there must be one each"),
        ("x".into(), "\"x\" is no VNI"),
        ("16777216".into(), "\"16777216\" is no VNI"),
    ] {
        let (counts, why) = change(&|f| {
            let i = at(f);
            match &list {
                Value::Null => drop(f.networks[i]["Options"].as_object_mut().expect("object").remove(vnis)),
                list => f.networks[i]["Options"][vnis] = list.clone(),
            }
        });
        assert_eq!((counts, why), ((3, 2, 1, 3), one(&format!("{app2}: {why_not}"))));
    }
    let (counts, why) = change(&|f| {
        let i = at(f);
        f.networks[i]["Options"][vnis] = "4097".into();
    });
    // Whichever is listed first counts.
    assert_eq!((counts.1, why.len()), (2, 1));
    assert!(why[0].contains("has its VNI 4097 too"), "{why:?}");
}

#[test]
fn nodes() {
    // A manager may see itself as 0.0.0.0.
    let mut files = Files::of("02b-web3-running");
    let nodes = files.nodes.as_array_mut().expect("a list");
    let manager = nodes.iter_mut().find(|n| n.get("ManagerStatus").is_some()).expect("a manager");
    manager["Status"]["Addr"] = "0.0.0.0".into();
    let loaded = files.load();
    assert_eq!(loaded.model.find_node("n1").expect("n1").vtep.to_string(), "192.168.77.11");

    // A machine that has joined anew: its former self is down, has its name and address.
    let mut former = files.nodes[0].clone();
    former["ID"] = "former".into();
    former["Status"]["State"] = "down".into();
    files.nodes.as_array_mut().expect("a list").push(former);
    let loaded = files.load();
    assert_eq!(loaded.model.nodes.len(), 3);
    assert_eq!(
        left_out(&loaded),
        [
            "node n3 (former): another node, n3, has its address 192.168.77.13; if this is its former self: docker node rm \
             former; if both are behind one NAT, an agent must run on it to say where its tunnels end",
        ]
    );

    let mut files = Files::of("00-empty-3nodes");
    files.nodes[0]["Status"]["Addr"] = "fd00::1".into();
    let loaded = files.load();
    assert_eq!(loaded.model.nodes.len(), 2);
    assert!(left_out(&loaded)[0].contains("IPv6"));
}

#[test]
fn only_lists_are_captures() {
    let fine = EngineCapture { nodes: "null", services: "[]", tasks: "null", networks: "[]" };
    assert_eq!(parse(&fine).expect("empty lists").model.nodes, Loaded::default().model.nodes);
    let error = parse(&EngineCapture { services: "{\"message\": \"This node is not a swarm manager.\"}", ..fine });
    let error = error.expect_err("an error answer");
    assert_eq!(error.path, "services.json");
}
