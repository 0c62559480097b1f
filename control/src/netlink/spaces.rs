//! The network namespaces of local tasks, open for the length of one reconciliation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hiveway_core::{
    Desired,
    observed::{Inside, Namespace},
};
use ipnet::Ipv4Net;

use super::{Socket, inside::observe_inside, namespace, replies::replies};

/// A task's namespace: the file that names it. Sockets inside are opened for the moment: a node may have many tasks, and each
/// descriptor that is held for a whole round counts once per task.
#[derive(Debug)]
pub struct Space {
    /// Where it was found.
    pub path: PathBuf,
    /// Keeps the namespace alive and is what a veth's far end is created in.
    pub file: File,
}

impl Space {
    /// A socket for requests inside it.
    ///
    /// # Errors
    /// The kernel's, or that it is no network namespace.
    pub fn socket(&self) -> io::Result<Socket> {
        Socket::open_in(&self.file).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::other("it is not a network namespace (yet)"),
            _ => error,
        })
    }
}

/// A request inside a namespace cannot even be sent.
impl From<io::Error> for super::Error {
    fn from(source: io::Error) -> Self {
        Self::Kernel { what: "open a socket in the task's namespace".into(), source }
    }
}

/// Open namespaces by task id.
#[derive(Debug, Default)]
pub struct Spaces(pub BTreeMap<String, Space>);

/// Where Docker engines keep the network namespaces of their containers, under names of so many hexadecimal digits.
const ENGINE_DIR: &str = "/run/docker/netns";
const ENGINE_NAME: usize = 12;

/// Tasks whose namespaces have to be looked into, ours and the engine's, and where those are.
fn wanted<'a>(desired: &'a Desired, netns_dir: &'a Path) -> impl Iterator<Item = (&'a str, PathBuf)> {
    let ours = desired.tasks.iter().map(|task| (task.id.as_str(), task.netns.as_ref()));
    let tapped = desired.tapped.iter().map(|task| (task.id.as_str(), task.netns.as_ref()));
    ours.chain(tapped).map(|(id, path)| (id, path.cloned().unwrap_or_else(|| netns_dir.join(id))))
}

impl Spaces {
    /// Opens and observes the namespaces of this node's tasks, whose gateway bridge has the subnet `gateway`; what is
    /// missing or unusable is said in the result. `progress` is called after each.
    pub async fn open(
        desired: &Desired,
        netns_dir: &Path,
        gateway: Ipv4Net,
        progress: &dyn Fn(),
    ) -> (Self, BTreeMap<String, Namespace>) {
        let mut spaces = Self::default();
        let mut namespaces = BTreeMap::new();
        for (task, path) in wanted(desired, netns_dir) {
            let namespace = match open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Namespace::Missing { path: path.display().to_string() }
                }
                Err(error) => unusable(&path, &error.to_string()),
                Ok((space, socket)) => match look(&socket, gateway).await {
                    Ok(mut inside) => {
                        inside.identity = space.file.metadata().ok().map(|found| (found.dev(), found.ino()));
                        spaces.0.insert(task.to_owned(), space);
                        Namespace::Present(inside)
                    }
                    Err(error) => unusable(&path, &error.to_string()),
                },
            };
            namespaces.insert(task.to_owned(), namespace);
            progress();
        }
        spaces.search(desired, gateway, &mut namespaces, progress).await;
        (spaces, namespaces)
    }

    /// Looks among an engine's sandboxes for those of tapped tasks of which nobody has said where they are: the engine tells
    /// only when a container has started, and clients come then.
    async fn search(
        &mut self,
        desired: &Desired,
        gateway: Ipv4Net,
        namespaces: &mut BTreeMap<String, Namespace>,
        progress: &dyn Fn(),
    ) {
        let lost = desired.tapped.iter().filter(|task| task.netns.is_none() && !self.0.contains_key(&task.id));
        let mut lost: BTreeMap<_, _> = lost.map(|task| (task.ip, &task.id)).collect();
        if lost.is_empty() {
            return;
        }
        let known: BTreeSet<_> = desired.tapped.iter().filter_map(|task| task.netns.as_ref()?.file_name()).collect();
        let entries = std::fs::read_dir(ENGINE_DIR).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| is_sandbox(&entry.file_name()) && !known.contains(&*entry.file_name())) {
            progress();
            // Others come and go meanwhile.
            let Ok((space, socket)) = open(&entry.path()) else { continue };
            let Ok(inside) = observe_inside(&socket).await else { continue };
            let addresses = inside.links.values().flat_map(|link| &link.addresses).map(Ipv4Net::addr);
            let Some(task) = addresses.into_iter().find_map(|ip| lost.remove(&ip)) else { continue };
            let replies = replies(&socket, &inside, gateway).await.unwrap_or_default();
            self.0.insert(task.clone(), space);
            namespaces.insert(task.clone(), Namespace::Present(Inside { replies, ..inside }));
        }
        for task in lost.into_values() {
            let path = format!("of an engine's container below {ENGINE_DIR}");
            namespaces.insert(task.clone(), Namespace::Missing { path });
        }
    }

    /// Observes an open namespace again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn inside(&self, task: &str) -> Result<Inside, super::Error> {
        let space = self.0.get(task).ok_or_else(|| super::Error::NoNamespace(task.to_owned()))?;
        observe_inside(&space.socket()?).await
    }
}

/// What is inside, and where replies go. Without an answer to that clients are shown as they are; a namespace that has just
/// gone gives none.
async fn look(socket: &Socket, gateway: Ipv4Net) -> Result<Inside, super::Error> {
    let inside = observe_inside(socket).await?;
    let replies = replies(socket, &inside, gateway).await.unwrap_or_default();
    Ok(Inside { replies, ..inside })
}

fn is_sandbox(name: &OsStr) -> bool {
    name.len() == ENGINE_NAME && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn unusable(path: &Path, why: &str) -> Namespace {
    Namespace::Unusable { why: format!("network namespace {} cannot be used: {why}", path.display()) }
}

/// Opens a namespace other than this one, and a socket inside.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when it is not there, the kernel's, or that it is no other network namespace.
pub fn open(path: &Path) -> io::Result<(Space, Socket)> {
    let file = namespace::open(path)?;
    let (there, own) = (file.metadata()?, std::fs::metadata("/proc/thread-self/ns/net")?);
    if (there.dev(), there.ino()) == (own.dev(), own.ino()) {
        return Err(io::Error::other("it is the node's own; tasks on the host's network get no networking from us"));
    }
    let space = Space { path: path.to_owned(), file };
    let socket = space.socket()?;
    Ok((space, socket))
}
