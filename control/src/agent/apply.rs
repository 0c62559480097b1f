//! Carries out plans and keeps account of what failed, what waits and what was put off.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    time::Instant,
};

use futures::StreamExt;
use tokio::sync::watch;

use hiveway_core::{
    observed::Link,
    plan::{Action, Item, Plan, Stage},
};

use super::{
    backoff::{Backoff, WHOLE},
    shared::OpenItem,
};
use crate::{
    liveness::Pulse,
    netlink::{self, Socket, Spaces},
    seldom::Seldom,
};

/// How a round ends that has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With everything done or noted.
    Whole,
    /// Before its end, for a new table.
    GaveWay,
}

/// Requests under way together in [`RoundLog::fill`]; a socket's buffers hold far more.
const AT_ONCE: usize = 64;

/// The account of one reconciliation.
#[derive(Debug)]
pub(super) struct RoundLog {
    /// A table that comes meanwhile ends it; `None`: it goes on to its end.
    news: Option<watch::Receiver<()>>,
    /// Told of each step.
    pulse: Pulse,
    /// Nothing is done or told: it only finds out what a round would do.
    pub(super) only_looks: bool,
    /// Items that failed in this one.
    pub(super) failed: BTreeSet<String>,
    /// Items with work that was put off because it is not their turn.
    put_off: BTreeSet<String>,
    /// Items that wait for something.
    pub(super) waiting: Vec<OpenItem>,
    /// Changes made.
    pub(super) changes: usize,
}

impl RoundLog {
    pub(super) fn new(pulse: Pulse, news: Option<watch::Receiver<()>>) -> Self {
        Self {
            pulse,
            news,
            only_looks: false,
            failed: BTreeSet::new(),
            put_off: BTreeSet::new(),
            waiting: Vec::new(),
            changes: 0,
        }
    }

    /// Of a preview, which gives way to any other table.
    pub(super) fn of_preview(pulse: Pulse, news: watch::Receiver<()>) -> Self {
        Self { only_looks: true, ..Self::new(pulse, Some(news)) }
    }

    /// Whether it ends here, for there is another table: what that says of who has left must not wait.
    pub(super) fn gives_way(&self) -> bool {
        self.news.as_ref().is_some_and(|news| news.has_changed().unwrap_or(false))
    }

    /// Returns when there is another table for which it ends.
    pub(super) async fn superseded(&self) {
        if let Some(mut news) = self.news.clone()
            && news.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// A step is done, however it went.
    pub(super) fn goes_on(&self) {
        self.pulse.goes_on();
    }

    /// Notes how something went; the value if it went well.
    pub(super) fn note<T, E: Display>(&mut self, backoff: &mut Backoff, item: &str, result: Result<T, E>) -> Option<T> {
        self.goes_on();
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let error = format!("{error:#}");
                let news = backoff.failed(item, error.clone(), Instant::now());
                self.fails(item, &error, news);
                None
            }
        }
    }

    /// Notes that something around the agent is missing. The item fails, and is tried as soon as that is there.
    pub(super) fn lacks(&mut self, backoff: &mut Backoff, item: &str, why: &str) {
        self.goes_on();
        let news = backoff.lacks(item, why.to_owned(), Instant::now());
        self.fails(item, why, news);
    }

    fn fails(&mut self, item: &str, error: &str, news: bool) {
        if news {
            tracing::error!("{item}: {error}");
        } else {
            tracing::debug!("{item}: still {error}");
        }
        self.failed.insert(item.to_owned());
    }

    /// Whether an item may be worked on: it has not failed in this round, and it is its turn.
    pub(super) fn may(&mut self, backoff: &Backoff, item: &str) -> bool {
        if self.failed.contains(item) {
            return false;
        }
        let ready = backoff.ready(item, Instant::now());
        if !ready {
            self.put_off.insert(item.to_owned());
        }
        ready
    }

    /// How many items failed.
    pub(super) fn failures(&self) -> usize {
        self.failed.len()
    }

    /// Ends the account: items that have nothing left to do are failing no longer. What a round has not come to,
    /// because it has ended early, fails as before.
    pub(super) fn close(&mut self, backoff: &mut Backoff, done: anyhow::Result<()>) {
        if self.note(backoff, WHOLE, done).is_none() {
            return;
        }
        let open = |item: &str| self.failed.contains(item) || self.put_off.contains(item);
        let done: Vec<_> = backoff.all().keys().filter(|item| !open(item)).cloned().collect();
        for item in done {
            if backoff.succeeded(&item) {
                tracing::info!("{item}: no longer failing");
            }
        }
        backoff.retain(open);
    }

    /// Notes what a plan says cannot be done.
    pub(super) fn blocked(&mut self, backoff: &mut Backoff, plan: &Plan) {
        for blocked in &plan.blocked {
            let item = blocked.item.to_string();
            if blocked.waiting {
                self.waiting.push(OpenItem { item, why: blocked.why.clone(), attempts: 0, retry: None });
            } else if !self.failed.contains(&item) {
                self.lacks(backoff, &item, &blocked.why);
            }
        }
    }

    /// Does all steps of a stage; an item's later steps are left out once one has failed. `strays`: bridges of which
    /// was said that something was taken off.
    pub(super) async fn run(
        &mut self,
        backoff: &mut Backoff,
        strays: &Seldom,
        plan: &Plan,
        stage: Stage,
        node: &Socket,
        spaces: &Spaces,
    ) {
        for step in plan.steps.iter().filter(|step| step.stage == stage) {
            let item = step.item.to_string();
            if !self.may(backoff, &item) {
                continue;
            }
            let done = netlink::apply(node, spaces, &step.action).await;
            if self.note(backoff, &item, done).is_some() {
                match step.item {
                    Item::Stray { ref bridge, .. } => {
                        if let Some(more) = strays.say(bridge) {
                            tracing::warn!(
                                "{item}: taken off; only the agent puts interfaces there, and a container with NET_ADMIN \
                                 needs a user namespace to be kept from it{more}"
                            );
                        }
                    }
                    _ => tracing::debug!("{item}: {}", step.action),
                }
                self.changes += 1;
            }
        }
    }
    /// Does the steps of [`Stage::Fill`], many at a time.
    pub(super) async fn fill(
        &mut self,
        backoff: &mut Backoff,
        plan: &Plan,
        node: &Socket,
        links: &BTreeMap<String, Link>,
    ) {
        let due: Vec<_> = plan
            .steps
            .iter()
            .filter(|step| step.stage == Stage::Fill)
            .filter_map(|step| {
                let index = device(&step.action).and_then(|name| links.get(name)).map(|link| link.index);
                // Without a device its item has failed already.
                Some((step.item.to_string(), &step.action, index?))
            })
            .filter(|(item, ..)| self.may(backoff, item))
            .collect();
        let mut under_way = futures::stream::iter(due)
            .map(async |(item, action, index)| (item, netlink::fill(node, index, action).await))
            .buffer_unordered(AT_ONCE);
        while let Some((item, done)) = under_way.next().await {
            self.pulse.goes_on();
            // One error per item is enough; the rest of its entries have been tried.
            if self.failed.contains(&item) {
                continue;
            }
            if self.note(backoff, &item, done).is_some() {
                self.changes += 1;
            }
        }
    }
}

