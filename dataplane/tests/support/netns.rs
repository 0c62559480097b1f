//! Further network namespaces of a test.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    process::{self, Child, Command},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use super::sandbox::run;

/// A network namespace; gone when nobody holds it any more.
pub struct Netns(File);

impl Netns {
    /// A new one, with its loopback up.
    pub fn new() -> Result<Self> {
        let file = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            run("ip link set lo up")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })?;
        Ok(Self(file))
    }

    /// What the kernel calls it: its inode.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.0.metadata()?.ino())
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Runs a command line inside.
    pub fn run(&self, line: &str) -> Result<String> {
        self.inside(|| run(line))
    }

    /// A process that lives inside until it is killed.
    pub fn tenant(&self) -> Result<Child> {
        self.inside(|| Ok(Command::new("sleep").arg("600").spawn()?))
    }

    /// Moves a device of this thread's namespace inside.
    pub fn take(&self, ifname: &str) -> Result<()> {
        run(&format!("ip link set {ifname} netns /proc/{}/fd/{}", process::id(), self.0.as_raw_fd()))?;
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join())
        .map_err(|_| anyhow!("the thread in the namespace has panicked"))?
        .context("in another network namespace")
}
