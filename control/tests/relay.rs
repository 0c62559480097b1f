//! The relay between agents: tables down, reports up, over loopback.

#[path = "support/relay.rs"]
mod relay;
#[path = "support/mod.rs"]
mod support;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{
    num::NonZeroU16,
    time::{Duration, Instant},
};

use control::relay::client::{Contacts, Manager, deregister};
use hiveway_core::{
    merge::Report,
    model::{Dataplane, NodeState},
};
use relay::{Client, Server, eventually, loaded, m, model, table, until};
use support::in_fresh_netns;
use swarm_ca::{Ca, manager, worker};

/// Everything of one test: a directory for files, and the swarm's CA.
struct Swarm {
    directory: tempfile::TempDir,
    ca: Ca,
}

impl Swarm {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ca: Ca::new() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn server(&self) -> Server {
        Server::start(&self.ca, &m(), self.path("m")).await
    }

    fn client(&self, node: &str, servers: &[&Server]) -> Client {
        Client::of(&self.ca, self.path(node), node, servers)
    }
}

fn hiveway(live: &control::source::Live, node: &str) -> bool {
    model(live).is_some_and(|model| model.nodes[node].dataplane == Dataplane::Hiveway)
}

#[test]
fn workers_get_their_part_of_the_table_and_every_change() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        server.change(|model| drop(model.tasks.remove("t1")));
        let mut w1 = swarm.client("w1", &[&server]);
        let live = w1.until("a table", |live| live.table.is_some()).await;
        assert!(live.is_current() && live.from == format!("relay {}", server.address), "{live:?}");
        let got = model(&live).unwrap();
        assert_eq!(got.nodes.len(), 3);
        assert_eq!(got.networks.keys().collect::<Vec<_>>(), ["ing"], "no task of its own on app");
        assert!(got.services["web"].labels.is_empty(), "labels may hold secrets");
        server.change(|model| *model = table());
        w1.until("its task's network", |live| model(live).is_some_and(|m| m.networks.contains_key("app"))).await;
    });
}

#[test]
fn reports_reach_everybody_within_half_a_second() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let (server, other) = (swarm.server().await, Server::start(&swarm.ca, &manager("m2"), swarm.path("m2")).await);
        let servers = [&server, &other];
        let mut w2 = swarm.client("w2", &servers);
        w2.until("a table", |live| live.table.is_some()).await;
        let first = w2.live.borrow().clone();
        assert!(!hiveway(&first, "w1"), "nodes that have never reported have no Hiveway");

        let w1 = swarm.client("w1", &servers);
        let vxlan_port = NonZeroU16::new(7789);
        let report =
            Report { vtep: Some([198, 51, 100, 1].into()), vxlan_port, version: "0.1.0".into(), ..Report::default() };
        w1.report.send_replace(Some(report.clone()));
        let live = w2.until("w1 has Hiveway", |live| hiveway(live, "w1")).await;
        assert_eq!(model(&live).unwrap().nodes["w1"].vtep.to_string(), "198.51.100.1");
        assert_eq!(model(&live).unwrap().nodes["w1"].vxlan_port, vxlan_port, "its own word");
        assert_eq!(live.table.as_ref().unwrap().data_path_port, NonZeroU16::new(4790), "the swarm's");
        // Both managers know, whoever serves w2.
        for server in servers {
            until(&mut server.reports.clone(), "the report", |reports| reports.contains_key("w1")).await;
        }

        let mut slowest = Duration::ZERO;
        for round in 0..10 {
            let sick = round % 2 == 0;
            let began = Instant::now();
            let unhealthy = if sick { ["t1".to_owned()].into() } else { Default::default() };
            w1.report.send_replace(Some(Report { unhealthy, ..report.clone() }));
            w2.until("t1's health", |live| model(live).is_some_and(|m| m.tasks["t1"].unhealthy == sick)).await;
            slowest = slowest.max(began.elapsed());
        }
        eprintln!("unhealthy at one node → table at another: {slowest:?} at most");
        assert!(slowest < Duration::from_millis(500), "{slowest:?}");
        // Another node's tasks are none of its business.
        w1.report.send_replace(Some(Report { unhealthy: ["t1".into(), "t2".into()].into(), ..report }));
        let live = w2.until("t1's health", |live| model(live).is_some_and(|m| m.tasks["t1"].unhealthy)).await;
        assert!(!model(&live).unwrap().tasks["t2"].unhealthy);
    });
}

