//! Packets of LOCAL1 towards a VIP, for their golden packets.

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Neigh, Pass, Peer},
};
use dataplane_common::counter::Counter;

use super::{
    golden::{Golden, golden},
    packets::{Ip4, L4, Mac, frame, ip, vxlan},
    world::*,
};

/// Of a gateway or VIP, from an ARP cache that is out of date.
pub const STALE: Mac = [0x02, 0, 0, 0, 0, 0x99];

pub fn sent(to: Ip4, l4: &L4) -> Vec<u8> {
    frame(mac(LOCAL1.ip), STALE, &ip(LOCAL1.ip, to), l4)
}

/// LOCAL1 says `l4` to the VIP whose only backend is LOCAL2 after this, whatever becomes of it.
pub fn says(world: &mut World, l4: &L4) -> Result<()> {
    let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), l4);
    golden("client", Program::FromContainer, world.dev.veth1, packet, Pass).run(&mut world.harness)?;
    Ok(())
}

/// LOCAL2 says `l4` to LOCAL1, whatever becomes of it.
pub fn answers(world: &mut World, l4: &L4) -> Result<()> {
    let packet = frame(mac(LOCAL2.ip), [2; 6], &ip(LOCAL2.ip, LOCAL1.ip), l4);
    golden("backend", Program::FromContainer, world.dev.veth2, packet, Pass).run(&mut world.harness)?;
    Ok(())
}

pub fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromContainer, world.dev.veth1, packet, decision)
}

/// LOCAL1 sends `l4` to `vip`, and it must come out towards `task`, looking as if it had been sent there.
pub fn goes_to(world: &mut World, what: &'static str, vip: Ip4, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let asked = sent(vip, l4);
    let inner = frame(mac(LOCAL1.ip), mac(task.ip), &ip(LOCAL1.ip, task.ip), l4);
    let len = asked.len();
    let local = task.vtep == VTEP;
    let decision = if local { Peer(world.dev.veth2) } else { Neigh(world.dev.underlay) };
    let mut case = case(world, what, asked, decision);
    if new {
        case = case.counts(Counter::VipFlow, len);
    }
    if local {
        return case.counts(Counter::Delivered, len).becomes(inner).check(&mut world.harness);
    }
    let (outer, l4) = vxlan(VTEP, task.vtep, 0, APP, &inner);
    case.counts(Counter::Encapsulated, len + 50)
        .becomes(frame([0; 6], [0; 6], &outer, &l4))
        .check_tunnelled(&mut world.harness)
        .map(|_| ())
}
