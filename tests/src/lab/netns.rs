//! One named network namespace.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::cleanup::registry;

/// A network namespace with a name under `/run/netns`; deleted when the last handle is dropped,
/// unless it was there before.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    label: String,
    name: String,
}

impl Drop for Inner {
    fn drop(&mut self) {
        registry().remove_namespace(&self.name);
    }
}

impl Netns {
    /// Creates `<prefix>-<label>`, with `lo` up and IPv6 off (its chatter would blur captures and counters).
    pub(super) fn create(prefix: &str, label: &str) -> Result<Self> {
        let name = format!("{prefix}-{label}");
        registry().add_namespace(&name);
        let netns = Self(Arc::new(Inner { label: label.to_owned(), name: name.clone() }));
        let output = Command::new("ip").args(["netns", "add", &name]).output().context("cannot run `ip`")?;
        ensure!(output.status.success(), "ip netns add {name}: {} (run as root)", text(&output.stderr));
        netns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
        netns.run("ip link set lo up")?;
        Ok(netns)
    }

    /// A handle on a namespace that somebody else made and will delete.
    pub fn existing(label: &str, name: &str) -> Self {
        // Only registered names are deleted on drop.
        Self(Arc::new(Inner { label: label.to_owned(), name: name.to_owned() }))
    }

    /// What the lab calls it.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Its name for `ip -n`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// `/run/netns/<name>`.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0.name)
    }

    /// A command that will run in this namespace, and in the machine's mount namespace (bpffs stays visible).
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let file = File::open(self.path()).with_context(|| format!("namespace {} is gone", self.name()))?;
        let mut command = Command::new(program);
        // SAFETY: setns is a plain system call, async-signal-safe; the file is open and closes on exec.
        unsafe {
            command.pre_exec(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// Runs a command line (split at blanks, no quoting) and returns its output, whatever its status.
    pub fn output(&self, line: &str) -> Result<Output> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command")?;
        self.command(program)?
            .args(words)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{line}` in {}", self.label()))
    }

    /// Runs a command line and returns its stdout; fails if it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        let output = self.output(line)?;
        if !output.status.success() {
            bail!(
                "in {}: `{line}` ended with {}: {}{}",
                self.label(),
                output.status,
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }

    /// Whether a command line succeeds.
    pub fn succeeds(&self, line: &str) -> bool {
        self.output(line).is_ok_and(|output| output.status.success())
    }

    /// Runs a shell script.
    pub fn shell(&self, script: &str) -> Result<String> {
        let output = self.command("sh")?.args(["-ec", script]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "in {}: `{script}`: {}", self.label(), text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// Runs `work` in this namespace, on a thread of its own that ends afterwards.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("namespace {} is gone", self.name()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Names of its interfaces, sorted, without `lo`.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let links: serde_json::Value = serde_json::from_str(&self.run("ip -j link show")?)?;
        let mut names: Vec<String> = links
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
