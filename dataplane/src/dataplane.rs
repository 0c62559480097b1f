//! The data plane of one node, opened by its agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::Ebpf;
use dataplane_common::{
    addr::{Ip4, Mac},
    counter::{Counter, Stat},
    drop_reason::DropReason,
    mark::l3_program,
    service::{LeftPrefix, PortKey, port_flag},
    state::{MapChange, MapState},
    xdp::XdpDevice,
};

use crate::{
    MapFault, MapName, Options, Program,
    adopt::{self, AdoptError},
    apply::ApplyError,
    attach::{self, AttachError, AttachFault, Attached, Hook, PinName, Target, Unpinned, XdpMode},
    changes::{Changes, Delta},
    connections::{Connections, PerTable},
    hops::Hops,
    load::{self, LoadError, Maps},
    lock::{Lock, LockError},
    logger::{Logger, LoggerError},
    object::OBJECT,
    paths::Paths,
    pins::{Mended, Pins, PinsError},
    preflight::{self, PreflightError},
    private,
    probes::Probes,
    reverse::ReversePaths,
    sandbox::{self, Sandboxes, TakeError},
    stats::Counts,
    table::Entries as _,
    tables::Tables,
};

/// What the maps hold of clients that are left to the host.
#[derive(Clone, Debug, Default)]
pub struct LeftNow {
    /// (Prefix length as in map `LEFT`, prefix).
    pub entries: BTreeSet<(u32, LeftPrefix)>,
    /// All published ports, with what they have to be asked: bits of [`port_flag::LEFT`].
    pub flags: BTreeMap<PortKey, u8>,
}

/// The data plane could not be opened. Nothing was changed but, at most, directories and empty maps made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// This machine, or this way of starting, will not do.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// Another agent has the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What is pinned there does not fit.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The kernel refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] MapFault),
    /// The programs' debug output could not be set up.
    #[error(transparent)]
    Logger(#[from] LoggerError),
    /// A map's pin could not be opened.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A directory could not be made.
    #[error("cannot make the directory {path}: {source}{}", hint(.source))]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<TakeError> for OpenError {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Map(fault) => fault.into(),
            TakeError::Load(error) => error.into(),
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (a BPF file system refuses names with a dot)",
        _ => "",
    }
}

/// The opened data plane: programs loaded, maps at hand. Dropping it leaves everything attached and pinned.
pub struct Dataplane {
    bpffs: PathBuf,
    hook: Hook,
    ebpf: Ebpf,
    tables: Tables,
    /// What this process has attached, with the device's index then.
    attached: BTreeMap<PinName, u32>,
    sandboxes: Sandboxes,
    _logger: Option<Logger>,
    pins: Pins,
    lock: Lock,
}

