//! The lines of either table grow while programs and the agent use them. Needs root.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use anyhow::Result;
use dataplane::{
    Program, Sizes, Timeouts,
    testing::{
        Decision::{self, Neigh, Peer},
        Harness, Input, Shooter,
    },
};
use dataplane_common::{
    flow::{Affinity, AffinityKey, Flow, FlowKey},
    headers::ipproto,
    line,
    service::Backend,
};
use support::{mesh::*, packets::tcp, vip::sent, world::*};
use zerocopy::IntoBytes as _;

/// Connections that each of both enters each time: so few that none makes room for another.
const MANY: u16 = 100;

/// Which table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Clients,
    Translated,
}

use Table::{Clients, Translated};

/// When an entry was made, and when a packet was last seen.
type Times = (u64, u64);

/// Connections in one of the tables: of a client outside, which the programs send to another node; or of a container,
/// to a VIP.
struct Connections<'a> {
    world: &'a mut World,
    table: Table,
    shooter: Shooter,
    /// Their ports.
    entered: BTreeSet<u16>,
}

/// Runs `test` with either table.
fn each(test: impl Fn(&mut Connections<'_>) -> Result<()> + Clone + Send + 'static) -> Result<()> {
    for table in [Clients, Translated] {
        let test = test.clone();
        world(move |world| test(&mut Connections::new(world, table)?))?;
    }
    Ok(())
}

impl Connections<'_> {
    fn new(world: &mut World, table: Table) -> Result<Connections<'_>> {
        // Half a segment for each half at first, and four at most.
        world.harness = Harness::with_lines(&[], Sizes { max_flows: 1 << 15, max_pending: 1 << 13 })?;
        let backend = |task: Task, ip| vec![Backend { tag: task.tag, ip, vtep: task.vtep }];
        world.state.sets.insert(port_set(6, PUBLISHED), backend(REMOTE1, REMOTE1.ingress));
        world.state.sets.insert(vip_set(VIP), backend(LOCAL2, LOCAL2.ip));
        world.harness.apply(&world.state)?;
        let shooter = world.harness.shooter(match table {
            Clients => Program::FromUnderlay,
            Translated => Program::FromContainer,
        })?;
        Ok(Connections { world, table, shooter, entered: BTreeSet::new() })
    }

    fn harness(&mut self) -> &mut Harness {
        &mut self.world.harness
    }

    /// The next ones, half of them by the programs and half by the agent.
    fn enter(&mut self) -> Result<()> {
        let first = 1000 + self.entered.len() as u16;
        for port in first..first + MANY {
            self.packet(port, "S")?;
        }
        for port in first + MANY..first + 2 * MANY {
            self.put_like(first, port)?;
        }
        self.entered.extend(first..first + 2 * MANY);
        Ok(())
    }

    /// A packet's way: what it is, where it arrives, and where it goes.
    fn input(&self, port: u16, flags: &'static str) -> (Input, Decision) {
        let dev = &self.world.dev;
        let (packet, ifindex, to) = match self.table {
            Clients => (from_client(&tcp(port, PUBLISHED, flags)), dev.underlay, Neigh(dev.underlay)),
            Translated => (sent(VIP, &tcp(port, 80, flags)), dev.veth1, Peer(dev.veth2)),
        };
        (Input { packet, ifindex, ..Input::default() }, to)
    }

    /// A connection's packet reaches its backend.
    fn packet(&self, port: u16, flags: &'static str) -> Result<()> {
        let (input, to) = self.input(port, flags);
        assert_eq!(self.shooter.run(&input)?.decision, Some(to), "{port}");
        Ok(())
    }

    /// Puts a connection from another port there.
    fn put_like(&mut self, known: u16, port: u16) -> Result<()> {
        let (known, port) = (known.to_be_bytes(), port.to_be_bytes());
        let other = |at: [u8; 2]| if at == known { port } else { at };
        let harness = self.harness();
        for (mut key, entry) in harness.pending_affinity()?.into_iter().filter(|(key, _)| key.client_port == known) {
            key.client_port = port;
            harness.put_pending_affinity(key, entry)?;
        }
        for (mut key, mut flow) in harness.pending_flows()? {
            if key.sport == known || key.dport == known {
                (key.sport, key.dport) = (other(key.sport), other(key.dport));
                (flow.sport, flow.dport) = (other(flow.sport), other(flow.dport));
                harness.put_pending_flow(key, flow)?;
            }
        }
        Ok(())
    }

    fn pending(&self) -> Result<BTreeMap<Vec<u8>, Times>> {
        let (clients, flows) = (self.world.harness.pending_affinity()?, self.world.harness.pending_flows()?);
        let clients = clients.into_iter().map(|(key, a)| (key.as_bytes().to_vec(), (a.created, a.last_seen)));
        let flows = flows.into_iter().map(|(key, f)| (key.as_bytes().to_vec(), (f.created, f.last_seen)));
        Ok(clients.chain(flows).collect())
    }

    fn established(&self) -> Result<BTreeMap<Vec<u8>, Times>> {
        let (clients, flows) = (self.world.harness.established_affinity()?, self.world.harness.established_flows()?);
        let clients = clients.into_iter().map(|(key, a)| (key.as_bytes().to_vec(), (a.created, a.last_seen)));
        let flows = flows.into_iter().map(|(key, f)| (key.as_bytes().to_vec(), (f.created, f.last_seen)));
        Ok(clients.chain(flows).collect())
    }

    /// Establishes them all.
    fn establish(&mut self) -> Result<()> {
        let harness = self.harness();
        for (key, entry) in harness.pending_affinity()? {
            harness.put_affinity(key, entry)?;
        }
        harness.pending_flows()?.into_iter().try_for_each(|(key, flow)| Ok(harness.put_flow(key, flow)?))
    }

    /// Their entries.
    fn entries(&self) -> usize {
        match self.table {
            Clients => self.entered.len(),
            Translated => 2 * self.entered.len(),
        }
    }

    /// Has the lines grow as the agent does for so many established entries, TCP's first. Whether they have.
    fn grow(&mut self, used: [u64; 2]) -> Result<bool> {
        let [clients, translated] = self.harness().grow_lines(used)?;
        assert_eq!(clients, translated);
        Ok(clients)
    }

    /// Room in them, TCP's first.
    fn lines(&self) -> [u32; 2] {
        let [clients, translated] = self.world.harness.lines();
        assert_eq!(clients, translated);
        clients
    }

    /// Both find all of them, and the programs enter none anew.
    fn are_found(&mut self) -> Result<()> {
        let before = self.pending()?;
        assert_eq!(before.len(), self.entries());
        for port in &self.entered {
            self.packet(*port, "S")?;
        }
        let after = self.pending()?;
        assert!(before.keys().eq(after.keys()));
        for (key, (created, last_seen)) in before {
            let now = after[&key];
            assert!(now.0 == created && now.1 >= last_seen, "{key:?}");
        }
        Ok(())
    }
}

