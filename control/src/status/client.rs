//! The commands' side of the status socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use serde_json::Value;

use super::protocol::{End, Request, Response};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no agent answers at {path}: {source}; start one with `hiveway agent`, or name its socket with --socket \
         (as root)"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not answer.
    #[error(
        "the agent at {path} has not answered within {} s: it hangs, or the machine is overloaded; its log says what it \
         was at (`journalctl -u hiveway`), and if nothing helps restart it: packets are forwarded meanwhile",
        .time.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        time: Duration,
    },
    /// The answer broke off.
    #[error("the agent at {path} did not answer: {source}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent could not say.
    #[error("the agent answered: {0}")]
    Refused(String),
}

/// Asks the agent that listens at `path`.
///
/// # Errors
/// When there is no agent or no sensible answer.
pub fn ask(path: &Path, request: &Request) -> Result<Value, AskError> {
    ask_within(PATIENCE, path, request)
}

fn ask_within(time: Duration, path: &Path, request: &Request) -> Result<Value, AskError> {
    let no_answer = |source| no_answer(path, time, source);
    let mut answer = question(path, request, time)?;
    match next(&mut answer).map_err(no_answer)? {
        Response::Ok(value) => Ok(value),
        Response::Error(error) => Err(AskError::Refused(error)),
        Response::Rows(_) | Response::End(_) => Err(no_answer(unexpected())),
    }
}

/// Asks for rows, and hands them to `take` as they come, until it says no.
///
/// # Errors
/// As [`ask`].
pub fn ask_rows(path: &Path, request: &Request, mut take: impl FnMut(Vec<Value>) -> bool) -> Result<End, AskError> {
    let no_answer = |source| no_answer(path, PATIENCE, source);
    let mut answer = question(path, request, PATIENCE)?;
    let mut rows = 0;
    loop {
        match next(&mut answer).map_err(no_answer)? {
            Response::Rows(some) => {
                rows += some.len();
                if !take(some) {
                    return Ok(End { rows, more: true });
                }
            }
            Response::End(end) => return Ok(end),
            Response::Error(error) => return Err(AskError::Refused(error)),
            Response::Ok(_) => return Err(no_answer(unexpected())),
        }
    }
}

fn unexpected() -> io::Error {
    io::Error::other("it said something else; is it of another version?")
}

fn no_answer(path: &Path, time: Duration, source: io::Error) -> AskError {
    let path = path.to_owned();
    match source.kind() {
        // What the kernel makes of a timeout.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent { path, time },
        _ => AskError::NoAnswer { path, source },
    }
}

/// Connects, for which an agent that takes no connections any more may let us wait, too.
fn connect(path: &Path, time: Duration) -> io::Result<UnixStream> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(time))?;
    stream.set_read_timeout(Some(time))?;
    socket::connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

/// Sends the question; what comes is the answer.
fn question(path: &Path, request: &Request, time: Duration) -> Result<BufReader<UnixStream>, AskError> {
    let mut stream = connect(path, time).map_err(|source| match no_answer(path, time, source) {
        AskError::NoAnswer { path, source } => AskError::NoAgent { path, source },
        silent => silent,
    })?;
    let sent = (|| {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        match stream.write_all(&line) {
            // An agent that takes no question has said why before it hung up.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            written => written,
        }
    })();
    sent.map_err(|source| no_answer(path, time, source))?;
    Ok(BufReader::new(stream))
}

fn next(answer: &mut BufReader<UnixStream>) -> io::Result<Response> {
    let mut line = String::new();
    if answer.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use nix::sys::socket::Backlog;

    use super::*;

    #[test]
    fn an_agent_that_hangs_is_said_to_and_not_a_number() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let why = || ask_within(Duration::from_secs(1), &path, &Request::Status).unwrap_err().to_string();
        let says = |why: &str| why.contains("has not answered within 1 s") && why.contains("journalctl");
        assert!(says(&why()), "{}", why());
        // Nor does it take connections any more.
        let waiting: Vec<_> = (0..200)
            .map_while(|_| {
                let socket =
                    socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
                socket::connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).ok().map(|()| socket)
            })
            .collect();
        assert!(waiting.len() < 200, "its queue has no end");
        let (said, heard) = std::sync::mpsc::channel();
        let asked = path.clone();
        thread::spawn(move || said.send(ask_within(Duration::from_secs(1), &asked, &Request::Status)));
        let why = heard.recv_timeout(Duration::from_secs(10)).expect("an end").unwrap_err().to_string();
        assert!(says(&why), "{why}");
        drop((listener, waiting));
        std::fs::remove_file(&path).unwrap();
        let why = ask_within(Duration::from_secs(1), &path, &Request::Status).unwrap_err().to_string();
        assert!(why.contains("no agent answers") && why.contains("No such file"), "{why}");
    }
}
