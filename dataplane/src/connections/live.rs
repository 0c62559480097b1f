//! Whose connections go on.

use dataplane_common::addr::Tag;
use foldhash::HashMap;

/// Tags of every endpoint in the table, on whichever node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Connections that began before this have ended, although the endpoint is there.
    endpoints: HashMap<Tag, u64>,
}

impl Live {
    /// Adds a task that has left the table while its endpoint still takes what is on its way: of its connections only
    /// those go on that began at `since` or later (`CLOCK_MONOTONIC` in nanoseconds).
    pub fn departing(&mut self, tag: Tag, since: u64) {
        self.endpoints.insert(tag, since);
    }

    /// Whether a connection with that task that began at `created` has ended. A connection that is younger than the
    /// list of endpoints, of `as_of`, may be of a task that is not in it yet.
    pub(super) fn has_ended(&self, tag: &Tag, created: u64, as_of: u64) -> bool {
        match self.endpoints.get(tag) {
            Some(since) => created < *since,
            None => created <= as_of,
        }
    }
}

impl FromIterator<Tag> for Live {
    /// Tasks that are there.
    fn from_iter<I: IntoIterator<Item = Tag>>(tags: I) -> Self {
        Self { endpoints: tags.into_iter().map(|tag| (tag, 0)).collect() }
    }
}
