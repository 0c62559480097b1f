//! A netlink socket in some network namespace.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use futures::{Stream, StreamExt, TryStream, TryStreamExt};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{self, AddressFamily, SockFlag, SockType},
};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
};
use tokio::{
    runtime::Handle as Threads,
    task::{JoinHandle, coop::consume_budget},
    time::timeout,
};

use super::{
    Error,
    lenient::Lenient,
    offload,
    threads::{Whose, threads},
};
use crate::cost::Meter;

/// Processor time of all sockets' connections: they read the kernel's answers, which are long.
static USED: Meter = Meter::new();

/// Processor time that went into reading and sending so far, on whichever thread.
pub(crate) fn used() -> Duration {
    USED.used()
}

/// Messages of one list from inside a container's namespace: with `CAP_NET_ADMIN` it can have millions of routes,
/// each of which takes far more memory here than what it says.
const MOST_INSIDE: usize = 65_536;

/// How long the kernel may take for the next message of an answer from inside a container's namespace. It answers at
/// once, but while others hold its lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same in the node's own, and how long a change may take: on a busy machine seconds to delete a link, for which
/// everybody else waits.
const LONG_PATIENCE: Duration = Duration::from_secs(20);

/// An rtnetlink connection; closed when dropped.
#[derive(Debug)]
pub struct Socket {
    handle: Handle,
    /// Messages of one list that are collected at most.
    most: usize,
    /// For requests that are not netlink's.
    plain: OwnedFd,
    /// What has not come in time may still come: no more questions are to be asked.
    spent: AtomicBool,
    /// Messages that could not be read.
    unread: Arc<AtomicU64>,
    connection: JoinHandle<()>,
}

/// What a socket is made of, before its connection is given to the threads for them.
type Opened = (rtnetlink::proto::Connection<RouteNetlinkMessage, Lenient>, Handle, OwnedFd);

fn opened(threads: &Threads) -> io::Result<Opened> {
    let _entered = threads.enter();
    let (connection, handle, _) = rtnetlink::new_connection_with_socket()?;
    Ok((connection, handle, plain()?))
}

