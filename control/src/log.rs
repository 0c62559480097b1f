//! The agent's log, on stderr, written by a thread of its own: a reader that is there and does not read (a stopped
//! journald, a pager) keeps no part of the agent waiting. What is too much for the room that there is meanwhile is
//! dropped, and counted.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    collections::VecDeque,
    fmt::Write as _,
    io::{self, Write},
    panic::{self, PanicHookInfo},
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
    thread,
    time::Duration,
};

use crate::plain::lines;

/// Room for lines that the reader has not taken, in bytes.
const ROOM: usize = 1024 * 1024;
/// Room beyond that for what a panic says, which would be missed most.
const ROOM_FOR_PANICS: usize = 64 * 1024;
/// How long the end of the process waits for them.
const END: Duration = Duration::from_secs(1);
/// How long a thread that panics waits: the process may end with it.
const LAST_WORDS: Duration = Duration::from_millis(100);

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
        self.push_within(self.waiting(), self.room, line);
    }

    /// Adds what a panic says, although there is no room for other lines, and waits for a moment until it is written.
    /// Returns whether it could.
    fn push_panic(&self, text: &[u8]) -> bool {
        let waiting = match self.waiting.try_lock() {
            Ok(waiting) => waiting,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // For long only where the panic is this module's own.
            Err(TryLockError::WouldBlock) => {
                thread::sleep(LAST_WORDS);
                let Ok(waiting) = self.waiting.try_lock() else { return false };
                waiting
            }
        };
        self.push_within(waiting, self.room + ROOM_FOR_PANICS, text);
        self.flush(LAST_WORDS);
        true
    }

    fn push_within(&self, mut waiting: MutexGuard<'_, Waiting>, room: usize, line: &[u8]) {
        if waiting.bytes + line.len() > room {
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

/// From now on a panic is said in the log, too: std would write it to stderr itself, and wait there for a reader that
/// does not read.
pub fn take_panics() {
    panic::set_hook(Box::new(|panic| {
        let text = panic_text(panic);
        if !QUEUE.get().is_some_and(|queue| queue.push_panic(text.as_bytes())) {
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
    }));
}

/// Thread, place and message, and where it was called from if `RUST_BACKTRACE` asks for it.
fn panic_text(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let mut text = format!("panic in the thread {name}{place}: {}\n", lines(message(panic.payload())));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        // A string takes everything.
        let _ = write!(text, "{backtrace}");
    }
    text
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("it has no message")
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
    fn what_a_panic_says_has_room_where_other_lines_have_none() {
        let queue = Queue::new(100);
        let line = |number: u8| vec![number; 40];
        (0..5).for_each(|number| queue.push(&line(number)));
        assert!(queue.push_panic(&[7; 60_000]) && queue.push_panic(&[8; 60_000]));
        let waiting = queue.waiting();
        let lengths: Vec<_> = waiting.lines.iter().map(Vec::len).collect();
        assert_eq!((&lengths[..2], lengths.last()), (&[40, 40][..], Some(&60_000)), "{lengths:?}");
        assert_eq!(waiting.dropped, 1, "a second one is too much");
        assert!(String::from_utf8_lossy(&waiting.lines[2]).starts_with("3 lines"), "what is missing is said before it");
        assert!(!queue.push_panic(b"while the log's own lock is held"));
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
