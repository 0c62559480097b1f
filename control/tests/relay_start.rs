//! What runs when: the relay of whole agents, as their engines say.

#[path = "support/relay.rs"]
mod relay;
#[path = "support/mod.rs"]
mod support;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use control::{
    engine::{EngineView, Membership},
    relay::{Handle, Options, deregister, start},
    source::{Hub, Live},
    state_dir::StateDir,
};
use hiveway_core::{
    merge::{Container, Health, LocalView, Reports, merge},
    model::Dataplane,
};
use relay::{eventually, loaded, table, until};
use support::in_fresh_netns;
use swarm_ca::{Ca, manager, replace, worker};
use tokio::sync::watch;

/// Manager m at 127.0.0.1, workers w1 and w2 at 127.0.0.2 and 127.0.0.3: all of loopback is ours.
fn node_address(node: &str) -> IpAddr {
    match node {
        "m" => [127, 0, 0, 1].into(),
        "w1" => [127, 0, 0, 2].into(),
        _ => [127, 0, 0, 3].into(),
    }
}

struct Agent {
    engine: watch::Sender<Arc<EngineView>>,
    table: watch::Sender<Arc<Live>>,
    hub: Hub,
    ready: watch::Sender<bool>,
    state_dir: PathBuf,
    handle: Handle,
}

impl Agent {
    fn start(node: &str, directory: &std::path::Path, managers: &[&str]) -> Self {
        Self::start_with(node, directory, managers, None)
    }

    /// `fixed`: as with `--table relay:HOST:PORT`.
    fn start_with(node: &str, directory: &std::path::Path, managers: &[&str], fixed: Option<&str>) -> Self {
        let state_dir = directory.join(node).join("state");
        std::fs::create_dir_all(&state_dir).unwrap();
        let view = EngineView {
            local: LocalView { node: Some(node.to_owned()), ..LocalView::default() },
            membership: Membership::Member,
            manager: managers.contains(&node),
            managers: managers.iter().map(|node| (node_address(node), (*node).to_owned())).collect(),
            manager_ids: Some(managers.iter().map(|node| (*node).to_owned()).collect()),
            ..EngineView::default()
        };
        let (engine, views) = watch::channel(Arc::new(view));
        let mut model = table();
        for node in model.nodes.values_mut() {
            if let IpAddr::V4(ip) = node_address(&node.id) {
                (node.address, node.vtep) = (ip, ip);
            }
        }
        let (table, tables) = watch::channel(Arc::new(Live::current(loaded(model), "test")));
        let hub = Hub {
            engine: views,
            table: tables,
            reports: watch::Sender::new(Arc::new(Reports::new())),
            relayed: watch::Sender::new(Arc::new(Live::default())),
            own: watch::Sender::new(Arc::default()),
        };
        let files = control::certs::Files::of_swarm(&directory.join(node));
        let options = Options { files, listen: None, state_dir: state_dir.clone(), fixed: fixed.map(str::to_owned) };
        let ready = watch::Sender::new(false);
        let handle = start(&hub, options, ready.subscribe(), watch::Sender::new(Arc::default()).subscribe());
        // The agent that was there before has not let go of it yet, in one process.
        handle.keep_in(StateDir::take(&state_dir).or_else(|_| StateDir::open(&state_dir)).unwrap());
        Self { engine, table, hub, ready, state_dir, handle }
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.handle.board.status()).unwrap()
    }

    fn engine(&self, change: impl FnOnce(&mut EngineView)) {
        self.engine.send_modify(|view| change(Arc::make_mut(view)));
    }

    /// What the agent's supervisor does with reports.
    fn merge_reports(&self) {
        let reports = self.hub.reports.borrow().clone();
        self.table.send_modify(|live| {
            let live = Arc::make_mut(live);
            live.table = live.table.as_ref().map(|t| Arc::new(merge(t, &LocalView::default(), Some(&reports))));
        });
    }
}

