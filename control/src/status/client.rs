//! The commands' side of the status socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

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
    let no_answer = |source| AskError::NoAnswer { path: path.to_owned(), source };
    let mut answer = question(path, request)?;
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
    let no_answer = |source| AskError::NoAnswer { path: path.to_owned(), source };
    let mut answer = question(path, request)?;
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

/// Sends the question; what comes is the answer.
fn question(path: &Path, request: &Request) -> Result<BufReader<UnixStream>, AskError> {
    let mut stream = UnixStream::connect(path).map_err(|source| AskError::NoAgent { path: path.to_owned(), source })?;
    let sent = (|| {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        match stream.write_all(&line) {
            // An agent that takes no question has said why before it hung up.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            written => written,
        }
    })();
    sent.map_err(|source| AskError::NoAnswer { path: path.to_owned(), source })?;
    Ok(BufReader::new(stream))
}

fn next(answer: &mut BufReader<UnixStream>) -> io::Result<Response> {
    let mut line = String::new();
    if answer.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}