impl Dataplane {
    /// Checks the machine, locks the directory, takes over maps that an earlier agent has left or makes new ones, and
    /// loads the programs. What is attached keeps running its old programs until [`Dataplane::attach`]; in sandboxes
    /// the new ones take over at once.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let tcx = preflight::check_machine(options.tc_hook)?;
        let bpffs = options.bpffs.as_path();
        preflight::check_bpffs(bpffs)?;
        make_directory(bpffs)?;
        let lock = Lock::take(bpffs)?;
        adopt::check(OBJECT, bpffs)?;
        for directory in Hook::ALL.map(|hook| hook.directory(bpffs)).iter().chain([&bpffs.join("maps")]) {
            make_directory(directory)?;
        }
        let hook = if tcx { Hook::Tcx } else { Hook::Clsact };
        let mut ebpf = load::load(
            &Maps::Pinned(bpffs, &options.sizes.by_map()),
            options.log_level.map_or(0, |level| level as u8),
        )?;
        let logger = options.log_level.map(|_| Logger::start(&mut ebpf)).transpose()?;
        let mut tables = Tables::take(&mut ebpf, options.sizes)?;
        tables.connections.recover(bpffs)?;
        let l3 = [(l3_program::UNDERLAY, Program::FromUnderlay), (l3_program::CLIENT, Program::FromClient)];
        sandbox::callable(&mut ebpf, MapName::L3Programs, &l3)?;
        // Last: from here on the trampolines that are attached already call the new programs.
        let sandboxes = Sandboxes::take(&mut ebpf)?;
        // What the old ones have entered until now.
        tables.connections.hand_over(false)?;
        Ok(Self {
            bpffs: bpffs.to_owned(),
            hook,
            ebpf,
            tables,
            attached: BTreeMap::new(),
            sandboxes,
            _logger: logger,
            pins: Pins::hold(bpffs)?,
            lock,
        })
    }

    /// Makes pins anew that were taken away since the data plane was opened, on a file system that is mounted again if
    /// that is gone, too. Programs whose links have ended with their pins must be attached anew.
    ///
    /// # Errors
    /// When that cannot be, with the remedy.
    pub fn mend_pins(&mut self) -> Result<Mended, PinsError> {
        let mended = self.pins.mend(&self.bpffs, &mut self.lock)?;
        if mended.any() {
            // Notes of what is attached may be gone.
            self.attached.clear();
        }
        Ok(mended)
    }

    /// Directory of the pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Whether programs are attached as TCX links; otherwise as clsact filters.
    pub fn uses_tcx(&self) -> bool {
        self.hook == Hook::Tcx
    }

    /// Brings the maps to `want`. Compares with what they really hold, so that damage by others is repaired and a
    /// second call changes nothing. Entries that could not be written are in [`Changes::failures`].
    pub fn apply(&mut self, want: &MapState) -> Result<Changes, ApplyError> {
        self.tables.apply(want)
    }

    /// What [`Dataplane::apply`] would change now; writes nothing.
    pub fn compare(&self, want: &MapState) -> Result<BTreeMap<MapName, Delta>, ApplyError> {
        self.tables.compare(want)
    }

    /// The map of next hops, for whoever follows routes and neighbours; the first time only.
    pub fn take_hops(&mut self) -> Option<Hops> {
        self.tables.hops.take()
    }

    /// The maps of path MTUs, for whoever follows routes; the first time only.
    pub fn take_paths(&mut self) -> Option<Paths> {
        self.tables.paths.take()
    }

    /// The map of what came of probes, for whoever sends them under this nonce; the first time only.
    pub fn take_probes(&mut self, nonce: u64) -> Option<Probes> {
        self.tables.probes.take().map(|table| Probes::new(table, nonce))
    }

    /// The map of reverse-path filters, for whoever follows them; the first time only.
    pub fn take_reverse(&mut self) -> Option<ReversePaths> {
        self.tables.reverse.take()
    }

    /// The number of each other node's next hop in that map, see [`Hops::put`].
    pub fn hop_numbers(&self) -> Result<BTreeMap<Ip4, u16>, MapFault> {
        Ok(self.tables.vteps.read()?.into_iter().map(|(ip, vtep)| (ip, vtep.hop)).collect())
    }

    /// Writes a change of what was applied last, without looking at the rest. What is to be written is compared with
    /// what the maps hold, like in [`Dataplane::apply`], which must follow.
    pub fn change(&mut self, change: &MapChange) -> Changes {
        self.tables.change(change)
    }

    /// Attaches `program` to the ingress of the interface `ifname` in this thread's network namespace, replacing in
    /// place what an earlier agent has attached there. Cheap when it is attached already.
    pub fn attach(&mut self, program: Program, ifname: &str) -> Result<Attached, AttachError> {
        let fail = |fault| AttachError::new(program, ifname, fault);
        let ifindex = attach::ifindex(ifname).map_err(fail)?;
        let name = PinName { program, ifname: ifname.to_owned() };
        self.follow_rename(&name, ifindex)?;
        let loaded = load::classifier(&mut self.ebpf, program)
            .map_err(|error| fail(AttachFault::kernel("find the program")(io::Error::other(error))))?;
        let id = loaded.info().map_err(|error| fail(error.into()))?.id();
        let before = self.attached.get(&name) == Some(&ifindex);
        let target = Target { program: loaded, id, name: name.clone(), ifindex };
        let mut unpinned = Unpinned::default();
        let attached = target.attach(self.hook, &self.bpffs, before, &mut unpinned).map_err(fail);
        let pin = self.hook.directory(&self.bpffs).join(name.to_string());
        let attached = self.pins.hold_links(&self.bpffs, [pin], &unpinned, attached)?;
        self.attached.insert(name, ifindex);
        self.hand_over(attached);
        Ok(attached)
    }

    /// After a program has replaced an earlier version's: takes over connections that that one has entered until now.
    fn hand_over(&self, attached: Attached) {
        if attached == Attached::Replaced
            && let Err(error) = self.tables.connections.hand_over(false)
        {
            tracing::warn!("connections of an earlier version are not taken over: {error}");
        }
    }

    /// See [`attach::follow_rename`].
    fn follow_rename(&mut self, name: &PinName, ifindex: u32) -> Result<(), AttachError> {
        let mut unpinned = Unpinned::default();
        let followed = attach::follow_rename(&self.bpffs, name, ifindex, &mut unpinned);
        self.pins.let_go(&self.bpffs, &unpinned);
        followed.map_err(|error| {
            let fault = AttachFault::kernel("rename the pin of a renamed interface")(error);
            AttachError::new(name.program, &name.ifname, fault)
        })
    }

    /// Attaches `xdp_mesh`, in drivers `xdp_mesh_frags`, to the interface `ifname`, replacing in place what an earlier
    /// agent has attached there in the same mode. `mac` is the interface's: frames for another one are left to the
    /// stack. `uplink`: tunnels arrive there. Cheap when it is attached already. A driver may refuse; then nothing is
    /// attached.
    pub fn attach_xdp(&mut self, ifname: &str, mode: XdpMode, mac: Mac, uplink: bool) -> Result<Attached, AttachError> {
        let program = Program::XdpMesh;
        let fail = |fault| AttachError::new(program, ifname, fault);
        let ifindex = attach::ifindex(ifname).map_err(fail)?;
        let name = PinName { program, ifname: ifname.to_owned() };
        self.follow_rename(&name, ifindex)?;
        let pin = self.xdp_pin(&name);
        let loaded = load::xdp(&mut self.ebpf, mode.program())
            .map_err(|error| fail(AttachFault::kernel("find the program")(io::Error::other(error))))?;
        let id = loaded.info().map_err(|error| fail(error.into()))?.id();
        let fd = loaded.fd().map_err(|error| fail(error.into()))?.as_fd();
        let devices = &mut self.tables.xdp_devices;
        let map = |fault: MapFault| fail(AttachFault::kernel("note the device")(io::Error::other(fault)));
        let before = devices.get(&ifindex).map_err(map)?;
        let mut unpinned = Unpinned::default();
        let before_mode = before.map(|device| device.mode);
        let attached = attach::xdp::attach(fd, id, mode, before_mode, ifindex, &pin, &mut unpinned);
        let attached = attached.inspect_err(|_| drop(devices.remove(&ifindex))).map_err(fail);
        let attached = self.pins.hold_links(&self.bpffs, [pin], &unpinned, attached)?;
        let device = XdpDevice { mode: mode.number(), mac, uplink: u16::from(uplink) };
        if before != Some(device) {
            devices.put(ifindex, device).map_err(map)?;
        }
        self.hand_over(attached);
        Ok(attached)
    }

    fn xdp_pin(&self, name: &PinName) -> PathBuf {
        Hook::Tcx.directory(&self.bpffs).join(name.to_string())
    }

    /// Takes devices that have no `xdp_mesh`, or shall not have it any more, out of the map.
    fn forget_xdp_devices(&mut self, keep: &BTreeSet<(Program, String)>) -> Result<(), MapFault> {
        let kept = keep.iter().filter(|(program, _)| program.is_xdp());
        let kept: BTreeSet<u32> = kept
            .filter_map(|(program, ifname)| {
                attach::xdp::device(&self.xdp_pin(&PinName { program: *program, ifname: ifname.clone() }))
            })
            .collect();
        let devices = &mut self.tables.xdp_devices;
        devices.read()?.keys().filter(|ifindex| !kept.contains(ifindex)).try_for_each(|ifindex| devices.remove(ifindex))
    }

    /// Attaches `from_sandbox` and `to_sandbox` to the interface `ifname` of the network namespace `netns`, under the
    /// id `id` (with `SANDBOX_BIT`; key of the interface's entry in map `LOCALS`). Replaces in place what an earlier
    /// agent has attached there; if that was in another namespace, or on another device of that name, it is detached.
    /// Cheap when it is attached already. Runs on a thread of its own that enters the namespace.
    pub fn attach_sandbox(&mut self, netns: BorrowedFd<'_>, ifname: &str, id: u32) -> Result<Attached, AttachError> {
        let mut unpinned = Unpinned::default();
        let attached = self.sandboxes.attach(self.hook, &self.bpffs, netns, ifname, id, &mut unpinned);
        self.pins.hold_links(&self.bpffs, sandbox::pins(self.hook, &self.bpffs, id), &unpinned, attached)
    }

    /// Detaches what [`Dataplane::attach_sandbox`] has attached under ids that are not in `keep`, and removes what is
    /// left of those whose interfaces are gone. Carries on after errors; interfaces are given as ids in hexadecimal.
    pub fn detach_sandboxes_except(&mut self, keep: &BTreeSet<u32>) -> Detached {
        let mut unpinned = Unpinned::default();
        let detached = self.sandboxes.detach_except(self.hook, &self.bpffs, keep, &mut unpinned);
        self.pins.let_go(&self.bpffs, &unpinned);
        detached
    }

    /// Ids of the containers' interfaces that have a program, as the pins say.
    pub fn sandboxes(&self) -> io::Result<BTreeSet<u32>> {
        sandbox::ids(self.hook, &self.bpffs)
    }

    /// Detaches everything of ours outside sandboxes that is not in `keep`, also what is attached by the other kind of
    /// hook, and what was on interfaces that are gone. Carries on after errors; returns what was detached and what
    /// could not be.
    pub fn detach_all_except(&mut self, keep: &BTreeSet<(Program, String)>) -> Detached {
        let mut result = Detached::default();
        let mut unpinned = Unpinned::default();
        // Before they go: nothing must be sent out of them then.
        if let Err(error) = self.forget_xdp_devices(keep) {
            result.failures.push(error.to_string());
        }
        for hook in Hook::ALL {
            let names = match attach::pinned(hook, &self.bpffs) {
                Ok(names) => names,
                Err(error) => {
                    result.failures.push(format!("{}: {error}", hook.directory(&self.bpffs).display()));
                    continue;
                }
            };
            for name in names.into_iter().filter(|name| !name.program.in_sandbox()) {
                let target = (name.program, name.ifname.clone());
                if (hook == self.hook || name.program.is_xdp()) && keep.contains(&target) {
                    continue;
                }
                match hook.detach(&self.bpffs, &name) {
                    Ok(()) => {
                        if hook == self.hook {
                            self.attached.remove(&name);
                        }
                        unpinned.note(&hook.directory(&self.bpffs).join(name.to_string()));
                        result.detached.push(target);
                    }
                    Err(error) => result.failures.push(error.to_string()),
                }
            }
        }
        self.pins.let_go(&self.bpffs, &unpinned);
        result
    }

    /// What is attached outside sandboxes, as the pins say.
    pub fn attachments(&self) -> io::Result<BTreeSet<(Program, String)>> {
        let mut names = attach::pinned(self.hook, &self.bpffs)?;
        names.extend(attach::pinned(Hook::Tcx, &self.bpffs)?.into_iter().filter(|name| name.program.is_xdp()));
        let names = names.into_iter().filter(|name| !name.program.in_sandbox());
        Ok(names.map(|name| (name.program, name.ifname)).collect())
    }

    /// The connection tables. The caller's handles are his own: no call on them keeps others from the data plane.
    pub fn connections(&self) -> Result<Connections, MapFault> {
        self.tables.connections.try_clone()
    }

    /// Room in the connection tables: established entries that there may be, and the lines of each half.
    pub fn capacity(&self) -> PerTable<u32> {
        self.tables.connections.capacity()
    }

    /// What is left to the host: a restarted agent goes on with that until it knows better.
    pub fn left(&self) -> Result<LeftNow, MapFault> {
        let entries = self.tables.left.read()?.into_keys().collect();
        let ports = self.tables.ports.read()?.into_iter();
        Ok(LeftNow { entries, flags: ports.map(|(key, port)| (key, port.flags & port_flag::LEFT)).collect() })
    }

    /// Handles of what is counted. The caller's handles are his own: no call on them keeps others from the data plane.
    pub fn counts(&self) -> Counts {
        self.tables.counts.clone()
    }

    /// Dropped packets by reason since the maps were made; all reasons.
    pub fn drops(&self) -> Result<Vec<(DropReason, Stat)>, MapFault> {
        self.tables.counts.drops()
    }

    /// Handled packets since the maps were made; all counters.
    pub fn counters(&self) -> Result<Vec<(Counter, Stat)>, MapFault> {
        self.tables.counts.counters()
    }
}

/// What [`Dataplane::detach_all_except`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Programs and interfaces.
    pub detached: Vec<(Program, String)>,
    /// What could not be detached, and why.
    pub failures: Vec<String>,
}

// An agent may move it to the thread that applies changes.
const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<Dataplane>();
};

fn make_directory(path: &Path) -> Result<(), OpenError> {
    private::make_directory(path).map_err(|source| OpenError::Directory { path: path.to_owned(), source })
}
