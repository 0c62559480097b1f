//! The join grace: a node that is new to the mesh lets the others know before it sends them anything.
//!
//! Mesh frames are taken from nodes that are known to run Hiveway only, and a node says so when its data plane is
//! programmed. If it took over the mesh at once, what it sends to other nodes' backends until they know would be
//! dropped there. So at first it serves what others send, and leaves clients to the engine's own mesh.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hiveway_core::{Model, model::Dataplane};

/// How long the others have to hear of it (half a second) and to act on it.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// Why clients stay with the engine's mesh meanwhile.
pub(super) const WAITS: &str = "the other nodes are being told that Hiveway is here; a moment";

/// Where the introduction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinGrace {
    /// This node's data plane has never been ready: the others have not been told.
    Unknown,
    /// They have been, and know by then.
    Told(Instant),
    /// They know, or need not.
    Known,
}

impl JoinGrace {
    /// At the start of an agent with a live table (`live`); one that finds a data plane on the node only resumes. Must
    /// be called before there is one.
    pub(super) fn at_start(live: bool, bpffs: &Path) -> Self {
        if live && !bpffs.join("maps").exists() { Self::Unknown } else { Self::Known }
    }

    /// The data plane has been programmed: the others are told.
    pub(super) fn ready(&mut self, now: Instant) {
        if *self == Self::Unknown {
            *self = Self::Told(now + INTRODUCTION);
        }
    }

    /// They know now.
    pub(super) fn known(&mut self) {
        *self = Self::Known;
    }

    /// Why this node's clients stay with the engine's mesh as yet.
    pub(super) fn waits(&mut self, model: &Model, me: &str, now: Instant) -> Option<String> {
        let others = model.nodes.values().any(|node| node.id != me && node.dataplane == Dataplane::Hiveway);
        if *self == Self::Known || !others || self.due().is_some_and(|due| due <= now) {
            *self = Self::Known;
            return None;
        }
        Some(WAITS.into())
    }

    /// When it is over, if it has begun.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Told(due) => Some(*due),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(others: &str) -> Model {
        let text = format!(
            "version: 1\nnodes: [{{id: n1, hostname: n1, address: 192.0.2.1}}, \
             {{id: n2, hostname: n2, address: 192.0.2.2, dataplane: {others}}}]\n"
        );
        hiveway_core::table::parse_file(&text, Path::new("t.yaml")).unwrap().model
    }

    #[test]
    fn it_waits_for_others_once() {
        let mut join_grace = JoinGrace::at_start(true, Path::new("/nowhere"));
        let (model, start) = (model("hiveway"), Instant::now());
        assert!(join_grace.waits(&model, "n1", start).is_some() && join_grace.due().is_none());
        join_grace.ready(start);
        let due = join_grace.due().unwrap();
        join_grace.ready(start + INTRODUCTION / 2);
        assert_eq!(join_grace.due(), Some(due), "said once");
        assert!(join_grace.waits(&model, "n1", start + INTRODUCTION / 2).is_some());
        assert!(join_grace.waits(&model, "n1", due).is_none());
        join_grace.ready(due);
        assert_eq!(join_grace, JoinGrace::Known);
    }

    #[test]
    fn who_resumes_or_is_alone_does_not_wait() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(JoinGrace::at_start(false, Path::new("/nowhere")), JoinGrace::Known);
        std::fs::create_dir(directory.path().join("maps")).unwrap();
        assert_eq!(JoinGrace::at_start(true, directory.path()), JoinGrace::Known);
        let mut alone = JoinGrace::Unknown;
        assert!(alone.waits(&model("none"), "n1", Instant::now()).is_none());
        assert_eq!(alone, JoinGrace::Known);
    }
}
