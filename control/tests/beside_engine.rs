//! A whole agent beside an engine and a manager that say what they are told to. Needs root and `nft`.

#[path = "support/fake_engine.rs"]
mod fake_engine;
#[path = "support/fake_manager.rs"]
mod fake_manager;
mod support;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{
    fs::File,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use fake_engine::FakeEngine;
use fake_manager::FakeManager;
use hiveway_proto::swarm::{Meta, Node as SwarmNode, NodeDescription, NodeStatus, Version, object::Kind};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use support::{
    HIVEWAY, Netns,
    node::{Agent, Node, eventually},
    run, stdout,
};
use tokio::runtime::Runtime;

/// What both nodes announce behind a NAT, and the next hop's network.
const ANNOUNCED: &str = "203.0.113.7";
const OTHER: &str = "203.0.113.99";
const UPDATE: u32 = 2;

/// Node n1, the only manager, whose agent runs beside the two.
struct Beside {
    node: Node,
    engine: FakeEngine,
    manager: FakeManager,
    runtime: Runtime,
}

impl Beside {
    /// A swarm of n1 alone, at this address.
    fn new(address: &str) -> Self {
        let node = Node::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (engine, manager) =
            runtime.block_on(async { (FakeEngine::start(node.scratch.path()), FakeManager::start()) });
        let beside = Self { node, engine, manager, runtime };
        beside.engine_says(address);
        beside.manager.swarm.with(|objects| objects.nodes = vec![swarm_node("n1", 10, address)]);
        beside
    }

    /// The engine's own view of its node: a manager at this address, which knows another one.
    fn engine_says(&self, address: &str) {
        let peer = |node: &str, address: &str| json!({"NodeID": node, "Addr": format!("{address}:2377")});
        let managers = [peer("n1", address), peer("m", OTHER)];
        self.engine.world().swarm = json!({"NodeID": "n1", "NodeAddr": address, "LocalNodeState": "active",
            "ControlAvailable": true, "Error": "", "RemoteManagers": managers});
    }

    /// Starts the agent, with a live table.
    fn start(&self) -> Agent {
        let show = |path: std::path::PathBuf| path.display().to_string();
        self.node.start(&[
            ("--node", ""),
            ("--table", "swarm"),
            ("--docker-socket", &show(self.engine.socket.clone())),
            ("--swarm-dir", &show(self.manager.path(""))),
            ("--control-socket", &show(self.manager.path("control.sock"))),
        ])
    }

    fn status(&self) -> Value {
        self.node.ask(&["status"])
    }

    /// `hiveway status`, as an operator reads it.
    fn status_text(&self) -> String {
        let mut command = std::process::Command::new(HIVEWAY);
        stdout(&command.arg("status").arg("--socket").arg(self.node.path("agent.sock")).output().unwrap())
    }

    fn healthy(&self) -> bool {
        self.status()["healthy"] == true
    }

    /// Waits until the node is not healthy because of its engine alone, and returns what status says of it.
    fn until_engine_is_lost(&self) -> String {
        eventually("the node is not healthy", || !self.healthy());
        let status = self.status();
        assert_eq!(status["failing"], json!([]), "{status:#}");
        assert_eq!(status["table"]["unreachable"], Value::Null, "{status:#}");
        let why = status["engine"]["unreachable"]["why"].as_str().unwrap_or_default().to_owned();
        assert!(!why.is_empty(), "{status:#}");
        let text = self.status_text();
        let line = text.lines().find(|line| line.starts_with("engine")).unwrap_or_default();
        assert!(line.contains(&why) && text.contains("degraded"), "{text}");
        why
    }

