//! Floods of packets from invented sources, at a scale at which every table overflows many times: no established
//! connection suffers, and new ones succeed meanwhile. Tables have room for 2,048 entries here.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use dataplane::{
    Program, Timeouts,
    testing::{
        Decision::{self, Neigh, Peer},
        Input, Shooter,
    },
};
use support::{
    mesh::*,
    packets::{L4, frame, ip, tcp, udp},
    random::Random,
    world::*,
};

const TABLE: usize = 2048;
/// Offsets in a frame.
const SOURCE: usize = 26;
const PORTS: usize = 34;
const SEQUENCE: usize = 38;
/// An outer frame's length in front of the inner one.
const TUNNEL: usize = 50;

/// The programs, and who talks.
struct Field {
    container: Shooter,
    gateway: Shooter,
    underlay: Shooter,
    dev: Devices,
    random: Random,
}

impl Field {
    fn new(world: &mut World) -> Result<Self> {
        let mut shooter = |program| world.harness.shooter(program);
        Ok(Self {
            container: shooter(Program::FromContainer)?,
            gateway: shooter(Program::FromGateway)?,
            underlay: shooter(Program::FromUnderlay)?,
            dev: world.dev,
            random: Random::new(0x5eed),
        })
    }

    fn shoot(&self, from: &Shooter, ifindex: u32, packet: Vec<u8>) -> Result<Option<Decision>> {
        Ok(from.run(&Input { packet, ifindex, ..Input::default() })?.decision)
    }

    /// A connection through a VIP (whose only backend is LOCAL2), one to a published port with its backend on another
    /// node, one with its backend here.
    fn step(&self, kind: Kind, port: u16, from_client: bool, flags: &'static str) -> Result<()> {
        let dev = self.dev;
        // Two connections of one client to one published port.
        let port = if kind == Kind::Here { port + 20_000 } else { port };
        let there = tcp(port, if kind == Kind::Vip { 80 } else { PUBLISHED }, flags);
        let back = |sport| tcp(sport, port, flags);
        let (decision, expected) = match (kind, from_client) {
            (Kind::Vip, true) => {
                let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &there);
                (self.shoot(&self.container, dev.veth1, packet)?, Peer(dev.veth2))
            }
            (Kind::Vip, false) => {
                let packet = frame(mac(LOCAL2.ip), [2; 6], &ip(LOCAL2.ip, LOCAL1.ip), &back(80));
                (self.shoot(&self.container, dev.veth2, packet)?, Peer(dev.veth1))
            }
            (Kind::Far, true) => (self.client_says(&there)?, Neigh(dev.underlay)),
            (Kind::Far, false) => {
                let packet = returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &back(PUBLISHED));
                (self.shoot(&self.underlay, dev.underlay, packet)?, Neigh(dev.underlay))
            }
            (Kind::Here, true) => (self.client_says(&there)?, Peer(dev.gw1)),
            (Kind::Here, false) => {
                let packet = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &back(TARGET_PORT));
                (self.shoot(&self.gateway, dev.gw1, packet)?, Neigh(dev.underlay))
            }
        };
        let who = if from_client { "client" } else { "backend" };
        ensure!(decision == Some(expected), "{kind:?}, port {port}: {flags} of the {who}: {decision:?}");
        Ok(())
    }

    fn client_says(&self, l4: &L4) -> Result<Option<Decision>> {
        self.shoot(&self.underlay, self.dev.underlay, from_client(l4))
    }

    /// One packet of the flood, and what a server answers, if it does. All from invented sources.
    fn flood(&mut self, flood: Flood) -> Result<()> {
        let mut syn = from_client(&tcp(1, PUBLISHED, "S"));
        self.invent(&mut syn, 0);
        match flood {
            Flood::Syn => drop(self.shoot(&self.underlay, self.dev.underlay, syn)?),
            Flood::BlindAck => {
                let ends: [u8; 6] =
                    syn[SOURCE..SOURCE + 4].iter().chain(&syn[PORTS..PORTS + 2]).copied().collect::<Vec<_>>()[..]
                        .try_into()?;
                self.shoot(&self.underlay, self.dev.underlay, syn.clone())?;
                self.answer(&syn, "SA")?;
                let mut ack = from_client(&tcp(1, PUBLISHED, "A"));
                ack[SOURCE..SOURCE + 4].copy_from_slice(&ends[..4]);
                ack[PORTS..PORTS + 2].copy_from_slice(&ends[4..]);
                ack[SEQUENCE..SEQUENCE + 8].copy_from_slice(&self.random.bytes::<8>());
                self.shoot(&self.underlay, self.dev.underlay, ack)?;
            }
            Flood::TwoSyns => {
                self.shoot(&self.underlay, self.dev.underlay, syn.clone())?;
                self.answer(&syn, "SA")?;
                let mut other = syn.clone();
                other[SEQUENCE] ^= 0xff;
                self.shoot(&self.underlay, self.dev.underlay, other)?;
                // What a server in SYN-RECEIVED says to a SYN out of its window.
                self.answer(&syn, "A")?;
            }
            Flood::Udp => {
                let mut packet = from_client(&udp(1, PUBLISHED));
                self.invent(&mut packet, 0);
                self.shoot(&self.underlay, self.dev.underlay, packet)?;
            }
            Flood::Tunnelled => {
                let mut packet = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &tcp(1, PUBLISHED, "S"));
                self.invent(&mut packet, TUNNEL);
                self.shoot(&self.underlay, self.dev.underlay, packet)?;
            }
            Flood::Container => {
                let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &tcp(1, 80, "S"));
                let mut packet = packet;
                packet[PORTS..PORTS + 4].copy_from_slice(&self.random.bytes::<4>());
                self.shoot(&self.container, self.dev.veth1, packet)?;
            }
        }
        Ok(())
    }

    /// Source address and port of nobody's.
    fn invent(&mut self, packet: &mut [u8], offset: usize) {
        let source: [u8; 6] = self.random.bytes();
        packet[offset + SOURCE..][..4].copy_from_slice(&[100, source[1], source[2], source[3]]);
        packet[offset + PORTS..][..2].copy_from_slice(&source[4..]);
    }

    /// What the server says to the sender of `packet`, if its backend is here (every third is).
    fn answer(&self, packet: &[u8], flags: &'static str) -> Result<()> {
        let mut client = [0; 4];
        client.copy_from_slice(&packet[SOURCE..SOURCE + 4]);
        let port = u16::from_be_bytes([packet[PORTS], packet[PORTS + 1]]);
        let reply = frame(mac(GW1), [9; 6], &ip(GW1, client), &tcp(TARGET_PORT, port, flags));
        self.shoot(&self.gateway, self.dev.gw1, reply)?;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vip,
    Far,
    Here,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Vip, Self::Far, Self::Here];

    /// Lets the next connection of this kind go to its backend.
    fn aim(self, world: &mut World) -> Result<()> {
        let (set, position) = match self {
            Self::Vip => (vip_set(VIP), 0),
            Self::Here => (port_set(6, PUBLISHED), 0),
            Self::Far => (port_set(6, PUBLISHED), 1),
        };
        Ok(world.harness.set_cursor(&set, position)?)
    }
}

