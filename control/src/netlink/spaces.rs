//! The network namespaces of local tasks, open for the length of one reconciliation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{DirEntry, File},
    io,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{StreamExt, stream};
use hiveway_core::{
    Desired,
    observed::{Inside, Namespace},
};
use ipnet::Ipv4Net;
use tokio::time::{Instant, timeout_at};

use super::{Error, Socket, inside::observe_inside, namespace, replies::replies};

/// A task's namespace: the file that names it. Sockets inside are opened for the moment: a node may have many tasks,
/// and each descriptor that is held for a whole round counts once per task.
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
/// For each look, and for all of a round to begin. A container that has made answers long must not keep the others
/// waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks under way together: among so many that take long, the others come to their end.
const AT_ONCE: usize = 16;

/// A namespace whose last look has failed.
#[derive(Clone, Debug)]
pub struct Former {
    /// Why.
    pub why: String,
    /// It is not its turn yet.
    pub rests: bool,
}

/// What the looks of a round have found.
#[derive(Debug, Default)]
pub struct Looked {
    /// Those that can be worked in.
    pub spaces: Spaces,
    /// By task id. What is missing or unusable is said there.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Looks that have failed, and why: not those that this round has not come to.
    pub failed: BTreeMap<PathBuf, String>,
    /// How many messages could not be read, or not all of them, by task id.
    pub unread: BTreeMap<String, u64>,
}

/// Tasks whose namespaces have to be looked into, ours and the engine's, and where those are.
fn wanted<'a>(desired: &'a Desired, netns_dir: &'a Path) -> impl Iterator<Item = (&'a str, PathBuf)> {
    let ours = desired.tasks.iter().map(|task| (task.id.as_str(), task.netns.as_ref()));
    let attached = desired.attached.iter().map(|task| (task.id.as_str(), task.netns.as_ref()));
    ours.chain(attached).map(|(id, path)| (id, path.cloned().unwrap_or_else(|| netns_dir.join(id))))
}

/// What a look has come to.
enum Look {
    Found(Space, Inside, u64),
    Nothing(Namespace),
    Failed(String),
    /// The round's time is over.
    NotBegun,
}

impl Look {
    /// Of what could not be opened.
    fn refused(path: &Path, error: &io::Error) -> Self {
        match error {
            error if error.kind() == io::ErrorKind::NotFound => {
                Self::Nothing(Namespace::Missing { path: path.display().to_string() })
            }
            // The kernel's, of this one try: too many open files, no memory.
            error if error.raw_os_error().is_some() => Self::Failed(error.to_string()),
            error => Self::Nothing(Namespace::Unusable { why: unusable(path, &error.to_string()) }),
        }
    }
}

impl Looked {
    /// Opens and observes the namespaces of this node's tasks, whose gateway bridge has the subnet `gateway`: several
    /// at once. `first`: which of all is looked at first, for the next round the one that this one has not come to.
    /// `former`: those that have failed before; they come last, and not before their turn. `progress` is called after
    /// each.
    pub async fn at(
        desired: &Desired,
        netns_dir: &Path,
        gateway: Ipv4Net,
        first: &mut usize,
        former: &BTreeMap<PathBuf, Former>,
        progress: &dyn Fn(),
    ) -> Self {
        Self::within(PATIENCE, desired, netns_dir, gateway, first, former, progress).await
    }

    /// [`Looked::at`], with that much time for each look, and for all to begin.
    pub async fn within(
        time: Duration,
        desired: &Desired,
        netns_dir: &Path,
        gateway: Ipv4Net,
        first: &mut usize,
        former: &BTreeMap<PathBuf, Former>,
        progress: &dyn Fn(),
    ) -> Self {
        let mut looked = Self::default();
        let until = Limits { begin: Instant::now() + time, each: time };
        let mut all: Vec<_> = wanted(desired, netns_dir).collect();
        let turn = *first % all.len().max(1);
        all.rotate_left(turn);
        all.sort_by_key(|(_, path)| former.contains_key(path));
        let looks = all.into_iter().map(async |(task, path)| {
            let look = match former.get(&path) {
                Some(former) if former.rests => at_rest(&path, former),
                _ => one(&path, gateway, until).await,
            };
            (task, path, look)
        });
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        let (mut begun, mut left) = (0, false);
        while let Some((task, path, look)) = looks.next().await {
            match look {
                Look::NotBegun => left = true,
                _ => begun += 1,
            }
            looked.take(task, &path, look, former);
            progress();
        }
        drop(looks);
        if left {
            *first = turn + begun;
        }
        looked.search(desired, gateway, former, until, progress).await;
        looked
    }

    fn take(&mut self, task: &str, path: &Path, look: Look, former: &BTreeMap<PathBuf, Former>) {
        let namespace = match look {
            Look::Found(space, inside, unread) => {
                self.spaces.0.insert(task.to_owned(), space);
                if unread > 0 {
                    self.unread.insert(task.to_owned(), unread);
                }
                Namespace::Present(inside)
            }
            Look::Nothing(namespace) => namespace,
            Look::Failed(why) => {
                let why = unusable(path, &why);
                self.failed.insert(path.to_owned(), why.clone());
                Namespace::Unread { path: path.to_owned(), why, begun: true }
            }
            Look::NotBegun => {
                let why = former.get(path).map(|former| former.why.clone());
                let begun = why.is_some();
                let why = why.unwrap_or_else(|| unusable(path, "looking into others takes too long"));
                Namespace::Unread { path: path.to_owned(), why, begun }
            }
        };
        self.namespaces.insert(task.to_owned(), namespace);
    }