#[test]
fn connections_from_before_and_after_are_found_in_a_table_that_has_grown() -> Result<()> {
    each(|connections| {
        connections.enter()?;
        assert!(!connections.grow([3072, 3072])?, "three eighths are no more than that");
        // To a whole segment, to two, and to all that there may be.
        for (used, lines) in [(3073, 1 << 14), (6145, 1 << 15), (1 << 40, 1 << 16)] {
            assert!(connections.grow([used, 0])?);
            assert_eq!(connections.lines(), [lines, 1 << 13]);
            connections.are_found()?;
            connections.enter()?;
            connections.are_found()?;
        }
        assert!(!connections.grow([u64::MAX / 8, 0])?, "no more than that");
        Ok(())
    })
}

#[test]
fn established_connections_grow_with_the_table_and_stay_so() -> Result<()> {
    each(|connections| {
        connections.enter()?;
        let entries = connections.pending()?;
        connections.establish()?;
        for used in [3073, 6145, 12_289] {
            assert!(connections.grow([used, 0])?);
            for port in connections.entered.clone() {
                connections.packet(port, "PA")?;
            }
            let now = connections.established()?;
            assert!(now.keys().eq(entries.keys()) && connections.pending()?.is_empty());
            assert!(entries.iter().all(|(key, (created, _))| now[key].0 == *created), "one was entered anew");
            let harness = connections.harness();
            assert!(harness.spilled_affinity()?.is_empty() && harness.spilled_flows()?.is_empty(), "there is room");
        }
        Ok(())
    })
}

/// On other CPUs than the agent, if there are.
#[test]
fn programs_find_connections_while_they_are_moved() -> Result<()> {
    each(|connections| {
        connections.enter()?;
        let before = connections.pending()?;
        let inputs: Vec<_> = connections.entered.iter().map(|port| connections.input(*port, "S").0).collect();
        let over = AtomicBool::new(false);
        let Connections { world, shooter, .. } = &mut *connections;
        let shots = thread::scope(|scope| -> Result<usize> {
            let shooting = scope.spawn(|| -> Result<usize> {
                let mut shots = 0;
                while !over.load(SeqCst) {
                    for input in &inputs {
                        shooter.run(input)?;
                        shots += 1;
                    }
                }
                Ok(shots)
            });
            for used in [3073, 6145, 12_289] {
                world.harness.grow_lines([used, 0])?;
            }
            over.store(true, SeqCst);
            shooting.join().unwrap()
        })?;
        assert!(shots > 0 && connections.lines()[0] == 1 << 16);
        let after = connections.pending()?;
        assert!(before.keys().eq(after.keys()));
        assert!(before.iter().all(|(key, (created, _))| after[key].0 == *created), "one was entered anew");
        connections.are_found()
    })
}

