//! Packets of LOCAL1 on a network that the engine carries, for their golden packets. What is translated passes on to
//! the engine's bridge.

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Pass},
};
use dataplane_common::{addr::VIRTUAL_MAC, counter::Counter};

use super::{
    golden::{Golden, golden},
    packets::{Ip, Ip4, L4, Mac, frame, ip},
    world::*,
};

/// A MAC that the packet came with: the VIP's, or an engine's gateway.
pub const ENGINES: Mac = [0x02, 0x42, 0, 0, 0, 0x99];

/// Leaves LOCAL1.
pub fn out(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromSandbox, world.dev.veth1, packet, decision).of_sandbox(SANDBOX1)
}

/// Arrives at LOCAL1.
pub fn back(world: &World, what: &'static str, packet: Vec<u8>) -> Golden {
    golden(what, Program::ToSandbox, world.dev.veth1, packet, Pass).of_sandbox(SANDBOX1)
}

pub fn sent(ip: &Ip, l4: &L4) -> Vec<u8> {
    frame(mac(LOCAL1.ip), VIRTUAL_MAC, ip, l4)
}

pub fn to(dst: Ip4, l4: &L4) -> Vec<u8> {
    sent(&ip(LOCAL1.ip, dst), l4)
}

/// A packet to the VIP comes out as one to `task`, MAC and all.
pub fn goes_to(world: &mut World, what: &'static str, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let asked = to(VIP, l4);
    let mut case = out(world, what, asked.clone(), Pass);
    if new {
        case = case.counts(Counter::VipFlow, asked.len());
    }
    case.becomes(frame(mac(LOCAL1.ip), mac(task.ip), &ip(LOCAL1.ip, task.ip), l4)).check(&mut world.harness)
}

/// An answer of `task` arrives as one of the VIP; only the address changes.
pub fn comes_from_vip(world: &mut World, what: &'static str, task: &Task, l4: &L4) -> Result<()> {
    let frame = |src| frame(mac(task.ip), mac(LOCAL1.ip), &ip(src, LOCAL1.ip), l4);
    back(world, what, frame(task.ip)).becomes(frame(VIP)).check(&mut world.harness)
}

pub fn promoted(world: &mut World, what: &'static str, task: &Task, l4: &L4) -> Result<()> {
    let asked = to(VIP, l4);
    out(world, what, asked.clone(), Pass)
        .counts(Counter::FlowPromoted, asked.len())
        .becomes(frame(mac(LOCAL1.ip), mac(task.ip), &ip(LOCAL1.ip, task.ip), l4))
        .check(&mut world.harness)
}
