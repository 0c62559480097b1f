//! Brings the live sources together, see [`super::live`].

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Hub, Live, Own,
    merged::{Base, Inputs, Merged},
};
use crate::{
    behind::{Behind, Patience},
    engine::{self, Engine, EngineView, Membership},
    liveness::Pulse,
    state_dir::StateDir,
    swarm::{self, Manager},
};

/// How long the first table waits for this node's engine: without it the node does not even know who it is.
const ENGINE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the first table waits for a source, before what an earlier agent has kept is used.
const SOURCE_PATIENCE: Duration = Duration::from_secs(3);
/// How often it says that it is at work, and within what time it must.
const HEARD: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// At most so often the last table is written down.
const KEEP: Duration = Duration::from_secs(5);
/// How often it is looked how the writing goes.
const LOOK: Duration = Duration::from_secs(1);

/// What a live source is made of.
#[derive(Debug)]
pub struct Setup {
    /// The control socket, if it is to be used.
    pub manager: Option<Manager>,
    /// This node's engine.
    pub engine: Engine,
    /// `--node`, if it was given.
    pub node: Option<String>,
    /// The last table that an earlier agent has kept.
    pub last: Option<Base>,
    /// Says that it is at work.
    pub pulse: Pulse,
}

/// A live source at work; dropped, it ends.
#[derive(Debug)]
pub struct Supervisor {
    /// Where its parts meet.
    pub hub: Hub,
    keep: watch::Sender<Option<StateDir>>,
}

impl Supervisor {
    /// Starts to follow all of them.
    pub fn start(setup: Setup) -> Self {
        let engine = engine::follow(setup.engine).0;
        let swarm = setup.manager.map(|manager| swarm::follow(manager).0);
        let (table, tables) = watch::channel(Arc::default());
        let (reports, _) = watch::channel(Arc::default());
        let (relayed, _) = watch::channel(Arc::new(Live { from: "relay".into(), ..Live::default() }));
        let (keep, kept) = watch::channel(None);
        let (own, _) = watch::channel(Arc::default());
        let hub = Hub { engine: engine.clone(), table: tables, reports, relayed, own };
        let sources = Sources {
            engine,
            swarm,
            relayed: hub.relayed.subscribe(),
            reports: hub.reports.subscribe(),
            own: hub.own.subscribe(),
            kept,
        };
        tokio::spawn(supervise(sources, Merged::new(setup.node, setup.last), table, setup.pulse));
        Self { hub, keep }
    }

    /// From now on the last table is kept in the state directory.
    pub fn keep_in(&self, state: StateDir) {
        self.keep.send_replace(Some(state));
    }
}

/// What is listened to.
struct Sources {
    engine: watch::Receiver<Arc<EngineView>>,
    swarm: Option<watch::Receiver<Arc<Live>>>,
    relayed: watch::Receiver<Arc<Live>>,
    reports: watch::Receiver<Arc<hiveway_core::merge::Reports>>,
    own: watch::Receiver<Arc<Own>>,
    kept: watch::Receiver<Option<StateDir>>,
}

impl Sources {
    fn inputs(&mut self) -> Inputs {
        Inputs {
            engine: self.engine.borrow_and_update().clone(),
            swarm: self.swarm.as_mut().map(|swarm| swarm.borrow_and_update().clone()),
            relayed: self.relayed.borrow_and_update().clone(),
            reports: self.reports.borrow_and_update().clone(),
            own: self.own.borrow_and_update().clone(),
        }
    }

