//! The sweep of the connection tables, on a thread of its own: a table of a million entries may take a second, and
//! neither the reconciliation nor who asks for the status waits for it.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use dataplane::{Connections, Timeouts, monotonic_now};

use super::{shared::Shared, tags::Tags};
use crate::liveness::Pulse;

/// How much longer than a sweep takes the time between two of them is, unless tasks have gone.
const SPARING: u32 = 10;

/// The sweep is heard of within this time: with each buffer's worth of entries, and while there is nothing to do.
const HEARD: Duration = Duration::from_secs(60);
/// While there is nothing to do it says so as often as this, and looks whether a table of connections is about to be
/// full: 30,000 new entries a second take not even half of what a half begins with meanwhile. Until then a flood has
/// pending connections displace one another sooner. A sweep keeps it waiting; what finds no line then is found more
/// slowly, clients' connections without XDP.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// For so long it does not grow after that has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

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
    let mut growth = Growth::default();
    while let Some(request) = next(inbox, pulse, BETWEEN_LOOKS, || growth.look(&mut connections, pulse)) {
        if !request.urgent && Instant::now() < rest_until {
            continue;
        }
        let started = Instant::now();
        pulse.beat(HEARD);
        let swept = connections.sweep(&request.tags.live(request.as_of), request.as_of, timeouts, &|| pulse.goes_on());
        let took = started.elapsed();
        rest_until = Instant::now() + rest(took);
        shared.swept(swept.map_err(|error| error.to_string()));
        tracing::debug!("swept connections in {} ms", took.as_millis());
    }
}

/// Has the tables of connections grow in time.
#[derive(Default)]
struct Growth {
    /// When it has failed.
    failed: Option<Instant>,
}

impl Growth {
    fn look(&mut self, connections: &mut Connections, pulse: &Pulse) {
        if self.failed.is_some_and(|at| at.elapsed() < AFTER_FAILURE) {
            return;
        }
        let grown = connections.grow(&|| pulse.goes_on());
        if let Err(error) = &grown
            && self.failed.is_none()
        {
            tracing::warn!(
                "a table of connections cannot grow: {error}. Established ones that find no line are slower, and pending \
                 ones make room for others sooner. It is tried again every {} s; if memory is short, raise the control group's limit or lower --max-flows",
                AFTER_FAILURE.as_secs()
            );
        }
        self.failed = grown.is_err().then(Instant::now);
    }
}

/// Waits for a request, and says meanwhile that this thread is at work; `None` when there will be no more. `look` is
/// called now and then.
fn next(inbox: &mpsc::Receiver<Request>, pulse: &Pulse, waiting: Duration, mut look: impl FnMut()) -> Option<Request> {
    loop {
        pulse.beat(HEARD);
        look();
        match inbox.recv_timeout(waiting) {
            Ok(mut request) => {
                // Only the newest table counts.
                for newer in inbox.try_iter() {
                    request = Request { urgent: newer.urgent || request.urgent, ..newer };
                }
                return Some(request);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// How long to rest after a sweep that took so long.
fn rest(took: Duration) -> Duration {
    took * SPARING
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::liveness::{Liveness, Part};

    #[test]
    fn it_is_heard_of_although_nothing_is_asked_of_it() {
        let liveness = Arc::new(Liveness::default());
        let pulse = liveness.pulse(Part::Sweep);
        let (requests, inbox) = mpsc::channel();
        let asked = Duration::from_millis(300);
        let request = |as_of, urgent| Request { tags: Arc::default(), as_of, urgent };
        let asker = std::thread::spawn(move || {
            std::thread::sleep(asked);
            requests.send(request(0, false)).unwrap();
            requests
        });
        let started = Instant::now();
        assert!(next(&inbox, &pulse, Duration::from_millis(20), || ()).is_some());
        // Whoever is heard of only when it is asked would be overdue here.
        assert_eq!(liveness.overdue(started + HEARD + asked / 2), []);
        let requests = asker.join().unwrap();
        for (as_of, urgent) in [(1, false), (2, true), (3, false)] {
            requests.send(request(as_of, urgent)).unwrap();
        }
        drop(requests);
        let newest = next(&inbox, &pulse, Duration::from_millis(20), || ()).unwrap();
        assert!(newest.urgent && newest.as_of == 3, "the newest counts, and one of them was urgent");
        assert!(next(&inbox, &pulse, Duration::from_millis(20), || ()).is_none(), "the agent has ended");
    }
}