#[test]
fn what_an_agent_had_begun_the_next_one_ends() -> Result<()> {
    each(|connections| {
        connections.enter()?;
        for lines in [1 << 14, 1 << 15, 1 << 16] {
            connections.harness().begin_to_grow_lines()?;
            connections.are_found()?;
            connections.enter()?;
            connections.are_found()?;
            connections.harness().next_agent()?;
            assert_eq!(connections.lines(), [lines, 1 << 13], "it grows no further, and no less");
            connections.are_found()?;
        }
        Ok(())
    })
}

#[test]
fn what_is_forgotten_while_the_table_grows_does_not_come_back() -> Result<()> {
    each(|connections| {
        connections.enter()?;
        let (clients, flows) = (connections.harness().pending_affinity()?, connections.harness().pending_flows()?);
        connections.harness().begin_to_grow_lines()?;
        // Those whose place is another one are at both.
        for (key, entry) in clients {
            connections.harness().put_pending_affinity(key, entry)?;
        }
        for (key, flow) in flows {
            connections.harness().put_pending_flow(key, flow)?;
        }
        connections.enter()?;
        let report = connections.harness().sweep(&HashSet::new(), &Timeouts::default())?;
        assert_eq!(report.removed.task_gone, connections.entries());
        assert_eq!((report.left.affinity_pending, report.left.flows_pending), (0, 0));
        connections.harness().next_agent()?;
        assert!(connections.pending()?.is_empty());
        Ok(())
    })
}

#[test]
fn sizes_have_limits() {
    assert_eq!(line::buckets(0), 1);
    assert_eq!([line::buckets(4096), line::buckets(4097)], [1024, 2048]);
    assert_eq!(line::buckets(u32::MAX), line::MOST_BUCKETS);
}

/// Beginning with a segment for each half, they get what `max_pending` asks for as soon as half of the lines are used,
/// and no more for that.
#[test]
fn pending_connections_have_the_table_grow_to_what_was_asked_for() -> Result<()> {
    const FIRST: u32 = 1 << 14;
    const ASKED: u32 = 1 << 16;
    world(|world| {
        let sizes = Sizes { max_flows: 1 << 18, max_pending: ASKED };
        world.harness = Harness::with_first_lines(&[], sizes)?;
        let harness = &mut world.harness;
        let now = 1 << 40;
        // Established for long: displaced by nothing.
        let old = AffinityKey::new(([203, 0, 113, 1], [1, 1]), ([192, 0, 2, 1], [0, 80]), ipproto::TCP);
        harness.put_affinity(old, Affinity { created: 1, last_seen: 1, ..Affinity::default() })?;
        let mut entered = 0;
        let mut enter = |harness: &mut Harness, up_to: u32| -> Result<()> {
            for number in entered..up_to {
                let [_, a, b, c] = number.to_be_bytes();
                let (client, node) = (([198, 51, a, b], [c, 1]), ([192, 0, 2, 1], [0, 80]));
                let affinity = Affinity { created: now, last_seen: now, ..Affinity::default() };
                harness.put_pending_affinity(AffinityKey::new(client, node, ipproto::TCP), affinity)?;
                let flow = Flow { created: now, last_seen: now, ..Flow::default() };
                harness.put_pending_flow(FlowKey::new([1; 4], client, node, ipproto::TCP), flow)?;
            }
            entered = up_to;
            Ok(())
        };
        enter(harness, FIRST * 2 / 5)?;
        assert_eq!(harness.grow_lines([0, 0])?, [false; 2], "two fifths");
        enter(harness, FIRST * 3 / 5)?;
        assert_eq!(harness.grow_lines([0, 0])?, [true; 2], "three fifths");
        assert_eq!(harness.lines(), [[ASKED, FIRST]; 2]);
        let seen = harness.pending_affinity()?.len();
        assert!(seen > FIRST as usize * 3 / 5 * 99 / 100, "{seen} are there");
        assert_eq!(harness.grow_lines([0, 0])?, [false; 2], "once is enough");
        // The other half, for established ones: sparse as long as it is small.
        assert_eq!(harness.grow_lines([0, u64::from(FIRST) / 8])?, [false; 2], "an eighth");
        assert_eq!(harness.grow_lines([0, u64::from(FIRST) / 8 + 1])?, [true; 2], "more than that");
        assert_eq!(harness.lines(), [[ASKED, 2 * FIRST]; 2]);
        enter(harness, 2 * ASKED)?;
        assert_eq!(harness.grow_lines([0, 0])?, [false; 2], "more than was asked for");
        assert_eq!(harness.grow_lines([u64::from(ASKED) / 2, 0])?, [true; 2], "established ones get more");
        assert_eq!(harness.established_affinity()?.keys().collect::<Vec<_>>(), [&old]);
        Ok(())
    })
}
