//! The agent's log, on stderr, written by a thread of its own: a reader that is there and does not read (a stopped journald, a
//! pager) keeps no part of the agent waiting. What is too much for the room that there is meanwhile is dropped, and counted.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

/// Room for lines that the reader has not taken, in bytes.
const ROOM: usize = 1024 * 1024;
/// How long the end of the process waits for them.
const END: Duration = Duration::from_secs(1);

/// The process's; none where commands print for themselves.
static QUEUE: OnceLock<Queue> = OnceLock::new();

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    /// Their length together.
    bytes: usize,
    /// Lines there was no room for since that was last said.
    dropped: u64,
    /// A line is being written.
    writing: bool,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    room: usize,
}

impl Queue {
    fn new(room: usize) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), room }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, if there is room.
    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > self.room {
            waiting.dropped = waiting.dropped.saturating_add(1);
            return;
        }
        // Where they are missing.
        let notice = waiting.notice();
        for line in notice.into_iter().chain([line.to_owned()]) {
            waiting.bytes += line.len();
            waiting.lines.push_back(line);
        }
        self.changed.notify_all();
    }

    /// Writes what there is, for ever.
    fn write(&self, mut out: impl Write) {
        let mut waiting = self.waiting();
        loop {
            let Some(line) = waiting.lines.pop_front().or_else(|| waiting.notice()) else {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            waiting.bytes = waiting.bytes.saturating_sub(line.len());
            waiting.writing = true;
            drop(waiting);
            // There is nowhere else to say it.
            let _ = out.write_all(&line).and_then(|()| out.flush());
            waiting = self.waiting();
            waiting.writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits until all is written, but not for ever.
    fn flush(&self, limit: Duration) {
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty() || waiting.dropped > 0;
        drop(self.changed.wait_timeout_while(self.waiting(), limit, busy));
    }
}

impl Waiting {
    /// A line that says how many are missing, once.
    fn notice(&mut self) -> Option<Vec<u8>> {
        let dropped = std::mem::take(&mut self.dropped);
        (dropped > 0).then(|| format!("{dropped} lines of the log were dropped here: its reader was too slow\n").into())
    }
}

/// From now on the process's stderr is written by a thread.
///
/// # Errors
/// When the kernel refuses it.
pub fn start() -> io::Result<()> {
    let queue = QUEUE.get_or_init(|| Queue::new(ROOM));
    thread::Builder::new().name("log".into()).spawn(|| queue.write(io::stderr()))?;
    Ok(())
}

/// Hands a text to the thread, if there is one. Returns whether it did.
pub(crate) fn take(text: &[u8]) -> bool {
    QUEUE.get().map(|queue| queue.push(text)).is_some()
}

/// Before the process ends: what the reader still takes is written.
pub fn finish() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(END);
    }
}

/// What `tracing` writes to: a whole line at a time.
#[derive(Clone, Copy, Debug)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        take(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Instant,
    };

    use super::*;

    /// A reader that takes nothing until it is told to.
    struct Reader {
        told: Option<mpsc::Receiver<()>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(told) = self.told.take() {
                let _ = told.recv();
            }
            self.taken.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_keeps_nobody_waiting() {
        let queue = Arc::new(Queue::new(10_000));
        let (tell, told) = mpsc::channel();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (there, reader) = (queue.clone(), Reader { told: Some(told), taken: taken.clone() });
        thread::spawn(move || there.write(reader));
        let started = Instant::now();
        for number in 0..5000 {
            queue.push(format!("line {number}\n").as_bytes());
        }
        queue.flush(Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(10), "it waited for the reader");
        assert!(queue.waiting().dropped > 1000);
        tell.send(()).unwrap();
        queue.flush(Duration::from_secs(10));
        queue.push(b"after\n");
        queue.flush(Duration::from_secs(10));
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (kept, rest) = lines.split_at(lines.len() - 2);
        assert!(kept.iter().enumerate().all(|(number, line)| *line == format!("line {number}")), "{text}");
        let missing: usize = rest[0].split(' ').next().unwrap().parse().unwrap();
        assert_eq!((kept.len() + missing, rest[1]), (5000, "after"));
    }
}
