//! The agent's life: start, first table, then whatever happens.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use hiveway_core::firewall::LeftEntries;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::{JoinHandle, block_in_place},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    backoff::Backoff,
    cooldown,
    host_rules::HostRules,
    local_tasks::LocalTasks,
    memory,
    next_hops::NextHops,
    pace::{Foreign, Pace, paced, until},
    path_news, pins,
    probes::{Paths, Probing},
    ready,
    reconcile::{Agent, Cause},
    reverse::Reverse,
    shared::{About, Shared, Snapshot},
    startup::{self, Started},
    sweep::Sweeper,
};
use crate::{
    burst::{Allowance, Burst},
    child,
    cli::AgentArgs,
    host_firewall,
    liveness::{self, Liveness, Part},
    metrics,
    netlink::{self, monitor},
    relay,
    source::{self, Live, Setup, Source, Supervisor},
    state_dir::StateDir,
    status::report::{Answers, Starting},
    uplinks::{Underlay, Uplinks},
};

/// How often everything is looked at, and flows are swept; less often where that takes long.
const TICK: Duration = Duration::from_secs(5);
/// How often the namespaces of waiting tasks are looked for.
const WAITING: Duration = Duration::from_millis(500);
/// How long the first round waits for the host's rules.
const FIRST_RULES: Duration = Duration::from_secs(20);
/// The loop is heard of within this time: with each step of a round, and between two.
const ROUND: Duration = Duration::from_secs(30);
/// Tables that come first. Where more come, a table waits until everything else has had its turn, and as long as rounds
/// do that the surroundings cause.
const TABLES: Allowance = Allowance { burst: 20, every: Duration::from_secs(1) };
/// Those who wait for a preview; more wait until there is room.
const PREVIEWS: usize = 64;
/// How long to wait for more changes of links before acting on them together.
const LINKS_SETTLE: Duration = Duration::from_millis(50);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What was wrong with the start, with the remedy. Once the first table is in force, nothing ends the agent but a
/// signal.
pub fn run(args: AgentArgs) -> anyhow::Result<()> {
    memory::keep_little();
    netlink::start().context("cannot start the agent")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(live(args));
    child::end_all();
    // Status requests may still be under way.
    runtime.shutdown_background();
    result
}

/// A terminal that closes, or somebody who wants files to be read again, does not end the agent.
async fn hear_hangups(mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        tracing::info!("SIGHUP: nothing to do, tables are read again when they change");
    }
}

