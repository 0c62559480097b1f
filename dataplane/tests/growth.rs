//! The lines of clients' connections grow while programs and the agent use them. Needs root.

mod support;

use std::{
    collections::{BTreeSet, HashSet},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use anyhow::Result;
use dataplane::{
    Program, Sizes, Timeouts,
    testing::{Decision::Neigh, Harness, Input, Shooter},
};
use dataplane_common::{
    flow::{Affinity, AffinityKey},
    line,
    service::Backend,
};
use support::{mesh::*, packets::tcp, world::*};

/// Connections that each of both enters each time: so few that none makes room for another.
const MANY: u16 = 100;

/// A client's connections, which the programs send to another node.
struct Clients<'a> {
    world: &'a mut World,
    underlay: Shooter,
    /// Their ports.
    entered: BTreeSet<u16>,
}

impl Clients<'_> {
    fn new(world: &mut World) -> Result<Clients<'_>> {
        // Half a segment for each half at first, and four at most.
        world.harness = Harness::with_lines(&[], Sizes { max_flows: 1 << 15, max_pending: 1 << 13 })?;
        let far = vec![Backend { tag: REMOTE1.tag, ip: REMOTE1.ip, vtep: PEER }];
        world.state.sets.insert(port_set(6, PUBLISHED), far);
        world.harness.apply(&world.state)?;
        let underlay = world.harness.shooter(Program::FromUnderlay)?;
        Ok(Clients { world, underlay, entered: BTreeSet::new() })
    }

    /// The next ones, half of them by the programs and half by the agent.
    fn enter(&mut self) -> Result<()> {
        let first = 1000 + self.entered.len() as u16;
        for port in first..first + MANY {
            self.packet(port)?;
        }
        let (key, entry) = self.entry(first)?;
        for port in first + MANY..first + 2 * MANY {
            let key = AffinityKey { client_port: port.to_be_bytes(), ..key };
            self.world.harness.put_pending_affinity(key, entry)?;
        }
        self.entered.extend(first..first + 2 * MANY);
        Ok(())
    }

    /// A connection's packet reaches its backend.
    fn packet(&self, port: u16) -> Result<()> {
        let packet = from_client(&tcp(port, PUBLISHED, "S"));
        let ifindex = self.world.dev.underlay;
        let shot = self.underlay.run(&Input { packet, ifindex, ..Input::default() })?;
        assert_eq!(shot.decision, Some(Neigh(ifindex)), "{port}");
        Ok(())
    }

    fn entry(&self, port: u16) -> Result<(AffinityKey, Affinity)> {
        let all = self.world.harness.pending_affinity()?;
        Ok(all.into_iter().find(|(key, _)| key.client_port == port.to_be_bytes()).unwrap())
    }

    /// Both find all of them, and the programs enter none anew.
    fn are_found(&mut self) -> Result<()> {
        let before = self.world.harness.pending_affinity()?;
        let ports: BTreeSet<_> = before.keys().map(|key| u16::from_be_bytes(key.client_port)).collect();
        assert!(ports == self.entered, "{} of {}", ports.len(), self.entered.len());
        for port in ports {
            self.packet(port)?;
        }
        let after = self.world.harness.pending_affinity()?;
        for (key, entry) in before {
            let now = after[&key];
            assert!(now.created == entry.created && now.last_seen >= entry.last_seen, "{key:?}");
        }
        Ok(())
    }
}

#[test]
fn connections_from_before_and_after_are_found_in_a_table_that_has_grown() -> Result<()> {
    world(|world| {
        let mut clients = Clients::new(world)?;
        clients.enter()?;
        assert!(!clients.world.harness.grow_lines([3072, 3072])?, "three eighths are no more than that");
        // To a whole segment, to two, and to all that there may be.
        for (used, lines) in [(3073, 1 << 14), (6145, 1 << 15), (1 << 40, 1 << 16)] {
            assert!(clients.world.harness.grow_lines([used, 0])?);
            assert_eq!(clients.world.harness.lines(), [lines, 1 << 13]);
            clients.are_found()?;
            clients.enter()?;
            clients.are_found()?;
        }
        assert!(!clients.world.harness.grow_lines([u64::MAX / 8, 0])?, "no more than that");
        Ok(())
    })
}

