//! Small changes of the table, which the maps show before anything else is done.

use hiveway_core::{Facts, Settings, change::Programmed};
use tokio::task::block_in_place;

use super::reconcile::Agent;

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
            self.programmed = Some(programmed.with(now.clone()));
            self.last.change = self.table.shown().or(self.last.change);
        }
        shown
    }

    /// The maps have been compared with the whole table and hold what follows from it. `before`: what was last said so
    /// of.
    pub(super) fn programmed(&mut self, before: Option<Programmed>, settings: &Settings, facts: Facts) {
        self.last.change = self.table.shown().or(self.last.change);
        self.programmed = Some(match before {
            Some(same) if same.is_of(&self.table.model, settings, &facts, &self.addresses) => same,
            _ => Programmed::new(self.table.model.clone(), settings.clone(), facts, self.addresses.clone()),
        });
    }
}
