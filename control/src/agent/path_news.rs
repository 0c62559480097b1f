//! Has what the probes show told to the managers, as often as [`Pace`] says.

use std::{sync::Arc, time::Duration};

use hiveway_core::path_report::{Pace, PathReport, REFRESH};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::probes::Paths;
use crate::relay::PathNews;

/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_secs(1);
/// How long an agent may take until it has paths.
const BEGINNING: Duration = Duration::from_secs(10);
/// What is added to the time between two regular reports at most: nodes that are switched on together must not report
/// together for ever.
const SPREAD: f64 = 10.0;

/// News of `paths`, until the receiver is dropped.
pub(super) fn follow(paths: Arc<Paths>) -> watch::Receiver<Arc<PathNews>> {
    let (news, receiver) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let refresh = REFRESH + Duration::from_secs_f64(SPREAD * fastrand::f64());
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !news.is_closed() {
            tick.tick().await;
            let report = paths.report().shortened();
            // Probes have not begun: an empty report would keep the first real one waiting.
            if report == PathReport::default() && began.elapsed() < BEGINNING {
                continue;
            }
            if pace.is_due(began.elapsed(), &report, refresh) {
                news.send_replace(Arc::new(PathNews { at: std::time::Instant::now(), report }));
            }
        }
    });
    receiver
}
