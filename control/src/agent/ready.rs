//! Tells the world that the first table has been programmed.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::interval;

use super::shared::Snapshot;
use crate::{say::errln, status::report::Starting};

/// How often systemd is asked for more time, and for how much.
const MORE_TIME: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Tells systemd, for as long as it is polled, that the start takes longer and why: a swarm whose managers all start again
/// after a power cut is no reason to kill the agent.
pub(super) async fn keep_waiting(starting: Option<&Starting>) {
    let mut tick = interval(MORE_TIME.0);
    while let Some(starting) = starting {
        tick.tick().await;
        let status = format!("waiting for {}", starting.why());
        let more = u32::try_from(MORE_TIME.1.as_micros()).unwrap_or(u32::MAX);
        // Without systemd there is nobody to tell, and with it the next time may work.
        let _ = sd_notify::notify(&[NotifyState::Status(&status), NotifyState::ExtendTimeoutUsec(more)]);
    }
    std::future::pending().await
}

/// Prints the `ready:` line on stderr and notifies systemd, if it started us.
pub(super) fn announce(snapshot: &Snapshot) {
    let underlay = snapshot.uplinks.text();
    let vtep = snapshot.vtep.map(|vtep| vtep.to_string()).unwrap_or_default();
    errln!(
        "ready: node {}, tunnel address {vtep} on {underlay}, {} local tasks ({} waiting, {} items failing)",
        snapshot.node,
        snapshot.local_tasks,
        snapshot.waiting.len(),
        snapshot.failing.len(),
    );
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("ready")]) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