#[test]
fn a_worker_that_says_something_else_all_the_time_sets_nobodys_pace() {
    in_fresh_netns(|| async {
        const TIME: Duration = Duration::from_secs(6);
        let swarm = Swarm::new();
        let server = swarm.server().await;
        let mut w2 = swarm.client("w2", &[&server]);
        w2.until("a table", |live| live.table.is_some()).await;
        let w1 = swarm.client("w1", &[&server]);
        let (mut reports, began) = (server.reports.clone(), Instant::now());
        let (mut said, mut tables) = (0, 0);
        while began.elapsed() < TIME {
            said += 1;
            let unhealthy = if said % 2 == 0 { ["t1".to_owned()].into() } else { Default::default() };
            w1.report.send_replace(Some(Report { unhealthy, version: said.to_string(), ..Report::default() }));
            tokio::time::sleep(Duration::from_millis(25)).await;
            tables += u32::from(reports.has_changed().unwrap());
            reports.borrow_and_update();
        }
        eprintln!("{said} reports in {TIME:?}: {tables} times something new for everybody");
        // The last turn may have taken its time.
        let most = 40 + 5 * began.elapsed().as_secs() as u32 + 10;
        assert!(tables <= most, "{tables} new tables in {:?}", began.elapsed());
        assert!(tables >= 40, "{tables}: a burst is taken in as it comes");
        // Its last word counts, and soon.
        let (sick, began) = (said % 2 == 1, Instant::now());
        let unhealthy = if sick { ["t1".to_owned()].into() } else { Default::default() };
        w1.report.send_replace(Some(Report { unhealthy, ..Report::default() }));
        w2.until("the last word", |live| model(live).is_some_and(|model| model.tasks["t1"].unhealthy == sick)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    });
}

#[test]
fn workers_behind_one_nat_get_a_place_by_what_they_say() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        server.change(|model| {
            let nat = [203, 0, 113, 1].into();
            let workers = model.nodes.values_mut().filter(|node| node.id.as_str() != "m");
            workers.for_each(|node| (node.address, node.vtep) = (nat, nat));
        });
        let (mut w1, mut w2) = (swarm.client("w1", &[&server]), swarm.client("w2", &[&server]));
        w1.until("a table for the first one", |live| live.table.is_some()).await;
        // The other one hears why there is none for it, and is no stranger.
        let why = |live: &control::source::Live| live.lost.as_ref().map(|lost| lost.why.clone()).unwrap_or_default();
        let live = w2.until("a reason", |live| why(live).contains("does not know where node w2 is")).await;
        assert!(live.table.is_none() && live.expelled.is_none(), "{live:?}");
        w2.place.send_replace(Some([10, 0, 0, 2].into()));
        let live = w2.until("a table", |live| live.table.is_some()).await;
        let place = |live: &control::source::Live| model(live).unwrap().nodes["w2"].vtep.to_string();
        assert_eq!(place(&live), "10.0.0.2");
        assert!(!hiveway(&live, "w2"), "it only prepares");
        let live = w1.until("w2's place", |live| model(live).is_some_and(|model| model.nodes.contains_key("w2"))).await;
        assert_eq!((place(&live), model(&live).unwrap().tasks.contains_key("t2")), ("10.0.0.2".into(), true));
        w2.report.send_replace(Some(Report { vtep: Some([10, 0, 0, 2].into()), ..Report::default() }));
        w1.until("w2 has Hiveway", |live| hiveway(live, "w2")).await;
    });
}

#[test]
fn a_removed_node_is_refused_at_once_and_let_in_again() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        let gone = Manager { address: "127.0.0.1:1".into(), node: None };
        let mut w1 = swarm.client("w1", &[&server]);
        w1.managers.send_modify(|managers| managers.push(gone));
        w1.until("a table", |live| live.table.is_some()).await;
        let began = Instant::now();
        server.change(|model| {
            model.nodes.remove("w1");
            model.tasks.remove("t1");
        });
        let live = w1.until("refused", |live| live.expelled.is_some()).await;
        assert!(live.expelled.as_ref().unwrap().contains("node w1 is not a member"), "{live:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        server.change(|model| *model = table());
        w1.until("a member again", |live| live.expelled.is_none() && live.is_current()).await;
    });
}

