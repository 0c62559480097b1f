//! What an agent tells the managers about the paths from its node, and when it does.
//!
//! A report is small whatever the size of the swarm: up to [`ROWS`] paths are sent whole, and where there are more only
//! those that are not fine, with counts that say how many there are in all. It is sent when something changes that an
//! operator would act upon, and now and then besides, so that round trips and losses do not grow old.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use dataplane_common::addr::Ip4;
use serde::Serialize;

use crate::{
    path_check::is_lossy,
    probe::{PathView, State},
};

/// Rows in a report at most: some 40 bytes each as a message.
pub const ROWS: usize = 64;
/// Characters of a report's fault.
pub const FAULT: usize = 200;
/// How often a report is sent though nothing has changed.
pub const REFRESH: Duration = Duration::from_secs(60);
/// The least time between two reports of a node with few paths.
const GAP: Duration = Duration::from_secs(5);
/// Paths for which that is enough; with more of them it grows in proportion: 1,000 agents that all see paths come and
/// go send a manager 20 reports a second.
const FEW: u32 = 100;

/// How many paths are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Probes are answered.
    pub passing: u32,
    /// Probes are not answered.
    pub failing: u32,
    /// Nothing is known yet.
    pub waiting: u32,
}

impl Counts {
    /// Paths in all.
    pub fn all(&self) -> u32 {
        self.passing.saturating_add(self.failing).saturating_add(self.waiting)
    }

    /// The one of this state.
    pub fn of(&mut self, state: State) -> &mut u32 {
        match state {
            State::Passing => &mut self.passing,
            State::Failing => &mut self.failing,
            State::Waiting => &mut self.waiting,
        }
    }
}

/// What a node's probes say of the paths from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathReport {
    /// Of all paths.
    pub counts: Counts,
    /// All paths, or those that are not fine, by tunnel address.
    pub rows: Vec<Row>,
    /// Why no probes are sent.
    pub fault: Option<String>,
}

/// A path to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Tunnel address of the other node.
    pub to: Ipv4Addr,
    /// Whether it works.
    pub state: State,
    /// For so many seconds.
    pub since: u32,
    /// Round trip of the last small probe, in microseconds.
    pub rtt: Option<u32>,
    /// Small probes without an answer, of ten thousand.
    pub lost: u16,
    /// Probes that this is reckoned over.
    pub counted: u32,
    /// The longest outer packet that is sent there, in bytes.
    pub mtu: u16,
    /// The longest that a probe has shown to pass.
    pub passed: Option<u16>,
    /// What probes have found to be the most that passes, where nothing else says so.
    pub limit: Option<u16>,
    /// Probes of the other node arrive.
    pub heard: bool,
    /// As [`PathView::port`].
    pub port: Option<u16>,
}

impl Row {
    /// As the prober sees it.
    pub fn new(to: Ip4, view: &PathView, mtu: u16) -> Self {
        Self {
            to: to.into(),
            state: view.state,
            since: u32::try_from(view.since.as_secs()).unwrap_or(u32::MAX),
            rtt: view.rtt.map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)),
            lost: (view.loss.clamp(0.0, 1.0) * 1e4).round() as u16,
            counted: view.counted,
            mtu,
            passed: view.passed,
            limit: view.limit,
            heard: view.is_heard(),
            port: view.port,
        }
    }

    /// Share of small probes without an answer, from 0 to 1.
    pub fn loss(&self) -> f64 {
        f64::from(self.lost) / 1e4
    }

    /// Traffic does not pass.
    pub fn is_blocked(&self) -> bool {
        self.state == State::Failing || self.port.is_some()
    }

    /// It loses more than it should.
    pub fn is_lossy(&self) -> bool {
        self.state == State::Passing && is_lossy(self.loss(), self.counted)
    }

    /// How much an operator wants to see it: 0 most.
    fn rank(&self) -> u8 {
        match self.state {
            _ if self.is_blocked() => 0,
            _ if self.limit.is_some() || self.is_lossy() => 1,
            State::Waiting => 2,
            _ => 3,
        }
    }
}

impl PathReport {
    /// Everything that the prober knows. `mtus`: what is sent to each node, or else `interface`.
    pub fn whole(
        views: &BTreeMap<Ip4, PathView>,
        mtus: &BTreeMap<Ip4, u16>,
        interface: u16,
        fault: Option<&str>,
    ) -> Self {
        let rows: Vec<_> = (views.iter())
            .map(|(vtep, view)| Row::new(*vtep, view, mtus.get(vtep).copied().unwrap_or(interface)))
            .collect();
        let mut counts = Counts::default();
        rows.iter().for_each(|row| *counts.of(row.state) += 1);
        Self { counts, rows, fault: fault.map(|fault| fault.chars().take(FAULT).collect()) }
    }

    /// The same for a message: without the paths that are fine, where there are many.
    pub fn shortened(mut self) -> Self {
        if self.rows.len() > ROWS {
            self.rows.retain(|row| row.rank() < 3);
            // The sort is stable: of those that count as much the first ones by address are named.
            self.rows.sort_by_key(Row::rank);
            self.rows.truncate(ROWS);
            self.rows.sort_by_key(|row| row.to);
        }
        self
    }

