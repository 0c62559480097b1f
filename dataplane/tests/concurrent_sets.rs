//! Backend sets that change thousands of times while both CPUs open flows: what a packet sees is always one whole set,
//! and between changes round robin is exact. Needs root.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    MapName, Program, Sizes,
    testing::{Decision, Harness, Input, Shooter},
};
use dataplane_common::{service::Backend, state::MapState};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use support::{
    mesh::from_client,
    packets::{Ip4, tcp},
    world::*,
};

/// Published ports of the two services whose sets change.
const SERVICES: [u16; 2] = [9001, 9002];
/// As many set changes as fit a few seconds.
const CHANGES: u32 = 2000;
/// Offsets in what a client's packet becomes: the outer destination, and the backend's address in the inner MAC.
const OUTER_DESTINATION: usize = 30;
const BACKEND: usize = 50 + 2;

/// Size of a service's set in its generation.
fn size(generation: u32) -> u8 {
    1 + (generation * 7 % 8) as u8
}

/// A member of a set. Everything about it says which one it is, so that a mixture shows.
fn member(service: usize, generation: u32, number: u8) -> Backend {
    let [_, _, high, low] = generation.to_be_bytes();
    let name = [service as u8, high, low, number];
    let mixed = name.map(|byte| byte ^ 0x5a);
    Backend { tag: [name, mixed].concat().try_into().unwrap(), ip: name, vtep: mixed }
}

fn with_sets(state: &MapState, generations: [u32; 2]) -> MapState {
    let mut state = state.clone();
    for (service, generation) in generations.into_iter().enumerate() {
        let members = (0..size(generation)).map(|number| member(service, generation, number));
        state.sets.insert(port_set(6, SERVICES[service]), members.collect());
    }
    state
}

/// What a pick named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pick {
    generation: u32,
    number: u8,
}

/// One CPU's clients.
struct Clients<'a> {
    underlay: &'a Shooter,
    /// A SYN of somebody's.
    syn: Input,
    /// Which CPU's, and how many there were: no two have the same address and port.
    cpu: u8,
    count: u32,
}

impl<'a> Clients<'a> {
    fn new(underlay: &'a Shooter, ifindex: u32, cpu: u8, count: u32) -> Self {
        let packet = from_client(&tcp(1, SERVICES[0], "S"));
        Self { underlay, syn: Input { packet, ifindex, ..Input::default() }, cpu, count }
    }

    /// Opens a flow to a service from an address that nobody has used; checks that what it was given to is a member of
    /// a set of that service.
    fn open(&mut self, service: usize) -> Result<Pick> {
        self.count += 1;
        let [a, b, c, d] = self.count.to_be_bytes();
        let packet = &mut self.syn.packet;
        packet[26..30].copy_from_slice(&[100, self.cpu, a, b]);
        packet[34..36].copy_from_slice(&[c, d]);
        packet[36..38].copy_from_slice(&SERVICES[service].to_be_bytes());
        let shot = self.underlay.run(&self.syn)?;
        ensure!(shot.decision == Some(Decision::Neigh(self.syn.ifindex)), "{:?}", shot.decision);
        let at = |offset: usize| Ip4::try_from(&shot.packet[offset..offset + 4]);
        let (ip, vtep) = (at(BACKEND)?, at(OUTER_DESTINATION)?);
        let pick = Pick { generation: u32::from_be_bytes([0, 0, ip[1], ip[2]]), number: ip[3] };
        ensure!(usize::from(ip[0]) == service, "{ip:?} is another service's");
        ensure!(pick.number < size(pick.generation), "{pick:?} is no member of its set");
        ensure!(vtep == member(service, pick.generation, pick.number).vtep, "{ip:?} at {vtep:?} is half-written");
        Ok(pick)
    }
}

/// A node with room for a few seconds of changes, whose slots rest before they are used again.
fn node(world: &mut World) -> Result<Shooter> {
    let lines = Sizes { max_flows: 1 << 17, max_pending: 1 << 17 };
    world.harness = Harness::with_lines(&[(MapName::Backends, 262_144)], lines)?;
    let changes = world.harness.apply(&with_sets(&world.state, [0, 0]))?;
    ensure!(changes.failures.is_empty(), "{:?}", changes.failures);
    Ok(world.harness.shooter(Program::FromUnderlay)?)
}

/// The CPUs that this test may use, two of them if there are.
fn two_cpus() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let first = cpus.next().context("no CPU")?;
    Ok([first, cpus.next().unwrap_or(first)])
}

fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

