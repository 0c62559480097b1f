//! A process that outlives us: known by its pid in a file, and never confused with a later one of the same pid.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::lab::{PATIENCE, wait_until};

/// A background process with `<name>.pid` and `<name>.log` in a directory.
#[derive(Clone, Debug)]
pub struct Daemon {
    pid_file: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// The daemon of this name, whether it runs or not.
    pub fn new(directory: &Path, name: &str) -> Self {
        Self { pid_file: directory.join(format!("{name}.pid")), log: directory.join(format!("{name}.log")) }
    }

    /// Starts it in a session of its own, its output appended to the log.
    pub fn start(&self, command: &mut Command) -> Result<u32> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: setsid is async-signal-safe and takes nothing from the parent.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id();
        fs::write(&self.pid_file, format!("{pid} {}", started(pid).unwrap_or_default()))?;
        // While we live it is our child, and a zombie once it has ended unless somebody waits for it.
        std::thread::spawn(move || child.wait());
        Ok(pid)
    }

    /// Its pid, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        // Field 22 of proc(5)'s stat tells a pid that was given to another process since.
        (started(pid)?.to_string() == start && !crate::lab::has_ended(pid)).then_some(pid)
    }

    /// Its only child, for those that start another program and wait for it.
    pub fn child(&self) -> Option<u32> {
        let pid = self.pid()?;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Sends a signal to its child, or to itself if there is none, and waits for its end.
    pub fn end(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let _ = kill(Pid::from_raw(self.child().unwrap_or(pid).cast_signed()), signal);
        wait_until(&format!("process {pid} to end"), PATIENCE + Duration::from_secs(30), || self.pid().is_none())
            .with_context(|| format!("after {signal}; see {}", self.log.display()))?;
        let _ = fs::remove_file(&self.pid_file);
        Ok(())
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Where it says it.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// The last lines of what it has said.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// When a process was started, in clock ticks since boot.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold blanks and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