#[test]
fn a_node_reports_itself_when_it_is_ready_and_deregisters() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = directory.path();
        ca.issue(&path.join("m"), &manager("m"));
        ca.issue(&path.join("w1"), &worker("w1"));
        let m = Agent::start("m", path, &["m"]);
        eventually("a certificate", || !m.status()["certificate"].is_null()).await;
        assert!(m.status()["listening"].is_null(), "its tables would say that it takes mesh frames");
        m.ready.send_replace(true);
        eventually("listening at the node's address", || m.status()["listening"] == "127.0.0.1:4788").await;
        let w1 = Agent::start("w1", path, &["m"]);
        until(&mut w1.hub.relayed.subscribe(), "a table", |live| live.table.is_some()).await;
        assert!(m.hub.reports.borrow().is_empty(), "its data plane is not ready");
        assert_eq!(m.status()["agents"][0]["node"], "w1");
        w1.ready.send_replace(true);
        let mut reports = m.hub.reports.subscribe();
        until(&mut reports, "the report", |reports| reports.contains_key("w1")).await;

        // Its engine sees a container fail.
        let sick = Container { task: Some("t1".into()), health: Health::Unhealthy, ..Container::default() };
        w1.engine(|view| drop(view.local.containers.insert("c".into(), sick)));
        until(&mut reports, "t1 is unhealthy", |reports| reports["w1"].unhealthy.contains("t1")).await;

        let (contacts, kept) = (w1.state_dir.join("relay-contacts.json"), m.state_dir.join("relay-reports.json"));
        eventually("contacts are kept", || contacts.exists()).await;
        eventually("the report is kept", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("t1"))).await;
        std::fs::remove_file(&contacts).unwrap();
        std::fs::write(&kept, "{}").unwrap();
        eventually("contacts are there again", || contacts.exists()).await;
        eventually("so is the report", || std::fs::read_to_string(&kept).unwrap().contains("t1")).await;
        let state_dir = w1.state_dir.clone();
        drop(w1);
        eventually("gone", || m.status()["agents"].as_array().is_some_and(Vec::is_empty)).await;
        assert!(reports.borrow().contains_key("w1"), "the data plane goes on");
        let told = tokio::task::spawn_blocking(move || deregister(&state_dir)).await.unwrap();
        assert_eq!(told, Some(vec![Ok("manager m at 127.0.0.1:4788".into())]));
        assert!(reports.borrow().is_empty());
    });
}

#[test]
fn the_only_manager_says_that_it_leaves_to_those_that_had_their_tables_from_it() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = directory.path();
        ca.issue(&path.join("m"), &manager("m"));
        ca.issue(&path.join("w1"), &worker("w1"));
        ca.issue(&path.join("w2"), &worker("w2"));
        let m = Agent::start("m", path, &["m"]);
        m.table.send_modify(|live| {
            let table = Arc::make_mut(live).table.as_mut().map(Arc::make_mut);
            table.unwrap().model.nodes.get_mut("m").unwrap().dataplane = Dataplane::Hiveway;
        });
        let [w1, w2] = ["w1", "w2"].map(|node| Agent::start(node, path, &["m"]));
        for agent in [&m, &w1, &w2] {
            agent.ready.send_replace(true);
        }
        let has = |live: &Live| live.table.as_ref().map(|table| table.model.nodes["m"].dataplane);
        let mut tables = w1.hub.relayed.subscribe();
        until(&mut tables, "a table that knows of m", |live| has(live) == Some(Dataplane::Hiveway)).await;
        until(&mut m.hub.reports.subscribe(), "w2's report", |reports| reports.contains_key("w2")).await;
        eventually("contacts are kept", || m.state_dir.join("relay-contacts.json").exists()).await;
        // w2's agent does not run: nobody there can hear it.
        let state_dir = m.state_dir.clone();
        drop((m, w2));
        until(&mut tables, "the manager is gone", |live| live.lost.is_some()).await;
        assert_eq!(has(&tables.borrow()), Some(Dataplane::Hiveway), "its data plane goes on");
        let told = tokio::task::spawn_blocking(move || deregister(&state_dir)).await.unwrap().unwrap();
        assert_eq!(has(&tables.borrow()), Some(Dataplane::None));
        assert_eq!(told[0], Ok("node w1".into()));
        assert!(matches!(&told[1..], [Err(why)] if why.contains("node w2")), "{told:?}");
    });
}

