//! The agent's side of the status socket.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

use super::{
    protocol::{Request, Response},
    report::{self, Answers},
};

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
        self.task = Some(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, answers.clone()))),
                    Err(error) => {
                        tracing::warn!("status socket: {error}");
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                }
            }
        }));
    }
}

async fn answer(stream: UnixStream, answers: watch::Receiver<Answers>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match (&mut read).take(MAX_REQUEST).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let response = match serde_json::from_slice::<Request>(&line) {
            Err(error) => Response::Error(format!("not a request: {error}")),
            Ok(request) => {
                let answers = answers.borrow().clone();
                // Reading maps blocks.
                let reported = tokio::task::spawn_blocking(move || report::report(&answers, request)).await;
                match reported {
                    Ok(Ok(value)) => Response::Ok(value),
                    Ok(Err(error)) => Response::Error(error),
                    Err(error) => Response::Error(error.to_string()),
                }
            }
        };
        let mut bytes = serde_json::to_vec(&response).unwrap_or_default();
        bytes.push(b'\n');
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
