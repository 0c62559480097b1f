//! Whether the parts of the agent are at work. Each says how soon it will be heard of again, and with each step of its
//! work that it goes on; one that is not heard of by then is overdue. That is looked at from elsewhere: by who asks for
//! the status, and by a thread that feeds systemd's watchdog.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::systemd::{self, Said};

/// How often the thread looks, at least.
const LOOK: Duration = Duration::from_secs(1);

/// A part that works on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The loop that reconciles.
    Rounds,
    /// The sweep of the connection tables.
    Sweep,
    /// The probes of the paths to other nodes.
    Probes,
    /// What brings a live source's tables together.
    Source,
    /// The reading of the host's packet filters.
    Firewall,
}

impl Part {
    /// As in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rounds => "reconciliation",
            Self::Sweep => "flow sweep",
            Self::Probes => "probes",
            Self::Source => "table source",
            Self::Firewall => "reading of the host firewall",
        }
    }
}

/// What a part has promised.
#[derive(Clone, Copy, Debug)]
struct Promise {
    at: Instant,
    within: Duration,
}

/// A part that has not kept its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// Which.
    pub part: Part,
    /// When it was last heard of.
    pub since: Instant,
    /// How soon it should have been heard of again.
    pub within: Duration,
}

impl Overdue {
    /// What is wrong, and what to do about it.
    pub fn why(&self, now: Instant) -> String {
        format!(
            "not heard of for {} s, where a step takes {} s at most: it hangs or is very slow; the data plane goes on as it is. \
             If that does not end, restart the agent",
            now.saturating_duration_since(self.since).as_secs(),
            self.within.as_secs(),
        )
    }
}

/// What all parts have promised.
#[derive(Debug, Default)]
pub struct Liveness(Mutex<BTreeMap<Part, Promise>>);

impl Liveness {
    fn promises(&self) -> MutexGuard<'_, BTreeMap<Part, Promise>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part's own end.
    pub fn pulse(self: &Arc<Self>, part: Part) -> Pulse {
        Pulse { liveness: self.clone(), part }
    }

    /// Parts that should have been heard of before `now`.
    pub fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let late = |promise: &Promise| now.saturating_duration_since(promise.at) > promise.within;
        let promises = self.promises();
        let overdue = promises.iter().filter(|(_, promise)| late(promise));
        overdue.map(|(part, promise)| Overdue { part: *part, since: promise.at, within: promise.within }).collect()
    }
}

/// Says for one part that it is at work.
#[derive(Clone, Debug)]
pub struct Pulse {
    liveness: Arc<Liveness>,
    part: Part,
}

impl Pulse {
    /// It is at work, and will be heard of again within this time.
    pub fn beat(&self, within: Duration) {
        self.beat_at(Instant::now(), within);
    }

    fn beat_at(&self, at: Instant, within: Duration) {
        self.liveness.promises().insert(self.part, Promise { at, within });
    }

    /// A step of what it is at is done: the time that it has promised begins anew. What is long, like a first round
    /// after a power cut, is no hang.
    pub fn goes_on(&self) {
        self.goes_on_at(Instant::now());
    }

    fn goes_on_at(&self, at: Instant) {
        if let Some(promise) = self.liveness.promises().get_mut(&self.part) {
            promise.at = at;
        }
    }

    /// It has nothing to do until something is asked of it.
    pub fn rests(&self) {
        self.liveness.promises().remove(&self.part);
    }
}

/// Looks after all parts for as long as the process lives, on a thread of its own: says which are overdue, and feeds
/// systemd's watchdog while none is.
///
/// # Errors
/// When the kernel refuses a thread.
pub fn watch(liveness: Arc<Liveness>) -> std::io::Result<()> {
    let feed = sd_notify::watchdog_enabled();
    let look = feed.map_or(LOOK, |limit| (limit / 4).min(LOOK));
    thread::Builder::new().name("liveness".into()).spawn(move || {
        let mut late = Vec::new();
        loop {
            let overdue = liveness.overdue(Instant::now());
            // First: nothing that the telling may wait for is to starve systemd's watchdog.
            if feed.is_some() && overdue.is_empty() {
                systemd::tell(Said::Alive);
            }
            tell(&mut late, &overdue);
            thread::sleep(look);
        }
    })?;
    Ok(())
}

/// Logs what has become overdue and what is no longer so. `late`: as told before.
fn tell(late: &mut Vec<Part>, overdue: &[Overdue]) {
    let now = Instant::now();
    for new in overdue.iter().filter(|overdue| !late.contains(&overdue.part)) {
        tracing::error!("{}: {}", new.part.name(), new.why(now));
    }
    for part in late.iter().filter(|part| !overdue.iter().any(|overdue| overdue.part == **part)) {
        tracing::info!("{}: at work again", part.name());
    }
    *late = overdue.iter().map(|overdue| overdue.part).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_is_not_heard_of_in_time_is_overdue_until_it_is() {
        let (liveness, start) = (Arc::new(Liveness::default()), Instant::now());
        assert_eq!(liveness.overdue(start + 3600 * SECOND), [], "nothing was promised");
        let (rounds, sweep) = (liveness.pulse(Part::Rounds), liveness.pulse(Part::Sweep));
        rounds.beat_at(start, 30 * SECOND);
        sweep.beat_at(start, 60 * SECOND);
        assert_eq!(liveness.overdue(start + 30 * SECOND), []);
        let late = Overdue { part: Part::Rounds, since: start, within: 30 * SECOND };
        assert_eq!(liveness.overdue(start + 31 * SECOND), [late]);
        assert_eq!(liveness.overdue(start + 61 * SECOND).len(), 2);
        assert!(late.why(start + 31 * SECOND).starts_with("not heard of for 31 s, where a step takes 30 s"));
        rounds.beat_at(start + 40 * SECOND, 30 * SECOND);
        sweep.rests();
        assert_eq!(liveness.overdue(start + 70 * SECOND), []);
        assert_eq!(liveness.overdue(start + 71 * SECOND).len(), 1);
    }

    #[test]
    fn who_goes_on_has_its_time_anew() {
        let (liveness, start) = (Arc::new(Liveness::default()), Instant::now());
        let rounds = liveness.pulse(Part::Rounds);
        rounds.goes_on_at(start);
        assert_eq!(liveness.overdue(start + 3600 * SECOND), [], "nothing was promised");
        rounds.beat_at(start, 30 * SECOND);
        for passed in 1..100 {
            rounds.goes_on_at(start + passed * SECOND);
        }
        assert_eq!(liveness.overdue(start + 129 * SECOND), []);
        let late = Overdue { part: Part::Rounds, since: start + 99 * SECOND, within: 30 * SECOND };
        assert_eq!(liveness.overdue(start + 130 * SECOND), [late]);
    }
}