    /// Returns when one of them has news.
    async fn changed(&mut self) {
        let swarm = async {
            match &mut self.swarm {
                Some(swarm) => gone(swarm.changed().await).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = self.engine.changed() => gone(result).await,
            () = swarm => {}
            result = self.relayed.changed() => gone(result).await,
            result = self.reports.changed() => gone(result).await,
            result = self.own.changed() => gone(result).await,
            result = self.kept.changed() => gone(result).await,
        }
    }
}

/// Who has ended has no more news.
async fn gone(result: Result<(), watch::error::RecvError>) {
    if result.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn supervise(mut sources: Sources, mut merged: Merged, out: watch::Sender<Arc<Live>>, pulse: Pulse) {
    let started = Instant::now();
    let mut keeper = Keeper::default();
    loop {
        let inputs = sources.inputs();
        let asked = inputs.engine.membership != Membership::Unknown || inputs.engine.lost.is_some();
        if asked || started.elapsed() >= ENGINE_PATIENCE {
            let live = merged.mix(&inputs);
            keeper.keep(merged.base.as_ref(), sources.kept.borrow().as_ref());
            let live = Live { unkept: keeper.trouble(), ..live };
            let enough = merged.heard || started.elapsed() >= SOURCE_PATIENCE;
            out.send_if_modified(|before| {
                let news = enough && differ(before, &live);
                if news {
                    *before = Arc::new(live);
                }
                news
            });
        }
        tokio::select! {
            () = beat(&pulse) => {}
            () = sources.changed() => {}
            () = sleep_until(started + SOURCE_PATIENCE), if !merged.heard && started.elapsed() < SOURCE_PATIENCE => {}
            () = sleep_until(started + ENGINE_PATIENCE), if !asked && started.elapsed() < ENGINE_PATIENCE => {}
            () = sleep_until(keeper.due()) => {}
            () = sleep(LOOK), if keeper.is_busy() => {}
            // What it finds when it looks after the file is told, too.
            () = sleep(Patience::default().look), if keeper.writer.is_some() => {}
            () = out.closed() => return,
        }
    }
}

/// Says that this task is at work, for as long as it waits.
async fn beat(pulse: &Pulse) {
    loop {
        pulse.beat(HEARD.1);
        sleep(HEARD.0).await;
    }
}

/// Tables are compared by identity: [`Merged`] keeps equal ones.
fn differ(a: &Live, b: &Live) -> bool {
    let same = match (&a.table, &b.table) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    !same
        || a.from != b.from
        || a.lost != b.lost
        || a.expelled != b.expelled
        || a.absent != b.absent
        || a.unkept != b.unkept
        || a.node != b.node
}

/// Has the last table written down, not too often.
#[derive(Debug, Default)]
struct Keeper {
    written: Option<(Instant, Option<Base>)>,
    wanted: bool,
    writer: Option<Behind<Option<Base>>>,
    /// What was last said of the writing.
    trouble: Option<String>,
}

impl Keeper {
    fn keep(&mut self, base: Option<&Base>, state: Option<&StateDir>) {
        let Some(state) = state else { return };
        let news = self.written.as_ref().is_none_or(|(_, before)| before.as_ref() != base);
        let early = self.written.as_ref().is_some_and(|(at, _)| at.elapsed() < KEEP);
        self.wanted = news;
        if !news || early {
            return;
        }
        if self.writer.is_none() {
            let state = state.clone();
            let write = move |base: &Option<Base>, occasion| {
                state.write_last_table(base.as_ref(), occasion).map_err(|error| error.to_string())
            };
            match Behind::start("last-table", Patience::default(), write) {
                Ok(writer) => self.writer = Some(writer),
                // The next news try again.
                Err(error) => return tracing::warn!("the last table can't be kept for a restart: {error}"),
            }
        }
        if let Some(writer) = &self.writer {
            writer.put(base.cloned());
        }
        (self.written, self.wanted) = (Some((Instant::now(), base.cloned())), false);
    }

    /// Why the last table would be missing after a power cut; told to the log once.
    fn trouble(&mut self) -> Option<String> {
        let why = self.writer.as_ref().and_then(Behind::trouble);
        let trouble = why.map(|why| format!("the last table can't be kept for a restart: {why}"));
        if trouble != self.trouble {
            match &trouble {
                Some(trouble) => tracing::warn!("{trouble}"),
                None => tracing::info!("the last table is kept for a restart again"),
            }
            self.trouble.clone_from(&trouble);
        }
        trouble
    }

    /// Something is being written, or is not as it should be.
    fn is_busy(&self) -> bool {
        self.trouble.is_some() || self.writer.as_ref().is_some_and(Behind::has_work)
    }

    /// When there is something to do.
    fn due(&self) -> Instant {
        match &self.written {
            Some((at, _)) if self.wanted => *at + KEEP,
            _ => Instant::now() + Duration::from_secs(3600),
        }
    }
}
