//! Agents of the lab: one `hiveway agent` per node namespace, each with its own pins, state and socket.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{Lab, Netns, PATIENCE, Process, slowness, wait_for};

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// `--node`.
    pub node: String,
    /// `--table`.
    pub table: String,
    /// `--netns-dir`.
    pub netns_dir: Option<PathBuf>,
    /// Further arguments.
    pub extra: Vec<String>,
}

/// A `hiveway agent` in a node's namespace. Killed and its pins removed on drop.
#[derive(Debug)]
pub struct Agent {
    options: AgentOptions,
    netns: Netns,
    directory: PathBuf,
    bpffs: PathBuf,
    /// Further arguments of the next start.
    extra: Mutex<Vec<String>>,
    /// What the lab adds to them.
    of_lab: Vec<String>,
    /// Variables of the next start's environment.
    environment: Mutex<Vec<(String, String)>>,
    /// What runs `hiveway`, at the next start and for teardown.
    wrapper: Mutex<Vec<String>>,
    /// A directory of programs that the next start finds before the machine's.
    programs: Mutex<Option<PathBuf>>,
    process: Mutex<Option<Process>>,
    starts: Mutex<u32>,
}

/// The `hiveway` binary beside the running test or demo, or `$HIVEWAY_BIN`.
pub fn hiveway() -> Result<PathBuf> {
    built("hiveway", "HIVEWAY_BIN", "cargo build -p control")
}

/// A binary in the target directory of the running program.
pub(crate) fn built(name: &str, variable: &str, remedy: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let path = own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.exists());
    path.with_context(|| format!("no `{name}` beside {}: run `{remedy}` (or set {variable})", own.display()))
}