#[test]
fn a_manager_that_is_gone_changes_nothing_but_the_tables_age() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        let mut w1 = swarm.client("w1", &[&server]);
        let before = w1.until("a table", |live| live.table.is_some()).await;
        let address = server.address;
        drop(server);
        let live = w1.until("lost", |live| live.lost.is_some()).await;
        assert!(live.expelled.is_none());
        assert_eq!(model(&live), model(&before), "the last table stays");
        assert!(live.lost.as_ref().unwrap().why.contains(&address.to_string()), "{live:?}");
        let server = Server::start_at(&swarm.ca, &m(), swarm.path("m"), address).await;
        w1.until("current again", |live| live.is_current()).await;
        // A manager that is not sure does not refuse.
        server.base.send_modify(|live| live.lose("socket gone"));
        server.change(|model| drop(model.nodes.remove("w1")));
        let live = w1
            .until("old", |live| {
                live.lost.as_ref().is_some_and(|lost| {
                    lost.why.contains("a member") || lost.why.contains("not in this manager's table")
                })
            })
            .await;
        assert!(live.expelled.is_none() && model(&live).unwrap().nodes.contains_key("w1"), "{live:?}");
    });
}

#[test]
fn tables_come_from_another_manager_when_one_fails_or_grows_old() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let one = swarm.server().await;
        let two = Server::start(&swarm.ca, &manager("m2"), swarm.path("m2")).await;
        let mut w1 = swarm.client("w1", &[&one, &two]);
        let from = |server: &Server| format!("relay {}", server.address);
        eventually("both connected", || w1.views.list().iter().filter(|view| view.state == "connected").count() == 2)
            .await;
        let live = w1.until("a table", |live| live.table.is_some()).await;
        let (first, second) = if live.from == from(&one) { (one, two) } else { (two, one) };

        // Its own source is gone: the other one's is not.
        first.base.send_modify(|live| live.lose("socket gone"));
        let began = Instant::now();
        w1.until("the other's table", |live| live.from == from(&second) && live.is_current()).await;
        eprintln!("old table → another manager's: {:?}", began.elapsed());
        // Both are.
        second.base.send_modify(|live| live.lose("socket gone too"));
        let live = w1.until("old", |live| live.lost.is_some()).await;
        assert!(live.lost.as_ref().unwrap().why.contains("socket gone too") && live.table.is_some(), "{live:?}");
        first.base.send_replace(control::source::Live::current(loaded(table()), "test"));
        second.base.send_replace(control::source::Live::current(loaded(table()), "test"));
        let live = w1.until("current", |live| live.is_current()).await;

        let (gone, left) = if live.from == from(&first) { (first, second) } else { (second, first) };
        let began = Instant::now();
        drop(gone);
        w1.until("the other's table", |live| live.from == from(&left) && live.is_current()).await;
        eprintln!("manager gone → another one's table: {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2));
        left.change(|model| drop(model.tasks.remove("t2")));
        w1.until("a change", |live| model(live).is_some_and(|m| !m.tasks.contains_key("t2"))).await;
    });
}

