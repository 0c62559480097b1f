//! Golden packets of fragmented datagrams through VIPs: every piece comes out as the same piece of the datagram that
//! the receiver should get, checksum included. The routing mesh is in `golden_fragments_mesh`, the slow path in
//! `golden_slow_path`.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Neigh, Pass, Peer},
};
use dataplane_common::{
    counter::Counter, drop_reason::DropReason, endpoint::EndpointKey, fragment::LIFETIME_NS, service::Backend,
};
use support::{
    fragments::*,
    golden::{Golden, golden},
    packets::{Ip, Ip4, L4, Mac, frame, ip, pieces},
    world::*,
};

const STALE: Mac = [0x02, 0, 0, 0, 0, 0x99];

fn sent(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromContainer, world.dev.veth1, packet, decision)
}

/// LOCAL1 sends a datagram with identification `id` to the VIP; every piece goes to `task`.
fn vip_gives_to(world: &mut World, id: u16, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let question = frames(mac(LOCAL1.ip), STALE, &Ip { id, ..ip(LOCAL1.ip, VIP) }, l4);
    let answer = frames(mac(LOCAL1.ip), mac(task.ip), &Ip { id, ..ip(LOCAL1.ip, task.ip) }, l4);
    for (number, (asked, inner)) in question.into_iter().zip(answer).enumerate() {
        let len = asked.len();
        let here = task.vtep == VTEP;
        let decision = if here { Peer(world.dev.veth2) } else { Neigh(world.dev.underlay) };
        let mut case = translated(sent(world, "to the VIP", asked, decision), len);
        if new && number == 0 {
            case = case.counts(Counter::VipFlow, len);
        }
        if here {
            case.counts(Counter::Delivered, len).becomes(inner).check(&mut world.harness)?;
        } else {
            case.counts(Counter::Encapsulated, len + 50)
                .becomes(tunnelled(VTEP, task.vtep, APP, ([0; 6], [0; 6]), &inner))
                .check_tunnelled(&mut world.harness)?;
        }
    }
    Ok(())
}

#[test]
fn the_pieces_of_a_datagram_follow_the_first_to_the_vips_backend() -> Result<()> {
    world(|world| {
        for (port, task) in (3000..).zip([LOCAL2, REMOTE1, REMOTE2]) {
            world.harness.set_cursor(&vip_set(VIP), u64::from(port - 3000))?;
            vip_gives_to(world, port, &task, &datagram(port, 53), true)?;
            // The same flow again, and the same identification for another flow: its own first piece decides.
            vip_gives_to(world, port + 100, &task, &datagram(port, 53), false)?;
        }
        vip_gives_to(world, 3000, &REMOTE1, &datagram(3001, 53), false)?;
        vip_gives_to(world, 3000, &LOCAL2, &datagram(3000, 53), false)
    })
}

#[test]
fn a_datagram_without_a_checksum_stays_without() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let l4 = L4::Udp { sport: 3000, dport: 53, payload: vec![7; 110], checksum: false };
        vip_gives_to(world, 1, &REMOTE1, &l4, true)
    })
}

#[test]
fn a_later_piece_alone_is_dropped() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        let ours = Ip { id: 7, ..ip(LOCAL1.ip, VIP) };
        let later = |ip: &Ip| frames(mac(LOCAL1.ip), STALE, ip, &datagram(3000, 53)).remove(1);
        let dropped = |world: &mut World, what, packet| {
            sent(world, what, packet, Drop(DropReason::Fragment)).check(&mut world.harness)
        };
        dropped(world, "before its first", later(&ours))?;
        vip_gives_to(world, 7, &LOCAL2, &datagram(3000, 53), true)?;
        dropped(world, "of another datagram", later(&Ip { id: 8, ..ours.clone() }))?;
        dropped(world, "to another VIP", later(&Ip { dst: SELF_VIP, ..ours.clone() }))?;
        let twin = golden("in another network", Program::FromContainer, world.dev.twin, later(&ours), Pass);
        let outcome = twin.run(&mut world.harness)?;
        assert_eq!(outcome.counters.get(&Counter::FragmentTranslated), None, "{outcome:?}");
        let piece = pieces(&ours, &datagram(3000, 53), SIZE).remove(1).0;
        let tcp = frame(mac(LOCAL1.ip), STALE, &piece, &L4::Raw { proto: 6, payload: vec![0; SIZE] });
        dropped(world, "of another protocol", tcp)?;
        world.harness.age_fragments(LIFETIME_NS - 1_000_000_000)?;
        let packet = later(&ours);
        let len = packet.len();
        let inner =
            frames(mac(LOCAL1.ip), mac(LOCAL2.ip), &Ip { id: 7, ..ip(LOCAL1.ip, LOCAL2.ip) }, &datagram(3000, 53));
        translated(sent(world, "late", packet, Peer(world.dev.veth2)), len)
            .counts(Counter::Delivered, len)
            .becomes(inner[1].clone())
            .check(&mut world.harness)?;
        world.harness.age_fragments(2_000_000_000)?;
        dropped(world, "too late", later(&ours))
    })
}