    /// Looks among an engine's sandboxes for those of attached tasks of which nobody has said where they are: the
    /// engine tells only when a container has started, and clients come then.
    async fn search(
        &mut self,
        desired: &Desired,
        gateway: Ipv4Net,
        former: &BTreeMap<PathBuf, Former>,
        until: Limits,
        progress: &dyn Fn(),
    ) {
        let spaces = &self.spaces.0;
        let lost = desired.attached.iter().filter(|task| task.netns.is_none() && !spaces.contains_key(&task.id));
        let mut lost: BTreeMap<_, _> = lost.map(|task| (task.ip, &task.id)).collect();
        if lost.is_empty() {
            return;
        }
        let known: BTreeSet<_> = desired.attached.iter().filter_map(|task| task.netns.as_ref()?.file_name()).collect();
        let entries = std::fs::read_dir(ENGINE_DIR).into_iter().flatten().flatten();
        let unknown = |entry: &DirEntry| is_sandbox(&entry.file_name()) && !known.contains(&*entry.file_name());
        let mut paths: Vec<_> = entries.filter(unknown).map(|entry| entry.path()).collect();
        paths.retain(|path| former.get(path).is_none_or(|former| !former.rests));
        paths.sort_by_key(|path| former.contains_key(path));
        let (mut sandboxes, mut held) = (Vec::new(), Vec::new());
        for path in paths {
            progress();
            match one(&path, gateway, until).await {
                Look::Found(space, inside, unread) => {
                    let addresses = inside.links.values().flat_map(|link| &link.addresses).map(Ipv4Net::addr);
                    let tasks: BTreeSet<Ipv4Addr> = addresses.filter(|ip| lost.contains_key(ip)).collect();
                    if !tasks.is_empty() {
                        sandboxes.push(Some((space, inside, unread)));
                        held.push(tasks);
                    }
                }
                Look::Failed(why) => drop(self.failed.insert(path.clone(), unusable(&path, &why))),
                // Others come and go meanwhile.
                Look::Nothing(_) => {}
                Look::NotBegun => break,
            }
        }
        for (index, ip) in owners(&held) {
            let (Some(task), Some((space, inside, unread))) = (lost.remove(&ip), sandboxes[index].take()) else {
                continue;
            };
            let path = space.path.clone();
            self.take(task, &path, Look::Found(space, inside, unread), former);
        }
        for task in lost.into_values() {
            let path = format!("of an engine's container below {ENGINE_DIR}");
            self.namespaces.insert(task.clone(), Namespace::Missing { path });
        }
    }
}

/// One whose turn has not come. That it is gone is seen all the same.
fn at_rest(path: &Path, former: &Former) -> Look {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Look::refused(path, &error),
        _ => Look::Nothing(Namespace::Unread { path: path.to_owned(), why: former.why.clone(), begun: true }),
    }
}

/// When looks are still begun, and how long one may take.
#[derive(Clone, Copy)]
struct Limits {
    begin: Instant,
    each: Duration,
}

async fn one(path: &Path, gateway: Ipv4Net, limits: Limits) -> Look {
    let now = Instant::now();
    if now >= limits.begin {
        return Look::NotBegun;
    }
    match open(path) {
        Err(error) => Look::refused(path, &error),
        Ok((space, socket)) => {
            let found = look(&socket, gateway, now + limits.each).await;
            let unread = socket.unread();
            // Before the next look opens one: descriptors are few. One that has failed may hang in the kernel.
            if found.is_ok() {
                socket.close().await;
            }
            match found {
                Ok(mut inside) => {
                    inside.identity = space.file.metadata().ok().map(|found| (found.dev(), found.ino()));
                    Look::Found(space, inside, unread)
                }
                Err(error) => Look::Failed(error.to_string()),
            }
        }
    }
}

impl Spaces {
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

/// What is inside, and where replies go. Without an answer to that clients are shown as they are; a namespace that has
/// just gone gives none.
///
/// # Errors
/// When the kernel refuses a request, what is inside is too much, or it takes too long.
async fn look(socket: &Socket, gateway: Ipv4Net, until: Instant) -> Result<Inside, Error> {
    let all = async {
        let inside = observe_inside(socket).await?;
        let replies = match replies(socket, &inside, gateway).await {
            Err(error @ (Error::TooMany { .. } | Error::Late { .. })) => return Err(error),
            replies => replies.unwrap_or_default(),
        };
        Ok(Inside { replies, ..inside })
    };
    let late = |_| Err(Error::Other { what: "look into it".into(), why: format!("it takes more than {PATIENCE:?}") });
    timeout_at(until, all).await.unwrap_or_else(late)
}

fn is_sandbox(name: &OsStr) -> bool {
    name.len() == ENGINE_NAME && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn unusable(path: &Path, why: &str) -> String {
    format!("network namespace {} cannot be used: {why}", path.display())
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
    use hiveway_core::desired::LocalTask;

    use super::*;

    #[tokio::test]
    async fn what_a_round_has_no_time_for_has_not_failed() {
        let netns = Some("/proc/self/ns/net".into());
        let task = LocalTask { id: "web.1".into(), tag: [1; 8], netns, interfaces: Vec::new() };
        let desired = Desired { tasks: vec![task], ..Desired::default() };
        let gateway = "172.18.0.0/16".parse().unwrap();
        let (no_time, none) = (Duration::ZERO, BTreeMap::new());
        let looked = Looked::within(no_time, &desired, Path::new("/run/netns"), gateway, &mut 0, &none, &|| ()).await;
        assert!(looked.failed.is_empty(), "{:?}", looked.failed);
        let Namespace::Unread { why, begun: false, .. } = &looked.namespaces["web.1"] else { panic!("{looked:?}") };
        assert!(why.contains("looking into others takes too long"), "{why}");
    }

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
