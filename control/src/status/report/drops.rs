//! What was dropped, by reason: one answer for `drops` and for the metrics.

use dataplane_common::{counter::Stat, drop_reason::DropReason};
use serde::Serialize;

use crate::{agent::shared::Shared, nft::Dropped};

/// A row of `drops`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropView {
    /// Name of the reason.
    pub reason: &'static str,
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// All reasons. The firewall drops for the same ones what the programs do not see; while it does not answer, its last
/// count stands.
///
/// # Errors
/// When the map cannot be read.
pub fn drops(shared: &Shared) -> Result<Vec<DropView>, String> {
    let programs = shared.counts().drops().map_err(|error| error.to_string())?;
    Ok(sum(programs, shared.reads.firewall_drops()))
}

fn sum(programs: Vec<(DropReason, Stat)>, firewall: Dropped) -> Vec<DropView> {
    let view = |(reason, stat): (DropReason, Stat)| {
        let more = match reason {
            DropReason::ForgedTunnel => firewall.forged,
            DropReason::NotAllowed => firewall.closed,
            DropReason::UnknownDestination => firewall.stray,
            _ => Stat::default(),
        };
        DropView { reason: reason.name(), packets: stat.packets + more.packets, bytes: stat.bytes + more.bytes }
    };
    programs.into_iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_firewall_drops_counts_under_its_reason() {
        let stat = |packets| Stat { packets, bytes: packets * 100 };
        let programs = vec![
            (DropReason::ForgedTunnel, stat(1)),
            (DropReason::NotAllowed, stat(2)),
            (DropReason::SpoofedMac, stat(3)),
            (DropReason::UnknownDestination, stat(4)),
        ];
        let firewall = Dropped { forged: stat(10), closed: stat(20), stray: stat(30) };
        let packets: Vec<_> = sum(programs, firewall).iter().map(|row| (row.packets, row.bytes)).collect();
        assert_eq!(packets, [(11, 1100), (22, 2200), (3, 300), (34, 3400)]);
    }
}
