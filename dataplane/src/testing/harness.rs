//! The programs on maps of this process alone, and one run of one program.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use aya::{
    TestRun as _, TestRunOptions,
    maps::{Array, HashMap, MapData, MapError},
    programs::{ProgramError, tc},
};
use dataplane_common::{
    addr::{Ip4, Mac, Tag},
    counter::Stat,
    drop_reason::DropReason,
    fragment::{FragmentKey, Fragmented},
    group,
    probe::Probed,
    reverse::ReversePath,
    service::{PortKey, SetWord},
    state::{MapState, SetKey},
    xdp::{Hop, XdpDevice},
};
use zerocopy::IntoBytes as _;

use super::{
    context::{Input, SkbContext, XdpContext},
    in_front::{self, Carried},
    loaded::Loaded,
    outcome::{Outcome, XdpOutcome, addressed, decision, deltas, next_hop},
    shooter::Shooter,
};
use crate::{
    Changes, ConnectionRow, LoadError, MapFault, MapName, PreflightError, Program, Sizes, SweepReport, TcHook,
    Timeouts, XdpMode,
    apply::ApplyError,
    attach::side,
    clock,
    clock::monotonic_now,
    connections::Connections,
    line_table::made_at_most,
    load,
    paths::{PathLimit, Paths},
    pod::Raw,
    preflight, sys,
    table::{Entries as _, Table},
    tables::Tables,
};

/// Sizes that keep a harness small.
pub(super) const SIZES: &[(MapName, u32)] = &[
    (MapName::Locals, 64),
    (MapName::Endpoints, 64),
    (MapName::Ports, 64),
    (MapName::Sets, 64),
    (MapName::Cursors, 64),
    (MapName::Backends, 512),
    (MapName::MeshTargets, 64),
    (MapName::Flows, 2048),
    (MapName::Affinity, 2048),
    (MapName::Allow, 64),
    (MapName::Left, 64),
    (MapName::Clients, 64),
];

/// Room in the lines of either table: less than fits a segment, of which there may be eight.
pub(super) const LINES: Sizes = Sizes { max_flows: 1 << 16, max_pending: 2048 };

/// Room for what a program adds in front of a packet.
pub(super) const GROWTH: usize = 256;