async fn live(mut args: AgentArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(hear_hangups(signal(SignalKind::hangup())?));
    let alive = Arc::new(Liveness::default());
    liveness::watch(alive.clone()).context("cannot start the thread that looks after the others")?;
    let supervisor = args.table.is_live().then(|| supervisor(&args, &alive));
    let (ready, when_ready) = watch::channel(false);
    let board = Arc::new(Paths::default());
    let relay = supervisor
        .as_ref()
        .map(|supervisor| relay::start(&supervisor.hub, args.relay(), when_ready, path_news::follow(board.clone())));
    let starting = supervisor.as_ref().map(|supervisor| Starting {
        source: args.table.to_string(),
        started: std::time::Instant::now(),
        table: supervisor.hub.table.clone(),
        engine: supervisor.hub.engine.clone(),
        relay: relay.as_ref().map(|relay| relay.board.clone()),
    });
    let started = tokio::select! {
        biased;
        // A live source may let us wait for its first table.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        started = startup::start(&mut args, supervisor.as_ref(), starting.clone()) => started?,
        () = ready::keep_waiting(starting.as_ref()) => return Ok(()),
    };
    let Started {
        table,
        socket,
        own_address,
        state,
        mut dataplane,
        join_grace,
        mut status,
        metrics,
        instance: _instance,
        tight,
    } = started;
    let mut host_firewall =
        host_firewall::watch(alive.pulse(Part::Firewall)).context("cannot watch for changes of the firewall")?;
    let addresses = state.gateway_addresses()?;
    let about = About {
        mesh_allow: args.mesh_allow(),
        mesh_deny: args.mesh_deny(),
        mesh_return: args.mesh_return,
        source: args.table.to_string(),
        bpffs: args.bpffs.display().to_string(),
        timeouts: args.connections.timeouts(),
        started: std::time::Instant::now(),
        relay: relay.as_ref().map(|relay| relay.board.clone()),
        engine: supervisor.as_ref().map(|supervisor| supervisor.hub.engine.clone()),
        host_firewall: host_firewall.clone(),
        paths: board.clone(),
        liveness: alive.clone(),
        tight,
    };
    // What was never read may say anything: the first round waits for it.
    let _ = timeout(FIRST_RULES, host_firewall.wait_for(|heard| heard.attempts > 0)).await;
    let left = dataplane.left().context("what earlier agents left to the host is unreadable")?;
    let before = LeftEntries { entries: Arc::new(left.entries), flags: left.flags };
    let sweep = dataplane.connections()?;
    let hops = dataplane.take_hops().context("the map of next hops is taken")?;
    let filters = dataplane.take_reverse().context("the map of reverse-path filters is taken")?;
    let reverse = Reverse::start(filters).context("cannot watch for changes of rp_filter")?;
    let paths = dataplane.take_paths().context("the maps of path MTUs are taken")?;
    let probes = dataplane.take_probes(random()).context("the map of probes is taken")?;
    let probing = Probing::start(probes, board.clone(), alive.pulse(Part::Probes))
        .context("cannot open a packet socket for probes")?;
    let foreign = Foreign::default();
    let next_hops = NextHops::start(hops, paths, board, foreign.clone())
        .context("cannot watch for changes of routes and neighbours")?;
    let (previews, mut previews_asked) = mpsc::channel(PREVIEWS);
    let shared = Arc::new(Shared::new(about, dataplane, previews)?);
    let sweeper = Sweeper::start(sweep, args.connections.timeouts(), shared.clone(), alive.pulse(Part::Sweep))
        .context("cannot start the sweep's thread")?;
    status.serve(Answers::Agent(shared.clone()));
    if !args.table.is_live() {
        ready::answers();
    }
    if let Some(listener) = metrics {
        metrics::serve(listener, shared.clone());
    }

    let (table_changed, mut tables) = watch::channel(());
    let (links_changed, mut links) = mpsc::channel(1);
    let _watcher = match &supervisor {
        Some(supervisor) => {
            supervisor.keep_in(state.clone());
            if let Some(relay) = &relay {
                relay.keep_in(state.clone());
            }
            live_watch(supervisor.hub.table.clone(), table_changed.clone())
        }
        None => source::watch(&args.table, table_changed.clone()),
    };
    // The source may have changed between its first reading and the start of the watcher.
    tables.mark_changed();
    let (routes_changed, mut routes) = mpsc::channel(1);
    let _routes = match args.underlay() {
        Underlay::Auto => Some(monitor::watch_routes(routes_changed).context("cannot watch for changes of routes")?),
        Underlay::Named(_) => None,
    };
    let ignores = {
        let foreign = foreign.clone();
        move |event: &monitor::About| foreign.ignores(event)
    };
    let _monitor = monitor::watch(links_changed, ignores).context("cannot watch for changes of interfaces")?;
    let mut agent = Agent {
        args,
        table,
        socket,
        state,
        addresses,
        unsaved: false,
        shared,
        backoff: Backoff::default(),
        last: Snapshot::default(),
        guarded: None,
        sweeper,
        local: LocalTasks::default(),
        host_rules: HostRules::new(host_firewall.clone(), before),
        join_grace,
        xdp: Default::default(),
        next_hops,
        reverse,
        carried: None,
        uplinks: Uplinks { own_address, ..Uplinks::default() },
        lost_uplinks: Default::default(),
        seldom: Default::default(),
        strays: Default::default(),
        probing,
        programmed: None,
        port: None,
        port_tried: None,
        gave_way: None,
        hub: supervisor.as_ref().map(|supervisor| supervisor.hub.clone()),
        cost: Duration::ZERO,
        looked: None,
        foreign,
        pins: Default::default(),
        pulse: alive.pulse(Part::Rounds),
    };
    let pulse = agent.pulse.clone();
    let mut burst = Burst::default();
    let mut pace = Pace::default();
    let mut guard_pace = Pace::default();
    let mut preview_pace = Pace::default();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.reset();
    let mut announced = false;
    let mut cause = Cause::Table;
    loop {
        pulse.beat(ROUND);
        let rounds = agent.last.runs;
        // A round ends early for a table that may come before everything else.
        let first = burst.due(TABLES, std::time::Instant::now()).is_none();
        let news = first.then(|| tables.clone());
        match cause {
            Cause::Cooldown => agent.cool_down(),
            Cause::Preview => {}
            Cause::Guard => {
                let started = Instant::now();
                let replaced = block_in_place(|| agent.guard_table());
                guard_pace.round(std::time::Instant::now(), started.elapsed());
                if replaced {
                    agent.reconcile(Cause::Tick, news).await;
                }
            }
            Cause::Routes if !agent.uplinks_moved().await => {}
            Cause::Routes => agent.reconcile(Cause::Kernel, news).await,
            cause => agent.reconcile(cause, news).await,
        }
        // A turn without a round puts off nothing that waits for the next one.
        if agent.last.runs != rounds {
            pace.round(std::time::Instant::now(), agent.cost);
        }
        if agent.last.ready && !announced {
            ready::announce(&agent.last);
            announced = true;
            ready.send_replace(true);
            agent.join_grace.ready(std::time::Instant::now());
        }
        // For which the last round has ended early: it comes before what is due.
        if agent.gave_way.is_some() {
            burst.take(TABLES, std::time::Instant::now());
            cause = taken_in(&mut agent, &mut tables).await;
            continue;
        }
        let first = burst.due(TABLES, std::time::Instant::now()).is_none();
        let (mut news, mut late) = (tables.clone(), tables.clone());
        cause = tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // What is due comes first: whatever happens around the agent all the time, it keeps nothing from its time.
            () = until(agent.table.grace_ends()) => if agent.table.let_go() { Cause::Table } else { Cause::Tick },
            _ = tick.tick() => {
                // It is about to be read if it has changed.
                tables.mark_unchanged();
                if agent.table.confirm() {
                    Cause::Table
                } else if agent.has_cooled_down() {
                    Cause::Tick
                } else {
                    Cause::Cooldown
                }
            }
            () = until(agent.join_grace.due()) => {
                agent.join_grace.known();
                Cause::Tick
            }
            () = until(agent.backoff.next().map(|due| pace.not_before(due))) => Cause::Tick,
            Ok(()) = news.changed(), if first => {
                burst.take(TABLES, std::time::Instant::now());
                taken_in(&mut agent, &mut tables).await
            }
            () = paced(&pace, pins::moved(&agent.args.bpffs, &agent.pins)) => Cause::Tick,
            () = paced(&pace, namespace_appears(&agent)) => Cause::Kernel,
            Some(()) = paced(&pace, links.recv()) => {
                // A table is not kept waiting.
                let more = sleep(LINKS_SETTLE);
                tokio::select! {
                    () = more => {}
                    Ok(()) = news.changed(), if first => {}
                }
                while links.try_recv().is_ok() {}
                Cause::Kernel
            }
            // Behind the links: a script that changes the rules all the time keeps no container waiting.
            Some(()) = paced(&guard_pace, async { host_firewall.changed().await.ok() }) => {
                let ignored = agent.args.ignored();
                agent.host_rules.news(&ignored)
            }
            // Behind everything else: a routing protocol may have news all the time.
            Some(()) = paced(&pace, routes.recv()) => Cause::Routes,
            Ok(()) = paced(&pace, late.changed()), if !first => taken_in(&mut agent, &mut tables).await,
            // Who only asks waits for everybody else, and all who ask by then get the same answer.
            Some(asked) = paced(&preview_pace, previews_asked.recv()) => {
                let used = cooldown::used();
                let mut all = vec![asked];
                while let Ok(more) = previews_asked.try_recv() {
                    all.push(more);
                }
                // Nobody waits for an answer that was too long in coming.
                all.retain(|asked| !asked.is_closed());
                if !all.is_empty() {
                    let found = agent.preview(tables.clone()).await;
                    all.into_iter().for_each(|asked| drop(asked.send(found.clone())));
                    preview_pace.round(std::time::Instant::now(), cooldown::used().saturating_sub(used));
                }
                Cause::Preview
            }
        };
    }
    tracing::info!("stopping; the data plane goes on forwarding (`hiveway teardown` takes it down)");
    Ok(())
}