    /// What an operator would act upon: a change of it is told before the next regular report.
    fn essence(&self) -> Essence {
        let row = |row: &Row| (row.to, row.state as u8, row.port, row.limit, row.is_blocked() && row.heard);
        (self.counts, self.rows.iter().map(row).collect(), self.fault.clone())
    }
}

type Essence = (Counts, Vec<(Ipv4Addr, u8, Option<u16>, Option<u16>, bool)>, Option<String>);

/// When reports are sent.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<(Duration, Essence)>,
}

impl Pace {
    /// Whether this one is to be sent at this time, which only grows. `refresh`: how often one is, though nothing has
    /// changed; agents that were started together have different ones.
    pub fn is_due(&mut self, now: Duration, report: &PathReport, refresh: Duration) -> bool {
        let essence = report.essence();
        let due = match &self.last {
            None => true,
            Some((at, before)) => {
                let gap = GAP.mul_f64((f64::from(report.counts.all()) / f64::from(FEW)).max(1.0)).min(refresh);
                let passed = now.saturating_sub(*at);
                passed >= refresh || (passed >= gap && *before != essence)
            }
        };
        if due {
            self.last = Some((now, essence));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(state: State) -> PathView {
        PathView { state, ..PathView::passing() }
    }

    fn report(views: impl IntoIterator<Item = (u32, PathView)>) -> PathReport {
        let views = views.into_iter().map(|(n, view)| ((0x0a00_0000 + n).to_be_bytes(), view)).collect();
        PathReport::whole(&views, &BTreeMap::new(), 1500, None)
    }

    #[test]
    fn few_paths_are_told_whole() {
        let all = report((0..ROWS as u32).map(|n| (n, view(State::Passing))));
        assert_eq!(all.clone().shortened(), all);
        assert_eq!((all.counts.passing, all.rows.len()), (64, 64));
        assert_eq!((all.rows[0].rtt, all.rows[0].lost, all.rows[0].mtu), (Some(70), 0, 1500));
    }

    #[test]
    fn of_many_paths_those_that_are_not_fine_are_told() {
        let odd = |n: u32| match n {
            7 => view(State::Failing),
            8 => PathView { loss: 0.2, ..view(State::Passing) },
            9 => PathView { limit: Some(1400), ..view(State::Passing) },
            10 => PathView { port: Some(7789), ..view(State::Passing) },
            11 => view(State::Waiting),
            _ => view(State::Passing),
        };
        let short = report((0..1000).map(|n| (n, odd(n)))).shortened();
        let told: Vec<_> = short.rows.iter().map(|row| row.to.octets()[3]).collect();
        assert_eq!(told, [7, 8, 9, 10, 11]);
        assert_eq!(short.counts, Counts { passing: 998, failing: 1, waiting: 1 });
        // A node that is cut off: what fails comes first, and there is an end to it.
        let cut =
            report((0..1000).map(|n| (n, view(if n < 900 { State::Waiting } else { State::Failing })))).shortened();
        assert_eq!(cut.rows.len(), ROWS);
        assert!(cut.rows.iter().all(|row| row.state == State::Failing), "{cut:?}");
        assert_eq!(cut.counts.all(), 1000);
    }

    #[test]
    fn faults_are_cut() {
        let fault = "ä".repeat(10_000);
        let report = PathReport::whole(&BTreeMap::new(), &BTreeMap::new(), 1500, Some(&fault));
        assert_eq!(report.fault.map(|fault| fault.chars().count()), Some(FAULT));
    }

    #[test]
    fn changes_are_told_soon_but_never_in_a_rush() {
        let (good, bad) = (report([(1, view(State::Passing))]), report([(1, view(State::Failing))]));
        let mut pace = Pace::default();
        let mut sent = Vec::new();
        // Round trips change all the time.
        for second in 0..130 {
            let since = Duration::from_secs(second);
            let now = report([(1, PathView { rtt: Some(since), since, ..view(State::Passing) })]);
            sent.extend(pace.is_due(since, &now, REFRESH).then_some(second));
        }
        assert_eq!(sent, [0, 60, 120]);
        // A path that comes and goes every second.
        let sent: Vec<_> = (130..190)
            .filter(|second| {
                let now = if second % 2 == 0 { &bad } else { &good };
                pace.is_due(Duration::from_secs(*second), now, REFRESH)
            })
            .collect();
        assert_eq!(sent[0], 130);
        assert!(sent.len() <= 12 && sent.windows(2).all(|two| two[1] - two[0] >= 5), "{sent:?}");
    }

    #[test]
    fn many_paths_are_told_of_less_often() {
        let at = |n: u32| {
            let odd = move |i| view(if i == n { State::Failing } else { State::Passing });
            report((0..1000).map(move |i| (i, odd(i)))).shortened()
        };
        let mut pace = Pace::default();
        let sent = (0..600).filter(|second| pace.is_due(Duration::from_secs(*second), &at(*second as u32), REFRESH));
        assert_eq!(sent.count(), 12);
    }
}