#[derive(Clone, Copy, Debug)]
enum Flood {
    Syn,
    /// SYN and then an ACK of a number that was never sent.
    BlindAck,
    /// SYN and then another one.
    TwoSyns,
    Udp,
    /// Through another ingress node.
    Tunnelled,
    /// From a container to a VIP.
    Container,
}

const FLOODS: [Flood; 6] =
    [Flood::Syn, Flood::BlindAck, Flood::TwoSyns, Flood::Udp, Flood::Tunnelled, Flood::Container];

fn everybody() -> HashSet<[u8; 8]> {
    [LOCAL1, LOCAL2, REMOTE1, REMOTE2].iter().map(|task| task.tag).collect()
}

/// Opens a connection, with some of the flood between its packets.
fn open(
    world: &mut World,
    field: &mut Field,
    kind: Kind,
    port: u16,
    flood: &mut impl FnMut(&mut Field) -> Result<()>,
) -> Result<()> {
    kind.aim(world)?;
    field.step(kind, port, true, "S")?;
    flood(field)?;
    field.step(kind, port, false, "SA")?;
    flood(field)?;
    field.step(kind, port, true, "K")?;
    field.step(kind, port, true, "PA")?;
    field.step(kind, port, false, "PA")
}

/// (translated connections' entries, clients' entries) in the established tables.
fn established(world: &World) -> Result<(usize, usize)> {
    Ok((world.harness.established_flows()?.len(), world.harness.established_affinity()?.len()))
}

