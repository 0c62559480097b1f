//! What agents report of the paths from their nodes, through a relay, and the matrix that a manager makes of it.

#[path = "support/relay.rs"]
mod relay;
#[path = "support/mod.rs"]
mod support;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use control::{
    relay::{PathNews, convert::encode_paths, server::PathReports},
    source::Live,
    status::report::Matrix,
};
use hiveway_core::{
    merge::Report,
    model::NodeState,
    path_matrix::Said,
    path_report::{Counts, PathReport, Row},
    probe::{PathView, State},
};
use hiveway_proto::relay::{self as wire, FromAgent, relay_client::RelayClient};
use relay::{Client, Server, eventually, m, model, raw, until};
use support::in_fresh_netns;
use swarm_ca::{Ca, worker};
use tokio_stream::StreamExt;

/// m, w1 and w2 are 192.0.2.1 to 192.0.2.3.
fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn row(to: u8, state: State, heard: bool) -> Row {
    let view = PathView {
        state,
        heard: heard.then_some(Duration::ZERO),
        since: Duration::from_secs(12),
        ..PathView::unknown(false)
    };
    Row::new(address(to).octets(), &view, 1500)
}

fn report(rows: Vec<Row>) -> PathReport {
    let mut counts = Counts::default();
    rows.iter().for_each(|row| *counts.of(row.state) += 1);
    PathReport { counts, rows, fault: None }
}

fn news(rows: Vec<Row>) -> Arc<PathNews> {
    Arc::new(PathNews { report: report(rows), ..PathNews::default() })
}

/// As node m's `check` has it.
fn matrix(server: &Server, live: &Live) -> (serde_json::Value, Vec<String>, bool) {
    let own = Said::Rows {
        age: Duration::ZERO,
        report: Arc::new(report(vec![row(2, State::Passing, true), row(3, State::Passing, true)])),
    };
    let matrix = Matrix::new(model(live).unwrap(), "m", 4789, own, &server.registry.paths);
    let problems = matrix.problems.iter().map(|finding| finding.problem.clone()).collect();
    (serde_json::to_value(&matrix.rows).unwrap(), problems, matrix.passing())
}

fn rows(heard: &PathReports, node: &str) -> Option<Arc<PathReport>> {
    match heard.of(node) {
        Said::Rows { report, .. } => Some(report),
        _ => None,
    }
}

#[test]
fn a_manager_knows_the_paths_between_workers() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = |name: &str| directory.path().join(name);
        let server = Server::start(&ca, &m(), path("m")).await;
        let (mut w1, mut w2) =
            (Client::of(&ca, path("w1"), "w1", &[&server]), Client::of(&ca, path("w2"), "w2", &[&server]));
        let reported = Some(Report { version: "0.1.0".into(), ..Report::default() });
        let both_report = |live: &Live| {
            let model = model(live);
            model.is_some_and(|model| ["w1", "w2"].iter().all(|node| model.nodes[*node].dataplane == hiveway()))
        };
        // Paths alone are not sent: the data plane is not ready.
        w1.paths.send_replace(news(vec![row(1, State::Passing, true), row(3, State::Failing, true)]));
        w1.report.send_replace(reported.clone());
        w2.report.send_replace(reported);
        let live = w1.until("both report", both_report).await;
        // The manager sends it to one after the other.
        w2.until("both report", both_report).await;
        let heard = &server.registry.paths;
        eventually("w1's row", || rows(heard, "w1").is_some_and(|report| report.counts.failing == 1)).await;
        let (json, problems, passing) = matrix(&server, &live);
        assert_eq!(json[1]["paths"][1]["hostname"], "w2", "{json:#}");
        assert_eq!(json[1]["paths"][1]["state"], "failing");
        assert_eq!((json[0]["own"].as_bool(), json[2]["own"].as_bool()), (Some(true), Some(false)));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("packets from w1 (192.0.2.2) to w2 (192.0.2.3), UDP port 4789, are lost"));
        assert!(!passing);

        // A change is told without the report changing, and changes no table.
        let tables = server.sessions.list().iter().map(|view| view.sent).sum::<u64>();
        w2.paths.send_replace(news(vec![row(1, State::Passing, true), row(2, State::Failing, true)]));
        eventually("w2's row", || rows(heard, "w2").is_some_and(|report| report.counts.failing == 1)).await;
        let (_, problems, _) = matrix(&server, &live);
        assert!(problems[0].contains("w1 (192.0.2.2) and w2 (192.0.2.3) have not answered each other"), "{problems:?}");
        for (client, other) in [(&w1, 3), (&w2, 2)] {
            client.paths.send_replace(news(vec![row(1, State::Passing, true), row(other, State::Passing, true)]));
        }
        eventually("all paths pass", || matrix(&server, &live).2).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(server.sessions.list().iter().map(|view| view.sent).sum::<u64>(), tables, "a table was sent for it");

        // An agent that is gone is named after a while; what it said last counts until then.
        drop(w2);
        eventually("disconnected", || server.sessions.list().len() == 1).await;
        assert!(matrix(&server, &live).2 && rows(heard, "w2").is_some());
        // A node that the managers call down is no row, and one that has left is forgotten.
        server.change(|model| model.nodes.get_mut("w2").unwrap().state = NodeState::Down);
        let live = w1.until("w2 is down", |live| model(live).is_some_and(|m| m.nodes["w2"].state == NodeState::Down));
        let (json, _, _) = matrix(&server, live.await.as_ref());
        assert_eq!(json.as_array().unwrap().len(), 2, "{json:#}");
        server.change(|model| {
            model.tasks.retain(|_, task| task.node.as_deref() != Some("w2"));
            model.nodes.remove("w2");
        });
        eventually("w2 is forgotten", || rows(heard, "w2").is_none()).await;
    });
}

