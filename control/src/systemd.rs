//! What systemd is told, on a thread of its own: a systemd that does not read what it is told keeps nobody waiting.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use sd_notify::NotifyState;

/// How soon it is told again that the agent is ready, where it could not be.
const AGAIN: Duration = Duration::from_secs(1);

static OUTBOX: OnceLock<Outbox> = OnceLock::new();

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The start is over; with the status text.
    Ready(String),
    /// What the agent is at.
    Status(String),
    /// The watchdog is fed.
    Alive,
}

/// What has not been told yet. Of each kind only the newest counts, and nothing displaces what is of another.
#[derive(Debug, Default)]
struct Untold {
    ready: Option<String>,
    /// It has been told.
    is_ready: bool,
    status: Option<String>,
    alive: bool,
}

impl Untold {
    fn note(&mut self, said: Said) {
        match said {
            Said::Ready(status) => self.ready = Some(status),
            Said::Status(status) => self.status = Some(status),
            // Before systemd knows that the start is over it feeds nothing.
            Said::Alive => self.alive = self.is_ready,
        }
    }

    fn next(&mut self) -> Option<Said> {
        if let Some(status) = self.ready.clone() {
            return Some(Said::Ready(status));
        }
        if std::mem::take(&mut self.alive) {
            return Some(Said::Alive);
        }
        self.status.take().map(Said::Status)
    }
}

#[derive(Debug, Default)]
struct Outbox {
    untold: Mutex<Untold>,
    changed: Condvar,
}

impl Outbox {
    fn untold(&self) -> MutexGuard<'_, Untold> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, said: Said) {
        self.untold().note(said);
        self.changed.notify_all();
    }

    /// Tells the next thing, once there is one. That the agent is ready is told until it has been heard: systemd kills
    /// who does not say so. The rest comes again by itself.
    fn tell(&self, notify: impl FnOnce(&Said) -> io::Result<()>) -> io::Result<()> {
        let mut untold = self.untold();
        let said = loop {
            match untold.next() {
                Some(said) => break said,
                None => untold = self.changed.wait(untold).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(untold);
        let told = notify(&said);
        if let (Said::Ready(status), Ok(())) = (said, &told) {
            let mut untold = self.untold();
            untold.is_ready = true;
            untold.ready.take_if(|newest| *newest == status);
        }
        told
    }
}

/// Tells systemd, if it has started the agent.
pub(crate) fn tell(said: Said) {
    let mut thread = None;
    let outbox = OUTBOX.get_or_init(|| {
        thread = Some(thread::Builder::new().name("systemd".into()));
        Outbox::default()
    });
    outbox.put(said);
    // Without a thread nothing is told, and systemd acts on that.
    let _ = thread.map(|thread| thread.spawn(|| keep_telling(outbox)));
}

fn keep_telling(outbox: &Outbox) {
    let mut why = None;
    loop {
        let error = outbox.tell(notify).err().map(|error| error.to_string());
        if let Some(error) = &error {
            if why.as_ref() != Some(error) {
                tracing::warn!("cannot notify systemd: {error}");
            }
            thread::sleep(AGAIN);
        }
        why = error;
    }
}

fn notify(said: &Said) -> io::Result<()> {
    match said {
        Said::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
        Said::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
        Said::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_the_agent_is_ready_is_never_lost() {
        let outbox = Outbox::default();
        // More than any queue holds, while systemd does not read.
        for _ in 0..1000 {
            outbox.put(Said::Alive);
            outbox.put(Said::Status("waiting".into()));
        }
        outbox.put(Said::Ready("at work".into()));
        (0..1000).for_each(|_| outbox.put(Said::Alive));
        let mut told = Vec::new();
        for refused in [true, true, false, false] {
            let _ = outbox.tell(|said| {
                told.push(said.clone());
                if refused { Err(io::Error::other("nobody listens")) } else { Ok(()) }
            });
        }
        let ready = Said::Ready("at work".into());
        assert_eq!(told, [ready.clone(), ready.clone(), ready, Said::Status("waiting".into())]);
        outbox.put(Said::Status("at rest".into()));
        outbox.put(Said::Alive);
        let mut told = Vec::new();
        for _ in 0..2 {
            outbox
                .tell(|said| {
                    told.push(said.clone());
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(told, [Said::Alive, Said::Status("at rest".into())]);
        assert_eq!(outbox.untold().next(), None);
    }
}
