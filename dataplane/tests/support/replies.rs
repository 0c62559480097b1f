//! Replies of the backend's node, for their golden packets: by the tunnel, or directly.

use std::time::Duration;

use anyhow::Result;
use dataplane::{
    monotonic_now,
    testing::Decision::{Neigh, Pass},
};
use dataplane_common::{config::mesh_return, counter::Counter, flow::flag, mark};

use super::{
    golden::Golden,
    mesh::*,
    packets::{Ip, Ip4, L4, frame, hop, ip, tcp, udp},
    world::*,
};

/// Whom the container sends to: its default gateway.
pub const VIA: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// As [`world`], with replies leaving directly.
pub fn direct_world(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        world.state.config.mesh_return = mesh_return::DIRECT;
        world.harness.apply(&world.state)?;
        test(world)
    })
}

/// How a reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    Tunnel,
    /// Out of this interface.
    Directly(u32),
}

/// A client's packet, which N1 has sent here for LOCAL1.
pub fn asks(world: &mut World, client: Ip4, l4: &L4) -> Result<()> {
    let packet = arriving(PEER, &LOCAL1, &ip(client, PEER), l4);
    underlay(world, "client", packet, Pass).run(&mut world.harness).map(drop)
}

/// LOCAL1's container answers with `inside`, which has to go that way as `outside`.
pub fn answers(
    world: &mut World,
    what: &'static str,
    client: Ip4,
    inside: &L4,
    outside: &L4,
    goes: Goes,
) -> Result<()> {
    answers_as(world, what, (&ip(GW1, client), inside), (&ip(PEER, client), outside), goes)
}

pub fn answers_as(
    world: &mut World,
    what: &'static str,
    (sent, inside): (&Ip, &L4),
    (told, outside): (&Ip, &L4),
    goes: Goes,
) -> Result<()> {
    let packet = frame(mac(GW1), VIA, sent, inside);
    let len = packet.len();
    let fragment = sent.more_fragments || sent.fragment_offset != 0;
    let counted = |case: Golden| {
        if fragment { case.counts(Counter::FragmentTranslated, len) } else { case }
    };
    match goes {
        Goes::Directly(device) => {
            let is_udp = matches!(outside, L4::Udp { .. } | L4::Raw { proto: 17, .. });
            counted(gateway(world, what, packet, Neigh(device)))
                .counts(Counter::MeshDirectReply, len)
                .leaves_mark(if is_udp { mark::MESH_REPLY } else { 0 })
                .becomes(frame(mac(GW1), VIA, &hop(told), outside))
                .check(&mut world.harness)
        }
        Goes::Tunnel => {
            let out =
                mesh_frame(([0; 6], [0; 6]), VTEP, PEER, mac(LOCAL1.ingress), node_mac(PEER), &hop(told), outside);
            counted(gateway(world, what, packet, Neigh(world.dev.underlay)))
                .counts(Counter::MeshReturn, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(out)
                .check_tunnelled(&mut world.harness)
                .map(drop)
        }
    }
}

/// LOCAL1's container sends a segment with these flags to `client`.
pub fn segment(world: &mut World, flags: &'static str, client: Ip4, goes: Goes) -> Result<()> {
    answers(world, flags, client, &tcp(TARGET_PORT, CLIENT_PORT, flags), &tcp(PUBLISHED, CLIENT_PORT, flags), goes)
}

/// LOCAL1's container sends a datagram to `client` at `port`.
pub fn datagram(world: &mut World, what: &'static str, (client, port): (Ip4, u16), goes: Goes) -> Result<()> {
    answers(world, what, client, &udp(TARGET_PORT, port), &udp(PUBLISHED, port), goes)
}

/// A connection whose handshake is complete.
pub fn connect(world: &mut World, client: Ip4) -> Result<()> {
    asks(world, client, &tcp(CLIENT_PORT, PUBLISHED, "S"))?;
    segment(world, "SA", client, Goes::Tunnel)?;
    asks(world, client, &tcp(CLIENT_PORT, PUBLISHED, "K"))
}

/// Datagrams both ways.
pub fn talk(world: &mut World, client: Ip4) -> Result<()> {
    asks(world, client, &udp(CLIENT_PORT, PUBLISHED))?;
    datagram(world, "first answer", (client, CLIENT_PORT), Goes::Tunnel)?;
    asks(world, client, &udp(CLIENT_PORT, PUBLISHED))
}

/// Makes all connections look as if nothing had been seen for so long in the direction of replies (`true`) or of the
/// client's packets.
pub fn age(world: &mut World, replies: bool, by: Duration) -> Result<()> {
    let established = world.harness.established_flows()?;
    let pending = world.harness.pending_flows()?;
    for (flows, promoted) in [(established, true), (pending, false)] {
        for (key, mut flow) in flows {
            if (flow.flags & flag::REPLY != 0) != replies {
                continue;
            }
            flow.last_seen -= by.as_nanos() as u64;
            if promoted { world.harness.put_flow(key, flow)? } else { world.harness.put_pending_flow(key, flow)? }
        }
    }
    Ok(())
}

/// A client's port whose turn it is (to send a reply through the tunnel) or is not, for the next quarter of a second.
pub fn port_in_turn(turn: bool) -> u16 {
    const TURN: u64 = 1 << 29;
    while monotonic_now() % TURN > TURN / 2 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let number = (monotonic_now() / TURN % 32) as u16;
    40_000 / 256 * 256 + if turn { number } else { number ^ 16 }
}
