//! Tells systemd and the log how far the agent has come. Ready in systemd's sense is an agent that answers on its
//! socket and whose programs this machine takes: a table may be long in coming, after a power cut of a whole swarm say,
//! and no reason to kill the agent. The line `ready:` on stderr says that the first table has been programmed.

use std::time::Duration;

use tokio::time::interval;

use super::shared::Snapshot;
use crate::{
    say::errln,
    status::report::Starting,
    systemd::{Said, tell},
};

/// How often systemd is told what is waited for.
const AGAIN: Duration = Duration::from_secs(10);

/// The socket answers, and the machine has what the agent needs.
pub(super) fn answers() {
    tell(Said::Ready("it waits for the first table".into()));
}

/// Tells systemd, for as long as it is polled, what is waited for.
pub(super) async fn keep_waiting(starting: Option<&Starting>) {
    let mut tick = interval(AGAIN);
    while let Some(starting) = starting {
        tick.tick().await;
        let status = format!("waiting for {}", starting.why());
        tell(Said::Status(status));
    }
    std::future::pending().await
}

/// Prints the `ready:` line on stderr, and tells systemd.
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
    tell(Said::Status("the first table has been programmed".into()));
}
