//! Programs that the agent runs (`nft`, `iptables-save`, `ipset`), each bounded in time and in what it may say: a
//! program that hangs costs its caller a few seconds and is killed with its own children; one that cannot even be
//! killed counts until it is gone, and beyond a few of those none is started. None is left behind by an agent that
//! ends.

use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// More of a program's complaints than this is not kept.
const MOST_COMPLAINTS: u64 = 64 * 1024;
/// Programs that run at one time, those that cannot be killed included.
const MOST_CHILDREN: usize = 6;
/// How long a killed program gets to be gone.
const DYING: Duration = Duration::from_millis(500);
/// Between two looks whether a program has ended that has closed its output.
const LOOK: Duration = Duration::from_micros(200);

/// What a run may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From start to end.
    pub time: Duration,
    /// Bytes on its standard output.
    pub bytes: usize,
}

/// What a program has said.
#[derive(Debug)]
pub struct Output {
    /// How it has ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, up to a limit.
    pub stderr: String,
}

/// Why a program has not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot run {program}: {source}")]
    NotStarted {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// There is no thread to hear it on; it was killed.
    #[error(
        "{program} was killed: the agent gets no thread to read what it says: {source}; raise the limit of its threads"
    )]
    NoThread {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long, and was killed.
    #[error("{program} has not answered within {} ms and was killed", .time.as_millis())]
    Hangs {
        /// Which.
        program: String,
        /// How long it was waited for.
        time: Duration,
    },
    /// It said more than it may, and was killed.
    #[error("{program} has said more than {bytes} bytes and was killed")]
    TooMuch {
        /// Which.
        program: String,
        /// How many it may say.
        bytes: usize,
    },
    /// Too many others are still running.
    #[error("{program} was not started: {MOST_CHILDREN} other programs of the agent are still running")]
    Busy {
        /// Which.
        program: String,
    },
}

impl ChildError {
    /// Whether there is no such program.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotStarted { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Programs that were killed and are not gone yet, and how many others run.
#[derive(Default)]
struct Running {
    dying: Vec<Child>,
    alive: usize,
    /// Those of them that are being started, by name: their groups are not known yet.
    starting: Vec<String>,
    /// The groups of those that run. A number is taken out before it can become another process's.
    groups: Vec<Pid>,
    /// No more are started.
    over: bool,
}

static RUNNING: Mutex<Running> =
    Mutex::new(Running { dying: Vec::new(), alive: 0, starting: Vec::new(), groups: Vec::new(), over: false });

fn running() -> MutexGuard<'static, Running> {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running.dying.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    running
}

/// Runs `program` with `input` on its standard input, in the caller's namespaces, and waits for its end.
///
/// # Errors
/// [`ChildError`]; a program that ends with a failure is none.
pub fn run(program: &str, args: &[&str], input: &[u8], limits: Limits) -> Result<Output, ChildError> {
    let name = || program.to_owned();
    let deadline = Instant::now() + limits.time;
    {
        let mut running = running();
        if running.over || running.alive + running.dying.len() >= MOST_CHILDREN {
            return Err(ChildError::Busy { program: name() });
        }
        running.alive += 1;
    }
    let _one_less = OneLess;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: a wrapper's children are killed with it.
    let mut child = spawn(command.process_group(0), program)?;
    let (said, hear) = mpsc::channel();
    let mut started = Ok(());
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // It may end without having read everything.
        let writer = thread::Builder::new().spawn(move || drop(stdin.write_all(&input)));
        started = writer.map(drop);
    }
    let room = (limits.bytes as u64).saturating_add(1);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    started = started
        .and_then(|()| read(stdout, room, said.clone(), Stream::Out))
        .and_then(|()| read(stderr, MOST_COMPLAINTS, said, Stream::Err));
    if let Err(source) = started {
        kill(child);
        return Err(ChildError::NoThread { program: name(), source });
    }

    let (mut stdout, mut stderr) = (None, None);
    while stdout.is_none() || stderr.is_none() {
        match hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((Stream::Out, bytes)) if bytes.len() > limits.bytes => {
                kill(child);
                return Err(ChildError::TooMuch { program: name(), bytes: limits.bytes });
            }
            Ok((Stream::Out, bytes)) => stdout = Some(bytes),
            Ok((Stream::Err, bytes)) => stderr = Some(bytes),
            Err(_) => {
                kill(child);
                return Err(ChildError::Hangs { program: name(), time: limits.time });
            }
        }
    }
    loop {
        match ended(&mut child) {
            Ok(Some(status)) => {
                let stderr = String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned();
                return Ok(Output { status, stdout: stdout.unwrap_or_default(), stderr });
            }
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            _ => {
                kill(child);
                return Err(ChildError::Hangs { program: name(), time: limits.time });
            }
        }
    }
}

/// Kills all programs that run, and starts no more: the agent ends, and nobody waits for what they say. One that is
/// being started would outlive the agent if that ended first.
///
/// The kernel could kill them (`PR_SET_PDEATHSIG`), but that is set between fork and exec: std uses `posix_spawn`,
/// which cannot set it, and a fork copies the agent's page tables, which takes 0.1 ms for each of its MiB.
pub(crate) fn end_all() {
    let mut running = running();
    running.over = true;
    for group in running.groups.drain(..) {
        let _ = killpg(group, Signal::SIGKILL);
    }
    drop(running);
    all_started(DYING);
}