#[test]
fn a_reports_end() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        let mut reports = server.reports.clone();
        let report = Some(Report { vtep: None, version: "0.1.0".into(), ..Report::default() });
        let w1 = swarm.client("w1", &[&server]);
        w1.report.send_replace(report.clone());
        until(&mut reports, "the report", |reports| reports.contains_key("w1")).await;

        // The agent is gone: its data plane is not. Nor is it when this agent starts anew.
        let files = w1.files.clone();
        drop(w1);
        eventually("disconnected", || server.sessions.list().is_empty()).await;
        assert!(reports.borrow().contains_key("w1"));
        let address = server.address;
        drop(server);
        let server = Server::start_at(&swarm.ca, &m(), swarm.path("m"), address).await;
        let mut reports = server.reports.clone();
        assert!(reports.borrow().contains_key("w1"), "saved");

        // Down: over, unless the agent is there.
        server.change(|model| model.nodes.get_mut("w1").unwrap().state = NodeState::Down);
        until(&mut reports, "no report", |reports| reports.is_empty()).await;
        server.change(|model| *model = table());
        let w1 = Client::start(files.clone(), vec![server.manager()]);
        assert!(!reports.borrow().contains_key("w1"));
        w1.report.send_replace(report.clone());
        until(&mut reports, "the report", |reports| reports.contains_key("w1")).await;
        server.change(|model| model.nodes.get_mut("w1").unwrap().state = NodeState::Down);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(reports.borrow().contains_key("w1"), "its data plane is not down");
        drop(w1);
        until(&mut reports, "no report", |reports| reports.is_empty()).await;
        server.change(|model| *model = table());
        let w1 = Client::start(files.clone(), vec![server.manager()]);
        w1.report.send_replace(report);
        until(&mut reports, "the report", |reports| reports.contains_key("w1")).await;
        drop(w1);

        // Taken down.
        let nobody = Manager { address: "127.0.0.1:1".into(), node: None };
        let contacts = Contacts::new(vec![server.manager(), nobody], None, &files);
        std::fs::write(swarm.path("contacts.json"), contacts.encode().unwrap()).unwrap();
        assert_eq!(Contacts::read(&swarm.path("contacts.json")), Some(contacts.clone()));
        let told = deregister(&contacts, &contacts.credentials().unwrap()).await;
        assert_eq!(told[0], (server.address.to_string(), Ok("m".into())));
        assert!(told[1].1.is_err(), "{told:?}");
        assert!(reports.borrow().is_empty(), "when it returns, the manager knows");
        // Which is written down behind its back.
        let kept = || std::fs::read_to_string(swarm.path("m").join("relay-reports.json")).unwrap();
        eventually("the report to be gone from the disk", || !kept().contains("w1")).await;
    });
}

#[test]
fn a_slow_reader_gets_only_the_newest() {
    use hiveway_proto::relay::{FromAgent, from_manager::Message};
    use tokio_stream::StreamExt;
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        let files = swarm.ca.issue(&swarm.path("w1"), &worker("w1"));
        let channel = relay::raw::channel(&files, server.address).await.unwrap();
        let mut client = hiveway_proto::relay::relay_client::RelayClient::new(channel);
        let hello = FromAgent { want_tables: true, ..FromAgent::default() };
        let mut answers =
            client.sync(tokio_stream::once(hello).chain(tokio_stream::pending())).await.unwrap().into_inner();
        eventually("connected", || server.sessions.list().iter().any(|view| view.sent == 1)).await;
        // Tables of 8,000 nodes: some 300 kB each, more than the windows of HTTP/2 take.
        for round in 0..100u32 {
            server.change(|model| {
                for i in 0..8000 {
                    let mut node = model.nodes["m"].clone();
                    node.id = format!("n{i}").into();
                    node.hostname = format!("round{round}");
                    (node.address, node.vtep) = ((0x0a80_0000 + i).into(), (0x0a80_0000 + i).into());
                    model.nodes.insert(node.id.clone(), node);
                }
            });
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut rounds = Vec::new();
        while rounds.last().is_none_or(|round| round != "round99") {
            let answer =
                tokio::time::timeout(Duration::from_secs(20), answers.message()).await.expect("the newest").unwrap();
            if let Some(Message::Table(table)) = answer.unwrap().message {
                rounds.extend(table.nodes.iter().find(|node| node.id == "n7").map(|node| node.hostname.clone()));
            }
        }
        assert!(rounds.len() <= 5, "{rounds:?}");
    });
}

#[test]
fn sessions_end_with_their_certificates() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = swarm.server().await;
        let brief = swarm_ca::Spec { valid_for: Duration::from_secs(4), ..worker("w1") };
        let mut w1 = Client::start(swarm.ca.issue(&swarm.path("w1"), &brief), vec![server.manager()]);
        let mut w2 = swarm.client("w2", &[&server]);
        w1.until("a table", |live| live.table.is_some()).await;
        w2.until("a table", |live| live.table.is_some()).await;
        w1.until("expired", |live| live.lost.is_some()).await;
        assert!(w2.live.borrow().is_current());

        // The root CA is replaced outright.
        let next = Ca::new();
        let files = next.issue(&swarm.path("next"), &m());
        for (from, to) in
            [(&files.key, &server.files.key), (&files.cert, &server.files.cert), (&files.ca, &server.files.ca)]
        {
            std::fs::rename(from, to).unwrap();
        }
        let live = w2.until("trusted no more", |live| live.lost.is_some()).await;
        assert!(live.expelled.is_none() && live.table.is_some(), "{live:?}");
        let mut renewed = Client::of(&next, swarm.path("w2b"), "w2", &[&server]);
        renewed.until("a table", |live| live.is_current()).await;
    });
}
