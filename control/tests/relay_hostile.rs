//! Peers that mean harm, or are broken: they get nothing, and others notice nothing.

#[path = "support/relay.rs"]
mod relay;
#[path = "support/mod.rs"]
mod support;
#[path = "support/swarm_ca.rs"]
mod swarm_ca;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use control::{certs::Files, relay::client::Manager};
use hiveway_core::merge::Report;
use hiveway_proto::relay::{self as wire, FromAgent, from_manager::Message as Said, relay_client::RelayClient};
use relay::{Client, Server, eventually, m, raw, until};
use support::in_fresh_netns;
use swarm_ca::{Ca, Spec, manager, worker};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_stream::StreamExt;
use tonic::{Code, Status};

struct Swarm {
    directory: tempfile::TempDir,
    ca: Ca,
}

impl Swarm {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ca: Ca::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn files(&self, node: &str) -> Files {
        self.ca.issue(&self.path(node), &worker(node))
    }
}

/// How a call with these messages ends.
async fn call(files: &Files, server: &Server, messages: Vec<FromAgent>) -> Result<(), Status> {
    let mut client = RelayClient::new(raw::channel(files, server.address).await.unwrap());
    let stream = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let mut answers = client.sync(stream).await?.into_inner();
    while tokio::time::timeout(Duration::from_secs(10), answers.message()).await.expect("an end")?.is_some() {}
    Ok(())
}

/// A member is served, within seconds.
async fn serves(swarm: &Swarm, server: &Server) {
    let began = Instant::now();
    let mut good = Client::of(&swarm.ca, swarm.path("good"), "w2", &[server]);
    good.until("a table", |live| live.table.is_some()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn who_has_no_certificate_of_the_swarm_gets_nothing() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        // A certificate of a foreign CA, for a node that there is; it knows our CA.
        let foreign = Ca::new().issue(&swarm.path("foreign"), &worker("w1"));
        std::fs::copy(&server.files.ca, &foreign.ca).unwrap();
        raw::refused_as(raw::with_certificate(&foreign), &server).await;
        // One that has ended.
        let expired = swarm.ca.issue(&swarm.path("expired"), &Spec { valid_for: Duration::ZERO, ..worker("w1") });
        raw::refused_as(raw::with_certificate(&expired), &server).await;
        // One of the right CA that is no node's.
        let key = swarm.ca.issue(&swarm.path("odd"), &Spec { role: "client", ..worker("w1") });
        raw::refused_as(raw::with_certificate(&key), &server).await;
        // None at all.
        raw::refused_as(raw::without_certificate(&server.files), &server).await;
        serves(&swarm, &server).await;
        assert!(server.sessions.list().len() <= 1);
    });
}

#[test]
fn only_members_are_served_and_the_rest_is_told() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        let stranger = call(&swarm.files("stranger"), &server, vec![FromAgent::default()]).await.unwrap_err();
        assert_eq!(stranger.code(), Code::PermissionDenied);
        // What a report can't say.
        for report in [
            wire::Report { vtep: u32::MAX, ..Default::default() },
            wire::Report { dead: vec!["a\nb".into()], ..Default::default() },
        ] {
            let message = FromAgent { report: Some(report), ..FromAgent::default() };
            let status = call(&swarm.files("w1"), &server, vec![message]).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
        assert!(server.reports.borrow().is_empty());
        // Too much of it.
        let huge = wire::Report { dead: vec!["x".repeat(60); 100_000], ..Default::default() };
        let message = FromAgent { report: Some(huge), ..FromAgent::default() };
        let status = call(&swarm.files("w1"), &server, vec![message]).await.unwrap_err();
        assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
        assert!(server.reports.borrow().is_empty());
        serves(&swarm, &server).await;
    });
}

