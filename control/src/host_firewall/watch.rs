//! Reads the host's rules again whenever they change, on a thread of its own: a program that hangs keeps nobody waiting.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use tokio::sync::watch::{self, Receiver, Sender};

use super::{Reading, notified::Notified, read};

/// Without a notification they are read as often as this: the older iptables and ipset send none.
const PERIOD: Duration = Duration::from_secs(5);
/// Changes that come together are waited for.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two readings, at least.
const GAP: Duration = Duration::from_millis(500);
/// How much longer than a reading the rest after it is, at least, and at most.
const SPARING: u32 = 5;
const MOST: Duration = Duration::from_secs(60);

/// What is known of the host's rules.
#[derive(Clone, Debug, Default)]
pub struct Heard {
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

/// Starts the thread, which ends when nobody listens any more.
///
/// # Errors
/// When the kernel refuses the socket or the thread.
pub fn watch() -> io::Result<Receiver<Heard>> {
    let notified = Notified::open()?;
    let (sender, receiver) = watch::channel(Heard::default());
    thread::Builder::new().name("host-firewall".into()).spawn(move || follow(&notified, &sender))?;
    Ok(receiver)
}

fn follow(notified: &Notified, heard: &Sender<Heard>) {
    while !heard.is_closed() {
        let started = Instant::now();
        let found = read();
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
        let rest = (started.elapsed() * SPARING).clamp(GAP, MOST);
        let next = Instant::now() + rest;
        if notified.wait(PERIOD.max(rest)) {
            // Our own table may be gone: that is not to wait for the reading.
            heard.send_modify(|heard| heard.changes += 1);
            thread::sleep(SETTLE);
            thread::sleep(next.saturating_duration_since(Instant::now()));
            notified.forget();
        }
    }
}
