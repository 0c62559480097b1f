//! The agent's side of the status socket.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    protocol::{FlowFilter, Request, Response},
    report::{self, Answers},
};

/// Connections at a time: whoever comes then is told so.
const CONNECTIONS: usize = 64;
/// How long a client may take to ask, and to take a piece of the answer.
const IDLE: Duration = Duration::from_secs(30);
/// The same for a piece of the list of connections, which people read page by page.
const READING: Duration = Duration::from_secs(600);
/// Longest request line; ours are far shorter.
const MAX_REQUEST: u64 = 4096;

/// The listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    answers: Option<watch::Sender<Answers>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Server {
    /// Listens at `path`, which a dead agent may have left behind. Only root may ask.
    ///
    /// # Errors
    /// When the socket or its directory cannot be made.
    pub fn bind(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let name = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(name)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(name(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(name)?;
        let server = Self { path: path.to_owned(), listener: Arc::new(listener), answers: None, task: None };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(name)?;
        Ok(server)
    }

    /// Answers so from now on.
    pub fn serve(&mut self, answers: Answers) {
        if let Some(sender) = &self.answers {
            sender.send_replace(answers);
            return;
        }
        let (sender, answers) = watch::channel(answers);
        self.answers = Some(sender);
        let listener = self.listener.clone();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        self.task = Some(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let Ok(place) = places.clone().try_acquire_owned() else {
                            refuse(stream);
                            continue;
                        };
                        let answers = answers.clone();
                        tokio::spawn(async move {
                            answer(stream, answers).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!("status socket: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }));
    }
}

/// Tells a client that there are too many. Waits for nothing: the text fits the room of a socket that is new.
fn refuse(stream: UnixStream) {
    let why = format!("{CONNECTIONS} connections are open at this socket, all that it takes: close some and try again");
    let said = || {
        let mut bytes = serde_json::to_vec(&Response::Error(why))?;
        bytes.push(b'\n');
        stream.into_std()?.write_all(&bytes)
    };
    // A client that has gone needs no answer.
    let _: io::Result<()> = said();
}

async fn answer(stream: UnixStream, answers: watch::Receiver<Answers>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match timeout(IDLE, (&mut read).take(MAX_REQUEST).read_until(b'\n', &mut line)).await {
            Ok(Ok(1..)) => {}
            _ => return,
        }
        let answers = answers.borrow().clone();
        let done = match serde_json::from_slice::<Request>(&line) {
            Err(error) => say(&mut write, &Response::Error(format!("not a request: {error}"))).await,
            Ok(Request::Flows(filter)) => rows(&mut write, answers, filter).await,
            Ok(Request::Plan) => {
                let response = report::plan(&answers).await.map_or_else(Response::Error, Response::Ok);
                say(&mut write, &response).await
            }
            Ok(request) => {
                // Reading maps blocks.
                let reported = tokio::task::spawn_blocking(move || report::report(&answers, request)).await;
                let response = match reported {
                    Ok(Ok(value)) => Response::Ok(value),
                    Ok(Err(error)) => Response::Error(error),
                    Err(error) => Response::Error(error.to_string()),
                };
                say(&mut write, &response).await
            }
        };
        if done.is_err() {
            return;
        }
    }
}

/// Connections, as they are read: a slow reader holds up the reading, and nothing but a few rows waits for it in
/// memory.
async fn rows(write: &mut OwnedWriteHalf, answers: Answers, filter: FlowFilter) -> io::Result<()> {
    let (sender, mut responses) = mpsc::channel(2);
    let reading = tokio::task::spawn_blocking(move || {
        let read = report::flows(&answers, &filter, |response| sender.blocking_send(response).is_ok());
        if let Err(error) = read {
            let _ = sender.blocking_send(Response::Error(error));
        }
    });
    while let Some(response) = responses.recv().await {
        say_within(READING, write, &response).await?;
    }
    reading.await.map_err(io::Error::other)
}

async fn say(write: &mut OwnedWriteHalf, response: &Response) -> io::Result<()> {
    say_within(IDLE, write, response).await
}

async fn say_within(limit: Duration, write: &mut OwnedWriteHalf, response: &Response) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(response)?;
    bytes.push(b'\n');
    timeout(limit, write.write_all(&bytes)).await?
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::status::{
        client::{AskError, ask},
        report::Starting,
    };

    #[tokio::test]
    async fn the_socket_is_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run/agent.sock");
        // The second time it replaces what is there.
        for _ in 0..2 {
            std::mem::forget(Server::bind(&path).unwrap());
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{mode:o}");
        }
    }

    #[test]
    fn a_client_too_many_is_told_so() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("agent.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let mut server = Server::bind(&path).unwrap();
        server.serve(Answers::Starting(Starting {
            source: "swarm".into(),
            started: Instant::now(),
            table: watch::channel(Arc::default()).1,
            engine: watch::channel(Arc::default()).1,
            relay: None,
        }));
        let status = || ask(&path, &Request::Status);
        status().unwrap();
        let connect = |_| std::os::unix::net::UnixStream::connect(&path).unwrap();
        let mut idle: Vec<_> = (1..CONNECTIONS).map(connect).collect();
        // A connection that is closed may count for a moment.
        let refused = loop {
            match status() {
                Ok(_) => idle.push(connect(0)),
                Err(error) => break error,
            }
            assert!(idle.len() < 2 * CONNECTIONS, "there is no limit");
        };
        assert!(matches!(&refused, AskError::Refused(why) if why.starts_with("64 connections are open")), "{refused}");
        drop(idle.pop());
        let started = Instant::now();
        while let Err(error) = status() {
            assert!(started.elapsed() < Duration::from_secs(30), "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
