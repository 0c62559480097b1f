//! Connections that are kept and used again: who may answer them as time goes by.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use hiveway_tests::lab::PATIENCE;

use crate::{
    client::{Answer, Socket},
    reference::Reference,
};

/// How long one look at a connection whose task has gone may take; it is looked at again later.
const GLANCE: Duration = Duration::from_millis(20);

/// How a connection was addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A service's VIP.
    Vip(usize),
    /// A service's published port, on this node.
    Mesh(usize, usize),
    /// The task's own address.
    Direct,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: Socket,
    pub(crate) way: Way,
    pub(crate) tcp: bool,
    /// Client's number, and its port.
    pub(crate) client: usize,
    pub(crate) port: u16,
    /// The task that has answered so far, and the client that it saw.
    pub(crate) task: String,
    pub(crate) seen: String,
    /// Set when it was first found that its task has gone.
    pub(crate) orphan: Option<Orphan>,
}

/// A connection whose task has gone.
#[derive(Debug)]
pub(crate) struct Orphan {
    since: Instant,
    /// UDP: who could have taken it over, whenever it was used since. An answer that came too late to be heard counts.
    heirs: BTreeSet<String>,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    /// It has ended as it should.
    Ended,
}

impl Connection {
    /// Uses it once more. An error is a disagreement with the reference.
    pub(crate) fn check(&mut self, reference: &Reference) -> Result<Fate> {
        let Some(task) = reference.endpoint(&self.task) else { return self.check_orphan(reference) };
        if reference.down[task.node] {
            // Whether a node that is down is really down is nothing that a table can tell.
            return Ok(Fate::Keep);
        }
        // Living, draining or not: for as long as it lives.
        match self.socket.ask(PATIENCE)? {
            Answer::From { task, seen } if task == self.task && seen == self.seen => Ok(Fate::Keep),
            other => bail!("{other:?}, although its task is there"),
        }
    }

    fn check_orphan(&mut self, reference: &Reference) -> Result<Fate> {
        let backends = match self.way {
            Way::Vip(service) => reference.backends(service),
            Way::Mesh(service, _) => reference.mesh_backends(service),
            Way::Direct => Vec::new(),
        };
        let orphan = self.orphan.get_or_insert_with(|| Orphan { since: Instant::now(), heirs: BTreeSet::new() });
        orphan.heirs.extend(backends.iter().map(|task| task.id.clone()));
        let age = orphan.since.elapsed();
        let fate = match self.socket.ask(GLANCE)? {
            // Removed in an orderly way it may go on for a moment.
            Answer::From { task, .. } if task == self.task => Fate::Keep,
            // Nobody has promised a word about an address that is no longer there.
            Answer::Silence if self.way == Way::Direct => Fate::Ended,
            Answer::Silence => Fate::Keep,
            Answer::Refused if self.tcp || self.way == Way::Direct || backends.is_empty() => Fate::Ended,
            Answer::Refused => bail!("refused although others serve"),
            // A datagram to an address is whoever's it is now.
            Answer::From { .. } if self.way == Way::Direct && !self.tcp => Fate::Ended,
            // UDP starts anew.
            Answer::From { task, .. } if !self.tcp && orphan.heirs.contains(&task) => {
                self.task = task;
                self.orphan = None;
                Fate::Keep
            }
            Answer::From { task, .. } => bail!("{task} answered, but its task has gone"),
        };
        // Judged only now: it may be long since anybody has looked.
        let lingers = fate == Fate::Keep && self.orphan.is_some();
        ensure!(!lingers || age < PATIENCE, "nobody has ended it since its task went, {age:?} ago");
        Ok(fate)
    }
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = if self.tcp { "TCP" } else { "UDP" };
        write!(f, "{protocol} {:?} of client {} port {} with {}", self.way, self.client, self.port, self.task)
    }
}
