//! The threads that netlink connections run on, apart from everything else that the agent does.
//!
//! A system call on a netlink socket waits for the kernel's lock for links (rtnl) inside the kernel, although the
//! socket does not block. While another process holds that lock, each connection that sends a request or goes on
//! reading a list so occupies a thread. On the agent's own threads two of them would bring the status socket, the
//! metrics, the relay and the signals to a standstill.

use std::{
    io,
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use tokio::runtime::{Builder, Handle, Runtime};

/// Connections at work at once; the others wait behind them, as they would for the lock.
const THREADS: usize = 4;

/// Whose namespace a connection asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The node's own network namespace.
    Node,
    /// A container's: a list there may be long, and a connection reads all of a list that the kernel has ready in one
    /// go.
    Container,
}

/// Never end: connections outlive the runtimes that have opened them, and end with their sockets.
static NODE: LazyLock<io::Result<Runtime>> = LazyLock::new(|| runtime("netlink"));
static CONTAINERS: LazyLock<io::Result<Runtime>> = LazyLock::new(|| runtime("netlink-inside"));

fn runtime(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(THREADS).thread_name(name).enable_io().build()
}

/// Where connections are spawned. A socket is made in this runtime's context, so that it is polled there. The threads
/// are in the network namespace of the first caller: they never make sockets themselves.
///
/// # Errors
/// When the runtime could not be made.
pub(super) fn threads(whose: Whose) -> io::Result<&'static Handle> {
    match &**(if whose == Whose::Node { &NODE } else { &CONTAINERS }) {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot start the threads for netlink: {error}"))),
    }
}

/// Starts them, where an error can be told.
///
/// # Errors
/// As [`threads`].
pub fn start() -> io::Result<()> {
    [Whose::Node, Whose::Container].into_iter().try_for_each(|whose| threads(whose).map(drop))
}

/// Occupies the threads of the node's connections for so long, as a process does that holds the kernel's lock for
/// links: for tests of what happens meanwhile. Returns once all are occupied.
///
/// # Errors
/// As [`threads`].
///
/// # Panics
/// When the threads do not come to it within 20 s.
#[doc(hidden)]
pub fn occupy(for_so_long: Duration) -> io::Result<()> {
    let (held, holding) = mpsc::channel();
    for _ in 0..THREADS {
        let held = held.clone();
        threads(Whose::Node)?.spawn(async move {
            let _ = held.send(());
            thread::sleep(for_so_long);
        });
    }
    for _ in 0..THREADS {
        holding.recv_timeout(Duration::from_secs(20)).expect("the threads have other things to do");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::netlink::Socket;

    #[tokio::test]
    async fn a_connection_that_hangs_in_the_kernel_holds_up_nothing_else() {
        const HELD: Duration = Duration::from_secs(2);
        let socket = Socket::open().unwrap();
        let begun = Instant::now();
        occupy(HELD).unwrap();
        let answer = tokio::spawn(async move { (socket.link("lo").await.is_ok(), Instant::now()) });
        let mut longest = Duration::ZERO;
        while begun.elapsed() < HELD {
            let before = Instant::now();
            tokio::time::sleep(Duration::from_millis(10)).await;
            longest = longest.max(before.elapsed());
        }
        let (found, at) = answer.await.unwrap();
        assert!(found && at >= begun + HELD, "the connection is on another thread: answered {:?}", at - begun);
        assert!(longest < HELD / 2, "a timer of this thread was {longest:?} late");
    }
}
