//! Tells the world that the first table has been programmed.

use sd_notify::NotifyState;

use super::shared::Snapshot;

/// Prints the `ready:` line on stderr and notifies systemd, if it started us.
pub(super) fn announce(snapshot: &Snapshot, underlay: &str) {
    let vtep = snapshot.vtep.map(|vtep| vtep.to_string()).unwrap_or_default();
    eprintln!(
        "ready: node {}, tunnel address {vtep} on {underlay}, {} local tasks ({} waiting, {} items failing)",
        snapshot.node,
        snapshot.local_tasks,
        snapshot.waiting.len(),
        snapshot.failing.len(),
    );
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
