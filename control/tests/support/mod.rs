//! Network namespaces for tests: anonymous ones on a thread of their own, and named ones for whole processes.
#![allow(dead_code, reason = "not every test file uses everything")]

pub(crate) mod node;

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sched::{CloneFlags, unshare};

/// Runs `work` on a thread of its own in a fresh network namespace, with a tokio runtime. Needs root.
pub(crate) fn in_fresh_netns<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root: unshare(CLONE_NEWNET)");
            run("ip link set lo up");
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a command in the calling thread's namespace and returns what it printed.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A named network namespace, deleted when dropped.
pub(crate) struct Netns(pub(crate) String);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Netns {
    /// Makes one. Needs root.
    pub(crate) fn new(label: &str) -> Self {
        let name = format!("hwc{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// A command inside. `ip netns exec` would hide the BPF file system.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    pub(crate) fn run(&self, line: &str) -> String {
        run(&format!("nsenter --net={} {line}", self.path().display()))
    }

    pub(crate) fn try_run(&self, line: &str) -> Output {
        let line = format!("nsenter --net={} {line}", self.path().display());
        Command::new("sh").args(["-c", &line]).output().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// The binary under test.
pub(crate) const HIVEWAY: &str = env!("CARGO_BIN_EXE_hiveway");

/// What went to stderr.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What went to stdout.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
