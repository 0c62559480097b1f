//! Connections made directly to a VIP's backend, beside VIP connections from the same source port. LOCAL1 and LOCAL2
//! are backends.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Pass, Peer},
};
use dataplane_common::{counter::Counter, flow::flag};
use support::{
    golden::golden,
    packets::{Ip4, L4, frame, ip, tcp, udp},
    world::*,
};

fn to(ip4: Ip4, l4: &L4) -> Vec<u8> {
    frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &ip(LOCAL1.ip, ip4), l4)
}

/// What LOCAL2 gets when LOCAL1 sends `l4` to `dst`: the client's source port.
fn arrives_from(world: &mut World, dst: Ip4, l4: &L4) -> Result<u16> {
    let outcome =
        golden("a packet", Program::FromContainer, world.dev.veth1, to(dst, l4), Pass).run(&mut world.harness)?;
    assert_eq!(outcome.decision, Some(Peer(world.dev.veth2)), "{:?}", outcome.drops);
    assert_eq!(outcome.packet[26..34], [LOCAL1.ip, LOCAL2.ip].concat());
    Ok(u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]))
}

/// Whom LOCAL1 thinks it hears from when LOCAL2 sends `l4`: address, and the client's own port.
fn heard_from(world: &mut World, l4: &L4) -> Result<(Ip4, u16)> {
    let packet = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(LOCAL2.ip, LOCAL1.ip), l4);
    let outcome = golden("an answer", Program::FromContainer, world.dev.veth2, packet, Pass).run(&mut world.harness)?;
    assert_eq!(outcome.decision, Some(Peer(world.dev.veth1)), "{:?}", outcome.drops);
    Ok((outcome.packet[26..30].try_into()?, u16::from_be_bytes([outcome.packet[36], outcome.packet[37]])))
}

fn ready(world: &mut World) -> Result<()> {
    world.harness.forget_connections()?;
    world.harness.set_cursor(&vip_set(VIP), 0)?;
    Ok(())
}

/// The two connections, told apart by the backend and by the client.
fn told_apart(world: &mut World, direct: u16, vip: u16, tcp_like: bool) -> Result<()> {
    assert_ne!(direct, vip, "the backend cannot tell the connections apart");
    let answer = |port: u16| if tcp_like { tcp(80, port, "SA") } else { udp(80, port) };
    assert_eq!(heard_from(world, &answer(direct))?, (LOCAL2.ip, 1000));
    assert_eq!(heard_from(world, &answer(vip))?, (VIP, 1000));
    let more = if tcp_like { tcp(1000, 80, "PA") } else { udp(1000, 80) };
    assert_eq!(arrives_from(world, LOCAL2.ip, &more)?, direct);
    assert_eq!(arrives_from(world, VIP, &more)?, vip);
    if tcp_like {
        // Pending ones, too.
        assert_eq!(heard_from(world, &tcp(80, direct, "PA"))?, (LOCAL2.ip, 1000));
        assert_eq!(heard_from(world, &tcp(80, vip, "PA"))?, (VIP, 1000));
        assert_eq!(world.harness.pending_flows()?.len(), 0);
        assert_eq!(arrives_from(world, LOCAL2.ip, &more)?, direct);
        assert_eq!(arrives_from(world, VIP, &more)?, vip);
        assert_eq!(heard_from(world, &tcp(80, direct, "PA"))?, (LOCAL2.ip, 1000));
        assert_eq!(heard_from(world, &tcp(80, vip, "PA"))?, (VIP, 1000));
    }
    Ok(())
}

#[test]
fn the_direct_connection_first() -> Result<()> {
    world(|world| {
        for (first, tcp_like) in [(tcp(1000, 80, "S"), true), (udp(1000, 80), false)] {
            ready(world)?;
            let direct = arrives_from(world, LOCAL2.ip, &first)?;
            assert_eq!(direct, 1000);
            let vip = arrives_from(world, VIP, &first)?;
            told_apart(world, direct, vip, tcp_like)?;
        }
        Ok(())
    })
}

#[test]
fn the_vip_connection_first() -> Result<()> {
    world(|world| {
        for (first, tcp_like) in [(tcp(1000, 80, "S"), true), (udp(1000, 80), false)] {
            ready(world)?;
            let vip = arrives_from(world, VIP, &first)?;
            assert_eq!(vip, 1000);
            let direct = arrives_from(world, LOCAL2.ip, &first)?;
            told_apart(world, direct, vip, tcp_like)?;
            assert_ne!(world.harness.direct_gate().created, 0);
        }
        Ok(())
    })
}

#[test]
fn a_direct_connection_costs_one_entry_and_its_segments_none() -> Result<()> {
    world(|world| {
        ready(world)?;
        let packet = to(LOCAL2.ip, &tcp(1000, 80, "S"));
        let len = packet.len();
        golden("SYN", Program::FromContainer, world.dev.veth1, packet, Peer(world.dev.veth2))
            .counts(Counter::DirectNoted, len)
            .counts(Counter::Delivered, len)
            .check(&mut world.harness)?;
        arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "PA"))?;
        arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "S"))?;
        let flows = world.harness.flows()?;
        assert_eq!(flows.len(), 1);
        assert!(flows.values().all(|flow| flow.flags & !flag::SEEN == flag::REPLY | flag::DIRECT));
        // The backend's end is noted.
        let answer = frame(mac(LOCAL2.ip), [2; 6], &ip(LOCAL2.ip, LOCAL1.ip), &tcp(80, 1000, "FA"));
        golden("FIN", Program::FromContainer, world.dev.veth2, answer, Pass).run(&mut world.harness)?;
        assert!(world.harness.flows()?.values().all(|flow| flow.flags & flag::FIN != 0), "the end is noted");
        // From the same port again: a new life.
        arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "S"))?;
        assert!(world.harness.flows()?.values().all(|flow| flow.flags & flag::FIN == 0));
        Ok(())
    })
}

#[test]
fn a_task_that_no_vip_leads_to_is_not_noted() -> Result<()> {
    world_without_backends(|world| {
        arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "S"))?;
        arrives_from(world, LOCAL2.ip, &udp(1000, 80))?;
        assert_eq!(world.harness.flows()?.len(), 0);
        Ok(())
    })
}

#[test]
fn a_translated_direct_connection_is_reset_like_any_other() -> Result<()> {
    world(|world| {
        ready(world)?;
        arrives_from(world, VIP, &tcp(1000, 80, "S"))?;
        let direct = arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "S"))?;
        assert_eq!(arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "R"))?, direct, "a reset must find its connection");
        // Its next life, from the same port.
        assert_ne!(arrives_from(world, LOCAL2.ip, &tcp(1000, 80, "S"))?, 1000);
        Ok(())
    })
}

#[test]
fn the_direct_answer_of_a_backend_is_no_new_connection() -> Result<()> {
    world(|world| {
        // LOCAL1 is a backend, too: what LOCAL2 answers it must not be noted as LOCAL2's own connection.
        arrives_from(world, LOCAL2.ip, &udp(1000, 53))?;
        assert_eq!(heard_from(world, &udp(53, 1000))?, (LOCAL2.ip, 1000));
        assert_eq!(world.harness.flows()?.len(), 1);
        Ok(())
    })
}