#[test]
fn garbage_slow_clients_and_crowds_harm_nobody() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        // Crowds that say nothing, from one address; garbage; half a handshake.
        let mut crowd = Vec::new();
        for i in 0..400 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            match i % 3 {
                0 => {}
                1 => drop(stream.write_all(&[0xff; 1024]).await),
                _ => drop(stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await),
            }
            crowd.push(stream);
        }
        // The handshakes of one address are limited: its own good client has to come again, and gets through when the
        // silent ones have had their time.
        let began = Instant::now();
        let mut good = Client::of(&swarm.ca, swarm.path("good"), "w2", &[&server]);
        good.until("a table", |live| live.table.is_some()).await;
        eprintln!("served beside 400 silent connections from its own address after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        drop(crowd);

        // With a certificate: many connections of one node, calls that never say anything, garbage inside TLS.
        let files = swarm.files("w1");
        let mut open = Vec::new();
        for _ in 0..20 {
            if let Ok(mut tls) = raw::tls(&files, server.address).await {
                let _ = tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage that is no frame").await;
                open.push(tls);
            }
        }
        let silent = RelayClient::new(raw::channel(&swarm.files("m"), server.address).await.unwrap())
            .sync(tokio_stream::pending())
            .await;
        assert!(silent.is_ok());
        drop(good);
        serves(&swarm, &server).await;
    });
}

#[test]
fn a_flood_of_reports_is_slowed_down() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        let mut seen = server.reports.clone();
        let (files, address) = (swarm.files("w1"), server.address);
        const FIRST: u32 = 0x0a00_0000;
        let flood = tokio::spawn(async move {
            let mut client = RelayClient::new(raw::channel(&files, address).await.unwrap());
            let message = |i: u32| {
                let report = wire::Report { vtep: FIRST + i, ..Default::default() };
                FromAgent { report: Some(report), ..FromAgent::default() }
            };
            let messages = tokio_stream::iter((0..1000).map(message)).chain(tokio_stream::pending());
            let mut answers = client.sync(messages).await.unwrap().into_inner();
            while let Ok(Some(_)) = answers.message().await {}
        });
        until(&mut seen, "a report", |reports| reports.contains_key("w1")).await;
        let began = Instant::now();
        let read = until(&mut seen, "fifty reports", |reports| reports["w1"].vtep >= Some((FIRST + 50).into())).await;
        let read = read["w1"].vtep.unwrap().to_bits() - FIRST;
        let per_second = f64::from(read) / began.elapsed().as_secs_f64();
        assert!(per_second <= 60.0, "{per_second} reports read in a second");
        serves(&swarm, &server).await;
        flood.abort();
    });
}

/// Four connections of one node, on each of which call follows call; each reports something new, and wants a table.
#[test]
fn a_flood_of_calls_is_slowed_down() {
    const FIRST: u32 = 0x0a00_0000;
    const LASTS: Duration = Duration::from_secs(3);
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        let (files, address) = (swarm.files("w1"), server.address);
        let [calls, read, tables] = [0, 0, 0].map(|none| Arc::new(AtomicU32::new(none)));
        let began = Instant::now();
        let floods = (0..4).map(|_| {
            let (files, calls, read, tables) = (files.clone(), calls.clone(), read.clone(), tables.clone());
            tokio::spawn(async move {
                let mut client = RelayClient::new(raw::channel(&files, address).await.unwrap());
                while began.elapsed() < LASTS {
                    let vtep = FIRST + calls.fetch_add(1, Ordering::Relaxed);
                    let report = Some(wire::Report { vtep, ..Default::default() });
                    let hello = FromAgent { report, want_tables: true, ..FromAgent::default() };
                    let call = tokio_stream::once(hello).chain(tokio_stream::pending());
                    let Ok(answers) = client.sync(call).await else { continue };
                    let mut answers = answers.into_inner();
                    // What comes of it until another call takes its place.
                    while let Ok(Ok(Some(said))) = timeout(Duration::from_millis(200), answers.message()).await {
                        match said.message {
                            Some(Said::Welcome(_)) => read.fetch_add(1, Ordering::Relaxed),
                            _ => tables.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                }
            })
        });
        for flood in floods.collect::<Vec<_>>() {
            flood.await.unwrap();
        }
        let per_second = |count: &AtomicU32| f64::from(count.load(Ordering::Relaxed)) / began.elapsed().as_secs_f64();
        let (calls, read, tables) = (per_second(&calls), per_second(&read), per_second(&tables));
        let said = format!("a second: {calls} calls, {read} first messages read, {tables} tables");
        assert!(calls > 20.0 && read <= 55.0 && tables <= 22.0, "{said}");
        serves(&swarm, &server).await;
        let left = || server.sessions.list().iter().filter(|view| view.node == "w1").count();
        eventually("one call of its to be left", || left() <= 1).await;
    });
}

