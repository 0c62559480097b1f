//! Tells when a source may have changed.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecursiveMode, Watcher};
use tokio::{sync::watch::Sender, task::JoinHandle};

use super::Source;

/// How often files are looked at where no notification comes (network file systems, replaced directories).
const POLL: Duration = Duration::from_secs(1);

/// Says when the source may have changed. Watches the directory, not the file, so that atomic renames are seen;
/// polls as well, because a directory that is itself replaced falls silent.
pub fn watch(source: &Source, changed: Sender<()>) -> JoinHandle<()> {
    let files = files(source);
    tokio::spawn(async move {
        let _watcher = notifications(&files, changed.clone());
        let mut before = stamps_of(&files);
        loop {
            tokio::time::sleep(POLL).await;
            let now = stamps_of(&files);
            if now != before {
                before = now;
                if changed.send(()).is_err() {
                    return;
                }
            }
        }
    })
}

/// The files that make up a source.
fn files(source: &Source) -> Vec<PathBuf> {
    match source {
        Source::File(path) => vec![path.clone()],
        Source::Engine(directory) => {
            ["nodes.json", "services.json", "tasks.json", "networks.json"].map(|name| directory.join(name)).to_vec()
        }
        Source::Swarm | Source::Relay(_) => Vec::new(),
    }
}

fn notifications(files: &[PathBuf], changed: Sender<()>) -> Option<notify::RecommendedWatcher> {
    let directory = match files.first()?.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let names: Vec<_> = files.iter().filter_map(|file| file.file_name().map(ToOwned::to_owned)).collect();
    let handler = move |event: notify::Result<notify::Event>| {
        let ours = |path: &PathBuf| path.file_name().is_some_and(|name| names.iter().any(|ours| ours == name));
        if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(ours)) {
            let _ = changed.send(());
        }
    };
    let started = notify::recommended_watcher(handler)
        .and_then(|mut watcher| watcher.watch(&directory, RecursiveMode::NonRecursive).map(|()| watcher));
    match started {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!("no notifications for {}: {error}; polling only", directory.display());
            None
        }
    }
}

/// What tells one version of a file from another; `None` while it cannot be read.
pub type Stamp = Option<(std::time::SystemTime, u64, u64)>;

/// Of all files that make up a source.
pub fn stamps(source: &Source) -> Vec<Stamp> {
    stamps_of(&files(source))
}

fn stamps_of(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