/// All that a live source is made of.
fn supervisor(args: &AgentArgs, alive: &Arc<Liveness>) -> Supervisor {
    let last = StateDir::existing(&args.state_dir).and_then(|state| state.last_table());
    Supervisor::start(Setup {
        manager: (args.table == Source::Swarm).then(|| args.engine.manager()),
        engine: args.engine.engine(),
        node: Some(args.node.clone()).filter(|node| !node.is_empty()),
        last,
        pulse: alive.pulse(Part::Source),
    })
}

/// A number that another agent has not.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Reads the table that has changed, when what belongs to it has come as well.
async fn taken_in(agent: &mut Agent, tables: &mut watch::Receiver<()>) -> Cause {
    sleep(settle(&agent.args.table)).await;
    tables.mark_unchanged();
    if agent.table.reload() { Cause::Table } else { agent.gave_way.unwrap_or(Cause::Kernel) }
}

/// Says when a live source has news.
fn live_watch(mut tables: watch::Receiver<Arc<Live>>, changed: watch::Sender<()>) -> JoinHandle<()> {
    tokio::spawn(async move { while tables.changed().await.is_ok() && changed.send(()).is_ok() {} })
}

/// How long to wait for more changes of the source before reading it.
fn settle(source: &Source) -> Duration {
    match source {
        // Several files that belong together.
        Source::Engine(_) => Duration::from_millis(200),
        // Has waited already.
        Source::Swarm | Source::Relay(_) => Duration::ZERO,
        Source::File(_) => Duration::from_millis(20),
    }
}

/// Returns when a namespace that was missing is there, or after a while when an engine has not finished one.
async fn namespace_appears(agent: &Agent) {
    if agent.local.incomplete {
        // Since the last look, not since this call: other things may come to pass more often than that.
        return until(agent.last.last_run.map(|last| last + WAITING)).await;
    }
    if agent.local.missing.is_empty() {
        return std::future::pending().await;
    }
    while !agent.local.missing.iter().any(|path| path.exists()) {
        sleep(WAITING).await;
    }
}