impl Socket {
    /// Opens a socket in the caller's own network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let threads = threads(Whose::Node)?;
        Ok(Self::new(opened(threads)?, threads, usize::MAX))
    }

    /// Opens a socket inside the network namespace that `namespace` refers to: on a thread of its own that enters the
    /// namespace and ends, so that no other thread is ever in the wrong one. The socket keeps its namespace. What its
    /// lists may hold is bounded.
    ///
    /// # Errors
    /// `EINVAL` when the file is no network namespace, `EPERM` without `CAP_SYS_ADMIN`, `EAGAIN` when there are no more
    /// threads to be had.
    pub fn open_in(namespace: &File) -> io::Result<Self> {
        let threads = threads(Whose::Container)?;
        let opened = thread::scope(|scope| {
            let inside = thread::Builder::new().spawn_scoped(scope, || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                opened(threads)
            })?;
            inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        })?;
        Ok(Self::new(opened, threads, MOST_INSIDE))
    }

    fn new((mut connection, handle, plain): Opened, threads: &Threads, most: usize) -> Self {
        let unread = connection.socket_mut().unread();
        let connection = threads.spawn(USED.count(connection));
        Self { handle, most, plain, spent: AtomicBool::new(false), unread, connection }
    }

    /// Whether it is of no more use: the kernel has not answered in time, or the connection has failed.
    pub fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed) || self.connection.is_finished()
    }

    /// Closes it, and returns when that is done: dropped alone, its descriptor is there until a thread for connections
    /// comes to it.
    pub(super) async fn close(mut self) {
        self.connection.abort();
        // What hangs in the kernel is closed later.
        let _ = timeout(PATIENCE, &mut self.connection).await;
    }

    /// How many of the kernel's messages could not be read, or not all of it, so far.
    pub fn unread(&self) -> u64 {
        self.unread.load(Ordering::Relaxed)
    }

    /// The next message of an answer.
    ///
    /// # Errors
    /// [`Error::Late`], after which the socket [is spent](Self::is_spent).
    pub(super) async fn next<S: Stream + Unpin>(&self, what: &str, answer: &mut S) -> Result<Option<S::Item>, Error> {
        // A long answer is all there soon: who reads it lets others have a turn.
        consume_budget().await;
        let time = if self.most == usize::MAX { LONG_PATIENCE } else { PATIENCE };
        self.in_time(what, time, answer.next()).await
    }

    /// A change, however many requests it takes.
    ///
    /// # Errors
    /// The change's; [`Error::Late`], after which the socket [is spent](Self::is_spent).
    pub(super) async fn change(
        &self,
        what: &str,
        change: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        self.in_time(what, LONG_PATIENCE, change).await?
    }

    async fn in_time<T>(&self, what: &str, time: Duration, answer: impl Future<Output = T>) -> Result<T, Error> {
        timeout(time, answer).await.map_err(|_| {
            self.spent.store(true, Ordering::Relaxed);
            Error::Late { what: what.to_owned(), time }
        })
    }

    /// Turns an offload of an interface on or off, see [`LATE_SEGMENTATION`](super::LATE_SEGMENTATION).
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_offload(&self, name: &str, feature: &str, on: bool) -> Result<(), Error> {
        offload::set(self.plain.as_fd(), name, feature, on).map_err(|source| {
            let what = format!("turn {feature} {} on {name}", if on { "on" } else { "off" });
            Error::Kernel { what, source }
        })
    }

    /// Whether an offload of an interface is on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_offload(&self, name: &str, feature: &str) -> Result<bool, Error> {
        offload::is_on(self.plain.as_fd(), name, feature)
            .map_err(|source| Error::Kernel { what: format!("ask for {feature} of {name}"), source })
    }

    /// All offloads of an interface, as `ethtool -k` names them, and whether each is on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn features(&self, name: &str) -> Result<BTreeMap<String, bool>, Error> {
        offload::all(self.plain.as_fd(), name)
            .map_err(|source| Error::Kernel { what: format!("ask for the features of {name}"), source })
    }

    /// The name of an interface's driver.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` where the driver does not say.
    pub fn driver(&self, name: &str) -> Result<String, Error> {
        offload::driver(self.plain.as_fd(), name)
            .map_err(|source| Error::Kernel { what: format!("ask for the driver of {name}"), source })
    }

    /// The typed requests of rtnetlink.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A link by name.
    ///
    /// # Errors
    /// [`Error::NoLink`] when there is none.
    pub async fn link(&self, name: &str) -> Result<LinkMessage, Error> {
        let mut answer = self.handle.link().get().match_name(name).execute();
        let what = format!("look up interface {name}");
        match self.next(&what, &mut answer).await? {
            Some(Ok(link)) => Ok(link),
            Some(Err(error)) => match Error::from_rtnetlink(what, error) {
                error if error.errno() == Some(libc::ENODEV) => Err(Error::NoLink(name.to_owned())),
                error => Err(error),
            },
            None => Err(Error::NoLink(name.to_owned())),
        }
    }

    /// Index of a link.
    ///
    /// # Errors
    /// [`Error::NoLink`] when there is none.
    pub async fn index(&self, name: &str) -> Result<u32, Error> {
        Ok(self.link(name).await?.header.index)
    }

    /// A request with flags that the typed ones don't offer; waits for the kernel's acknowledgement.
    pub(super) async fn request(&self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(message).map_err(|error| Error::from_rtnetlink(what, error))?;
        while let Some(answer) = self.next(what, &mut answers).await? {
            match answer.payload {
                // Without a code it is the acknowledgement.
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Error::Kernel { what: what.to_owned(), source: error.to_io() });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Socket {
    /// All of a list. `what` was asked for.
    ///
    /// # Errors
    /// When the kernel refuses the request; [`Error::Late`]; [`Error::TooMany`], after which the socket is of no more
    /// use either: the rest of the list is still on its way.
    pub(super) async fn collect<T>(
        &self,
        what: &str,
        answers: impl TryStream<Ok = T, Error = rtnetlink::Error>,
    ) -> Result<Vec<T>, Error> {
        let mut answers = std::pin::pin!(answers.into_stream());
        let mut all = Vec::new();
        while let Some(answer) = self.next(what, &mut answers).await? {
            let answer = answer.map_err(|error| Error::from_rtnetlink(what, error))?;
            if all.len() == self.most {
                self.spent.store(true, Ordering::Relaxed);
                return Err(Error::TooMany { what: what.to_owned(), most: self.most });
            }
            all.push(answer);
        }
        Ok(all)
    }

    /// Asks for a list, and hands over each message of the answer as it comes.
    pub(super) async fn list(
        &self,
        what: &str,
        question: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), Error> {
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(message).map_err(|error| Error::from_rtnetlink(what, error))?;
        while let Some(answer) = self.next(what, &mut answers).await? {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => each(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Error::Kernel { what: what.to_owned(), source: error.to_io() });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A socket to name a namespace by; never bound, so nobody can send to it.
fn plain() -> io::Result<OwnedFd> {
    Ok(socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn an_answer_that_does_not_come_is_not_waited_for() {
        let threads = threads(Whose::Node).unwrap();
        let socket = Socket::new(opened(threads).unwrap(), threads, MOST_INSIDE);
        assert!(socket.link("lo").await.is_ok() && !socket.is_spent());
        let never = futures::stream::pending::<Result<(), rtnetlink::Error>>();
        let late = socket.collect("list what does not come", never).await.unwrap_err().to_string();
        assert!(late.contains("list what does not come: the kernel has not answered within 5 s"), "{late}");
        assert!(socket.is_spent());
    }

    #[tokio::test]
    async fn one_whose_connection_has_ended_is_spent() {
        let socket = Socket::open().unwrap();
        socket.connection.abort();
        while !socket.is_spent() {
            tokio::task::yield_now().await;
        }
    }
}
