//! One connection to the engine: what it has, then its events, until these end.
//!
//! The engine lets questions about a container wait while it starts, those about the swarm while there is no leader,
//! and some for ever where a volume plugin or a mount hangs. So nothing here waits for an answer: an answer that fails
//! or never comes costs what it was about, and that is asked again with the next list.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    Docker,
    errors::Error,
    models::{ContainerSummary, EventMessage, EventMessageTypeEnum as Type, SystemInfo},
    query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, pin_mut, stream::FuturesUnordered};
use hiveway_core::merge::{Container, Health};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    Engine, EngineView,
    api::{self, said},
    containers::{TASK, container, ended, is_swarms},
    info, lose,
    questions::Questions,
    transport,
};

/// How often it is asked about the swarm: there are no events of joining, leaving, promotion.
const ASK: Duration = Duration::from_secs(2);
/// How often all containers are looked at again.
const RELIST: Duration = Duration::from_secs(60);
/// How soon a list that has failed is asked for again.
const RELIST_FAILED: Duration = Duration::from_secs(5);
/// How long the first view waits for answers about all containers.
const SETTLE: Duration = Duration::from_secs(3);
/// How often waiting questions are looked at while some that were asked do not come back.
const PACE: Duration = Duration::from_millis(250);

/// Follows the engine; returns why that ended.
pub(super) async fn run(engine: &Engine, out: &watch::Sender<Arc<EngineView>>) -> String {
    match follow(engine, out).await {
        Ok(()) => "the engine has ended the stream of its events".into(),
        Err(why) => why,
    }
}

