//! The session with an engine that fails, hangs, or is of another time.

#[path = "support/fake_engine.rs"]
mod fake_engine;

use std::{sync::Arc, time::Duration};

use control::engine::{Engine, EngineView, follow};
use fake_engine::{Behaviour::*, FakeEngine};
use hiveway_core::merge::Health;
use tokio::{sync::watch, time::timeout};

const SOON: Duration = Duration::from_secs(15);

fn engine(fake: &FakeEngine) -> Engine {
    Engine { socket: fake.socket.clone(), swarm_dir: "/nonexistent".into() }
}

async fn until(
    views: &mut watch::Receiver<Arc<EngineView>>,
    what: &str,
    is: impl Fn(&EngineView) -> bool,
) -> Arc<EngineView> {
    let last = views.clone();
    match timeout(SOON, views.wait_for(|view| is(view))).await {
        Ok(view) => view.unwrap().clone(),
        Err(_) => panic!("{what}: {:?}", last.borrow()),
    }
}

fn health(view: &EngineView, id: &str) -> Option<Health> {
    view.local.containers.get(id).map(|container| container.health)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_is_cut_and_costs_its_container_only() {
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeEngine::start(directory.path());
    fake.container("endless", "running", Endless);
    fake.container("web", "running", Answers);
    let (mut views, _task) = follow(engine(&fake));
    let view = until(&mut views, "its error", |view| view.unanswered.contains_key("endless")).await;
    assert!(view.unanswered["endless"].contains("the engine's answer is larger than 64 MiB"), "{:?}", view.unanswered);
    until(&mut views, "the other one", |view| view.local.containers.contains_key("web")).await;

    // Thousands of events are no large one.
    for _ in 0..100 {
        (0..50).for_each(|_| fake.event("web", &"y".repeat(2000)));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(views.borrow().lost, None);
    fake.endless_event(8 << 20);
    let view = until(&mut views, "the connection is given up", |view| view.lost.is_some()).await;
    let why = &view.lost.as_ref().unwrap().why;
    assert!(why.contains("the engine's answer is larger than 4 MiB"), "{why}");
    // It is asked again, and goes on.
    until(&mut views, "a new connection", |view| view.lost.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_inspected_costs_only_itself() {
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeEngine::start(directory.path());
    fake.container("broken", "running", Fails(500));
    (0..20).for_each(|i| fake.container(&format!("hung{i}"), "running", Hangs));
    (0..30).for_each(|i| fake.container(&format!("web{i}"), "running", Answers));
    let (mut views, _task) = follow(engine(&fake));
    let view = until(&mut views, "all others", |view| view.local.containers.len() == 30).await;
    let view = match view.unanswered.contains_key("broken") {
        true => view,
        false => until(&mut views, "its error", |view| view.unanswered.contains_key("broken")).await,
    };
    assert_eq!(view.lost, None);
    assert_eq!(view.unanswered["broken"], "500: RWLayer is unexpectedly nil");

    // Events go on, and what happens meanwhile is known within a moment.
    let asked = std::time::Instant::now();
    fake.container("new", "running", Answers);
    fake.event("new", "start");
    until(&mut views, "a new one", |view| health(view, "new") == Some(Health::Fine)).await;
    fake.event("web3", "die");
    until(&mut views, "a dead one", |view| health(view, "web3") == Some(Health::Dead)).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // What was known of one that fails now stays.
    fake.container("web4", "running", Fails(500));
    fake.event("web4", "health_status: unhealthy");
    let view = until(&mut views, "its error", |view| view.unanswered.contains_key("web4")).await;
    assert_eq!(health(&view, "web4"), Some(Health::Fine));
    assert_eq!(fake.listeners(), 1, "one session all the time");
    let events = fake.world().asked.iter().filter(|path| path.ends_with("/events")).count();
    assert_eq!(events, 1, "one session all the time");
}

/// `docker network connect` of a container that runs outside the swarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_that_joins_a_network_of_the_swarm_is_known() {
    const APP: &str = "xk3rsbqzq5b4r0v1vnjq9f2ub";
    const BRIDGE: &str = "8f1d9d0a6c1b4f0c8f1d9d0a6c1b4f0c8f1d9d0a6c1b4f0c8f1d9d0a6c1b4f0c";
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeEngine::start(directory.path());
    fake.container("web", "running", Answers);
    fake.container("alone", "running", Outside(&[BRIDGE]));
    let (mut views, _task) = follow(engine(&fake));
    until(&mut views, "the swarm's", |view| health(view, "web").is_some()).await;
    let asked = || fake.world().asked.iter().filter(|path| path.ends_with("/alone/json")).count();
    while asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fake.connected("alone", BRIDGE);
    fake.container("alone", "running", Outside(&[BRIDGE, APP]));
    fake.connected("alone", APP);
    let view = until(&mut views, "the one that joined", |view| health(view, "alone").is_some()).await;
    let container = &view.local.containers["alone"];
    assert_eq!(container.netns.as_deref(), Some("/sandbox/alone".as_ref()));
    assert_eq!(container.addresses[APP].to_string(), "10.0.1.9");
    assert_eq!(asked(), 2, "when it was listed and when it joined, not about the bridge");
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_containers_are_not_inspected_and_few_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeEngine::start(directory.path());
    (0..2000).for_each(|i| fake.container(&format!("old{i}"), "exited", Hangs));
    (0..200).for_each(|i| fake.container(&format!("web{i}"), "running", Answers));
    let (mut views, _task) = follow(engine(&fake));
    let running = |view: &EngineView| {
        view.local.containers.values().filter(|container| container.health == Health::Fine).count() == 200
    };
    let view = until(&mut views, "running ones", running).await;
    assert_eq!(health(&view, "old7"), Some(Health::Dead), "the list says so");
    let world = fake.world();
    assert_eq!(world.inspected.len(), 200);
    assert!(world.most_at_once <= 8, "{} at once", world.most_at_once);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_spoken_in_a_version_that_both_know() {
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeEngine::start(directory.path());
    let (mut views, _task) = follow(engine(&fake));
    let view = until(&mut views, "membership", |view| view.local.node.is_some()).await;
    let version = view.version.as_ref().unwrap();
    assert_eq!((version.engine.as_str(), version.api.as_str()), ("99.1.2", "1.41"));
    let asked = fake.world().asked.clone();
    assert_eq!(asked[0], "/version");
    assert!(asked[1..].iter().all(|path| path.starts_with("/v1.41/")), "{asked:?}");

    // Upgraded beyond what this agent speaks: it says so, and what was said before stays. Only a stream of events that
    // has begun ends with the engine.
    while fake.listeners() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(fake);
    let fake = FakeEngine::start(directory.path());
    fake.world().api = ("1.99", "1.90");
    let refused = |view: &EngineView| view.lost.as_ref().is_some_and(|lost| lost.why.contains("too new"));
    let view = until(&mut views, "a refusal", refused).await;
    assert_eq!(view.local.node.as_deref(), Some("n1"));
    assert_eq!(fake.world().asked.iter().find(|path| *path != "/version"), None);
    fake.world().api = ("1.99", "1.44");
    until(&mut views, "the engine again", |view| view.lost.is_none()).await;
}
