//! The commands' side of the status socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::protocol::{Request, Response};

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
pub fn ask(path: &Path, request: Request) -> Result<Value, AskError> {
    let stream = UnixStream::connect(path).map_err(|source| AskError::NoAgent { path: path.to_owned(), source })?;
    let response = exchange(&stream, request).map_err(|source| AskError::NoAnswer { path: path.to_owned(), source })?;
    match response {
        Response::Ok(value) => Ok(value),
        Response::Error(error) => Err(AskError::Refused(error)),
    }
}

fn exchange(mut stream: &UnixStream, request: Request) -> io::Result<Response> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