/// The device whose entries a step changes.
fn device(action: &Action) -> Option<&str> {
    match action {
        Action::AddFdb { name, .. }
        | Action::RemoveFdb { name, .. }
        | Action::AddNeighbour { name, .. }
        | Action::RemoveNeighbour { name, .. } => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc, time::Duration};

    use hiveway_core::plan::{Item, Step};

    use super::*;
    use crate::liveness::{Liveness, Part};

    /// A part whose promise is over as soon as it is given.
    fn overdue() -> (Arc<Liveness>, Pulse) {
        let liveness = Arc::new(Liveness::default());
        let pulse = liveness.pulse(Part::Rounds);
        pulse.beat(Duration::ZERO);
        (liveness, pulse)
    }

    /// When the part was last heard of.
    fn heard(liveness: &Liveness) -> Instant {
        liveness.overdue(Instant::now() + Duration::from_secs(1))[0].since
    }

    #[tokio::test]
    async fn each_step_is_heard_of() {
        let (liveness, pulse) = overdue();
        let (mut round, mut backoff) = (RoundLog::new(pulse, None), Backoff::default());
        let node = Socket::open().unwrap();
        let fdb = |last| Action::AddFdb { name: "lo".into(), mac: [2, 0, 0, 0, 0, last], vtep: Ipv4Addr::LOCALHOST };
        let steps = [(Stage::Prepare, Action::DeleteLink { name: "hw-none".into() }), (Stage::Fill, fdb(1))];
        let steps = steps.map(|(stage, action)| Step { stage, item: Item::Task("a".into()), action });
        let plan = Plan { steps: steps.into(), ..Plan::default() };
        let mut last = heard(&liveness);
        round.run(&mut backoff, &Seldom::default(), &plan, Stage::Prepare, &node, &Spaces::default()).await;
        assert!(heard(&liveness) > last, "a step of the plan");
        last = heard(&liveness);
        let mut round = RoundLog::new(liveness.pulse(Part::Rounds), None);
        backoff.hurry(Instant::now());
        let links = netlink::observe_links(&node).await.unwrap();
        round.fill(&mut backoff, &plan, &node, &links).await;
        assert!(heard(&liveness) > last, "an entry of the slow path");
    }

    #[test]
    fn what_a_round_has_not_come_to_fails_as_before() {
        let (_, pulse) = overdue();
        let mut backoff = Backoff::default();
        let mut round = RoundLog::new(pulse.clone(), None);
        round.note::<(), _>(&mut backoff, "maps", Err("full"));
        round.close(&mut backoff, Ok(()));
        backoff.hurry(Instant::now());
        let mut early = RoundLog::new(pulse.clone(), None);
        early.close(&mut backoff, Err(anyhow::anyhow!("no address")));
        assert_eq!(backoff.all().keys().collect::<Vec<_>>(), ["maps", WHOLE]);
        let whole = backoff.all()[WHOLE].next;
        assert!(backoff.next() >= Some(whole), "it would be tried again at once, for ever");
        let mut complete = RoundLog::new(pulse, None);
        complete.close(&mut backoff, Ok(()));
        assert!(backoff.all().is_empty());
    }
}
