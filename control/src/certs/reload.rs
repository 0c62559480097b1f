//! Notices when certificates have been renewed.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use super::{CertError, Credentials, Files};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(2);

/// The certificates as they are now.
#[derive(Debug)]
pub struct Reloading {
    current: watch::Receiver<Arc<Credentials>>,
    task: JoinHandle<()>,
}

impl Reloading {
    /// Reads the files and keeps an eye on them. While what is there can't be used (half replaced, or worse), the last
    /// good ones stay in force.
    ///
    /// # Errors
    /// When they can't be used in the first place.
    pub fn start(files: Files) -> Result<Self, CertError> {
        Self::polled(files, POLL)
    }

    fn polled(files: Files, period: Duration) -> Result<Self, CertError> {
        let mut before = stamps(&files);
        let (sender, current) = watch::channel(Arc::new(Credentials::load(&files)?));
        let task = tokio::spawn(async move {
            let mut told = None;
            loop {
                tokio::time::sleep(period).await;
                let now = stamps(&files);
                if now == before && told.is_none() {
                    continue;
                }
                before = now;
                match Credentials::load(&files) {
                    Ok(credentials) => {
                        let me = &credentials.me;
                        tracing::info!("relay: certificate of node {} ({}) read again", me.node, me.role);
                        told = None;
                        if sender.send(Arc::new(credentials)).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let why = error.to_string();
                        if told.as_ref() != Some(&why) {
                            tracing::warn!("relay: the last good certificates stay in force: {why}");
                        }
                        told = Some(why);
                    }
                }
            }
        });
        Ok(Self { current, task })
    }

    /// The last good ones, and word of newer ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Credentials>> {
        self.current.clone()
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What tells one version of the files from another.
fn stamps(files: &Files) -> [Option<(std::time::SystemTime, u64, u64)>; 3] {
    use std::os::unix::fs::MetadataExt;
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    [&files.cert, &files.key, &files.ca].map(|path| stamp(path))
}
