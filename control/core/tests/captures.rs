//! Who is endpoint, backend and draining in captures of a real swarm. The expectations were read off the captures'
//! JSON by hand, not taken from our own output: `task id prefix @ node`, per service.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use hiveway_core::{Model, TaskRole};

/// A service's tasks that take part.
#[derive(Clone, Copy, Default)]
struct Expected {
    service: &'static str,
    /// running/running, node not down.
    backends: &'static str,
    /// Desired past running, still running, node not down.
    draining: &'static str,
    /// Networked, but neither.
    others: &'static str,
}

const NOBODY: Expected = Expected { service: "", backends: "", draining: "", others: "" };

fn roles(model: &Model) -> BTreeMap<String, BTreeMap<TaskRole, BTreeSet<String>>> {
    let mut roles: BTreeMap<String, BTreeMap<TaskRole, BTreeSet<String>>> = BTreeMap::new();
    for task in model.tasks.values() {
        let role = model.role(task);
        if role == TaskRole::Absent {
            continue;
        }
        let service = task.service.as_ref().map_or("-", |id| model.services.get(id).map_or(id, |s| &s.name));
        let node = &model.nodes[task.node.as_ref().expect("an endpoint has a node")].hostname;
        let task = format!("{}@{node}", &task.id[..5]);
        roles.entry(service.into()).or_default().entry(role).or_default().insert(task);
    }
    roles
}

/// Asserts the parts of all tasks in a capture; services that are not named must have no endpoint.
#[track_caller]
fn assert_roles(capture: &str, expected: &[Expected]) {
    let mut wanted: BTreeMap<String, BTreeMap<TaskRole, BTreeSet<String>>> = BTreeMap::new();
    for e in expected {
        for (role, list) in
            [(TaskRole::Backend, e.backends), (TaskRole::Draining, e.draining), (TaskRole::Endpoint, e.others)]
        {
            let tasks: BTreeSet<String> = list.split_whitespace().map(str::to_owned).collect();
            if !tasks.is_empty() {
                wanted.entry(e.service.into()).or_default().insert(role, tasks);
            }
        }
    }
    assert_eq!(roles(&support::capture(capture).model), wanted, "{capture}");
}

const fn backends(service: &'static str, backends: &'static str) -> Expected {
    Expected { service, backends, ..NOBODY }
}

/// Three replicas, one per node, as first started.
const WEB_FIRST_3: &str = "5kjv4@n3 zq82g@n1 cpxnz@n2";
/// What is left after scaling to two.
const WEB_2: Expected = backends("web", "c9405@n3 usrgm@n1");
const RR: Expected = backends("rr", "jwcm4@n2 nwu23@n3 9gv5l@n1");
const HOSTP: Expected = backends("hostp", "gnfu6@n1 pdzn1@n3 urwgz@n2");
const UDP: Expected = backends("udp", "5gs0x@n2 3tpkt@n1");
const SMALL: Expected = backends("small", "lhcfg@n2 3sec6@n1 aykng@n3");
const INSIDE: Expected = backends("inside", "a20vi@n1 09wne@n2 ri6as@n3");
const MULTI: Expected = backends("multi", "9ua7d@n2 t579s@n3");
const VN: Expected = backends("vn", "85pu7@n2 0ba1o@n1");

#[test]
fn without_services() {
    assert_roles("00-empty-3nodes", &[]);
    assert_roles("01-networks-no-services", &[]);
}

#[test]
fn first_start() {
    // Assigned and preparing: networked already, no flows yet.
    assert_roles("02a-web3-starting", &[Expected { service: "web", others: WEB_FIRST_3, ..NOBODY }]);
    assert_roles("02b-web3-running", &[backends("web", WEB_FIRST_3)]);
}

#[test]
fn scale_up() {
    let mid = Expected { others: "cpg83@n2 rulv6@n3 odjap@n1", ..backends("web", WEB_FIRST_3) };
    assert_roles("03a-scale-3-to-6-mid", &[mid]);
    let done = backends("web", "5kjv4@n3 zq82g@n1 cpxnz@n2 cpg83@n2 rulv6@n3 odjap@n1");
    assert_roles("03b-scale-6-done", &[done]);
}

