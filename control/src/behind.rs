//! Files that a thread of their own writes: a disk that hangs keeps nothing else waiting. One write at a time; what is
//! newer by then is written, what is older never is. While there is no news, the thread looks now and then whether the
//! file is still there.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// A write that takes longer is late.
    pub(crate) late: Duration,
    /// One that has failed is tried again after this.
    pub(crate) again: Duration,
    /// How long the end waits for what is not written yet.
    pub(crate) end: Duration,
    /// Between two looks at a file that nothing new is written into.
    pub(crate) look: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            late: Duration::from_secs(10),
            again: Duration::from_secs(15),
            end: Duration::from_secs(1),
            look: Duration::from_secs(5),
        }
    }
}

/// Why a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// There is something new to write.
    News,
    /// It was written before, and must be there still: if it is, nothing is to be done.
    Look,
}

/// `write`, which tells the log why it fails, with `what` that means. It is said once as long as it is the same.
pub(crate) fn telling<T>(
    what: &'static str,
    mut write: impl FnMut(&T, Occasion) -> Result<(), String>,
) -> impl FnMut(&T, Occasion) -> Result<(), String> {
    let mut told = Ok(());
    move |news, occasion| {
        let done = write(news, occasion);
        if let Err(why) = &done
            && done != told
        {
            tracing::warn!("{what}: {why}");
        }
        told.clone_from(&done);
        done
    }
}

/// What is to be written, and how that goes.
#[derive(Debug)]
struct State<T> {
    /// To be written, but for a newer one.
    next: Option<T>,
    /// Since when one is being written.
    since: Option<Instant>,
    /// Why the last attempt has failed.
    failed: Option<String>,
    ended: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    patience: Patience,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file's writer. Dropped, it ends with the last write, which it waits for, but not for long.
#[derive(Debug)]
pub(crate) struct Behind<T>(Arc<Shared<T>>);

impl<T: Send + 'static> Behind<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(crate) fn start(
        name: &str,
        patience: Patience,
        write: impl FnMut(&T, Occasion) -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let state = Mutex::new(State { next: None, since: None, failed: None, ended: false });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), patience });
        let there = shared.clone();
        thread::Builder::new().name(name.to_owned()).spawn(move || run(&there, write))?;
        Ok(Self(shared))
    }

    /// Has this written instead of what has not been yet.
    pub(crate) fn put(&self, news: T) {
        self.0.state().next = Some(news);
        self.0.changed.notify_all();
    }

    /// Something is not written yet.
    pub(crate) fn has_work(&self) -> bool {
        let state = self.0.state();
        state.next.is_some() || state.since.is_some()
    }

    /// Why what should be written is not.
    pub(crate) fn trouble(&self) -> Option<String> {
        let state = self.0.state();
        let late = state.since.is_some_and(|since| since.elapsed() > self.0.patience.late);
        let hangs = || format!("the disk has not taken it for more than {} s", self.0.patience.late.as_secs());
        if late { Some(hangs()) } else { state.failed.clone() }
    }
}

impl<T> Drop for Behind<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = true;
        self.0.changed.notify_all();
        let busy = |state: &mut State<T>| state.failed.is_none() && (state.next.is_some() || state.since.is_some());
        drop(self.0.changed.wait_timeout_while(state, self.0.patience.end, busy));
    }
}

fn run<T>(shared: &Shared<T>, mut write: impl FnMut(&T, Occasion) -> Result<(), String>) {
    let mut state = shared.state();
    let mut written = None;
    loop {
        let idle = |state: &mut State<T>| state.next.is_none() && !state.ended;
        let waited = shared.changed.wait_timeout_while(state, shared.patience.look, idle);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let (news, occasion) = match (state.next.take(), written.take()) {
            (Some(news), _) => (news, Occasion::News),
            (None, _) if state.ended => return,
            (None, Some(written)) => (written, Occasion::Look),
            (None, None) => continue,
        };
        state.since = Some(Instant::now());
        drop(state);
        let done = write(&news, occasion);
        state = shared.state();
        state.since = None;
        state.failed = done.err();
        shared.changed.notify_all();
        if state.failed.is_some() {
            state.next.get_or_insert(news);
            let waits = |state: &mut State<T>| !state.ended;
            let waited = shared.changed.wait_timeout_while(state, shared.patience.again, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.ended {
                return;
            }
        } else {
            written = Some(news);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(3600);
    const PATIENCE: Patience = Patience { late: SHORT, again: SHORT, end: Duration::from_secs(10), look: LONG };

    fn eventually(what: &str, so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !so() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_disk_that_hangs_keeps_nobody_waiting() {
        let (go, gate) = mpsc::channel();
        let (done, written) = mpsc::channel();
        let behind = Behind::start("behind", PATIENCE, move |news: &u32, _| {
            gate.recv().map_err(|error| error.to_string())?;
            done.send(*news).map_err(|error| error.to_string())
        });
        let behind = behind.unwrap();
        assert!(!behind.has_work() && behind.trouble().is_none());
        let started = Instant::now();
        behind.put(1);
        eventually("the first is under way", || behind.0.state().since.is_some());
        (2..=9).for_each(|news| behind.put(news));
        assert!(started.elapsed() < Duration::from_secs(5), "who has news waits for the disk");
        eventually("it is late", || behind.trouble().is_some_and(|why| why.contains("the disk")));
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!((written.recv(), written.recv()), (Ok(1), Ok(9)), "the newest wins");
        eventually("all is written", || !behind.has_work() && behind.trouble().is_none());
        behind.put(10);
        go.send(()).unwrap();
        drop(behind);
        assert_eq!(written.try_recv(), Ok(10), "the end waits for it");
    }

    #[test]
    fn what_has_failed_is_said_and_tried_again() {
        let mut left = 3;
        let behind = Behind::start("behind", PATIENCE, move |_: &(), _| {
            left -= 1;
            if left > 0 { Err("full".to_owned()) } else { Ok(()) }
        });
        let behind = behind.unwrap();
        behind.put(());
        eventually("it fails", || behind.trouble().as_deref() == Some("full"));
        eventually("it has succeeded", || behind.trouble().is_none() && !behind.has_work());
    }

    #[test]
    fn what_is_written_is_looked_after_until_there_is_news() {
        let (done, written) = mpsc::channel();
        let patience = Patience { look: SHORT, ..PATIENCE };
        let behind = Behind::start("behind", patience, move |news: &u32, occasion| {
            done.send((*news, occasion)).map_err(|error| error.to_string())
        });
        let behind = behind.unwrap();
        thread::sleep(3 * SHORT);
        assert!(written.try_recv().is_err(), "nothing was written yet");
        for news in [1, 2] {
            behind.put(news);
            // The other one may be looked after once more.
            let first = written.iter().find(|(number, _)| *number == news);
            assert_eq!(first, Some((news, Occasion::News)));
            for _ in 0..2 {
                assert_eq!(written.recv(), Ok((news, Occasion::Look)));
            }
        }
    }

    #[test]
    fn the_end_does_not_wait_for_a_disk_that_hangs() {
        let (_go, gate) = mpsc::channel::<()>();
        let patience = Patience { end: SHORT, ..PATIENCE };
        let behind = Behind::start("behind", patience, move |_: &(), _| gate.recv().map_err(|error| error.to_string()));
        let behind = behind.unwrap();
        behind.put(());
        let started = Instant::now();
        drop(behind);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