/// Returns when no program is being started, or one takes too long: a file system that hangs must not keep the agent.
fn all_started(limit: Duration) {
    let deadline = Instant::now() + limit;
    while !running().starting.is_empty() && Instant::now() < deadline {
        thread::sleep(LOOK);
    }
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Starts a program, unless the agent ends.
fn spawn(command: &mut Command, program: &str) -> Result<Child, ChildError> {
    let busy = || ChildError::Busy { program: program.to_owned() };
    {
        let mut running = running();
        if running.over {
            return Err(busy());
        }
        running.starting.push(program.to_owned());
    }
    // Without the lock: a file system that hangs may keep the program from starting.
    let started = command.spawn();
    let mut running = running();
    if let Some(this) = running.starting.iter().position(|name| name == program) {
        running.starting.swap_remove(this);
    }
    let child = started.map_err(|source| ChildError::NotStarted { program: program.to_owned(), source })?;
    if running.over {
        // Before the end goes on, which waits for the lock.
        let _ = killpg(group(&child), Signal::SIGKILL);
        drop(running);
        kill(child);
        return Err(busy());
    }
    running.groups.push(group(&child));
    Ok(child)
}

/// How it has ended, if it has.
fn ended(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let mut running = running();
    let ended = child.try_wait()?;
    if ended.is_some() {
        running.groups.retain(|running| *running != group(child));
    }
    Ok(ended)
}

/// Gives a place among the running programs back.
struct OneLess;

impl Drop for OneLess {
    fn drop(&mut self) {
        running().alive -= 1;
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

/// Reads up to `room` bytes on a thread of its own, which ends with the stream.
///
/// # Errors
/// When there are no more threads to be had.
fn read(
    stream: Option<impl Read + Send + 'static>,
    room: u64,
    said: mpsc::Sender<(Stream, Vec<u8>)>,
    which: Stream,
) -> io::Result<()> {
    let Some(stream) = stream else {
        let _ = said.send((which, Vec::new()));
        return Ok(());
    };
    let reader = thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.take(room).read_to_end(&mut bytes);
        let _ = said.send((which, bytes));
    });
    reader.map(drop)
}

/// Kills the program and what it has started. One that does not go is waited for later.
fn kill(mut child: Child) {
    let deadline = Instant::now() + DYING;
    let _ = killpg(group(&child), Signal::SIGKILL);
    while Instant::now() < deadline {
        if matches!(ended(&mut child), Ok(Some(_))) {
            return;
        }
        thread::sleep(LOOK);
    }
    let mut running = running();
    running.groups.retain(|running| *running != group(&child));
    running.dying.push(child);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_secs(20), bytes: 1 << 20 };

    fn shell(script: &str, limits: Limits) -> Result<Output, ChildError> {
        // The other tests' programs count.
        loop {
            match run("sh", &["-c", script], b"asked\n", limits) {
                Err(ChildError::Busy { .. }) => thread::sleep(Duration::from_millis(20)),
                other => return other,
            }
        }
    }

    #[test]
    fn a_program_is_asked_and_answers() {
        let output = shell("read it; echo $it; echo no >&2; exit 3", LIMITS).unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.as_str()), (b"asked\n".as_slice(), "no\n"));
        assert_eq!(output.status.code(), Some(3));
        let missing = loop {
            match run("hiveway-no-such-program", &[], b"", LIMITS).unwrap_err() {
                ChildError::Busy { .. } => thread::sleep(Duration::from_millis(20)),
                other => break other,
            }
        };
        assert!(missing.is_missing() && missing.to_string().contains("no-such-program"), "{missing}");
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let started = Instant::now();
        let short = Limits { time: Duration::from_millis(300), ..LIMITS };
        for script in ["sleep 54321 & sleep 54321", "exec >&- 2>&-; sleep 54321"] {
            let error = shell(script, short).unwrap_err();
            assert!(matches!(error, ChildError::Hangs { .. }), "{error}");
        }
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        let gone = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
            lines.filter(|line| line == b"sleep\x0054321\0").count() == 0
        };
        while !gone() {
            assert!(started.elapsed() < Duration::from_secs(15), "a killed program's children are left");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn the_end_waits_for_one_that_is_being_started() {
        let mut late = Command::new("sleep");
        late.arg("54322").process_group(0);
        // SAFETY: poll is async-signal-safe.
        let slowly = || match unsafe { libc::poll(std::ptr::null_mut(), 0, 200) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: it neither allocates nor takes a lock.
        unsafe { late.pre_exec(slowly) };
        // Other tests start programs meanwhile, of other names.
        const NAME: &str = "one that starts late";
        let starter = thread::spawn(move || spawn(&mut late, NAME).unwrap());
        while !running().starting.iter().any(|name| name == NAME) {
            assert!(!starter.is_finished(), "it was started before anybody looked");
            thread::yield_now();
        }
        all_started(LIMITS.time);
        let known = running().groups.clone();
        let child = starter.join().unwrap();
        let found = known.contains(&group(&child));
        kill(child);
        assert!(found, "it would not be killed at the end");
    }

    #[test]
    fn one_that_talks_too_much_is_killed() {
        let little = Limits { bytes: 1000, ..LIMITS };
        let error = shell("while :; do echo 0123456789; done", little).unwrap_err();
        assert!(matches!(error, ChildError::TooMuch { bytes: 1000, .. }), "{error}");
        assert_eq!(shell("printf %01000d 7", little).unwrap().stdout.len(), 1000, "as much as it may");
    }

    #[test]
    fn not_many_run_at_once() {
        let all: Vec<_> =
            (0..3 * MOST_CHILDREN).map(|_| thread::spawn(|| run("sleep", &["1"], b"", LIMITS).is_ok())).collect();
        let ran = all.into_iter().filter_map(|one| one.join().ok()).filter(|ran| *ran).count();
        assert!((0..=MOST_CHILDREN).contains(&ran), "{ran}");
    }
}