/// The harness could not be set up, or its maps not read.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// This machine, or this way of starting, will not do.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The kernel refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be read or written.
    #[error(transparent)]
    Map(#[from] MapFault),
    /// A map could not be read.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A map that has no name outside the programs could not be read or written.
    #[error("a map of the programs' own: {0}")]
    Unnamed(#[from] MapError),
}

/// A run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The kernel does not take such a packet or context.
    #[error("the kernel refuses the run: {0}")]
    Refused(#[from] ProgramError),
    /// Counters could not be read.
    #[error(transparent)]
    Map(#[from] MapFault),
    /// No such program.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// `xdp_mesh` and the TC program behind it do not agree about a packet.
    #[error("xdp_mesh in front of it: {0}")]
    Xdp(String),
}

/// Loaded programs with maps of their own.
pub struct Harness {
    pub(super) loaded: Loaded,
    pub(super) tables: Tables,
    pub(super) cursors: Array<MapData, u64>,
    xdp_carried: bool,
}

/// Handles of its maps. So many entries are established as would find room without lines: tests choose that.
pub(super) fn tables(loaded: &Loaded, lines: Sizes) -> Result<Tables, HarnessError> {
    let tables = loaded.tables(lines)?;
    let Connections { clients, translated, shares, .. } = &tables.connections;
    shares.set_room([clients.spilled.capacity()?, translated.spilled.capacity()?]);
    Ok(tables)
}

impl Harness {
    /// Empty maps, and programs that are loaded when they first run, if not by an earlier harness of this process.
    /// Needs root.
    pub fn new() -> Result<Self, HarnessError> {
        Self::with_sizes(&[])
    }

    /// As [`Harness::new`], with this number of entries in some maps.
    pub fn with_sizes(sizes: &[(MapName, u32)]) -> Result<Self, HarnessError> {
        Self::with_lines(sizes, LINES)
    }

    /// As [`Harness::with_sizes`], with this room in the lines of both tables: all that pending connections may need.
    pub fn with_lines(sizes: &[(MapName, u32)], lines: Sizes) -> Result<Self, HarnessError> {
        let mut harness = Self::with_first_lines(sizes, lines)?;
        harness.tables.connections.translated.grow_for_pending()?;
        harness.tables.connections.clients.grow_for_pending()?;
        Ok(harness)
    }

    /// The same with as many lines as an agent begins with.
    pub fn with_first_lines(sizes: &[(MapName, u32)], lines: Sizes) -> Result<Self, HarnessError> {
        preflight::check_machine(TcHook::Auto)?;
        let loaded = Loaded::take(sizes)?;
        let cursors = loaded.map(MapName::Cursors)?;
        let cursors = cursors.try_into().map_err(|source| MapFault { map: MapName::Cursors, source })?;
        let tables = tables(&loaded, lines)?;
        tables.connections.translated.establish();
        tables.connections.clients.establish();
        Ok(Self { loaded, tables, cursors, xdp_carried: false })
    }

    /// Whether its programs and maps were another harness's before.
    pub fn is_used_again(&self) -> bool {
        self.loaded.used
    }

    /// Fills the maps as the agent does. The paths take what the underlay takes.
    pub fn apply(&mut self, want: &MapState) -> Result<Changes, HarnessError> {
        let limits = want.vteps.keys().map(|vtep| (*vtep, PathLimit::default())).collect();
        self.paths()?.limit(&limits, want.config.underlay_mtu)?;
        let expected: Vec<MapName> = self.tables.compare(want)?.into_keys().collect();
        let changes = self.tables.apply(want)?;
        if changes.failures.is_empty() {
            let changed: Vec<MapName> = changes.maps.keys().copied().collect();
            assert_eq!(changed, expected, "`compare` names the maps that `apply` changes");
        }
        Ok(changes)
    }

    /// Runs `program` once. Where packets may have met `xdp_mesh` before, that runs first, on the same packet in the
    /// same state, and an error says if it did anything that the program does otherwise.
    pub fn run(&mut self, program: Program, input: &Input) -> Result<Outcome, RunError> {
        if !in_front::has_xdp(program) {
            return self.run_alone(program, input);
        }
        let carried = Carried::by(self, |harness| harness.run_xdp(input), &input.packet)?;
        self.xdp_carried = carried.is_some();
        let outcome = self.run_alone(program, input)?;
        if let Some(carried) = carried {
            carried.compare(self, &outcome)?;
        }
        Ok(outcome)
    }

    fn run_alone(&mut self, program: Program, input: &Input) -> Result<Outcome, RunError> {
        let (drops, counters) = (self.tables.counts.drops()?, self.tables.counts.counters()?);
        let context = SkbContext::of(input);
        let mut context_out = SkbContext::default();
        let mut packet = vec![0; input.packet.len() + GROWTH];
        let result = load::classifier(self.loaded.with(program)?, program)?.test_run(TestRunOptions {
            data_in: Some(&input.packet),
            data_out: Some(&mut packet),
            ctx_in: Some(context.as_bytes()),
            ctx_out: Some(context_out.as_mut_bytes()),
            ..TestRunOptions::default()
        })?;
        packet.truncate(result.data_size_out as usize);
        Ok(Outcome {
            verdict: result.return_value as i32,
            decision: decision(&context_out.cb),
            packet,
            next_hop: next_hop(&context_out.cb),
            addressed: addressed(&context_out.cb),
            mark: context_out.mark,
            drops: deltas(&drops, &self.tables.counts.drops()?),
            counters: deltas(&counters, &self.tables.counts.counters()?),
        })
    }

    /// Runs `xdp_mesh` once.
    pub fn run_xdp(&mut self, input: &Input) -> Result<XdpOutcome, RunError> {
        let (drops, counters) = (self.tables.counts.drops()?, self.tables.counts.counters()?);
        let context = XdpContext::of(input);
        let mut packet = vec![0; input.packet.len() + GROWTH];
        let result = load::xdp(self.loaded.with(Program::XdpMesh)?, Program::XdpMesh)?.test_run(TestRunOptions {
            data_in: Some(&input.packet),
            data_out: Some(&mut packet),
            ctx_in: Some(context.as_bytes()),
            ..TestRunOptions::default()
        })?;
        packet.truncate(result.data_size_out as usize);
        Ok(XdpOutcome {
            verdict: result.return_value,
            packet,
            drops: deltas(&drops, &self.tables.counts.drops()?),
            counters: deltas(&counters, &self.tables.counts.counters()?),
        })
    }

    /// Notes that `xdp_mesh` is on the device, as attaching does.
    pub fn put_xdp_device(&mut self, ifindex: u32, mode: XdpMode, mac: Mac) -> Result<(), HarnessError> {
        let device = XdpDevice { mode: mode.number(), mac, ..XdpDevice::default() };
        Ok(self.tables.xdp_devices.put(ifindex, device)?)
    }

    /// Forgets that `xdp_mesh` is on the device.
    pub fn remove_xdp_device(&mut self, ifindex: u32) -> Result<(), HarnessError> {
        Ok(self.tables.xdp_devices.remove(&ifindex)?)
    }

    /// Stores the way to a node, or that there is none, as whoever follows routes and neighbours does.
    pub fn put_hop(&mut self, vtep: Ip4, hop: Option<Hop>) -> Result<(), HarnessError> {
        let number = self.hop_number(vtep)?;
        if let Some(hops) = &mut self.tables.hops {
            hops.put(number, hop);
        }
        Ok(())
    }

    /// Where the way to a node is stored; 0: nowhere.
    pub fn hop_number(&self, vtep: Ip4) -> Result<u16, HarnessError> {
        Ok(self.tables.vteps.get(&vtep)?.map_or(0, |vtep| vtep.hop))
    }

    /// For how long the ways that are stored may be used from now on.
    pub fn hops_valid_for(&mut self, time: Duration) {
        if let Some(hops) = &self.tables.hops {
            hops.valid_for(time);
        }
    }

    /// The maps of path MTUs, as whoever follows routes has them.
    pub fn paths(&mut self) -> Result<&mut Paths, HarnessError> {
        Ok(self.tables.paths.as_mut().ok_or(MapError::KeyNotFound)?)
    }

    /// Keeps these reverse-path filters, by interface index, as whoever follows the sysctls does.
    pub fn keep_filters(&mut self, filters: &BTreeMap<u32, ReversePath>) -> Result<(), HarnessError> {
        self.tables.reverse.as_mut().ok_or(MapError::KeyNotFound)?.keep(filters)?;
        Ok(())
    }

    /// What is noted of probes of the path to a node.
    pub fn probed(&self, vtep: Ip4) -> Result<Probed, HarnessError> {
        Ok(self.probes()?.get(&vtep)?.ok_or(MapError::KeyNotFound)?)
    }

    /// The nodes that something is noted of.
    pub fn all_probed(&self) -> Result<BTreeSet<Ip4>, HarnessError> {
        Ok(self.probes()?.read()?.into_keys().collect())
    }

    /// Notes that instead.
    pub fn put_probed(&mut self, vtep: Ip4, probed: Probed) -> Result<(), HarnessError> {
        Ok(self.tables.probes.as_mut().ok_or(MapError::KeyNotFound)?.put(vtep, probed)?)
    }

    /// Follows the node no longer.
    pub fn remove_probed(&mut self, vtep: Ip4) -> Result<(), HarnessError> {
        Ok(self.tables.probes.as_mut().ok_or(MapError::KeyNotFound)?.remove(&vtep)?)
    }

    fn probes(&self) -> Result<&Table<Ip4, Probed>, HarnessError> {
        Ok(self.tables.probes.as_ref().ok_or(MapError::KeyNotFound)?)
    }

    /// What is remembered under another number was asked another time; see `XdpState`.
    pub fn generation(&self) -> u64 {
        self.tables.xdp_state.generation()
    }

    /// Takes a published port out of the map, as one step of such a change.
    pub fn remove_port(&mut self, proto: u8, port: u16) -> Result<(), HarnessError> {
        Ok(self.tables.ports.remove(&PortKey { proto, _pad: 0, port: port.to_be_bytes() })?)
    }

    /// As at the start of a change that takes something back.
    pub fn begin_change(&self) {
        self.tables.xdp_state.begin();
    }

    /// The program, for many runs from any thread.
    pub fn shooter(&mut self, program: Program) -> Result<Shooter, RunError> {
        self.loaded.keep();
        let fd = load::classifier(self.loaded.with(program)?, program)?.fd()?.as_fd().try_clone_to_owned();
        Ok(Shooter { program: fd.map_err(ProgramError::IOError)? })
    }

    /// Attaches `program` to a device until the harness is dropped, for packets that the kernel takes from a device
    /// but not for a run.
    pub fn attach(&mut self, program: Program, ifname: &str) -> Result<(), RunError> {
        // Only kernels without TCX need it, and only once.
        let _ = tc::qdisc_add_clsact(ifname);
        self.loaded.keep();
        load::classifier(self.loaded.with(program)?, program)?.attach(ifname, side(program))?;
        Ok(())
    }

    /// Lets the XDP link that is pinned at `pin` run `program`, as an agent of another version has left it.
    pub fn put_on_link(&mut self, program: Program, pin: &Path) -> Result<(), RunError> {
        self.loaded.keep();
        let link = sys::object_get(pin).map_err(ProgramError::IOError)?;
        let program = load::xdp(self.loaded.with(program)?, program)?.fd()?.as_fd();
        Ok(sys::link_update(link.as_fd(), program).map_err(ProgramError::IOError)?)
    }

    /// Dropped packets so far.
    pub fn drops(&self) -> Result<BTreeMap<DropReason, Stat>, MapFault> {
        Ok(self.tables.counts.drops()?.into_iter().collect())
    }

    /// Sweeps as the agent does, with tasks that are live now.
    pub fn sweep(&mut self, live: &HashSet<Tag>, timeouts: &Timeouts) -> Result<SweepReport, HarnessError> {
        let as_of = made_at_most(monotonic_now());
        Ok(self.tables.connections.sweep(&live.iter().copied().collect(), as_of, timeouts, &|| ())?)
    }

    /// What `flow ls` shows.
    pub fn rows(&self) -> Result<Vec<ConnectionRow>, HarnessError> {
        Ok(self.tables.connections.rows()?)
    }

    /// Makes everything that first fragments have left older, as if this many nanoseconds had passed.
    pub fn age_fragments(&mut self, nanoseconds: u64) -> Result<(), HarnessError> {
        let map = self.loaded.unnamed("FRAGS")?;
        let mut map: HashMap<_, Raw<FragmentKey>, Raw<Fragmented>> = map.try_into()?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            let Raw(entry) = map.get(&key, 0)?;
            let seen = entry.seen.saturating_sub(nanoseconds);
            map.insert(key, Raw(Fragmented { seen, ..entry }), 0)?;
        }
        Ok(())
    }

    /// Takes all tokens out of an interface's bucket for group frames, and those of the next minute.
    pub fn drain_group_rate(&mut self, ifindex: u32) -> Result<(), HarnessError> {
        let map = self.loaded.unnamed("GROUP_RATE")?;
        let mut map: HashMap<_, u32, u64> = map.try_into()?;
        let full_at = clock::monotonic_now() + group::BURST_NS + 60_000_000_000;
        Ok(map.insert(ifindex, full_at, 0)?)
    }

    /// Sets the round robin position of a set, so that the next pick is known.
    pub fn set_cursor(&mut self, set: &SetKey, position: u64) -> Result<(), HarnessError> {
        let fault = |source| MapFault { map: MapName::Cursors, source };
        let id = self.tables.sets.id(set).ok_or_else(|| fault(MapError::KeyNotFound))?;
        Ok(self.cursors.set(id, position, 0).map_err(fault)?)
    }

    /// How many turns of a set were taken.
    pub fn cursor(&self, set: &SetKey) -> Result<u64, HarnessError> {
        let fault = |source| MapFault { map: MapName::Cursors, source };
        let id = self.tables.sets.id(set).ok_or_else(|| fault(MapError::KeyNotFound))?;
        Ok(self.cursors.get(&id, 0).map_err(fault)?)
    }

    /// Whether `xdp_mesh` has carried the last packet of [`Harness::run`].
    pub fn xdp_carried(&self) -> bool {
        self.xdp_carried
    }

    /// The word of a set.
    pub fn set_word(&self, set: &SetKey) -> Option<SetWord> {
        self.tables.sets.word(set)
    }
}