#[test]
fn rolling_update() {
    // zq82g has been shut down and replaced by xt2ll; it still carries its addresses.
    let mid = backends("web", "5kjv4@n3 xt2ll@n1 cpxnz@n2 cpg83@n2 rulv6@n3 odjap@n1");
    assert_roles("04a-rolling-update-mid", &[mid]);
    let done = backends("web", "xa83f@n3 xt2ll@n1 pj51h@n2 ymv53@n2 xuyhq@n3 i4n1s@n1");
    assert_roles("04b-rolling-update-done", &[done]);
}

#[test]
fn drained_node() {
    // n3 is being drained: its two tasks are shutdown/running, their replacements ready/preparing.
    let draining = Expected {
        service: "web",
        backends: "xt2ll@n1 pj51h@n2 ymv53@n2 i4n1s@n1",
        draining: "xa83f@n3 xuyhq@n3",
        others: "xzj6v@n1 p7afc@n2",
    };
    assert_roles("05b-drain-n3-done", &[draining]);
    let rebalance = Expected { others: "c9405@n3", ..backends("web", "xt2ll@n1 pj51h@n2 ymv53@n2 p7afc@n2 i4n1s@n1") };
    assert_roles("05c-n3-active-rebalance-mid", &[rebalance]);
}

#[test]
fn scale_down() {
    // remove/running: no new flows, established ones go on.
    let mid = Expected { draining: "5vf4d@n2 9le4e@n3 sdeh1@n2 5z9vr@n1", ..WEB_2 };
    assert_roles("06a-scale-6-to-2-mid", &[mid]);
    assert_roles("06b-scale-2-done", &[WEB_2]);
}

#[test]
fn kinds_of_services() {
    assert_roles("10-dnsrr", &[WEB_2, RR]);
    assert_roles("11-publish-host-global", &[WEB_2, RR, HOSTP]);
    assert_roles("12-udp-ingress", &[WEB_2, RR, HOSTP, UDP]);
}

#[test]
fn kinds_of_networks() {
    // Service `glob` is on the encrypted network only: nobody of it is networked.
    assert_roles("13-encrypted-global", &[WEB_2, RR, HOSTP, UDP]);
    assert_roles("14-mtu1200", &[WEB_2, RR, HOSTP, UDP, SMALL]);
    assert_roles("15-internal", &[WEB_2, RR, HOSTP, UDP, SMALL, INSIDE]);
    // The standalone container's attachment task is not in the answer of /tasks.
    assert_roles("16-attachable-standalone-multinet", &[WEB_2, RR, HOSTP, UDP, SMALL, INSIDE, MULTI]);
    // Service `six` has IPv6 addresses only.
    assert_roles("17-ipv6-dual-subnet", &[WEB_2, RR, HOSTP, UDP, SMALL, INSIDE, MULTI]);
}

#[test]
fn plugin_network_and_tasks_that_fail() {
    // gsvc is on a plugin driver's network, which is left out, and on the ingress network, which is not.
    // crash has failed tasks only, badimg rejected ones and one that waits, pend no node.
    let gsvc = backends("gsvc", "29bxj@n1 5jtbu@n3 5fkh7@n2");
    let badimg = Expected { service: "badimg", others: "sm8s1@n1", ..NOBODY };
    let all = [WEB_2, RR, HOSTP, UDP, SMALL, INSIDE, MULTI, VN, gsvc, badimg];
    assert_roles("20-plugin-network-global", &all);
}

#[test]
fn node_down() {
    // Tasks on n3 are shutdown/running, but the node is down: networked still, neither backend nor draining.
    let on = |service, backends, others| Expected { service, backends, others, ..NOBODY };
    assert_roles(
        "30a-n3-down-mid",
        &[
            on("web", "usrgm@n1", "c9405@n3 hhky0@n2"),
            on("rr", "jwcm4@n2 9gv5l@n1", "nwu23@n3 9cel2@n1"),
            on("hostp", "gnfu6@n1 urwgz@n2", "pdzn1@n3"),
            UDP,
            on("small", "lhcfg@n2 3sec6@n1", "aykng@n3 drezx@n2"),
            on("inside", "a20vi@n1 09wne@n2", "ri6as@n3 rpvqd@n2"),
            on("multi", "9ua7d@n2", "t579s@n3 ridzi@n1"),
            VN,
            // Shutdown/preparing on n3, ready/preparing on n1.
            on("badimg", "", "sw8t8@n3 uf79r@n1"),
            // This replica got an IPv4 address on the dual-stack network.
            on("six", "", "ozqeu@n2"),
        ],
    );
}