async fn follow(engine: &Engine, out: &watch::Sender<Arc<EngineView>>) -> Result<(), String> {
    let (docker, version, unheard) = api::connect(&engine.socket).await?;
    if out.borrow().version.as_ref() != Some(&version) {
        let api::EngineVersion { engine: program, api, newest_api } = &version;
        tracing::info!("engine {program} at {}: API {api} of up to {newest_api}", engine.socket.display());
    }
    // The engine replays what has happened since: nothing is missed between lists and events.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned(), "network".to_owned()])]);
    let options = EventsOptions { since: Some(now.saturating_sub(1).to_string()), filters: Some(filters), until: None };
    let events = docker.events(Some(options));
    pin_mut!(events);

    let view =
        EngineView { lost: None, version: Some(version), unanswered: <_>::default(), ..(**out.borrow()).clone() };
    let mut session = Session::new(docker.clone(), view);
    session.ask_for_list();
    let mut ask = interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (started, mut asked) = (Instant::now(), false);
    loop {
        session.ask_for_containers();
        tokio::select! {
            event = events.next() => match event {
                Some(event) => {
                    let event = event.map_err(|error| transport::too_much(&unheard).unwrap_or_else(|| said(error)))?;
                    unheard.store(0, Ordering::Relaxed);
                    session.event(event);
                }
                None => return Ok(()),
            },
            Some(answer) = session.answers.next(), if !session.answers.is_empty() => match answer {
                Answer::Info(said) => {
                    asked = false;
                    match said {
                        Ok(info) => {
                            session.view.lost = None;
                            info::apply(&mut session.view, &info, &engine.swarm_dir);
                        }
                        Err(why) => {
                            lose(&mut session.view, engine, &format!("it does not say what it is in the swarm: {why}"));
                        }
                    }
                }
                Answer::Containers { turn, said } => session.listed(turn, said),
                Answer::Container { turn, id, said } => session.inspected(turn, &id, said),
            },
            _ = ask.tick() => {
                if !asked {
                    session.ask_for_swarm();
                    asked = true;
                }
                if session.relist.is_some_and(|at| at <= Instant::now()) {
                    session.ask_for_list();
                }
            }
            _ = pace.tick(), if session.questions.any_wait() => {}
        }
        let first = out.borrow().local.node.is_none();
        let complete = session.answers.is_empty() && !session.questions.any_wait();
        if !first || complete || started.elapsed() > SETTLE {
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

/// What the engine has been asked. What it could not say is a text.
enum Answer {
    Info(Result<Box<SystemInfo>, String>),
    Containers { turn: u64, said: Result<Vec<ContainerSummary>, String> },
    Container { turn: u64, id: String, said: Result<Option<Container>, String> },
}

struct Session {
    docker: Docker,
    view: EngineView,
    /// When something was last known of a container from an event or an answer, in turns: answers to what was asked
    /// before are out of date.
    known: HashMap<String, u64>,
    /// Grows with every question and event.
    turn: u64,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    questions: Questions,
    /// When to list again; `None` while a list is on its way.
    relist: Option<Instant>,
    /// Why the last list could not be had.
    unlisted: Option<String>,
}

/// `answer`, but no longer than the engine may take.
async fn patiently<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(api::PATIENCE, answer).await.unwrap_or(Err(Error::RequestTimeoutError))
}

impl Session {
    fn new(docker: Docker, view: EngineView) -> Self {
        Self {
            docker,
            view,
            known: HashMap::new(),
            turn: 0,
            answers: FuturesUnordered::new(),
            questions: Questions::default(),
            relist: None,
            unlisted: None,
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn ask_for_swarm(&mut self) {
        let docker = self.docker.clone();
        let answer = async move {
            let info = patiently(docker.info()).await;
            Answer::Info(info.map(Box::new).map_err(said))
        };
        self.answers.push(answer.boxed());
    }

    fn ask_for_list(&mut self) {
        self.relist = None;
        let (docker, turn) = (self.docker.clone(), self.next_turn());
        let answer = async move {
            let all = ListContainersOptions { all: true, ..Default::default() };
            let said = patiently(docker.list_containers(Some(all))).await.map_err(said);
            Answer::Containers { turn, said }
        };
        self.answers.push(answer.boxed());
    }

    /// Asks what there is room for.
    fn ask_for_containers(&mut self) {
        while let Some(id) = self.questions.next(Instant::now()) {
            let (docker, turn) = (self.docker.clone(), self.next_turn());
            let answer = async move {
                let said = match patiently(docker.inspect_container(&id, None::<InspectContainerOptions>)).await {
                    Ok(raw) => Ok(container(&raw)),
                    Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
                    Err(error) => Err(said(error)),
                };
                Answer::Container { turn, id, said }
            };
            self.answers.push(answer.boxed());
        }
    }

    /// The list says which containers there are, and of ended ones all that counts. The others are inspected.
    fn listed(&mut self, turn: u64, said: Result<Vec<ContainerSummary>, String>) {
        let listed = match said {
            Ok(listed) => listed,
            Err(why) => {
                if self.unlisted.as_ref() != Some(&why) {
                    tracing::warn!("the engine does not list its containers: {why}; what was known of them stays");
                }
                (self.unlisted, self.relist) = (Some(why), Some(Instant::now() + RELIST_FAILED));
                return;
            }
        };
        (self.unlisted, self.relist) = (None, Some(Instant::now() + RELIST));
        let mut there: HashMap<String, ContainerSummary> =
            listed.into_iter().filter_map(|summary| Some((summary.id.clone()?, summary))).collect();
        let newer = |known: &HashMap<String, u64>, id: &String| known.get(id).is_some_and(|known| *known > turn);
        let known = std::mem::take(&mut self.known);
        self.view.local.containers.retain(|id, _| there.contains_key(id) || newer(&known, id));
        self.view.unanswered.retain(|id, _| there.contains_key(id) || newer(&known, id));
        // What happened after the list was made, it does not know.
        there.retain(|id, _| !newer(&known, id));
        self.known = known.into_iter().filter(|(_, known)| *known > turn).collect();
        for (id, summary) in there {
            match ended(&summary) {
                None => self.questions.ask_some_time(id),
                Some(container) => {
                    self.questions.forget(&id);
                    self.view.unanswered.remove(&id);
                    self.set(&id, container);
                }
            }
        }
    }

    fn inspected(&mut self, turn: u64, id: &str, said: Result<Option<Container>, String>) {
        self.questions.answered(id);
        if self.known.get(id).is_some_and(|known| *known >= turn) {
            return;
        }
        match said {
            Ok(found) => {
                self.known.insert(id.to_owned(), turn);
                self.view.unanswered.remove(id);
                self.set(id, found);
            }
            Err(why) => {
                if self.view.unanswered.get(id) != Some(&why) {
                    tracing::warn!("the engine does not say what container {id} is: {why}; what was known of it stays");
                }
                self.view.unanswered.insert(id.to_owned(), why);
            }
        }
    }

    fn set(&mut self, id: &str, found: Option<Container>) {
        match found {
            Some(container) => self.view.local.containers.insert(id.to_owned(), container),
            None => self.view.local.containers.remove(id),
        };
    }

    fn event(&mut self, event: EventMessage) {
        let actor = event.actor.unwrap_or_default();
        let (id, attributes) = (actor.id.unwrap_or_default(), actor.attributes.unwrap_or_default());
        match (event.typ, event.action.unwrap_or_default().as_str()) {
            (Some(Type::CONTAINER), action @ ("die" | "destroy")) => {
                // Known at once; nothing is gained by asking.
                let turn = self.next_turn();
                self.known.insert(id.clone(), turn);
                self.questions.forget(&id);
                self.view.unanswered.remove(&id);
                let containers = &mut self.view.local.containers;
                let task = attributes.get(TASK).cloned();
                match containers.get_mut(&id) {
                    Some(container) if action == "die" => {
                        (container.health, container.netns) = (Health::Dead, None);
                    }
                    None if action == "die" && task.is_some() => {
                        containers.insert(id, Container { task, health: Health::Dead, ..Container::default() });
                    }
                    _ => drop(containers.remove(&id)),
                }
            }
            (Some(Type::CONTAINER), action) if action == "start" || action.starts_with("health_status") => {
                self.questions.ask_now(id);
            }
            // A container that runs outside the swarm belongs to it from when it is connected to one of its networks.
            // The network is the actor.
            (Some(Type::NETWORK), "connect" | "disconnect") => {
                let known = |container: &String| self.view.local.containers.contains_key(container);
                if let Some(container) = attributes.get("container").filter(|it| is_swarms(&id) || known(it)) {
                    self.questions.ask_now(container.clone());
                }
            }
            _ => {}
        }
    }
}
