//! The sweep of the connection tables, on a thread of its own: a table of a million entries takes seconds, and neither
//! the reconciliation nor who asks for the status waits for it.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use dataplane::{Connections, Timeouts, monotonic_now};

use super::{shared::Shared, tags::Tags};
use crate::liveness::Pulse;

/// How much longer than a sweep takes the time between two of them is, unless tasks have gone.
const SPARING: u32 = 10;

/// The sweep is heard of within this time, or within so many times what the last one took.
const HEARD: (Duration, u32) = (Duration::from_secs(60), 3 * SPARING);

/// Asks for sweeps.
#[derive(Debug)]
pub(super) struct Sweeper {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    /// The table's tasks.
    tags: Arc<Tags>,
    /// When that was so.
    as_of: u64,
    /// The table has changed: who is gone is gone at once.
    urgent: bool,
}

impl Sweeper {
    /// Starts the thread; it ends with the sweeper.
    pub(super) fn start(
        connections: Connections,
        timeouts: Timeouts,
        shared: Arc<Shared>,
        pulse: Pulse,
    ) -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::channel();
        let run = move || run(connections, &timeouts, &shared, &inbox, &pulse);
        std::thread::Builder::new().name("sweep".to_owned()).spawn(run)?;
        Ok(Self { requests })
    }

    /// Asks for a sweep with the table as it is now. Fails if the thread has ended.
    pub(super) fn ask(&self, tags: Arc<Tags>, urgent: bool) -> Result<(), &'static str> {
        let request = Request { tags, as_of: monotonic_now(), urgent };
        self.requests.send(request).map_err(|_| "the sweep's thread has ended: restart the agent")
    }
}

fn run(
    mut connections: Connections,
    timeouts: &Timeouts,
    shared: &Shared,
    inbox: &mpsc::Receiver<Request>,
    pulse: &Pulse,
) {
    let mut rest_until = Instant::now();
    let mut heard = HEARD.0;
    pulse.beat(heard);
    while let Ok(mut request) = inbox.recv() {
        pulse.beat(heard);
        // Only the newest table counts.
        for newer in inbox.try_iter() {
            request = Request { urgent: newer.urgent || request.urgent, ..newer };
        }
        if !request.urgent && Instant::now() < rest_until {
            continue;
        }
        let started = Instant::now();
        let swept = connections.sweep(&request.tags.live(), request.as_of, timeouts);
        let took = started.elapsed();
        rest_until = Instant::now() + rest(took);
        heard = HEARD.0.max(took * HEARD.1);
        pulse.beat(heard);
        shared.swept(swept.map_err(|error| error.to_string()));
        tracing::debug!("swept connections in {} ms", took.as_millis());
    }
}

/// How long to rest after a sweep that took so long.
fn rest(took: Duration) -> Duration {
    took * SPARING
}
