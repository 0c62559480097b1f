//! What systemd is told, on a thread of its own: a systemd that does not read what it is told keeps nobody waiting.

use std::{
    sync::{
        OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use sd_notify::NotifyState;

/// What is not read in time is left out when so much waits.
const WAITING: usize = 8;

static SAID: OnceLock<SyncSender<Said>> = OnceLock::new();

/// What there is to tell.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// The start is over; with the status text.
    Ready(String),
    /// What the agent is at.
    Status(String),
    /// The watchdog is fed.
    Alive,
}

/// Tells systemd, if it has started the agent.
pub(crate) fn tell(said: Said) {
    let sender = SAID.get_or_init(|| {
        let (sender, inbox) = sync_channel(WAITING);
        // Without a thread nothing is told, and systemd acts on that.
        let _ =
            thread::Builder::new().name("systemd".into()).spawn(move || inbox.iter().for_each(|said| notify(&said)));
        sender
    });
    let _ = sender.try_send(said);
}

fn notify(said: &Said) {
    let told = match said {
        Said::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
        Said::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
        Said::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    };
    if let Err(error) = told {
        tracing::warn!("cannot notify systemd: {error}");
    }
}
