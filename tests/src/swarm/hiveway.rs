//! Hiveway on a node, as an operator runs it: defaults wherever there are some.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Daemon, Node};
use crate::{
    agent::hiveway,
    lab::{PATIENCE, wait_for},
};

/// The agent of a node.
#[derive(Clone, Debug)]
pub struct Hiveway {
    node: Node,
    daemon: Daemon,
}

impl Hiveway {
    /// The agent of `node`, whether it runs or not.
    pub fn on(node: &Node) -> Self {
        Self { node: node.clone(), daemon: Daemon::new(&node.directory(), "hiveway") }
    }

    /// Starts it with the live table, unless `extra` says another one, and `extra` arguments, without waiting for it.
    pub fn launch(&self, extra: &[&str]) -> Result<()> {
        ensure!(self.daemon.pid().is_none(), "the agent of {} runs already", self.node.label());
        // A log of its own per start: whether it is ready is read from there.
        let _ = std::fs::remove_file(self.daemon.log_file());
        let mut command = self.command(&["agent"])?;
        if !extra.contains(&"--table") {
            command.args(["--table", "swarm"]);
        }
        self.daemon.start(command.args(extra))?;
        Ok(())
    }

    /// Waits for its line `ready:`.
    pub fn wait_ready(&self) -> Result<()> {
        let label = self.node.label();
        wait_for(&format!("the agent of {label} to be ready"), PATIENCE, || {
            if self.daemon.log().lines().any(|line| line.starts_with("ready:")) {
                return Ok(Ok(()));
            }
            if self.daemon.pid().is_none() {
                return Ok(Err(format!("the agent of {label} has ended:\n{}", self.daemon.log_tail(15))));
            }
            anyhow::bail!("it says:\n{}", self.daemon.log_tail(10))
        })?
        .map_err(anyhow::Error::msg)
    }

    /// Starts it and waits until it is ready.
    pub fn start(&self, extra: &[&str]) -> Result<()> {
        self.launch(extra)?;
        self.wait_ready()
    }

    /// SIGTERM; the data plane goes on.
    pub fn stop(&self) -> Result<()> {
        self.daemon.end(Signal::SIGTERM)
    }

    /// SIGKILL; the data plane goes on.
    pub fn kill(&self) -> Result<()> {
        self.daemon.end(Signal::SIGKILL)
    }

    /// Ends the agent if it runs, and has `hiveway teardown` give everything back.
    pub fn teardown(&self) -> Result<String> {
        self.stop()?;
        self.cli(&["teardown"])
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.daemon.pid().is_some()
    }

    /// Its process, log and pid file.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// `hiveway ARGUMENTS` on the node.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let binary = hiveway()?;
        let mut command = self.node.command(binary.to_str().context("the path of hiveway is not plain text")?)?;
        command.args(arguments);
        Ok(command)
    }

    /// `hiveway ARGUMENTS`: stdout.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        super::output(&mut self.command(arguments)?).with_context(|| format!("on {}", self.node.label()))
    }

    /// `hiveway ARGUMENTS --json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.cli(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("hiveway {} --json said {text}", arguments.join(" ")))
    }

    /// Asks the agent's socket directly, which is quick enough to time changes: `services`, `endpoints`, `flows`,
    /// `drops`, `status`, `networks`.
    pub fn ask(&self, request: &str) -> Result<Value> {
        let init = self.node.engine().child().with_context(|| format!("{} is not up", self.node.label()))?;
        // The node's /run is its own; this is the way into its mount namespace.
        let path = format!("/proc/{init}/root/run/hiveway/agent.sock");
        let mut stream = UnixStream::connect(&path).with_context(|| format!("the agent of {}", self.node.label()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{{\"request\": \"{request}\"}}\n").as_bytes())?;
        // `flows` comes in as many lines as it takes.
        let mut rows = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line?;
            let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("{request}: {line:?}"))?;
            match answer["rows"].take() {
                Value::Array(some) => rows.extend(some),
                _ if answer.get("end").is_some() => return Ok(Value::Array(rows)),
                _ => {
                    ensure!(answer.get("ok").is_some(), "{request} on {}: {answer}", self.node.label());
                    return Ok(answer["ok"].take());
                }
            }
        }
        bail!("{request} on {}: the answer broke off", self.node.label())
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What it says and knows, for a failure's explanation.
    pub fn diagnosis(&self) -> String {
        if !self.runs() {
            return format!("---- {}: no agent runs; its log ends\n{}", self.node.label(), self.daemon.log_tail(15));
        }
        let say = |what: &[&str]| self.cli(what).unwrap_or_else(|error| format!("{error:#}"));
        format!(
            "---- {0}: log\n{1}\n---- {0}: status\n{2}\n---- {0}: services\n{3}\n---- {0}: drops\n{4}",
            self.node.label(),
            self.daemon.log_tail(25),
            say(&["status"]),
            say(&["service", "ls"]),
            say(&["drops"]),
        )
    }
}
