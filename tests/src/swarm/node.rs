//! One node: its network namespace, its engine, and how to run something on it.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Daemon, Engine, PATH, Place, output};
use crate::lab::{Netns, wait_for};

/// A node of a lab; a handle, whether it is up or not.
#[derive(Clone, Debug)]
pub struct Node {
    place: Place,
    label: String,
    number: u8,
}

impl Node {
    /// Node `number`, from 1.
    pub(super) fn new(place: &Place, number: u8) -> Self {
        Self { place: place.clone(), label: format!("n{number}"), number }
    }

    /// n1, n2, ...; its host name too.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its address on the switch.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, 10 + self.number)
    }

    /// Its network namespace.
    pub fn netns(&self) -> Netns {
        Netns::existing(&self.label, &self.place.namespace(&self.label))
    }

    /// Logs, the socket, the disk.
    pub fn directory(&self) -> PathBuf {
        self.place.node_directory(&self.label)
    }

    /// Its engine.
    pub fn engine(&self) -> Daemon {
        Daemon::new(&self.directory(), "dockerd")
    }

    /// The engine's socket, outside the node.
    fn socket(&self) -> PathBuf {
        self.directory().join("docker.sock")
    }

    /// Creates its network namespace, with a cable to the switch.
    pub fn plug_in(&self) -> Result<()> {
        let (netns, switch) = (self.netns(), Netns::existing("switch", &self.place.namespace("switch")));
        output(Command::new("ip").args(["netns", "add", netns.name()]))?;
        netns.run("ip link set lo up")?;
        let (label, name) = (&self.label, netns.name());
        switch.run(&format!("ip link add {label} type veth peer name eth0 netns {name}"))?;
        switch.run(&format!("ip link set {label} master br0 up"))?;
        netns.run(&format!("ip addr add {}/24 dev eth0", self.address()))?;
        netns.run("ip link set eth0 up")?;
        netns.run("ip route add default via 192.168.77.1")?;
        Ok(())
    }

    /// Starts the engine, without waiting for it.
    pub fn start_engine(&self) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(&directory)?;
        let script = directory.join("node.sh");
        fs::write(&script, include_str!("node.sh"))?;
        // A socket of the run before would look like an engine that does not answer.
        let _ = fs::remove_file(self.socket());
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns().path().display()));
        command.args(["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "sh"]);
        command.arg(script).arg(&self.label).arg(&directory);
        // Its own programs take the places of the machine's.
        command.arg(Engine::root_of(&self.place).unwrap_or_default()).arg("/usr/sbin/dockerd");
        command.args(["--host", "unix:///var/run/docker.sock", "--data-root", "/var/lib/docker", "--host"]);
        command.arg(format!("unix://{}", self.socket().display()));
        // The groups must be found again after the engine's death; systemd, where there is one, is not the node's.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"]);
        command.arg(format!("/{}/{}", self.place.cgroup(), self.label));
        // A proxy of this machine's is none of the nodes'.
        command.env_clear().env("PATH", PATH);
        self.engine().start(&mut command)?;
        Ok(())
    }

    /// Waits until the engine answers, and fails if it is another one than the lab was made with.
    pub fn wait_engine(&self) -> Result<()> {
        let said = wait_for(&format!("the engine of {} to answer", self.label), Duration::from_secs(120), || {
            if self.engine().pid().is_none() {
                return Ok(Err(format!("the engine of {} has ended:\n{}", self.label, self.engine().log_tail(15))));
            }
            self.docker(&["version", "--format", "{{.Server.Version}}"]).map(Ok)
        })?
        .map_err(anyhow::Error::msg)?;
        Engine::of(&self.place)?.ensure_is(&said).with_context(|| self.label.clone())
    }

    /// A `docker` command for its engine.
    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Engine::command_of(&self.place));
        command.env_clear().env("PATH", PATH).env("HOME", self.place.directory());
        command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments);
        command
    }

    /// `docker ARGUMENTS`: stdout.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.docker_command(arguments)).with_context(|| format!("on {}", self.label))
    }

    /// `GET PATH` of its engine's API.
    pub fn api(&self, path: &str) -> Result<Value> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "20", "--globoff", "--unix-socket"]);
        command.arg(self.socket()).arg(format!("http://engine{path}"));
        let text = output(&mut command)?;
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{path} on {}: {text}", self.label))?;
        // An error is an object with a message and nothing else.
        match answer.as_object().filter(|object| object.len() == 1).and_then(|object| object.get("message")) {
            Some(message) => bail!("{path} on {}: {message}", self.label),
            None => Ok(answer),
        }
    }

    /// A command in the node's namespaces, with the node's view of the file system.
    pub fn command(&self, program: &str) -> Result<Command> {
        let init = self.engine().child().with_context(|| format!("{} is not up", self.label))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &init.to_string(), "--mount", "--uts", "--net", "--pid", program]);
        command.env("PATH", PATH);
        Ok(command)
    }

    /// Runs a command on the node: stdout.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(self.command(program)?.args(arguments)).with_context(|| format!("on {}", self.label))
    }

    /// The node dies: every process at once, and its interfaces with it. Its disk stays.
    pub fn die(&self) -> Result<()> {
        // The cable first, so that no last word leaves it.
        let switch = Netns::existing("switch", &self.place.namespace("switch"));
        switch.run(&format!("ip link del {}", self.label))?;
        self.end_processes()?;
        self.delete_namespace()
    }

    /// Comes back from death, as after a reboot.
    pub fn revive(&self) -> Result<()> {
        self.plug_in()?;
        self.start_engine()?;
        self.wait_engine()
    }

    /// Restarts the engine alone, as an upgrade does; containers end with it. Returns when it answers again.
    pub fn restart_engine(&self) -> Result<()> {
        let engine = || self.run("pgrep", &["-x", "dockerd"]).map(|pid| pid.trim().to_owned());
        let before = engine()?;
        self.run("kill", &[&before])?;
        wait_for(&format!("another engine on {}", self.label), Duration::from_secs(60), || {
            let now = engine()?;
            ensure!(now != before, "it is still {before}");
            Ok(())
        })?;
        self.wait_engine()
    }

    /// SIGKILL for everything on the node.
    pub(super) fn end_processes(&self) -> Result<()> {
        // Its init takes the whole PID namespace along, and is waited for until that is empty.
        self.engine().end(Signal::SIGKILL)?;
        // Commands that were started from outside and are not in the PID namespace.
        let pids = output(Command::new("ip").args(["netns", "pids", self.netns().name()])).unwrap_or_default();
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(())
    }

    /// Deletes its network namespace, if it is there.
    pub(super) fn delete_namespace(&self) -> Result<()> {
        let netns = self.netns();
        if netns.path().exists() {
            output(Command::new("ip").args(["netns", "del", netns.name()]))?;
        }
        Ok(())
    }

    /// Fails unless it is up.
    pub fn ensure_up(&self) -> Result<()> {
        ensure!(self.engine().child().is_some(), "{} is not up:\n{}", self.label, self.engine().log_tail(15));
        Ok(())
    }
}
