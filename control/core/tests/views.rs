//! What the CLI lists: the documented JSON, spelled out.

mod support;

use hiveway_core::{model::AllowList, views};
use serde_json::{Value, json};
use support::capture;

fn json_of(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("serialisable")
}

#[test]
fn services() {
    let model = capture("05b-drain-n3-done").model;
    let backend = |task: &str, (node, hostname): (&str, &str), last: u8, state: &str| {
        json!({
            "task": task, "node": node, "hostname": hostname, "address": format!("10.0.1.{last}"),
            "addresses": {"app1": format!("10.0.1.{last}"), "ingress": format!("10.0.0.{last}")}, "state": state,
        })
    };
    let n1 = ("wy9v8f6l1p7n46ltuh8h5giv0", "n1");
    let n2 = ("ceaqvo2hfcnhuruxkl821cj75", "n2");
    let n3 = ("7fqdxkd8cf7sjp61pohir8j9i", "n3");
    let expected = json!([{
        "id": "xqxsv2mjdqjbymxtrni2mv8bw",
        "name": "web",
        "endpoint_mode": "vip",
        "vips": [
            {"network": "app1", "network_id": "mg4mgvyj2uov4s1ot8n37cytu", "address": "10.0.1.2"},
            {"network": "ingress", "network_id": "tborf1j99y7jea326xn8grrbv", "address": "10.0.0.5"},
        ],
        "ports": [{"protocol": "tcp", "published_port": 8080, "target_port": 80, "publish_mode": "ingress"}],
        "allow": null,
        "addresses": null,
        "deny": [],
        "backends": [
            backend("i4n1sks3cev4et8cxzws8oonl", n1, 16, "active"),
            backend("pj51huva8uo8ys3df4xl0fx2h", n2, 15, "active"),
            backend("xa83f5ikia7gk68hkjccgtvbm", n3, 13, "draining"),
            backend("xt2ll9bclseeriow27t5v31g3", n1, 12, "active"),
            backend("xuyhqqvqdyvpm8fxdt465q12q", n3, 17, "draining"),
            backend("ymv53cwwrscqqhgfdo8t4r30k", n2, 14, "active"),
        ],
        "vanished": false,
    }]);
    assert_eq!(json_of(views::services(&model, None, &AllowList::default())), expected);
}

#[test]
fn services_by_name() {
    let model = capture("30a-n3-down-mid").model;
    let views = views::services(&model, None, &AllowList::default());
    let shown: Vec<_> = views.iter().map(|s| format!("{} {}", s.name, s.backends.len())).collect();
    let expected =
        "badimg 0, crash 0, glob 0, hostp 2, inside 2, multi 1, pend 0, rr 2, six 0, small 2, udp 2, vn 2, web 1";
    assert_eq!(shown.join(", "), expected);
}

#[test]
fn networks() {
    let model = capture("20-plugin-network-global").model;
    let views = views::networks(&model, "ceaqvo2hfcnhuruxkl821cj75");
    let names: Vec<_> = views.iter().map(|n| (n.name.as_str(), n.joined, n.endpoints)).collect();
    assert_eq!(
        names,
        [
            // web 2, rr 3, hostp 3, udp 2, multi 2, badimg 1
            ("app1", true, 13),
            ("app2", false, 0),
            ("attach", true, 2),
            // web 2, udp 2, multi 2, gsvc 3
            ("ingress", true, 9),
            ("internal", true, 3),
            ("mtu1200", true, 3),
            ("twosub", true, 2),
            ("v6", false, 0),
            ("vni7777", true, 2),
        ]
    );
    let twosub = views.iter().find(|n| n.name == "twosub").expect("listed");
    assert_eq!(
        json_of(twosub),
        json!({
            "id": "hzu3b95hmunvqjj9hdfkhfxrm",
            "name": "twosub",
            "subnets": [
                {"subnet": "10.60.0.0/24", "gateway": "10.60.0.1", "vni": 4105},
                {"subnet": "10.60.1.0/24", "gateway": "10.60.1.1", "vni": 4106},
            ],
            "mtu": 1450, "ingress": false, "internal": false, "joined": true, "endpoints": 2,
        })
    );
    let on_n3 = views::networks(&model, "7fqdxkd8cf7sjp61pohir8j9i");
    assert!(!on_n3.iter().any(|n| n.name == "twosub" && n.joined));
}

#[test]
fn endpoints() {
    let model = capture("05b-drain-n3-done").model;
    let views = views::endpoints(&model, "7fqdxkd8cf7sjp61pohir8j9i");
    let shown: Vec<_> = views
        .iter()
        .map(|e| format!("{} {} {}{}", e.network, e.address, e.hostname, if e.local { " local" } else { "" }))
        .collect();
    let expected: Vec<_> = [("app1", "10.0.1"), ("ingress", "10.0.0")]
        .iter()
        .flat_map(|(network, net)| {
            [(12, "n1"), (13, "n3 local"), (14, "n2"), (15, "n2"), (16, "n1"), (17, "n3 local"), (18, "n2"), (19, "n1")]
                .map(|(last, node)| format!("{network} {net}.{last} {node}"))
        })
        .collect();
    assert_eq!(shown, expected);
    assert_eq!(
        json_of(&views[1]),
        json!({
            "task": "xa83f5ikia7gk68hkjccgtvbm", "service": "web", "node": "7fqdxkd8cf7sjp61pohir8j9i", "hostname": "n3",
            "vtep": "192.168.77.13", "local": true, "network": "app1", "address": "10.0.1.13",
            "mac": "02:42:0a:00:01:0d", "desired_state": "shutdown", "state": "running", "backend": "draining",
        })
    );
    assert_eq!(json_of(&views[7])["backend"], Value::Null, "waits for its predecessor");
}
