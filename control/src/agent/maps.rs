//! The maps: what follows from the whole table and the node, and before that small changes of the table, which the maps
//! show before anything else is done.

use dataplane_common::state::MapState;
use hiveway_core::{Desired, Facts, Settings, change::Programmed, map_state};
use tokio::task::block_in_place;

use super::{apply::RoundLog, facts::facts, local_tasks::LocalTasks, observe::Observation, reconcile::Agent};
use crate::netlink::observe_links;

impl Agent {
    /// Lets the maps show a change of a few tasks elsewhere, before anything is looked at: the round that follows
    /// compares everything. Returns whether they do.
    pub(super) fn change_maps(&mut self) -> bool {
        let Some(programmed) = self.programmed.take() else { return false };
        let now = &self.table.model;
        let Some(change) = programmed.change(now) else { return false };
        let changes = block_in_place(|| self.shared.dataplane().change(&change));
        // What has failed is tried again, and named, by the round.
        let shown = changes.failures.is_empty();
        if shown {
            // First: the maps show it, and what follows takes its time in a large table.
            self.last.change = self.table.shown().or(self.last.change);
            self.programmed = Some(programmed.with(self.table.model.clone()));
        }
        shown
    }

    /// The maps have been compared with the whole table and hold what follows from it. `before`: what was last said so
    /// of.
    fn programmed(&mut self, before: Option<Programmed>, settings: &Settings, facts: Facts) {
        self.last.change = self.table.shown().or(self.last.change);
        self.programmed = Some(match before {
            Some(same) if same.is_of(&self.table.model, settings, &facts, &self.addresses) => same,
            _ => Programmed::new(self.table.model.clone(), settings.clone(), facts, self.addresses.clone()),
        });
    }

    /// Has the maps hold what follows from the table and the node.
    pub(super) fn maps(&mut self, desired: &Desired, seen: &Observation, round: &mut RoundLog) {
        // First: what is missing around the agent must not put the maps off once it is back.
        let facts = match self.facts(seen) {
            Ok(facts) => facts,
            Err(why) => return round.lacks(&mut self.backoff, "maps", &why),
        };
        if round.may(&self.backoff, "maps") {
            self.write_maps(desired, seen, facts, round);
        }
    }

    /// What the maps are to hold, but for tasks' interfaces that have not been up, and the facts that it follows from.
    pub(super) fn wanted_maps(&mut self, desired: &Desired, seen: &Observation, facts: Facts) -> (Facts, MapState) {
        let facts = Facts { unopened: self.local.opened.others(desired, seen.links()).clone(), ..facts };
        let want = map_state(&self.table.model, desired, &seen.settings, &facts);
        (facts, want)
    }

    fn write_maps(&mut self, desired: &Desired, seen: &Observation, facts: Facts, round: &mut RoundLog) {
        let (facts, want) = self.wanted_maps(desired, seen, facts);
        let settings = &seen.settings;
        let before = self.programmed.take();
        let applied = self.shared.dataplane().apply(&want);
        let Some(changes) = round.note(&mut self.backoff, "maps", applied) else { return };
        round.changes += usize::from(!changes.maps.is_empty());
        if !changes.maps.is_empty() {
            tracing::debug!("maps: {:?}", changes.maps);
        }
        match changes.failures.first() {
            None => self.programmed(before, settings, facts),
            Some(first) => {
                let (map, more) = (first.map, changes.failures.len() - 1);
                let why = format!("map {map:?}, entry {}: {} (and {more} more)", first.item, first.error);
                round.note::<(), _>(&mut self.backoff, "maps", Err(why));
            }
        }
    }

    /// Leads clients to tasks whose interfaces have come up since the maps were written. That is written even if
    /// another entry could not be. What fails here the next round does.
    pub(super) async fn open(&mut self, desired: &Desired, seen: &mut Observation, round: &mut RoundLog) {
        if self.local.opened.is_all() {
            return;
        }
        let links = match observe_links(&self.socket).await {
            Ok(links) => links,
            Err(error) => return tracing::debug!("which interfaces are up: {error}"),
        };
        if !self.local.opened.has_news(desired, &links) {
            return;
        }
        // Without their entries: what those lack has been planned.
        seen.observed.links = links;
        if let Ok(facts) = self.facts(seen) {
            block_in_place(|| self.write_maps(desired, seen, facts, round));
        }
    }

    pub(super) fn facts(&mut self, seen: &Observation) -> Result<Facts, String> {
        let left = self.host_rules.entries(seen.links());
        let LocalTasks { sandboxes, replies, .. } = &self.local;
        facts(&self.args, seen.links(), &seen.gateway, sandboxes, &self.uplinks, replies, left)
    }
}
