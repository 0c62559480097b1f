//! The programs' debug output, handed to the `log` crate by a thread of its own.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long the thread may take to notice that it should end, in milliseconds.
const PATIENCE: u16 = 200;

/// The programs' output could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggerError {
    /// The programs were built without it.
    #[error("the programs' log cannot be read: {0}")]
    NoLog(#[from] aya_log::Error),
    /// No thread.
    #[error("cannot start the log thread: {0}")]
    Thread(#[from] io::Error),
}

/// The running thread; ends with the value.
pub(crate) struct Logger {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Logger {
    /// Starts handing on what the programs of `ebpf` log.
    pub(crate) fn start(ebpf: &mut Ebpf) -> Result<Self, LoggerError> {
        let mut logger = EbpfLogger::init(ebpf)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("ebpf-log".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A failed or interrupted poll only means that we look at once.
                let _ = poll(&mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)], PollTimeout::from(PATIENCE));
                logger.flush();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the log thread has panicked");
        }
    }
}