#[test]
fn established_connections_grow_with_the_table_and_stay_so() -> Result<()> {
    world(|world| {
        let mut clients = Clients::new(world)?;
        clients.enter()?;
        let entries = clients.world.harness.pending_affinity()?;
        for (key, entry) in &entries {
            clients.world.harness.put_affinity(*key, *entry)?;
        }
        for used in [3073, 6145, 12_289] {
            assert!(clients.world.harness.grow_lines([used, 0])?);
            for port in clients.entered.clone() {
                clients.packet(port)?;
            }
            let now = clients.world.harness.established_affinity()?;
            assert!(now.keys().eq(entries.keys()) && clients.world.harness.pending_affinity()?.is_empty());
            assert!(entries.iter().all(|(key, entry)| now[key].created == entry.created), "one was entered anew");
            assert!(clients.world.harness.spilled_affinity()?.is_empty(), "there is room");
        }
        Ok(())
    })
}

/// On other CPUs than the agent, if there are.
#[test]
fn programs_find_connections_while_they_are_moved() -> Result<()> {
    world(|world| {
        let mut clients = Clients::new(world)?;
        clients.enter()?;
        let before = clients.world.harness.pending_affinity()?;
        let (shooter, ifindex) = (clients.world.harness.shooter(Program::FromUnderlay)?, clients.world.dev.underlay);
        let ports: Vec<_> = clients.entered.iter().copied().collect();
        let over = AtomicBool::new(false);
        let shots = thread::scope(|scope| -> Result<usize> {
            let shooting = scope.spawn(|| -> Result<usize> {
                let mut shots = 0;
                while !over.load(SeqCst) {
                    for port in &ports {
                        let packet = from_client(&tcp(*port, PUBLISHED, "S"));
                        shooter.run(&Input { packet, ifindex, ..Input::default() })?;
                        shots += 1;
                    }
                }
                Ok(shots)
            });
            for used in [3073, 6145, 12_289] {
                clients.world.harness.grow_lines([used, 0])?;
            }
            over.store(true, SeqCst);
            shooting.join().unwrap()
        })?;
        assert!(shots > 0 && clients.world.harness.lines()[0] == 1 << 16);
        let after = clients.world.harness.pending_affinity()?;
        assert!(before.keys().eq(after.keys()));
        assert!(before.iter().all(|(key, entry)| after[key].created == entry.created), "one was entered anew");
        clients.are_found()
    })
}

#[test]
fn what_an_agent_had_begun_the_next_one_ends() -> Result<()> {
    world(|world| {
        let mut clients = Clients::new(world)?;
        clients.enter()?;
        for lines in [1 << 14, 1 << 15, 1 << 16] {
            clients.world.harness.begin_to_grow_lines()?;
            clients.are_found()?;
            clients.enter()?;
            clients.are_found()?;
            clients.world.harness.next_agent()?;
            assert_eq!(clients.world.harness.lines(), [lines, 1 << 13], "it grows no further, and no less");
            clients.are_found()?;
        }
        Ok(())
    })
}

#[test]
fn what_is_forgotten_while_the_table_grows_does_not_come_back() -> Result<()> {
    world(|world| {
        let mut clients = Clients::new(world)?;
        clients.enter()?;
        let before = clients.world.harness.pending_affinity()?;
        clients.world.harness.begin_to_grow_lines()?;
        // Those whose place is another one are at both.
        for (key, entry) in before {
            clients.world.harness.put_pending_affinity(key, entry)?;
        }
        clients.enter()?;
        let report = clients.world.harness.sweep(&HashSet::new(), &Timeouts::default())?;
        assert_eq!((report.left.affinity_pending, report.removed.task_gone), (0, clients.entered.len()));
        clients.world.harness.next_agent()?;
        assert_eq!(clients.world.harness.pending_affinity()?.len(), 0);
        Ok(())
    })
}

#[test]
fn sizes_have_limits() {
    assert_eq!(line::buckets(0), 1);
    assert_eq!([line::buckets(4096), line::buckets(4097)], [1024, 2048]);
    assert_eq!(line::buckets(u32::MAX), line::MOST_BUCKETS);
}