#[test]
fn pieces_do_not_follow_to_a_task_that_took_the_place_of_theirs() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        vip_gives_to(world, 7, &LOCAL2, &datagram(3000, 53), true)?;
        let key = EndpointKey { net: net(APP), ip: LOCAL2.ip };
        world.state.endpoints.get_mut(&key).unwrap().tag = [77; 8];
        world.harness.apply(&world.state)?;
        let later = frames(mac(LOCAL1.ip), STALE, &Ip { id: 7, ..ip(LOCAL1.ip, VIP) }, &datagram(3000, 53)).remove(1);
        let len = later.len();
        translated(sent(world, "its backend is gone", later, Drop(DropReason::BackendGone)), len)
            .check(&mut world.harness)
    })
}

#[test]
fn a_first_piece_that_goes_nowhere_takes_the_others_along() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        vip_gives_to(world, 7, &LOCAL2, &datagram(3000, 53), true)?;
        world.state.sets.insert(vip_set(VIP), Vec::<Backend>::new());
        world.harness.apply(&world.state)?;
        let pieces = frames(mac(LOCAL1.ip), STALE, &Ip { id: 7, ..ip(LOCAL1.ip, VIP) }, &datagram(4000, 53));
        sent(world, "another flow's first", pieces[0].clone(), Drop(DropReason::NoBackend))
            .check(&mut world.harness)?;
        sent(world, "its later one", pieces[1].clone(), Drop(DropReason::Fragment)).check(&mut world.harness)
    })
}

#[test]
fn a_reply_in_pieces_gets_the_vip_as_its_source() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        // Nothing is to be noted about what goes to LOCAL1 directly.
        world.state.endpoints.get_mut(&EndpointKey { net: net(APP), ip: LOCAL1.ip }).unwrap().flags = 0;
        world.harness.apply(&world.state)?;
        // The fast path's outer header.
        let arriving = |inner: &[u8]| tunnelled(PEER, VTEP, APP, (ROUTER_MAC, NODE_MAC), inner);
        for (cursor, task) in [LOCAL2, REMOTE1].into_iter().enumerate() {
            world.harness.set_cursor(&vip_set(VIP), cursor as u64)?;
            let port = 3000 + cursor as u16;
            vip_gives_to(world, port, &task, &datagram(port, 53), true)?;
            let back = |src: Ip4, id: u16, sport| {
                frames(mac(task.ip), mac(LOCAL1.ip), &Ip { id, ..ip(src, LOCAL1.ip) }, &datagram(sport, port))
            };
            let case = |packet: &Vec<u8>| {
                if task.vtep == VTEP {
                    golden("reply", Program::FromContainer, dev.veth2, packet.clone(), Peer(dev.veth1))
                } else {
                    golden("reply", Program::FromUnderlay, dev.underlay, arriving(packet), Peer(dev.veth1))
                }
            };
            for (answer, out) in back(task.ip, 9, 53).iter().zip(back(VIP, 9, 53)) {
                let len = answer.len();
                translated(case(answer), len).counts(Counter::Delivered, len).becomes(out).check(&mut world.harness)?;
            }
            // Another flow's pieces are nobody's reply; with the same identification neither, from their first on.
            for id in [10, 9] {
                for answer in back(task.ip, id, 54) {
                    let len = answer.len();
                    case(&answer).counts(Counter::Delivered, len).becomes(answer).check(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}