fn hiveway() -> hiveway_core::model::Dataplane {
    hiveway_core::model::Dataplane::Hiveway
}

#[test]
fn agents_that_say_nothing_or_nonsense_are_named_and_served() {
    in_fresh_netns(|| async {
        let (directory, ca) = (tempfile::tempdir().unwrap(), Ca::new());
        let path = |name: &str| directory.path().join(name);
        let server = Server::start(&ca, &m(), path("m")).await;
        let mut w2 = Client::of(&ca, path("w2"), "w2", &[&server]);
        w2.report.send_replace(Some(Report::default()));
        w2.paths.send_replace(news(vec![row(1, State::Passing, true), row(2, State::Passing, true)]));
        eventually("w2's row", || rows(&server.registry.paths, "w2").is_some()).await;

        // w1 speaks as we like.
        let files = ca.issue(&path("w1"), &worker("w1"));
        let (say, said) = tokio::sync::mpsc::channel(4);
        let messages = tokio_stream::wrappers::ReceiverStream::new(said);
        let mut client = RelayClient::new(raw::channel(&files, server.address).await.unwrap());
        let report = |paths| FromAgent {
            want_tables: true,
            version: "0.0.9".into(),
            report: Some(wire::Report { paths, ..Default::default() }),
            ..FromAgent::default()
        };
        // An agent from before.
        say.send(report(None)).await.unwrap();
        let mut answers = client.sync(messages).await.unwrap().into_inner();
        tokio::spawn(async move { while answers.next().await.is_some_and(|answer| answer.is_ok()) {} });
        let live =
            w2.until("w1 has Hiveway", |live| model(live).is_some_and(|m| m.nodes["w1"].dataplane == hiveway())).await;
        let says = |text: &str| {
            let (_, problems, passing) = matrix(&server, &live);
            passing && problems.len() == 1 && problems[0].contains(text)
        };
        eventually("it is named", || says("node w1 runs an agent that sends no rows (version 0.0.9)")).await;

        // Garbage, too much of it, and what no terminal should see.
        let good = encode_paths(&self::report(vec![row(1, State::Passing, true)]), Duration::ZERO);
        let many = wire::PathReport { paths: vec![good.paths[0]; 10_000], passing: 10_000, ..good.clone() };
        let fault = wire::PathReport { fault: "\x1b[2J".repeat(50_000), ..good.clone() };
        for (paths, why) in [(many, "10000 rows"), (fault, "longer than 200")] {
            say.send(report(Some(paths))).await.unwrap();
            eventually("it is named", || says("node w1 sends rows that make no sense: ") && says(why)).await;
        }
        // Lies about itself and about strangers count for nothing; then it is in order.
        let lies = vec![row(2, State::Failing, true), row(99, State::Failing, true), row(3, State::Passing, true)];
        say.send(report(Some(encode_paths(&self::report(lies), Duration::ZERO)))).await.unwrap();
        eventually("nothing is wrong", || {
            let (json, problems, passing) = matrix(&server, &live);
            passing && problems.is_empty() && json[1]["paths"].as_array().unwrap().len() == 1
        })
        .await;
        assert_eq!(server.sessions.list().len(), 2, "nobody was thrown out");
        until(&mut server.reports.clone(), "its report", |reports| reports.contains_key("w1")).await;
    });
}