fn goes_on(field: &Field, kind: Kind, port: u16) -> Result<()> {
    field.step(kind, port, true, "PA")?;
    field.step(kind, port, false, "PA")
}

#[test]
fn no_flood_of_invented_sources_touches_an_established_connection() -> Result<()> {
    world(|world| {
        let mut field = Field::new(world)?;
        for kind in Kind::ALL {
            open(world, &mut field, kind, 1000, &mut |_| Ok(()))?;
        }
        // The VIP's two entries, and those of the client whose backend is here.
        let before = established(world)?;
        assert_eq!(before, (4, 2));
        // Everything that is not established is swept away again and again; what is established has been idle for
        // longer.
        let timeouts = Timeouts {
            tcp_half_open: Duration::from_millis(20),
            tcp_half_closed: Duration::from_millis(20),
            tcp_closing: Duration::from_millis(20),
            udp_unreplied: Duration::from_millis(20),
            udp_replied: Duration::from_millis(20),
            ..Timeouts::default()
        };
        sleep(Duration::from_millis(50));
        let mut opened = 0;
        for flood in FLOODS {
            for burst in 0..10 {
                for _ in 0..5000 {
                    field.flood(flood)?;
                }
                let pending = (world.harness.pending_flows()?.len(), world.harness.pending_affinity()?.len());
                // TCP's and all else.
                assert!(pending.0 <= 2 * TABLE && pending.1 <= 2 * TABLE, "{flood:?}: {pending:?}");
                let left = if burst % 3 == 0 {
                    let report = world.harness.sweep(&everybody(), &timeouts)?;
                    assert_eq!(report.removed.task_gone, 0);
                    (report.left.flows, report.left.affinity)
                } else {
                    established(world)?
                };
                // Each of the three kinds opens one connection per burst.
                assert_eq!(left, (4 * (opened + 1), 2 * (opened + 1)), "{flood:?} got into the established tables");
                opened += 1;
                let port = 2000 + opened as u16;
                for kind in Kind::ALL {
                    open(world, &mut field, kind, port, &mut |field| (0..100).try_for_each(|_| field.flood(flood)))?;
                }
            }
            for kind in Kind::ALL {
                goes_on(&field, kind, 1000)?;
                goes_on(&field, kind, 2001)?;
            }
        }
        Ok(())
    })
}

/// Whoever sends twice from an invented source, and is answered in between, has proved as much as a real client of UDP
/// does. Such a flood fills half of the established tables for a while; it displaces nobody there, and TCP finds its
/// place.
#[test]
fn datagrams_fill_half_of_a_table_and_keep_no_tcp_out() -> Result<()> {
    world(|world| {
        let mut field = Field::new(world)?;
        for kind in Kind::ALL {
            open(world, &mut field, kind, 1000, &mut |_| Ok(()))?;
        }
        let flood = |field: &mut Field| -> Result<()> {
            let mut packet = from_client(&udp(1, PUBLISHED));
            field.invent(&mut packet, 0);
            let mut client = [0; 4];
            client.copy_from_slice(&packet[SOURCE..SOURCE + 4]);
            let port = u16::from_be_bytes([packet[PORTS], packet[PORTS + 1]]);
            field.shoot(&field.underlay, field.dev.underlay, packet.clone())?;
            let answer = frame(mac(GW1), [9; 6], &ip(GW1, client), &udp(TARGET_PORT, port));
            field.shoot(&field.gateway, field.dev.gw1, answer)?;
            let answer = returning(PEER, &REMOTE1, &ip(VTEP, client), &udp(PUBLISHED, port));
            field.shoot(&field.underlay, field.dev.underlay, answer)?;
            field.shoot(&field.underlay, field.dev.underlay, packet)?;
            Ok(())
        };
        for _ in 0..20_000 {
            flood(&mut field)?;
        }
        let full = established(world)?;
        let half = TABLE / 2..TABLE / 2 + 8;
        assert!(half.contains(&full.0) && half.contains(&full.1), "{full:?}");
        let opened = 20;
        for port in 2000..2000 + opened {
            for kind in Kind::ALL {
                open(world, &mut field, kind, port, &mut |field| (0..50).try_for_each(|_| flood(field)))?;
                goes_on(&field, kind, 1000)?;
            }
        }
        let opened = usize::from(opened);
        assert_eq!(established(world)?, (full.0 + 4 * opened, full.1 + 2 * opened));
        Ok(())
    })
}