impl Agent {
    /// Starts an agent and waits until it says `ready:`.
    pub fn start(lab: &Lab, netns: &Netns, options: AgentOptions) -> Result<Arc<Self>> {
        let agent = Self::prepare(lab, netns, options)?;
        agent.launch()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// An agent that has not been started yet.
    pub fn prepare(lab: &Lab, netns: &Netns, options: AgentOptions) -> Result<Arc<Self>> {
        let mut of_lab = Vec::new();
        if let Some(mode) = crate::lab::xdp_mode()?
            && !options.extra.iter().any(|argument| argument == "--xdp")
        {
            if mode == "native" {
                lab.prepare_for_xdp(netns.label())?;
            }
            of_lab = vec!["--xdp".to_owned(), mode];
        }
        let directory = lab.directory().join(format!("agent-{}", netns.label()));
        std::fs::create_dir_all(&directory)?;
        let bpffs = Path::new("/sys/fs/bpf").join(format!("{}-{}", lab.prefix(), netns.label()));
        crate::lab::register_directory(&bpffs);
        let agent = Arc::new(Self {
            extra: Mutex::new(options.extra.clone()),
            of_lab,
            options,
            netns: netns.clone(),
            directory,
            bpffs,
            environment: Mutex::default(),
            wrapper: Mutex::default(),
            programs: Mutex::default(),
            process: Mutex::default(),
            starts: Mutex::default(),
        });
        lab.adopt(Arc::clone(&agent));
        Ok(agent)
    }

    /// Starts the process without waiting for it.
    pub fn launch(&self) -> Result<()> {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        *starts += 1;
        let mut command = self.wrapped("agent")?;
        command.args(self.arguments());
        if let Some(programs) = &*self.programs.lock().unwrap_or_else(PoisonError::into_inner) {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", programs.display()));
        }
        command.envs(self.environment.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        *self.lock() = Some(Process::start(command, &self.directory, &format!("start-{starts}"))?);
        Ok(())
    }

    fn arguments(&self) -> Vec<String> {
        let extra = self.extra.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut pairs = vec![
            ("--node", self.options.node.clone()),
            ("--table", self.options.table.clone()),
            ("--bpffs", self.bpffs.display().to_string()),
            ("--state-dir", self.state_dir().display().to_string()),
            ("--socket", self.socket().display().to_string()),
        ];
        if !extra.iter().any(|word| word == "--underlay") {
            pairs.push(("--underlay", "eth0".to_owned()));
        }
        if let Some(directory) = &self.options.netns_dir {
            pairs.push(("--netns-dir", directory.display().to_string()));
        }
        let pairs = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        pairs.chain(extra).chain(self.of_lab.iter().cloned()).collect()
    }

    /// `hiveway agent ...` as it is run, for people.
    pub fn command_line(&self) -> String {
        format!("hiveway agent {}", self.arguments().join(" "))
    }

    /// Waits for the line `ready:`.
    pub fn wait_ready(&self) -> Result<()> {
        let what = format!("agent {} to be ready", self.netns.label());
        let started = std::time::Instant::now();
        loop {
            {
                let mut process = self.lock();
                let process = process.as_mut().context("agent was not started")?;
                if process.stderr()?.lines().any(|line| line.starts_with("ready:")) {
                    return Ok(());
                }
                if let Some(status) = process.try_wait()? {
                    bail!("agent {} ended with {status}:\n{}", self.netns.label(), process.stderr_tail(20));
                }
                let limit = PATIENCE * slowness();
                ensure!(started.elapsed() < limit, "waited {limit:?} for {what}:\n{}", process.stderr_tail(30));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL: the data plane has to go on without it.
    pub fn sigkill(&self) {
        if let Some(process) = self.lock().as_mut() {
            process.kill();
        }
    }

    /// SIGSTOP: it is there and does nothing, until [`Agent::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.lock().as_mut().map_or(Ok(()), |process| process.signal(Signal::SIGSTOP))
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.lock().as_mut().map_or(Ok(()), |process| process.signal(Signal::SIGCONT))
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&self) -> Result<()> {
        let mut guard = self.lock();
        let Some(process) = guard.as_mut() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(PATIENCE)?;
        ensure!(status.success(), "agent {} ended with {status} on SIGTERM", self.netns.label());
        Ok(())
    }

    /// Starts it again and waits until it is ready.
    pub fn restart(&self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Ends it and starts it again with these further arguments instead of the ones that it had.
    pub fn restart_with(&self, extra: &[&str]) -> Result<()> {
        self.terminate()?;
        *self.extra.lock().unwrap_or_else(PoisonError::into_inner) =
            extra.iter().map(|&word| word.to_owned()).collect();
        self.restart()
    }

    /// The next start finds the programs in this directory before the machine's of the same names.
    pub fn programs_from(&self, directory: &Path) {
        *self.programs.lock().unwrap_or_else(PoisonError::into_inner) = Some(directory.to_owned());
    }

    /// The next start, and teardown, are run by a program: `words` in front of `hiveway`'s own.
    pub fn wrapped_by(&self, words: &[&str]) {
        *self.wrapper.lock().unwrap_or_else(PoisonError::into_inner) =
            words.iter().map(|&word| word.to_owned()).collect();
    }

    fn wrapped(&self, what: &str) -> Result<Command> {
        let wrapper = self.wrapper.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((program, words)) = wrapper.split_first() else { return self.command(&[what]) };
        let mut command = self.netns.command(program)?;
        command.args(words).arg(hiveway()?).arg(what);
        Ok(command)
    }

    /// The next start has this variable in its environment.
    pub fn set_variable(&self, name: &str, value: &str) {
        let mut environment = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
        environment.push((name.to_owned(), value.to_owned()));
    }

    /// What a counter of `status` says.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status = self.json(&["status"])?;
        status["dataplane"]["counters"][name].as_u64().with_context(|| format!("no counter {name} in {status}"))
    }

    /// `hiveway teardown` (the agent must have ended): what it says.
    pub fn teardown(&self) -> Result<String> {
        let mut command = self.wrapped("teardown")?;
        command.arg("--bpffs").arg(&self.bpffs).arg("--state-dir").arg(self.state_dir());
        let output = command.output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "teardown ended with {}: {err}", output.status);
        Ok(format!("{out}{err}"))
    }

    /// `hiveway <what...> --socket ...`: stdout.
    pub fn cli(&self, what: &[&str]) -> Result<String> {
        let output = self.command(what)?.arg("--socket").arg(self.socket()).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "hiveway {} ended with {}: {out}{err}", what.join(" "), output.status);
        Ok(out.into_owned())
    }

    /// `hiveway <what...> --json`.
    pub fn json(&self, what: &[&str]) -> Result<Value> {
        let text = self.cli(&[what, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("hiveway {} --json said {text}", what.join(" ")))
    }

    /// Waits until `status` is as `check` wants it: what takes long to read (sockets, the firewall) may be the last
    /// answer.
    pub fn wait_status(&self, what: &str, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
        wait_for(&format!("status to say {what}"), PATIENCE, || check(&self.json(&["status"])?))
    }

    /// Packets dropped for a reason so far.
    pub fn dropped(&self, reason: &str) -> Result<u64> {
        let drops = self.json(&["drops"])?;
        Ok(find_count(&drops, reason).unwrap_or(0))
    }

    /// Waits until a reason has been counted more than `before` times.
    pub fn wait_dropped(&self, reason: &str, at_least: u64) -> Result<()> {
        wait_for(&format!("{at_least} drops of {reason}"), PATIENCE, || {
            let seen = self.dropped(reason)?;
            ensure!(seen >= at_least, "{seen} so far: {}", self.json(&["drops"])?);
            Ok(())
        })
    }

    /// Its process id, if it was started.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(Process::pid)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.lock().as_ref().map_or_else(String::new, |process| process.stderr().unwrap_or_default())
    }

    /// Waits until it has logged that: a line comes a moment after what it tells of.
    pub fn wait_log(&self, what: &str) -> Result<()> {
        wait_for(&format!("the log to say {what:?}"), PATIENCE, || {
            let log = self.log();
            ensure!(log.contains(what), "{log}");
            Ok(())
        })
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    /// A `hiveway` command in the node's namespace.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.netns.command(hiveway()?)?;
        command.args(arguments);
        Ok(command)
    }

    /// Log tail, status, drops and links, for a failure's explanation.
    pub fn diagnosis(&self) -> String {
        let say = |result: Result<String>| result.unwrap_or_else(|error| format!("{error:#}"));
        let tail = self.lock().as_ref().map_or_else(String::new, |process| process.stderr_tail(25));
        format!(
            "---- {0}: log\n{tail}\n---- {0}: status\n{1}\n---- {0}: services\n{2}\n---- {0}: flows\n{3}\n---- {0}: drops\n{4}\n---- {0}: links\n{5}",
            self.netns.label(),
            say(self.cli(&["status"])),
            say(self.cli(&["service", "ls"])),
            head(&say(self.cli(&["flow", "ls"])), 15),
            say(self.cli(&["drops"])),
            say(self.netns.run("ip -br link")),
        )
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.sigkill();
        crate::lab::remove_directory(&self.bpffs);
    }
}

fn head(text: &str, lines: usize) -> String {
    text.lines().take(lines).collect::<Vec<_>>().join("\n")
}

/// The packet count of `reason`, in a list of `{reason, packets}` or a map from reason to count.
fn find_count(drops: &Value, reason: &str) -> Option<u64> {
    match drops {
        Value::Array(rows) => rows.iter().find_map(|row| find_count(row, reason)),
        Value::Object(fields) => {
            if fields.get("reason").and_then(Value::as_str) == Some(reason) {
                return fields.get("packets").and_then(Value::as_u64);
            }
            fields.values().find_map(|value| find_count(value, reason))
        }
        _ => None,
    }
}