    fn until_healthy_again(&self) {
        eventually("the node is healthy again", || self.healthy());
        assert_eq!(self.status()["engine"]["unreachable"], Value::Null);
    }
}

fn swarm_node(id: &str, version: u64, address: &str) -> SwarmNode {
    SwarmNode {
        id: id.into(),
        meta: Some(Meta { version: Some(Version { index: version }), created_at: None }),
        description: Some(NodeDescription { hostname: id.into() }),
        status: Some(NodeStatus { state: 2, addr: address.into() }),
        manager_status: None,
        attachments: Vec::new(),
        vxlan_udp_port: 0,
    }
}

#[test]
fn an_engine_that_hangs_makes_the_node_unhealthy_until_it_answers() {
    let beside = Beside::new("192.0.2.1");
    let agent = beside.start();
    eventually("the node is healthy", || beside.healthy());
    beside.engine.world().hangs = true;
    let why = beside.until_engine_is_lost();
    assert!(why.contains("no answer within 30 s"), "{why}");
    beside.engine.world().hangs = false;
    beside.until_healthy_again();
    agent.stop();
    assert_eq!(beside.node.teardown().status.code(), Some(0));
}

#[test]
fn an_engine_that_is_gone_makes_the_node_unhealthy_until_it_is_back() {
    let mut beside = Beside::new("192.0.2.1");
    let agent = beside.start();
    eventually("the node is healthy", || beside.healthy());
    let socket = beside.engine.socket.clone();
    // Killed, it leaves its socket behind.
    beside.engine.die();
    beside.until_engine_is_lost();
    let names = |reason: &str| {
        let path = socket.display().to_string();
        let mut why = String::new();
        eventually(&format!("{reason:?} as a reason"), || {
            assert!(!beside.healthy());
            why = beside.status()["engine"]["unreachable"]["why"].as_str().unwrap_or_default().to_owned();
            why.contains(&path) && why.contains(reason)
        });
    };
    names("Connection refused");
    // Stopped, it takes it along.
    std::fs::remove_file(&socket).unwrap();
    names("not found");
    beside.engine = beside.runtime.block_on(async { FakeEngine::start(beside.node.scratch.path()) });
    beside.engine_says("192.0.2.1");
    beside.until_healthy_again();
    agent.stop();
    assert_eq!(beside.node.teardown().status.code(), Some(0));
}

/// Where the node's tunnels come from, as another node sees it.
struct OtherNode(UdpSocket);

impl OtherNode {
    /// Takes what is sent to UDP port 4789 in that namespace.
    fn in_(netns: &Netns) -> Self {
        let file = File::open(netns.path()).unwrap();
        let bind = move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4789)).unwrap()
        };
        let socket = std::thread::spawn(bind).join().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(socket)
    }

    /// Waits for a probe from this address.
    fn hears(&self, own: &str) {
        eventually(&format!("a probe from {own}"), || {
            let (_, from) = self.0.recv_from(&mut [0; 2048]).expect("no probes");
            from.ip().to_string() == own
        });
    }
}

#[test]
fn addresses_behind_a_nat_that_change_are_taken_up() {
    let beside = Beside::new(ANNOUNCED);
    let node = &beside.node;
    std::fs::write(beside.manager.path("docker-state.json"), r#"{"LocalAddr": "192.0.2.1"}"#).unwrap();
    for space in [&node.netns, &node.far] {
        space.run("ip route add 203.0.113.0/24 dev eth0");
    }
    run(&format!("ip -n {} addr add {OTHER}/32 dev eth0", node.far.0));
    // The other node has reported itself to an earlier agent here.
    std::fs::create_dir(node.path("state")).unwrap();
    let report = json!({"n2": {"vtep": OTHER, "version": "0.1.0", "vxlan_port": 4789}});
    std::fs::write(node.path("state").join("relay-reports.json"), report.to_string()).unwrap();
    beside.manager.swarm.with(|objects| objects.nodes.push(swarm_node("n2", 11, OTHER)));
    let other = OtherNode::in_(&node.far);
    let agent = beside.start();
    let shows = |announced: &str, own: Option<&str>| {
        eventually(&format!("{announced}, here {own:?}"), || {
            let status = beside.status();
            let own = own.map_or(Value::Null, Value::from);
            status["node"]["vtep"] == announced && status["node"]["underlay_address"] == own
        });
        let status = beside.status();
        assert_eq!(status["failing"], json!([]), "{status:#}");
    };
    shows(ANNOUNCED, Some("192.0.2.1"));
    other.hears("192.0.2.1");

    // Another announced address, of the table and of the engine.
    let next = "203.0.113.8";
    beside.engine_says(next);
    beside.manager.swarm.push(vec![(UPDATE, Kind::Node(swarm_node("n1", 12, next)))]);
    shows(next, Some("192.0.2.1"));
    other.hears("192.0.2.1");

    // Another lease. The engine still says where it listened when it started.
    run(&format!("ip -n {0} addr del 192.0.2.1/24 dev eth0 && ip -n {0} addr add 192.0.2.9/24 dev eth0", node.netns.0));
    node.netns.run("ip route replace 203.0.113.0/24 dev eth0");
    shows(next, Some("192.0.2.9"));
    other.hears("192.0.2.9");

    // No NAT any more, and one again.
    beside.engine_says("192.0.2.9");
    beside.manager.swarm.push(vec![(UPDATE, Kind::Node(swarm_node("n1", 13, "192.0.2.9")))]);
    shows("192.0.2.9", None);
    other.hears("192.0.2.9");
    beside.engine_says(ANNOUNCED);
    beside.manager.swarm.push(vec![(UPDATE, Kind::Node(swarm_node("n1", 14, ANNOUNCED)))]);
    shows(ANNOUNCED, Some("192.0.2.9"));
    other.hears("192.0.2.9");
    agent.stop();
    assert_eq!(node.teardown().status.code(), Some(0));
}