#[test]
fn a_table_that_is_asked_for_again_and_again_is_sent_at_a_bounded_rate() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        let mut client = RelayClient::new(raw::channel(&swarm.files("w1"), server.address).await.unwrap());
        let wants = |i: u32| FromAgent { want_tables: i.is_multiple_of(2), ..FromAgent::default() };
        let messages = tokio_stream::iter((0..200).map(wants)).chain(tokio_stream::pending());
        let mut answers = client.sync(messages).await.unwrap().into_inner();
        let (began, mut tables, mut last) = (Instant::now(), 0, Duration::ZERO);
        while let Ok(Ok(Some(_))) = timeout(Duration::from_millis(500), answers.message()).await {
            (tables, last) = (tables + 1, began.elapsed());
        }
        let per_second = f64::from(tables) / last.as_secs_f64();
        assert!(tables > 10 && per_second <= 22.0, "{tables}, {per_second} tables a second");
    });
}

#[test]
fn one_session_per_node_and_the_newest_counts() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let server = Server::start(&swarm.ca, &m(), swarm.path("m")).await;
        let files = swarm.files("w1");
        let mut client = RelayClient::new(raw::channel(&files, server.address).await.unwrap());
        let hello = tokio_stream::once(FromAgent::default()).chain(tokio_stream::pending());
        let mut old = client.sync(hello).await.unwrap().into_inner();
        old.message().await.unwrap();
        let new = Client::start(files, vec![server.manager()]);
        new.report.send_replace(Some(Report::default()));
        until(&mut server.reports.clone(), "a report", |reports| reports.contains_key("w1")).await;
        let end = tokio::time::timeout(Duration::from_secs(10), old.message()).await.expect("the old one ends");
        let status = end.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        eventually("one session", || server.sessions.list().len() == 1).await;
    });
}

#[test]
fn a_worker_can_not_pretend_to_be_a_manager() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        // A worker's certificate; one whose SAN says manager but whose OU does not; one of a foreign swarm; another
        // manager than the one that should be there.
        let plain = Server::start(&swarm.ca, &worker("w2"), swarm.path("a")).await;
        let san = Server::start(&swarm.ca, &Spec { san_role: "manager", ..worker("w2") }, swarm.path("b")).await;
        let foreign = Server::start(&Ca::new(), &m(), swarm.path("c")).await;
        let other = Server::start(&swarm.ca, &manager("m2"), swarm.path("d")).await;
        let expecting = Manager { node: Some("m".into()), ..other.manager() };
        let mut w1 =
            Client::start(swarm.files("w1"), vec![plain.manager(), san.manager(), foreign.manager(), expecting]);
        eventually("nobody to talk to", || w1.views.list().iter().filter(|view| view.why.is_some()).count() == 4).await;
        for (server, reason) in [
            (&plain, "no manager of this swarm"),
            (&san, "no manager but a worker"),
            (&foreign, "no manager of this swarm"),
            (&other, "node m2 is there, not m"),
        ] {
            let view = w1.views.list().into_iter().find(|view| view.address == server.address.to_string()).unwrap();
            assert_eq!(view.state, "unreachable");
            assert!(view.why.as_ref().unwrap().contains(reason), "{reason}: {view:?}");
        }
        let live = w1.until("lost", |live| live.lost.is_some()).await;
        assert!(live.table.is_none() && live.expelled.is_none());
        for server in [&plain, &san, &foreign, &other] {
            assert!(server.sessions.list().is_empty(), "nothing was said to it");
        }
    });
}

/// What a manager sends may be broken too.
#[test]
fn a_server_that_is_no_relay_is_a_server_that_is_not_there() {
    in_fresh_netns(|| async {
        let swarm = Swarm::new();
        let files = swarm.ca.issue(&swarm.path("m"), &m());
        let credentials = control::certs::Credentials::load(&files).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(credentials.server.clone());
        let nonsense = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(mut tls) = acceptor.accept(stream).await {
                    let _ = tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await;
                }
            }
        });
        let mut w1 = Client::start(swarm.files("w1"), vec![Manager { address: address.to_string(), node: None }]);
        let live = w1.until("lost", |live| live.lost.is_some()).await;
        assert!(live.table.is_none() && live.expelled.is_none(), "{live:?}");
        nonsense.abort();
    });
}
