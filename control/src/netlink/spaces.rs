//! The network namespaces of local tasks, open for the length of one reconciliation.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hiveway_core::{
    desired::LocalTask,
    observed::{Inside, Namespace},
};

use super::{Socket, inside::observe_inside};

/// A task's namespace: the file that names it, and a socket inside.
#[derive(Debug)]
pub struct Space {
    /// Keeps the namespace alive and is what a veth's far end is created in.
    pub file: File,
    /// Requests inside it.
    pub socket: Socket,
}

/// Open namespaces by task id.
#[derive(Debug, Default)]
pub struct Spaces(pub BTreeMap<String, Space>);

/// Where the namespace of `task` is.
fn path(task: &LocalTask, netns_dir: &Path) -> PathBuf {
    task.netns.clone().unwrap_or_else(|| netns_dir.join(&task.id))
}

impl Spaces {
    /// Opens and observes the namespaces of `tasks`; what is missing or unusable is said in the result.
    pub async fn open(tasks: &[LocalTask], netns_dir: &Path) -> (Self, BTreeMap<String, Namespace>) {
        let mut spaces = Self::default();
        let mut namespaces = BTreeMap::new();
        for task in tasks {
            let path = path(task, netns_dir);
            let namespace = match open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Namespace::Missing { path: path.display().to_string() }
                }
                Err(error) => unusable(&path, &error.to_string()),
                Ok(space) => match observe_inside(&space.socket).await {
                    Ok(inside) => {
                        spaces.0.insert(task.id.clone(), space);
                        Namespace::Present(inside)
                    }
                    Err(error) => unusable(&path, &error.to_string()),
                },
            };
            namespaces.insert(task.id.clone(), namespace);
        }
        (spaces, namespaces)
    }

    /// Observes an open namespace again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn inside(&self, task: &str) -> Result<Inside, super::Error> {
        let space = self.0.get(task).ok_or_else(|| super::Error::NoNamespace(task.to_owned()))?;
        observe_inside(&space.socket).await
    }
}

fn unusable(path: &Path, why: &str) -> Namespace {
    Namespace::Unusable { why: format!("network namespace {} cannot be used: {why}", path.display()) }
}

fn open(path: &Path) -> io::Result<Space> {
    let file = File::open(path)?;
    let (there, own) = (file.metadata()?, std::fs::metadata("/proc/thread-self/ns/net")?);
    if (there.dev(), there.ino()) == (own.dev(), own.ino()) {
        return Err(io::Error::other("it is the node's own; tasks on the host's network get no networking from us"));
    }
    let socket = Socket::open_in(&file).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::other("it is not a network namespace (yet)"),
        _ => error,
    })?;
    Ok(Space { file, socket })
}
