//! The lab itself: namespaces and the cables between them.
//!
//! ```text
//!   node n1 eth0 .11 ─┐
//!   node n2 eth0 .12 ─┤ br0 192.168.77.1/24  switch  192.168.88.1/24 ─ eth0 .100  far client
//!   node n3 eth0 .13 ─┤ (routes between the two)
//!     client eth0 .100 ┘
//! ```

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Netns, Offloads, cleanup,
    cleanup::registry,
    wait::{PATIENCE, wait_for},
};
use crate::agent::Agent;

/// Labs of one process share the cores; one that measures times or fills tables of the whole machine has them alone.
static CORES: RwLock<()> = RwLock::new(());
static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// A lab. Everything in it is gone when it is dropped.
pub struct Lab {
    prefix: String,
    directory: PathBuf,
    switch: Netns,
    namespaces: Mutex<Vec<Netns>>,
    agents: Mutex<Vec<Arc<Agent>>>,
    offloads: Mutex<Offloads>,
    counter: AtomicU32,
    pub(super) underlay_mtu: AtomicU32,
    /// Nodes that may have native XDP.
    native_xdp: Mutex<Vec<String>>,
    _cores: Cores,
}

/// A lab's share of the machine, for as long as it is held.
enum Cores {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Cores {
    fn shared() -> Self {
        Self::Shared { _guard: CORES.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn alone() -> Self {
        Self::Alone { _guard: CORES.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Lab {
    /// An empty lab: only the switch, 192.168.77.1/24, which also routes to 192.168.88.0/24. No other lab of this
    /// process is up at the same time.
    pub fn new() -> Result<Self> {
        Self::with(Cores::alone())
    }

    fn with(cores: Cores) -> Result<Self> {
        cleanup::register_ctrl_c();
        cleanup::sweep_dead_labs();
        mount_bpffs()?;
        let prefix = cleanup::prefix(SEQUENCE.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&prefix);
        registry().add_directory(&directory);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let switch = Netns::create(&prefix, "switch")?;
        switch.run("ip link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        switch.run("ip addr add 192.168.77.1/24 dev br0")?;
        switch.run("ip link set br0 up")?;
        switch.run("sysctl -qw net.ipv4.ip_forward=1")?;
        Ok(Self {
            prefix,
            directory,
            switch,
            namespaces: Mutex::default(),
            agents: Mutex::default(),
            offloads: Mutex::new(Offloads::On),
            counter: AtomicU32::new(0),
            underlay_mtu: AtomicU32::new(1500),
            native_xdp: Mutex::default(),
            _cores: cores,
        })
    }

    /// Prefix of all namespaces and directories of this lab.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Temporary directory: logs, sockets, state, captures.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace in the middle: 192.168.77.1 and, with a far client, 192.168.88.1.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// `<what>-<n>`, different each time.
    pub fn unique(&self, what: &str) -> String {
        format!("{what}-{}", self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// The MTU of nodes and clients beside them that are made from now on; 1500 unless set.
    pub fn set_underlay_mtu(&self, mtu: u32) {
        self.underlay_mtu.store(mtu, Ordering::Relaxed);
    }

    /// A node: `eth0` with 192.168.77.`host`/24 on the switch, default route .1.
    pub fn node(&self, label: &str, host: u8) -> Result<Netns> {
        let netns = self.namespace(label)?;
        let (name, switch) = (netns.name(), self.switch.name());
        let mtu = self.underlay_mtu.load(Ordering::Relaxed);
        self.switch.run(&format!(
            "ip link add eth0 mtu {mtu} netns {name} type veth peer name {label} mtu {mtu} netns {switch}"
        ))?;
        self.switch.run(&format!("ip link set {label} master br0 up"))?;
        netns.run(&format!("ip addr add 192.168.77.{host}/24 dev eth0"))?;
        netns.run("ip link set eth0 up")?;
        self.wait_connected(label, &netns)?;
        netns.run("ip route add default via 192.168.77.1")?;
        Ok(netns)
    }

    /// A client beside the nodes: 192.168.77.100.
    pub fn client(&self) -> Result<Netns> {
        self.node("client", 100)
    }

    /// A client behind the router: 192.168.88.100.
    pub fn far_client(&self) -> Result<Netns> {
        let netns = self.namespace("far")?;
        let (name, switch) = (netns.name(), self.switch.name());
        self.switch.run(&format!("ip link add eth0 netns {name} type veth peer name far netns {switch}"))?;
        self.switch.run("ip addr add 192.168.88.1/24 dev far")?;
        self.switch.run("ip link set far up")?;
        netns.run("ip addr add 192.168.88.100/24 dev eth0")?;
        netns.run("ip link set eth0 up")?;
        self.wait_connected("far", &netns)?;
        netns.run("ip route add default via 192.168.88.1")?;
        Ok(netns)
    }

    /// Both ends of the cable between a switch port and `eth0` have their carrier: the kernel reports it some time
    /// after `up`, and whoever looks at the links before would see them change by themselves.
    fn wait_connected(&self, port: &str, netns: &Netns) -> Result<()> {
        for (end, interface) in [(&self.switch, port), (netns, "eth0")] {
            wait_for(&format!("{interface} in {} to come up", end.label()), PATIENCE, || {
                let state = end.run(&format!("ip -br link show dev {interface}"))?;
                ensure!(state.split_whitespace().nth(1) == Some("UP") && state.contains("LOWER_UP"), "{state}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A namespace without any interface, as a task's is before the agent has seen it.
    pub fn namespace(&self, label: &str) -> Result<Netns> {
        let netns = Netns::create(&self.prefix, label)?;
        self.lock_namespaces().push(netns.clone());
        Ok(netns)
    }

    /// Deletes a namespace, as an engine does when a task ends. Processes in it must be gone already.
    pub fn delete_namespace(&self, netns: Netns) {
        self.lock_namespaces().retain(|other| other.name() != netns.name());
        registry().remove_namespace(netns.name());
    }

    /// Sets the offloads of every interface in the lab, switch included.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner) = offloads;
        offloads.apply(&self.switch)?;
        for netns in self.lock_namespaces().iter() {
            offloads.apply(netns)?;
        }
        self.fill_in_checksums()
    }

    pub(super) fn native_xdp(&self) -> MutexGuard<'_, Vec<String>> {
        self.native_xdp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace with this label.
    pub(super) fn labelled(&self, label: &str) -> Option<Netns> {
        self.lock_namespaces().iter().find(|netns| netns.label() == label).cloned()
    }

    /// Sets them again, for interfaces that have come since; nothing to do while they are on, as created.
    pub fn refresh_offloads(&self) -> Result<()> {
        let offloads = *self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        if offloads == Offloads::On { Ok(()) } else { self.set_offloads(offloads) }
    }

    /// Keeps an agent until the end, so that a failure can show its log.
    pub(crate) fn adopt(&self, agent: Arc<Agent>) {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).push(agent);
    }

    /// What each agent thinks and says, for a failure's explanation.
    pub fn diagnosis(&self) -> String {
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.iter().map(|agent| agent.diagnosis()).collect::<Vec<_>>().join("\n")
    }

    fn lock_namespaces(&self) -> MutexGuard<'_, Vec<Netns>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Agents first: they would see their interfaces vanish and complain.
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.lock_namespaces().clear();
        registry().remove_directory(&self.directory);
    }
}

/// Runs a scenario in a fresh lab, beside others of this process. A failure shows what every agent knows before the lab
/// is taken down.
pub fn scenario(run: impl FnOnce(&Lab) -> Result<()>) {
    run_in(Lab::with(Cores::shared()), run);
}

/// As [`scenario`], with no other lab of this process beside it: for what measures times, or loads all cores.
pub fn scenario_alone(run: impl FnOnce(&Lab) -> Result<()>) {
    run_in(Lab::new(), run);
}

fn run_in(lab: Result<Lab>, run: impl FnOnce(&Lab) -> Result<()>) {
    let lab = lab.unwrap_or_else(|error| panic!("cannot set up the lab: {error:#}"));
    let failure = match catch_unwind(AssertUnwindSafe(|| run(&lab))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("{error:?}"),
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "panic".to_owned()),
    };
    let diagnosis = lab.diagnosis();
    drop(lab);
    panic!("{failure}\n{diagnosis}");
}

/// Runs a scenario twice, in a lab with offloads on and in one with offloads off.
pub fn with_and_without_offloads(run: impl Fn(&Lab) -> Result<()>) {
    for offloads in Offloads::BOTH {
        scenario(|lab| {
            lab.set_offloads(offloads)?;
            run(lab).with_context(|| format!("with offloads {offloads:?}"))
        });
    }
}

fn mount_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        return Ok(());
    }
    nix::mount::mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
        .context("cannot mount bpffs at /sys/fs/bpf (run as root)")
}
