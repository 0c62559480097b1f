//! Looks into the namespaces of local tasks, each in its turn: one that cannot be looked into, or takes long, is what
//! its container makes it, and keeps nothing else from its time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Instant,
};

use hiveway_core::{
    Desired, Settings,
    observed::{Namespace, Replies, Sandbox},
    plan::Item,
};

use super::{apply::RoundLog, backoff::Backoff, opened::Opened, reconcile::Agent, shared::OpenItem};
use crate::netlink::{Former, Looked, Socket};

/// So many looks into an engine's sandbox may fail in a row before the node counts as failing.
const SILENT: u32 = 3;

/// What rounds have found of the tasks here, as far as the next one needs it.
#[derive(Clone, Default)]
pub(super) struct LocalTasks {
    /// What the last round found in the sandboxes of attached tasks.
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    /// Running tasks that were seen without an interface on the gateway bridge, and since when.
    pub(super) without_gateway: BTreeMap<String, Instant>,
    /// Where their replies go.
    pub(super) replies: BTreeMap<String, Replies>,
    /// An interface was missing in one of them.
    pub(super) incomplete: bool,
    /// Where namespaces are waited for.
    pub(super) missing: Vec<PathBuf>,
    /// Which namespace is looked into first: the one that the last round has not come to.
    first_look: usize,
    /// Interfaces that have been up.
    pub(super) opened: Opened,
    /// Namespaces whose last looks have failed, by path.
    pub(super) looks: Backoff,
    /// Those of whose namespaces was said that not everything could be read.
    unread: BTreeSet<String>,
}

impl Agent {
    /// Another socket where the kernel has not answered on this one.
    pub(super) fn renew_socket(&mut self, round: &mut RoundLog) {
        if self.socket.is_spent()
            && let Some(socket) = round.note(&mut self.backoff, "netlink socket", Socket::open())
        {
            self.socket = socket;
        }
    }

    /// Looks into all namespaces whose turn it is.
    pub(super) async fn look_into_namespaces(
        &mut self,
        desired: &Desired,
        settings: &Settings,
        round: &mut RoundLog,
    ) -> Option<Looked> {
        let now = Instant::now();
        let former = self.local.looks.all().iter().map(|(path, failing)| {
            (path.into(), Former { why: failing.error.clone(), rests: !self.local.looks.ready(path, now) })
        });
        let former: BTreeMap<_, _> = former.collect();
        let gateway = settings.gwbridge_subnet.trunc();
        let progress = || round.goes_on();
        let first = &mut self.local.first_look;
        let looked = tokio::select! {
            // In this order: a look that has more to read always takes all of its turn.
            biased;
            () = round.superseded() => return None,
            looked = Looked::at(desired, &self.args.netns_dir, gateway, first, &former, &progress) => looked,
        };
        let now = Instant::now();
        for (path, why) in &looked.failed {
            self.local.looks.failed(&path.display().to_string(), why.clone(), now);
        }
        for space in looked.spaces.0.values() {
            self.local.looks.succeeded(&space.path.display().to_string());
        }
        self.local.looks.retain(|path| Path::new(path).exists());
        let missing = looked.namespaces.values().filter_map(|namespace| match namespace {
            Namespace::Missing { path } => Some(path.into()),
            _ => None,
        });
        self.local.missing = missing.collect();
        if !round.only_looks {
            self.tell_of_unread(&looked);
        }
        Some(looked)
    }

    /// Says it once of each task.
    fn tell_of_unread(&mut self, looked: &Looked) {
        self.local.unread.retain(|task| looked.namespaces.contains_key(task));
        for (task, count) in &looked.unread {
            if self.local.unread.insert(task.clone()) {
                tracing::warn!(
                    "task {task}: {count} messages about its network namespace could not be read, or not all of them: \
                     a name, an alias or a label in it is no text"
                );
            }
        }
    }

    /// A look into an engine's sandbox has failed, or is put off because others have.
    pub(super) fn could_not_look(&mut self, task: &str, path: &Path, why: &str, round: &mut RoundLog) {
        let item = Item::Task(task.to_owned()).to_string();
        let attempts = self.local.looks.all().get(&path.display().to_string()).map_or(0, |failing| failing.attempts);
        if attempts < SILENT {
            round.waiting.push(OpenItem { item, why: why.to_owned(), attempts: 0, retry: None });
            self.local.incomplete = true;
        } else if round.may(&self.backoff, &item) {
            round.note::<(), _>(&mut self.backoff, &item, Err(why));
        }
    }
}
