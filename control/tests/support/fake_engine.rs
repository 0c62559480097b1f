//! An engine at a socket that answers as it is told: containers that can be inspected, that fail, or that never answer.
#![allow(dead_code, reason = "not every test file uses everything")]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    future::ready,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{net::UnixListener, sync::broadcast, task::JoinHandle};
use tokio_stream::wrappers::BroadcastStream;

/// How the engine answers about a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Answers,
    /// That it is no task's, and on these networks.
    Outside(&'static [&'static str]),
    /// With this status.
    Fails(u16),
    Hangs,
    /// With an answer that has no end.
    Endless,
}

#[derive(Clone, Debug)]
pub(crate) struct Fake {
    pub(crate) state: &'static str,
    pub(crate) behaviour: Behaviour,
}

/// What it has and what it was asked.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) api: (&'static str, &'static str),
    pub(crate) containers: BTreeMap<String, Fake>,
    pub(crate) swarm: Value,
    /// Nothing is answered while it is set, as by a process that is stopped.
    pub(crate) hangs: bool,
    /// Paths of all requests, with their version.
    pub(crate) asked: Vec<String>,
    /// Inspections that were asked for.
    pub(crate) inspected: BTreeSet<String>,
    now: usize,
    pub(crate) most_at_once: usize,
}

#[derive(Clone, Debug)]
struct Shared {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<String>,
}

#[derive(Debug)]
pub(crate) struct FakeEngine {
    pub(crate) socket: PathBuf,
    shared: Shared,
    task: JoinHandle<()>,
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.die();
    }
}

impl FakeEngine {
    pub(crate) fn start(directory: &Path) -> Self {
        let swarm = json!({"NodeID": "n1", "NodeAddr": "192.0.2.1", "LocalNodeState": "active", "ControlAvailable": false,
                           "Error": "", "RemoteManagers": [{"NodeID": "m", "Addr": "192.0.2.9:2377"}]});
        let world = World {
            api: ("1.41", "1.12"),
            containers: BTreeMap::new(),
            swarm,
            hangs: false,
            asked: Vec::new(),
            inspected: BTreeSet::new(),
            now: 0,
            most_at_once: 0,
        };
        let shared = Shared { world: Arc::new(Mutex::new(world)), events: broadcast::channel(256).0 };
        let socket = directory.join("docker.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let app = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Self { socket, shared, task }
    }

    /// Dies as a killed process does: connections break, the socket's file stays.
    pub(crate) fn die(&mut self) {
        self.task.abort();
        // Ends the streams of its events, which nobody else would.
        let _ = self.shared.events.send(String::new());
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    /// A task's container, named as its task.
    pub(crate) fn container(&self, id: &str, state: &'static str, behaviour: Behaviour) {
        self.world().containers.insert(id.into(), Fake { state, behaviour });
    }

    /// Something has happened to a container.
    pub(crate) fn event(&self, id: &str, action: &str) {
        let attributes = json!({"com.docker.swarm.task.id": format!("task-{id}")});
        let event = json!({"Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": attributes}});
        let _ = self.shared.events.send(format!("{event}\n"));
    }

    /// An event begins and does not end.
    pub(crate) fn endless_event(&self, bytes: usize) {
        let _ = self.shared.events.send("{\"Type\": \"container\", \"Action\": \"".to_owned());
        for _ in 0..bytes.div_ceil(65536) {
            let _ = self.shared.events.send("x".repeat(65536));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A container was connected to a network.
    pub(crate) fn connected(&self, container: &str, network: &str) {
        let actor = json!({"ID": network, "Attributes": {"container": container, "name": "app", "type": "overlay"}});
        let event = json!({"Type": "network", "Action": "connect", "Actor": actor});
        let _ = self.shared.events.send(format!("{event}\n"));
    }

    /// Whether somebody listens to the events.
    pub(crate) fn listeners(&self) -> usize {
        self.shared.events.receiver_count()
    }
}

fn json_of(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    shared.world.lock().unwrap().asked.push(path.clone());
    while shared.world.lock().unwrap().hangs {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut parts: Vec<_> = path.split('/').skip(1).collect();
    if parts[0].starts_with("v1.") {
        parts.remove(0);
    }
    match parts.as_slice() {
        ["version"] => {
            let (api, oldest) = shared.world.lock().unwrap().api;
            json_of(&json!({"Version": "99.1.2", "ApiVersion": api, "MinAPIVersion": oldest}))
        }
        ["events"] => {
            let events = BroadcastStream::new(shared.events.subscribe());
            let lines = events.filter_map(|line| async { line.ok() }).take_while(|line| ready(!line.is_empty()));
            let lines = lines.map(|line| Ok::<_, Infallible>(Bytes::from(line)));
            ([("content-type", "application/json")], Body::from_stream(lines)).into_response()
        }
        ["info"] => json_of(&json!({"Swarm": shared.world.lock().unwrap().swarm})),
        ["containers", "json"] => {
            let world = shared.world.lock().unwrap();
            let summary =
                |(id, fake): (&String, &Fake)| json!({"Id": id, "State": fake.state, "Labels": labels(id, fake)});
            json_of(&world.containers.iter().map(summary).collect())
        }
        ["containers", id, "json"] => inspect(&shared, id).await,
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn labels(id: &str, fake: &Fake) -> Value {
    match fake.behaviour {
        Behaviour::Outside(_) => json!({}),
        _ => json!({"com.docker.swarm.task.id": format!("task-{id}")}),
    }
}

async fn inspect(shared: &Shared, id: &str) -> Response {
    let fake = {
        let mut world = shared.world.lock().unwrap();
        world.inspected.insert(id.to_owned());
        world.now += 1;
        world.most_at_once = world.most_at_once.max(world.now);
        world.containers.get(id).cloned()
    };
    // Long enough that several come together.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let response = match fake {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(Fake { behaviour: Behaviour::Hangs, .. }) => std::future::pending().await,
        Some(Fake { behaviour: Behaviour::Endless, .. }) => {
            let more = Bytes::from_static(&[b' '; 65536]);
            let forever = futures::stream::repeat(Ok::<_, Infallible>(more));
            ([("content-type", "application/json")], Body::from_stream(forever)).into_response()
        }
        Some(Fake { behaviour: Behaviour::Fails(status), .. }) => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, json!({"message": "RWLayer is unexpectedly nil"}).to_string()).into_response()
        }
        Some(fake) => {
            let ids = match fake.behaviour {
                Behaviour::Outside(networks) => networks,
                _ => &[],
            };
            let network = |id: &&str| ((*id).to_owned(), json!({"NetworkID": id, "IPAddress": "10.0.1.9"}));
            json_of(&json!({
                "Id": id,
                "Config": {"Labels": labels(id, &fake)},
                "State": {"Status": fake.state, "Running": fake.state == "running"},
                "NetworkSettings": {
                    "SandboxKey": format!("/sandbox/{id}"),
                    "Networks": ids.iter().map(network).collect::<serde_json::Map<_, _>>(),
                },
            }))
        }
    };
    shared.world.lock().unwrap().now -= 1;
    response
}