#[test]
fn a_pick_is_always_a_member_of_a_set_in_force() -> Result<()> {
    world(|world| {
        let shooter = node(world)?;
        let cpus = two_cpus()?;
        let ifindex = world.dev.underlay;
        // The change that has begun, and the last one that is complete.
        let (begun, complete, over) = (&AtomicU32::new(0), &AtomicU32::new(0), &AtomicBool::new(false));
        let underlay = &shooter;
        let seen = thread::scope(|scope| -> Result<BTreeSet<Pick>> {
            let clients = [0u8, 1].map(|cpu| {
                scope.spawn(move || -> Result<BTreeSet<Pick>> {
                    pin_to(cpus[usize::from(cpu)])?;
                    let mut clients = Clients::new(underlay, ifindex, cpu, 0);
                    let mut seen = BTreeSet::new();
                    while !over.load(SeqCst) {
                        for service in [0, 1] {
                            let oldest = complete.load(SeqCst);
                            let pick = clients.open(service)?;
                            let newest = begun.load(SeqCst);
                            ensure!(
                                (oldest..=newest).contains(&pick.generation),
                                "{pick:?} was picked while the sets {oldest} to {newest} were in force"
                            );
                            seen.insert(pick);
                        }
                    }
                    Ok(seen)
                })
            });
            for generation in 1..=CHANGES {
                begun.store(generation, SeqCst);
                let changes = world.harness.apply(&with_sets(&world.state, [generation, generation]))?;
                complete.store(generation, SeqCst);
                if !changes.failures.is_empty() || clients.iter().any(|client| client.is_finished()) {
                    over.store(true, SeqCst);
                    ensure!(changes.failures.is_empty(), "{:?}", changes.failures);
                    break;
                }
            }
            over.store(true, SeqCst);
            let mut seen = BTreeSet::new();
            for client in clients {
                seen.extend(client.join().expect("clients do not panic")?);
            }
            Ok(seen)
        })?;
        let generations: BTreeSet<_> = seen.iter().map(|pick| pick.generation).collect();
        ensure!(generations.len() > CHANGES as usize / 100, "only {} sets were met", generations.len());
        // The tags, which packets don't show.
        for (key, entry) in world.harness.pending_affinity()? {
            let service = usize::from(key.port == SERVICES[1].to_be_bytes());
            let [_, high, low, number] = entry.ip;
            let whole = member(service, u32::from_be_bytes([0, 0, high, low]), number);
            let found = Backend { tag: entry.tag, ip: entry.ip, vtep: entry.vtep };
            assert_eq!(found, whole, "half-written");
        }
        Ok(())
    })
}

#[test]
fn round_robin_is_exact_across_cpus_between_changes() -> Result<()> {
    world(|world| {
        let shooter = node(world)?;
        let cpus = two_cpus()?;
        let ifindex = world.dev.underlay;
        let underlay = &shooter;
        let mut other = 0;
        for generation in 1..=16u32 {
            let changes = world.harness.apply(&with_sets(&world.state, [generation, other]))?;
            ensure!(changes.failures.is_empty(), "{:?}", changes.failures);
            let each = 4000 + generation as usize;
            let together = &Barrier::new(2);
            let picks = thread::scope(|scope| -> Result<BTreeMap<Pick, usize>> {
                let clients = [0u8, 1].map(|cpu| {
                    scope.spawn(move || -> Result<Vec<Pick>> {
                        pin_to(cpus[usize::from(cpu)])?;
                        let mut clients = Clients::new(underlay, ifindex, cpu, generation << 16);
                        together.wait();
                        (0..each).map(|_| clients.open(0)).collect()
                    })
                });
                // Changes of others do not disturb.
                while generation % 4 == 0 && clients.iter().any(|client| !client.is_finished()) {
                    other += 1;
                    let changes = world.harness.apply(&with_sets(&world.state, [generation, other]))?;
                    ensure!(changes.failures.is_empty(), "{:?}", changes.failures);
                }
                let mut picks = BTreeMap::new();
                for client in clients {
                    for pick in client.join().expect("clients do not panic")? {
                        *picks.entry(pick).or_default() += 1;
                    }
                }
                Ok(picks)
            })?;
            let (flows, backends) = (2 * each, usize::from(size(generation)));
            assert_eq!(picks.len(), backends, "set {generation}: {picks:?}");
            let fair = flows / backends..=flows.div_ceil(backends);
            assert!(picks.values().all(|count| fair.contains(count)), "set {generation}, {flows} flows: {picks:?}");
        }
        Ok(())
    })
}
