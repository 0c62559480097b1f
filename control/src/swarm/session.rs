//! One connection to the manager, from its stream's first message to its end.

use std::{sync::Arc, time::Duration};

use hiveway_core::{
    docker_api::{Loaded, assemble},
    model::Carrier,
};
use hiveway_proto::swarm::{WatchMessage, WatchRequest, watch_client::WatchClient, watch_request::Entry};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at},
};
use tonic::{Status, Streaming, transport::Channel};

use super::{
    Manager,
    connect::{chain, connect},
    list, lose,
    state::State,
};
use crate::source::Live;

/// Create, update, remove.
const ALL: u32 = 1 | 2 | 4;
/// How long the start of the stream may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Changes that come together are acted on together: after so long a silence ...
const SILENCE: Duration = Duration::from_millis(10);
/// ... or so long after the first.
const LATEST: Duration = Duration::from_millis(50);
/// How often a silent manager is asked whether it is still there, and has a leader.
const PROBE: Duration = Duration::from_secs(15);
/// Every so many probes everything is listed anew, in case that something was missed.
const RELIST: u32 = 20;
/// Largest message of the stream: one transaction of the manager.
const MAX_MESSAGE: usize = 1 << 28;

/// Follows the manager until that breaks; returns why.
pub(super) async fn run(manager: &Manager, out: &watch::Sender<Arc<Live>>) -> String {
    match follow(manager, out).await {
        Ok(()) => "the manager has ended the stream".into(),
        Err(why) => why,
    }
}

async fn follow(manager: &Manager, out: &watch::Sender<Arc<Live>>) -> Result<(), String> {
    let connecting = timeout(PATIENCE, connect(&manager.socket, &manager.root_ca)).await;
    let channel = connecting.map_err(|_| "the manager does not answer")?.map_err(|error| error.to_string())?;
    let started = timeout(PATIENCE, start(channel.clone())).await.map_err(|_| "the manager's stream does not start")?;
    let mut stream = started.map_err(|status| said(&status))?;
    let mut state = list::everything(&channel).await.map_err(|status| said(&status))?;
    publish(out, &state);

    let mut probe = interval_at(Instant::now() + PROBE, PROBE);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probes = 0u32;
    loop {
        tokio::select! {
            message = stream.message() => {
                let Some(message) = message.map_err(|status| said(&status))? else { return Ok(()) };
                apply(&mut state, message);
                let ended = more(&mut stream, &mut state).await;
                publish(out, &state);
                match ended {
                    Some(Ok(())) => return Ok(()),
                    Some(Err(status)) => return Err(said(&status)),
                    None => {}
                }
            }
            _ = probe.tick() => {
                probes += 1;
                let answer = if probes.is_multiple_of(RELIST) {
                    list::everything(&channel).await.map(|listed| state = listed)
                } else {
                    list::probe(&channel).await
                };
                match answer {
                    Ok(()) => publish(out, &state),
                    // No leader, say: this manager's stream goes on, and will tell when there is one.
                    Err(status) => {
                        out.send_if_modified(|live| lose(live, &said(&status)));
                    }
                }
            }
        }
    }
}

/// The stream, after its first message.
async fn start(channel: Channel) -> Result<Streaming<WatchMessage>, Status> {
    let entry = |kind: &str| Entry { kind: kind.into(), action: ALL };
    let entries = ["node", "network", "service", "task"].map(entry).to_vec();
    let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut stream = client.watch(WatchRequest { entries }).await?.into_inner();
    stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended before it began"))?;
    Ok(stream)
}

/// Takes what comes right after. Returns how the stream ended, if it did.
async fn more(stream: &mut Streaming<WatchMessage>, state: &mut State) -> Option<Result<(), Status>> {
    let latest = Instant::now() + LATEST;
    loop {
        let until = latest.min(Instant::now() + SILENCE);
        match timeout_at(until, stream.message()).await {
            Err(_) => return None,
            Ok(Ok(Some(message))) => apply(state, message),
            Ok(Ok(None)) => return Some(Ok(())),
            Ok(Err(status)) => return Some(Err(status)),
        }
        if Instant::now() >= latest {
            return None;
        }
    }
}

/// Takes a message's events.
pub(super) fn apply(state: &mut State, message: WatchMessage) {
    for event in message.events {
        if let Some(object) = event.object {
            state.apply(event.action, object);
        }
    }
}

fn publish(out: &watch::Sender<Arc<Live>>, state: &State) {
    let mut loaded = assemble(state.objects(), Carrier::Engine);
    let live = out.borrow().clone();
    if let Some(before) = &live.table {
        loaded.remember(&before.model);
    }
    out.send_replace(Arc::new(Live::current(unchanged(loaded, &live), live.from.clone())));
}

/// The table at hand if nothing has changed: others see at a glance that they have nothing to do.
fn unchanged(loaded: Loaded, live: &Live) -> Arc<Loaded> {
    match &live.table {
        Some(before) if **before == loaded => before.clone(),
        _ => Arc::new(loaded),
    }
}

fn said(status: &Status) -> String {
    match status.message() {
        "" => chain(status),
        message => message.to_owned(),
    }
}