#[test]
fn node_back_and_promotion() {
    let common = [
        backends("web", "usrgm@n1 hhky0@n2"),
        backends("rr", "jwcm4@n2 9cel2@n1 9gv5l@n1"),
        UDP,
        backends("small", "lhcfg@n2 3sec6@n1 drezx@n2"),
        backends("inside", "a20vi@n1 09wne@n2 rpvqd@n2"),
        backends("multi", "9ua7d@n2 ridzi@n1"),
        VN,
        Expected { service: "badimg", others: "ntvyi@n3", ..NOBODY },
        backends("six", "ozqeu@n2"),
        // The new global task on n3 prepares in one capture and starts in the other.
        Expected { others: "k8wdf@n3", ..backends("hostp", "gnfu6@n1 urwgz@n2") },
    ];
    assert_roles("30c-n3-back", &common);
    assert_roles("31-n2-promoted", &common);
}

#[test]
fn all_captures_are_here() {
    assert_eq!(support::captures().len(), 24);
}

/// What is left out is named, and nothing else is.
#[test]
fn left_out() {
    let what = |capture: &str| -> Vec<String> {
        support::capture(capture).left_out.into_iter().map(|l| format!("{}: {}", l.what, l.why)).collect()
    };
    for complete in [
        "00-empty-3nodes",
        "01-networks-no-services",
        "02a-web3-starting",
        "02b-web3-running",
        "03a-scale-3-to-6-mid",
        "03b-scale-6-done",
        "04a-rolling-update-mid",
        "04b-rolling-update-done",
        "05b-drain-n3-done",
        "05c-n3-active-rebalance-mid",
        "06a-scale-6-to-2-mid",
        "06b-scale-2-done",
        "10-dnsrr",
        "11-publish-host-global",
        "12-udp-ingress",
    ] {
        assert_eq!(what(complete), [""; 0], "{complete}");
    }
    let enc = "network enc (bvu01v5vvjq6mapd54np85tfx): encrypted networks are not supported yet and never carried in \
               cleartext";
    for capture in ["13-encrypted-global", "14-mtu1200", "15-internal", "16-attachable-standalone-multinet"] {
        assert_eq!(what(capture), [enc], "{capture}");
    }
    let six = |task: &str, ip: &str| format!("address {ip} of task {task} on network v6: IPv6 is not supported yet");
    let vip6 = "virtual address fd00:51::2/64 of service six (0bwt7r0erb1w37gebwfpqbrzj): IPv6 is not supported yet";
    let sub6 = "subnet fd00:51::/64 of network v6 (uj1z79h8o04ffnme0qgaeae6s): IPv6 is not supported yet";
    let six1 = six("six.1 (l27g85q995hb1ouydn8e7e9t1)", "fd00:51::3/64");
    let six2 = six("six.2 (v58dftza9p4d94zh4rzrd3omu)", "fd00:51::4/64");
    let six3 = six("six.3 (zhmuyolgspt3sfakw4yvkg038)", "fd00:51::5/64");
    assert_eq!(what("17-ipv6-dual-subnet"), [&six1, &six2, &six3, enc, sub6, vip6]);
    let gnet = "network gnet (luq82cd6opmew6u4kzuud37fj): its driver is dx/glob:v1; only overlay networks are carried";
    assert_eq!(what("20-plugin-network-global"), [&six1, &six2, &six3, enc, gnet, sub6, vip6]);
    assert_eq!(what("30a-n3-down-mid"), [&six1, &six2, &six3, enc, sub6, vip6]);
    // six.2 has been replaced by a task with an IPv4 address.
    for capture in ["30c-n3-back", "31-n2-promoted"] {
        assert_eq!(what(capture), [&six1, &six3, enc, sub6, vip6], "{capture}");
    }
}
