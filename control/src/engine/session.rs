//! One connection to the engine: what it has, then its events, until that breaks.
//!
//! The engine lets questions about a container wait while it starts, and those about the swarm while there is no leader.
//! So nothing here waits for an answer: events of other containers go on meanwhile.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{EventMessage, EventMessageTypeEnum as Type, SwarmInfo},
    query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, pin_mut, stream::FuturesUnordered};
use hiveway_core::merge::{Container, Health};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{Engine, EngineView, containers::container, info};

/// How long the engine may take for an answer, in seconds. A manager that has lost its leader takes several.
const PATIENCE: u64 = 30;
/// How often it is asked about the swarm: there are no events of joining, leaving, promotion.
const ASK: Duration = Duration::from_secs(2);
/// How often all containers are looked at again.
const RELIST: Duration = Duration::from_secs(60);
/// How long the first view waits for answers about all containers.
const SETTLE: Duration = Duration::from_secs(3);

/// Follows the engine; returns why that ended.
pub(super) async fn run(engine: &Engine, out: &watch::Sender<Arc<EngineView>>) -> String {
    match follow(engine, out).await {
        Ok(()) => "the engine has ended the stream of its events".into(),
        Err(error) => error.to_string(),
    }
}

async fn follow(engine: &Engine, out: &watch::Sender<Arc<EngineView>>) -> Result<(), Error> {
    let docker = Docker::connect_with_unix(&engine.socket.to_string_lossy(), PATIENCE, API_DEFAULT_VERSION)?;
    let docker = docker.negotiate_version().await?;
    // The engine replays what has happened since: nothing is missed between lists and events.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned(), "network".to_owned()])]);
    let options = EventsOptions { since: Some(now.saturating_sub(1).to_string()), filters: Some(filters), until: None };
    let events = docker.events(Some(options));
    pin_mut!(events);

    let view = EngineView { lost: None, ..(**out.borrow()).clone() };
    let mut session = Session { docker: docker.clone(), view, ended: HashMap::new(), turn: 0, answers: <_>::default() };
    session.ask_for_list();
    let mut ask = interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (started, mut listed, mut asked) = (Instant::now(), Instant::now(), false);
    loop {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(event) => session.event(event?),
                None => return Ok(()),
            },
            Some(answer) = session.answers.next(), if !session.answers.is_empty() => match answer? {
                Answer::Swarm(swarm) => {
                    info::apply(&mut session.view, &swarm, &engine.swarm_dir);
                    asked = false;
                }
                Answer::Containers(ids) => session.listed(ids),
                Answer::Container { turn, id, found } => session.inspected(turn, id, found),
            },
            _ = ask.tick() => {
                if !asked {
                    session.ask_for_swarm();
                    asked = true;
                }
                if listed.elapsed() > RELIST {
                    listed = Instant::now();
                    session.ask_for_list();
                }
            }
        }
        let first = out.borrow().local.node.is_none();
        if !first || session.answers.is_empty() || started.elapsed() > SETTLE {
            publish(out, &session.view);
        }
    }
}

fn publish(out: &watch::Sender<Arc<EngineView>>, view: &EngineView) {
    out.send_if_modified(|before| {
        let news = **before != *view;
        if news {
            *before = Arc::new(view.clone());
        }
        news
    });
}

/// What the engine has been asked.
enum Answer {
    Swarm(Box<SwarmInfo>),
    Containers(Vec<String>),
    Container { turn: u64, id: String, found: Option<Container> },
}

struct Session {
    docker: Docker,
    view: EngineView,
    /// When containers ended, in turns: answers to what was asked before are out of date.
    ended: HashMap<String, u64>,
    /// Grows with every question.
    turn: u64,
    answers: FuturesUnordered<BoxFuture<'static, Result<Answer, Error>>>,
}

impl Session {
    fn ask_for_swarm(&mut self) {
        let docker = self.docker.clone();
        let answer = async move { Ok(Answer::Swarm(Box::new(docker.info().await?.swarm.unwrap_or_default()))) };
        self.answers.push(answer.boxed());
    }

    fn ask_for_list(&mut self) {
        let docker = self.docker.clone();
        let answer = async move {
            let all = docker.list_containers(Some(ListContainersOptions { all: true, ..Default::default() })).await?;
            Ok(Answer::Containers(all.into_iter().filter_map(|summary| summary.id).collect()))
        };
        self.answers.push(answer.boxed());
    }

    fn ask_for_container(&mut self, id: String) {
        self.turn += 1;
        let (docker, turn) = (self.docker.clone(), self.turn);
        let answer = async move {
            let found = match docker.inspect_container(&id, None::<InspectContainerOptions>).await {
                Ok(raw) => container(&raw),
                Err(Error::DockerResponseServerError { status_code: 404, .. }) => None,
                Err(error) => return Err(error),
            };
            Ok(Answer::Container { turn, id, found })
        };
        self.answers.push(answer.boxed());
    }

    fn listed(&mut self, ids: Vec<String>) {
        self.view.local.containers.retain(|id, _| ids.contains(id));
        self.ended.retain(|id, _| ids.contains(id));
        ids.into_iter().for_each(|id| self.ask_for_container(id));
    }

    fn inspected(&mut self, turn: u64, id: String, found: Option<Container>) {
        if self.ended.get(&id).is_some_and(|ended| *ended >= turn) {
            return;
        }
        match found {
            Some(container) => self.view.local.containers.insert(id, container),
            None => self.view.local.containers.remove(&id),
        };
    }

    fn event(&mut self, event: EventMessage) {
        let actor = event.actor.unwrap_or_default();
        let (id, attributes) = (actor.id.unwrap_or_default(), actor.attributes.unwrap_or_default());
        let containers = &mut self.view.local.containers;
        match (event.typ, event.action.unwrap_or_default().as_str()) {
            (Some(Type::CONTAINER), action @ ("die" | "destroy")) => {
                // Known at once; nothing is gained by asking.
                self.ended.insert(id.clone(), self.turn);
                match containers.get_mut(&id) {
                    Some(container) if action == "die" => {
                        (container.health, container.netns) = (Health::Dead, None);
                    }
                    None if action == "die" => self.ask_for_container(id),
                    _ => drop(containers.remove(&id)),
                }
            }
            (Some(Type::CONTAINER), action) if action == "start" || action.starts_with("health_status") => {
                self.ask_for_container(id);
            }
            // Before its start a container is connected too, but its start tells more.
            (Some(Type::NETWORK), "connect" | "disconnect") => {
                if let Some(id) = attributes.get("container").filter(|id| containers.contains_key(*id)) {
                    self.ask_for_container(id.clone());
                }
            }
            _ => {}
        }
    }
}
