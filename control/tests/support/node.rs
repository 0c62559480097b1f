//! A node in namespaces: an underlay interface `eth0` (192.0.2.1/24), a neighbour to talk to, an agent to start.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{HIVEWAY, Netns, run, stderr, stdout};

pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) far: Netns,
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) bpffs: PathBuf,
}

impl Node {
    pub(crate) fn new() -> Self {
        if !run("cat /proc/mounts").contains(" /sys/fs/bpf bpf ") {
            run("mount -t bpf bpf /sys/fs/bpf");
        }
        let (netns, far) = (Netns::new("node"), Netns::new("far"));
        run(&format!("ip -n {} link add eth0 type veth peer name eth0 netns {}", netns.0, far.0));
        for (space, address) in [(&netns, "192.0.2.1/24"), (&far, "192.0.2.2/24")] {
            run(&format!("ip -n {0} addr add {address} dev eth0 && ip -n {0} link set eth0 up", space.0));
        }
        let bpffs = Path::new("/sys/fs/bpf").join(&netns.0);
        Self { netns, far, scratch: tempfile::tempdir().unwrap(), bpffs }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Replaces the table the way careful people do.
    pub(crate) fn write_table(&self, text: &str) {
        std::fs::write(self.path("table.new"), text).unwrap();
        std::fs::rename(self.path("table.new"), self.path("table.yaml")).unwrap();
    }

    /// The agent's command line; later flags override earlier ones' values in tests that replace them.
    pub(crate) fn arguments(&self) -> Vec<(&'static str, String)> {
        let show = |name: &str| self.path(name).display().to_string();
        vec![
            ("--node", "n1".into()),
            ("--table", format!("file:{}", show("table.yaml"))),
            ("--underlay", "eth0".into()),
            ("--state-dir", show("state")),
            ("--bpffs", self.bpffs.display().to_string()),
            ("--socket", show("agent.sock")),
        ]
    }

    /// The agent's command with some values replaced or added.
    pub(crate) fn command(&self, changes: &[(&'static str, &str)]) -> Command {
        let mut arguments = self.arguments();
        for (flag, value) in changes {
            arguments.retain(|(there, _)| there != flag);
            arguments.push((flag, (*value).to_owned()));
        }
        let mut command = self.netns.command(HIVEWAY);
        command.arg("agent");
        for (flag, value) in arguments {
            command.args([flag, &value]);
        }
        command
    }

    /// Starts an agent that must be refused.
    pub(crate) fn refused(&self, changes: &[(&'static str, &str)]) -> String {
        let output = self.command(changes).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    }

    /// Starts an agent and waits until it is ready.
    pub(crate) fn start(&self, changes: &[(&'static str, &str)]) -> Agent {
        let mut agent = self.launch(changes);
        eventually("the agent is ready", || agent.is_ready());
        agent
    }

    /// Starts an agent.
    pub(crate) fn launch(&self, changes: &[(&'static str, &str)]) -> Agent {
        let log = std::fs::File::create(self.path("agent.log")).unwrap();
        let child = self.command(changes).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        Agent { child, log: self.path("agent.log") }
    }

    /// Asks the agent.
    pub(crate) fn ask(&self, command: &[&str]) -> Value {
        let socket = self.path("agent.sock");
        let output = Command::new(HIVEWAY).args(command).arg("--json").arg("--socket").arg(socket).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    }

    pub(crate) fn teardown(&self) -> Output {
        let mut command = self.netns.command(HIVEWAY);
        command.arg("teardown").arg("--bpffs").arg(&self.bpffs).arg("--state-dir").arg(self.path("state"));
        command.output().unwrap()
    }

    /// Interfaces of the node by name.
    pub(crate) fn links(&self) -> Vec<String> {
        let listing = self.netns.run("ip -o link");
        let name = |line: &str| line.split([':', '@']).nth(1).unwrap().trim().to_owned();
        let mut names: Vec<_> = listing.lines().map(name).collect();
        names.sort();
        names
    }

    /// Asserts that nothing of ours is on the node.
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.links(), ["eth0", "lo"]);
        assert_eq!(self.netns.run("nft list tables"), "");
        assert!(!self.bpffs.exists(), "{} exists", self.bpffs.display());
        assert_eq!(self.netns.run("sysctl -n net.ipv4.ip_local_reserved_ports").trim(), "");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A failed test must not leave pins behind; a passed one has none.
        if self.bpffs.exists() {
            let _ = self.teardown();
        }
    }
}

pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        std::fs::File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Whether its first table is programmed; it must not have ended.
    pub(crate) fn is_ready(&mut self) -> bool {
        assert!(self.child.try_wait().unwrap().is_none(), "the agent ended: {}", self.log());
        self.log().lines().any(|line| line.starts_with("ready: "))
    }

    /// SIGTERM; the agent must end well.
    pub(crate) fn stop(mut self) {
        run(&format!("kill {}", self.child.id()));
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so: well under a second, but a machine that is busy with other things gets its time.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