#[test]
fn a_promoted_node_serves_and_a_demoted_one_stops() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = directory.path();
        ca.issue(&path.join("m"), &manager("m"));
        let files = ca.issue(&path.join("w1"), &worker("w1"));
        ca.issue(&path.join("w2"), &worker("w2"));
        let m = Agent::start("m", path, &["m"]);
        let w1 = Agent::start("w1", path, &["m"]);
        let w2 = Agent::start("w2", path, &["m"]);
        for agent in [&m, &w1, &w2] {
            agent.ready.send_replace(true);
        }
        until(&mut m.hub.reports.subscribe(), "w2's report", |reports| reports.contains_key("w2")).await;
        m.merge_reports();
        until(&mut w1.hub.reports.subscribe(), "what the manager knows, on the worker", |r| r.contains_key("w2")).await;
        assert_eq!(w1.status()["listening"], serde_json::Value::Null);

        // Promoted: a new certificate, and the engines say so.
        let next = ca.issue(&path.join("next"), &manager("w1"));
        replace(&files.key, &std::fs::read_to_string(next.key).unwrap());
        replace(&files.cert, &std::fs::read_to_string(next.cert).unwrap());
        let both: BTreeMap<IpAddr, String> = ["m", "w1"].map(|node| (node_address(node), node.to_owned())).into();
        w1.engine(|view| (view.manager, view.managers) = (true, both.clone()));
        w2.engine(|view| view.managers = both.clone());
        m.engine(|view| view.managers = both);
        eventually("serving", || w1.status()["listening"] == "127.0.0.2:4788").await;
        eventually("w2 and m are there", || w1.status()["agents"].as_array().is_some_and(|agents| agents.len() == 2))
            .await;
        assert!(w1.hub.reports.borrow().contains_key("w2"));
        assert!(w1.hub.relayed.borrow().lost.is_some(), "a manager has its own table");

        // The old manager is demoted: tables come from the new one.
        let old: BTreeMap<IpAddr, String> = [(node_address("w1"), "w1".to_owned())].into();
        m.engine(|view| (view.manager, view.managers) = (false, old.clone()));
        let mut relayed = m.hub.relayed.subscribe();
        until(&mut relayed, "the new manager's table", |live| live.is_current() && live.from.contains("127.0.0.2"))
            .await;
        let mut relayed = w2.hub.relayed.subscribe();
        until(&mut relayed, "the new manager's table", |live| live.is_current() && live.from.contains("127.0.0.2"))
            .await;
        eventually("silent", || m.status()["listening"].is_null()).await;
    });
}

/// The table and the engine say that m is there now.
fn moves(m: &Agent, address: Ipv4Addr) {
    m.table.send_modify(|live| {
        let table = Arc::make_mut(live).table.as_mut().map(Arc::make_mut).unwrap();
        let node = table.model.nodes.get_mut("m").unwrap();
        (node.address, node.vtep) = (address, address);
    });
    m.engine(|view| view.managers = [(address.into(), "m".to_owned())].into());
}

#[test]
fn a_manager_serves_where_the_others_find_it_and_deregisters_there() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = directory.path();
        ca.issue(&path.join("m"), &manager("m"));
        ca.issue(&path.join("w1"), &worker("w1"));
        let (m, w1) = (Agent::start("m", path, &["m"]), Agent::start("w1", path, &["m"]));
        for agent in [&m, &w1] {
            agent.ready.send_replace(true);
        }
        eventually("listening", || m.status()["listening"] == "127.0.0.1:4788").await;
        // The swarm was made anew with another address, and nobody has seen the node outside of one.
        moves(&m, [127, 0, 0, 9].into());
        w1.engine(|view| view.managers = [([127, 0, 0, 9].into(), "m".to_owned())].into());
        eventually("listening there", || m.status()["listening"] == "127.0.0.9:4788").await;
        let mut relayed = w1.hub.relayed.subscribe();
        until(&mut relayed, "its table from there", |live| live.is_current() && live.from.contains("127.0.0.9")).await;

        // Behind a NAT: on no interface. What it leads to is an address of the node's own.
        moves(&m, [203, 0, 113, 7].into());
        w1.engine(|view| view.managers = [([127, 0, 0, 1].into(), "m".to_owned())].into());
        eventually("listening for that", || m.status()["listening"] == "203.0.113.7:4788").await;
        until(&mut relayed, "its table over the NAT", |live| live.is_current() && live.from.contains("127.0.0.1"))
            .await;
        until(&mut m.hub.reports.subscribe(), "w1's report", |reports| reports.contains_key("w1")).await;
        let contacts = m.state_dir.join("relay-contacts.json");
        eventually("contacts are kept", || {
            std::fs::read_to_string(&contacts).is_ok_and(|text| text.contains("0.0.0.0:4788"))
        })
        .await;
        let state_dir = m.state_dir.clone();
        drop(m);
        until(&mut relayed, "the manager is gone", |live| live.lost.is_some()).await;
        let told = tokio::task::spawn_blocking(move || deregister(&state_dir)).await.unwrap();
        assert_eq!(told, Some(vec![Ok("node w1".into())]));
    });
}

