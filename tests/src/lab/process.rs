//! A child process that cannot outlive its guard.

use std::{
    fs::File,
    io::Read as _,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::cleanup::registry;

/// A running child, its output in files. Killed (by pid, SIGKILL) and waited for on drop.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    what: String,
    stdout: PathBuf,
    stderr: PathBuf,
    stdin: Option<ChildStdin>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its output in `<directory>/<name>.out` and `.err` (appended). Stdin stays open until
    /// [`Process::close_stdin`] or drop.
    pub fn start(mut command: Command, directory: &Path, name: &str) -> Result<Self> {
        let what = format!("{command:?}");
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot write {}", path.display()))
        };
        let (stdout, stderr) = (directory.join(format!("{name}.out")), directory.join(format!("{name}.err")));
        command.stdin(Stdio::piped()).stdout(open(&stdout)?).stderr(open(&stderr)?);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                Ok(())
            });
        }
        // Registered under the lock, so that an interrupt sees either no child or a registered one.
        let mut registry = registry();
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let (pid, stdin) = (child.id(), child.stdin.take());
        registry.children.insert(pid, child);
        Ok(Self { pid, what, stdout, stderr, stdin, status: None })
    }

    /// Its process id, valid until it has been waited for.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Exit status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let mut registry = registry();
            let Some(child) = registry.children.get_mut(&self.pid) else { bail!("{} is gone", self.what) };
            if let Some(status) = child.try_wait()? {
                registry.children.remove(&self.pid);
                self.status = Some(status);
            }
        }
        Ok(self.status)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("{} still runs after {limit:?}; stderr: {}", self.what, self.stderr_tail(5));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Closes stdin, which ends loops of `hw-lab-peer`, and returns stdout of a successful run.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        self.close_stdin();
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{} ended with {status}; stderr: {}", self.what, self.stderr_tail(10));
        }
        self.stdout()
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> Result<String> {
        read(&self.stdout)
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// The last lines of stderr.
    pub fn stderr_tail(&self, lines: usize) -> String {
        let text = self.stderr().unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) -> Result<()> {
        let registry = registry();
        if registry.children.contains_key(&self.pid) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid.cast_signed()), signal)?;
        }
        Ok(())
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) {
        self.stdin = None;
        if let Some(mut child) = registry().children.remove(&self.pid) {
            let _ = child.kill();
            self.status = Some(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(9)));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
