//! Reads the host's rules again whenever they change, on a thread of its own: a program that hangs keeps nobody
//! waiting. Another thread hears of the changes, and says so at once, whatever the reading takes.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch::{self, Receiver, Sender};

use super::{Reading, notified::Notified, read};
use crate::liveness::Pulse;

/// Without a notification they are read as often as this: the older iptables and ipset send none.
const PERIOD: Duration = Duration::from_secs(5);
/// After a reading that has failed the next one follows as soon as this.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that come together are waited for.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two readings, at least.
const GAP: Duration = Duration::from_millis(500);
/// Between two times that changes are passed on, at least.
const APART: Duration = Duration::from_millis(250);
/// How much longer than a reading the rest after it is, at least, and at most.
const SPARING: u32 = 5;
const MOST: Duration = Duration::from_secs(60);
/// A reading that takes longer hangs: each of its programs is given up after seconds.
const READING: Duration = Duration::from_secs(120);

/// What is known of the host's rules.
#[derive(Clone, Debug, Default)]
pub struct LastReading {
    /// What was last read; `None` before the first time.
    pub reading: Option<Reading>,
    /// When.
    pub at: Option<Instant>,
    /// Why the last attempt has failed.
    pub error: Option<String>,
    /// Changes that were heard of, our own ones too.
    pub changes: u64,
    /// Attempts so far.
    pub attempts: u64,
}

/// Starts the threads, which end when nobody listens any more.
///
/// # Errors
/// When the kernel refuses the socket or a thread.
pub fn watch(pulse: Pulse) -> io::Result<Receiver<LastReading>> {
    let notified = Notified::open()?;
    let (sender, receiver) = watch::channel(LastReading::default());
    // A full channel already says that something has changed.
    let (ask, asked) = mpsc::sync_channel(1);
    let heard = sender.clone();
    thread::Builder::new().name("nft-notified".into()).spawn(move || pass_on(&notified, &heard, &ask))?;
    thread::Builder::new().name("host-firewall".into()).spawn(move || follow(&asked, &sender, &pulse))?;
    Ok(receiver)
}

/// Our own table may be gone: that is not to wait for a reading.
fn pass_on(notified: &Notified, heard: &Sender<LastReading>, ask: &SyncSender<()>) {
    while !heard.is_closed() {
        if notified.wait(PERIOD) {
            heard.send_modify(|heard| heard.changes += 1);
            let _ = ask.try_send(());
            thread::sleep(APART);
        }
    }
}

fn follow(asked: &mpsc::Receiver<()>, heard: &Sender<LastReading>, pulse: &Pulse) {
    while !heard.is_closed() {
        let started = Instant::now();
        pulse.beat(READING);
        let found = read();
        let failed = found.is_err();
        heard.send_if_modified(|heard| {
            let error = found.as_ref().err().cloned();
            let mut news = heard.attempts == 0 || heard.error != error;
            heard.attempts += 1;
            heard.error = error;
            if let Ok(reading) = found {
                // The same rules stay the same value: they need not be judged again.
                let same = heard.reading.as_ref().filter(|before| before.rules == reading.rules);
                news |= same.is_none();
                let rules = same.map_or_else(|| reading.rules.clone(), |before| before.rules.clone());
                heard.reading = Some(Reading { rules, ..reading });
                heard.at = Some(Instant::now());
            }
            news
        });
        let (rest, longest) = rest(started.elapsed(), failed);
        pulse.beat(READING + longest);
        let next = Instant::now() + rest;
        match asked.recv_timeout(longest) {
            Ok(()) => {
                thread::sleep(SETTLE);
                thread::sleep(next.saturating_duration_since(Instant::now()));
                // What has come meanwhile is read now.
                let _ = asked.try_recv();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// How long no reading follows one that took so long, and how long none follows it without a change.
fn rest(took: Duration, failed: bool) -> (Duration, Duration) {
    if failed {
        return (RETRY, RETRY);
    }
    let rest = (took * SPARING).clamp(GAP, MOST);
    (rest, PERIOD.max(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_fails_is_tried_again_soon() {
        let hung = Duration::from_secs(5);
        assert_eq!(rest(hung, true), (RETRY, RETRY));
        assert_eq!(rest(hung, false), (Duration::from_secs(25), Duration::from_secs(25)));
        assert_eq!(rest(Duration::from_millis(10), false), (GAP, PERIOD));
        assert_eq!(rest(Duration::from_secs(50), false), (MOST, MOST));
    }
}