#[test]
fn at_a_fixed_address_only_a_node_that_the_engine_calls_a_manager_is_believed() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = directory.path();
        ca.issue(&path.join("m"), &manager("m"));
        ca.issue(&path.join("w1"), &worker("w1"));
        let m = Agent::start("m", path, &["m"]);
        m.ready.send_replace(true);
        eventually("listening", || m.status()["listening"] == "127.0.0.1:4788").await;
        let w1 = Agent::start_with("w1", path, &["m"], Some("127.0.0.1:4788"));
        let link = || w1.status()["managers"][0].clone();
        let mut relayed = w1.hub.relayed.subscribe();
        until(&mut relayed, "a table", |live| live.table.is_some() && live.lost.is_none()).await;
        assert_eq!(w1.status()["warnings"], serde_json::json!([]));

        // m is demoted; its agent, or what has its certificate, goes on serving.
        w1.engine(|view| view.manager_ids = Some(["m2".to_owned()].into()));
        until(&mut relayed, "m is not believed", |live| {
            live.lost.as_ref().is_some_and(|lost| lost.why.contains("node m is there") && lost.why.contains("m2"))
        })
        .await;
        assert_eq!(link()["state"], "distrusted");
        assert!(relayed.borrow().table.is_some(), "what it has said before stays");
        m.table.send_modify(|live| {
            let table = Arc::make_mut(live).table.as_mut().map(Arc::make_mut);
            table.unwrap().model.nodes.remove("w2");
        });
        // Longer than it takes to connect again.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        assert!(relayed.borrow().table.as_ref().unwrap().model.nodes.contains_key("w2"), "nothing new from it");
        assert_eq!(link()["state"], "distrusted");

        // The engine falls silent: its last word stays.
        let lost = control::source::Lost { since: std::time::Instant::now(), why: "gone".into() };
        w1.engine(|view| view.lost = Some(lost.clone()));
        eventually("it is said", || link()["why"].as_str().is_some_and(|why| why.contains("fell silent (gone)"))).await;

        // Promoted again.
        w1.engine(|view| (view.manager_ids, view.lost) = (Some(["m".to_owned()].into()), None));
        until(&mut relayed, "the new table", |live| {
            live.is_current() && !live.table.as_ref().unwrap().model.nodes.contains_key("w2")
        })
        .await;
        assert_eq!(link()["state"], "connected");

        // An engine that has never said counts for nothing, and that is said.
        drop(w1);
        let w1 = Agent::start_with("w1", path, &[], Some("127.0.0.1:4788"));
        w1.engine(|view| (view.manager_ids, view.lost) = (None, Some(lost)));
        until(&mut w1.hub.relayed.subscribe(), "a table", |live| live.table.is_some()).await;
        eventually("its certificate alone", || {
            w1.status()["warnings"][0].as_str().is_some_and(|why| why.contains("node m at 127.0.0.1:4788"))
        })
        .await;
    });
}

#[test]
fn without_certificates_it_waits_and_says_why() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = directory.path();
        let m = Agent::start("m", path, &["m"]);
        m.ready.send_replace(true);
        let why = |m: &Agent| m.status()["warnings"][0].as_str().unwrap_or_default().to_owned();
        eventually("a word of it", || why(&m).contains("cannot read")).await;
        assert!(m.hub.relayed.borrow().lost.as_ref().unwrap().why.contains("swarm-node.crt"));
        // The swarm is autolocked.
        let files = ca.issue(&path.join("m"), &manager("m"));
        let key = std::fs::read_to_string(&files.key).unwrap();
        replace(&files.key, &key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
        eventually("another word", || why(&m).contains("autolock")).await;
        replace(&files.key, &key);
        eventually("listening", || m.status()["listening"] == "127.0.0.1:4788").await;
        assert_eq!(m.status()["warnings"], serde_json::json!([]));
        assert_eq!(m.status()["certificate"]["role"], "manager");
    });
}
