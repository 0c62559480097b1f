//! The network namespaces of local tasks, open for the length of one reconciliation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use hiveway_core::{
    Desired,
    observed::{Inside, Namespace},
};
use ipnet::Ipv4Net;
use tokio::time::timeout;

use super::{Error, Socket, inside::observe_inside, namespace, replies::replies};

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
impl From<io::Error> for Error {
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
/// For all questions to one namespace. A container that has made answers long must not keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(5);

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
        let (mut sandboxes, mut held) = (Vec::new(), Vec::new());
        for entry in entries.filter(|entry| is_sandbox(&entry.file_name()) && !known.contains(&*entry.file_name())) {
            progress();
            // Others come and go meanwhile.
            let Ok((space, socket)) = open(&entry.path()) else { continue };
            let Ok(Ok(inside)) = timeout(PATIENCE, observe_inside(&socket)).await else { continue };
            let addresses = inside.links.values().flat_map(|link| &link.addresses).map(Ipv4Net::addr);
            let tasks: BTreeSet<Ipv4Addr> = addresses.filter(|ip| lost.contains_key(ip)).collect();
            if !tasks.is_empty() {
                sandboxes.push(Some((space, socket)));
                held.push(tasks);
            }
        }
        for (index, ip) in owners(&held) {
            let (Some(task), Some((space, socket))) = (lost.get(&ip), sandboxes[index].take()) else { continue };
            let Ok(inside) = look(&socket, gateway).await else { continue };
            self.0.insert((*task).clone(), space);
            namespaces.insert((*task).clone(), Namespace::Present(inside));
            lost.remove(&ip);
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
    pub async fn inside(&self, task: &str) -> Result<Inside, Error> {
        let space = self.0.get(task).ok_or_else(|| Error::NoNamespace(task.to_owned()))?;
        observe_inside(&space.socket()?).await
    }
}

/// Which sandbox is whose, of those that hold these tasks' addresses: by index. A container with `CAP_NET_ADMIN` can
/// give itself any address, so who holds several is none of their sandboxes, and an address in several places says
/// nothing.
fn owners(held: &[BTreeSet<Ipv4Addr>]) -> Vec<(usize, Ipv4Addr)> {
    let in_one_place = |ip: &Ipv4Addr| held.iter().filter(|addresses| addresses.contains(ip)).count() == 1;
    let only = held.iter().enumerate().filter_map(|(index, addresses)| match addresses.len() {
        1 => Some((index, *addresses.first()?)),
        _ => None,
    });
    only.filter(|(_, ip)| in_one_place(ip)).collect()
}

/// What is inside, and where replies go. Without an answer to that clients are shown as they are; a namespace that has just
/// gone gives none.
///
/// # Errors
/// When the kernel refuses a request, what is inside is too much, or it takes too long.
async fn look(socket: &Socket, gateway: Ipv4Net) -> Result<Inside, Error> {
    let all = async {
        let inside = observe_inside(socket).await?;
        let replies = match replies(socket, &inside, gateway).await {
            Err(error @ Error::TooMany { .. }) => return Err(error),
            replies => replies.unwrap_or_default(),
        };
        Ok(Inside { replies, ..inside })
    };
    let late = |_| Err(Error::Other { what: "look into it".into(), why: format!("it takes more than {PATIENCE:?}") });
    timeout(PATIENCE, all).await.unwrap_or_else(late)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_a_tasks_only_if_nothing_else_could_be() {
        let held = |all: &[&[u8]]| -> Vec<BTreeSet<Ipv4Addr>> {
            all.iter().map(|last| last.iter().map(|last| Ipv4Addr::new(10, 0, 1, *last)).collect()).collect()
        };
        let found =
            |all: &[&[u8]]| owners(&held(all)).into_iter().map(|(i, ip)| (i, ip.octets()[3])).collect::<Vec<_>>();
        assert_eq!(found(&[&[3], &[4]]), [(0, 3), (1, 4)]);
        // Somebody has given itself another's address, before or after its own sandbox is there.
        assert_eq!(found(&[&[3], &[3], &[4]]), [(2, 4)]);
        // Or those of all.
        assert_eq!(found(&[&[3, 4], &[5]]), [(1, 5)]);
        assert_eq!(found(&[&[3, 4], &[4]]), []);
    }
}
