//! Connection tables that run full, and connections that find no share of them.

use dataplane::PerTable;

use crate::agent::shared::Shared;

/// Part of a table's room, in percent, from which on it counts as full: time is left to do something.
const FULL: u64 = 90;

/// Tables of established connections that are nearly full, by the last sweep, with what to do about it. In the pending tables
/// the least recently used entry makes room: they may be full.
pub(super) fn nearly_full(shared: &Shared) -> Vec<String> {
    let Some((_, report)) = shared.sweeps().last else { return Vec::new() };
    let mut texts = full(report.left, shared.connections().capacity());
    texts.extend(kept(report.kept));
    texts
}

/// What is said of so many entries that have found no share of the established tables.
fn kept(entries: usize) -> Option<String> {
    (entries > 0).then(|| {
        format!(
            "{entries} entries of connections have found no share of the connection tables: of what is free their service or \
             their clients' network holds too much, or all that is not TCP; they stay among the connections that others \
             displace. `hiveway flow ls` shows whose they are; shorter idle times (`--timeout`) make room, and so does \
             `--max-flows` after a teardown"
        )
    })
}

fn full(left: PerTable<usize>, room: PerTable<u32>) -> Vec<String> {
    let tables = [("flows", left.flows, room.flows), ("affinity", left.affinity, room.affinity)];
    tables
        .into_iter()
        .filter(|(_, entries, room)| *entries as u64 * 100 > u64::from(*room) * FULL)
        .map(|(name, entries, room)| {
            format!(
                "connection table {name} is nearly full: {entries} of {room} entries; what finds no room stays among the \
                 connections that others displace. `hiveway flow ls` shows whose they are; shorter idle times (`--timeout`) make \
                 room, and so does `--max-flows` after a teardown"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_table<T: Copy>(flows: T, affinity: T, pending: T) -> PerTable<T> {
        PerTable {
            flows,
            affinity,
            flows_pending: pending,
            affinity_pending: pending,
            flows_pending_other: pending,
            affinity_pending_other: pending,
        }
    }

    #[test]
    fn more_than_nine_tenths_of_an_established_table_is_full() {
        let room = per_table(1000, 1000, 10);
        let left = |flows, affinity| per_table(flows, affinity, 10);
        assert_eq!(full(left(900, 900), room), Vec::<String>::new());
        let [only] = &full(left(901, 0), room)[..] else { panic!("flows") };
        assert!(
            only.contains("table flows is nearly full: 901 of 1000 entries") && only.contains("--max-flows"),
            "{only}"
        );
        assert_eq!(full(left(1000, 1000), room).len(), 2);
        assert_eq!(kept(0), None);
        assert!(kept(3).is_some_and(|text| text.starts_with("3 entries") && text.contains("--max-flows")));
    }
}
