//! Golden packets of MSS clamping: SYNs with options in every order, whole and broken, over underlays of any MTU.

mod support;

use anyhow::Result;
use dataplane::testing::Decision::{Neigh, Peer};
use dataplane_common::{addr::VIRTUAL_MAC, counter::Counter};
use support::{
    mesh::*,
    packets::{Ip, frame, hop, ip, routed, syn},
    world::*,
};

/// What `limit` makes of options: in, out.
fn cases(limit: u16) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let [high, low] = limit.to_be_bytes();
    let big = [2, 4, 0xff, 0xff];
    let clamped = [2, 4, high, low];
    let case = |before: &[u8], after: &[u8]| {
        let with = |mss: [u8; 4]| [before, &mss, after].concat();
        (with(big), with(clamped))
    };
    let same = |options: &[u8]| (options.to_vec(), options.to_vec());
    let sack = [4u8, 2];
    let time = [8u8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let unknown = [253u8, 6, 1, 2, 3, 4];
    let mut cases = Vec::new();
    let mut add = |what, (before, after)| cases.push((what, before, after));
    add("MSS alone", case(&[], &[]));
    add("MSS first", case(&[], &[&sack[..], &time, &[1, 3, 3, 7]].concat()));
    add("MSS last", case(&[&sack[..], &time, &[3, 3, 7, 1]].concat(), &[]));
    add("at an odd offset", case(&[1], &[1, 1, 1]));
    add("at an odd offset behind a window scale", case(&[3, 3, 7], &[1]));
    add("behind an unknown option", case(&unknown, &[1, 1]));
    add("the last of ten", case(&[1; 9], &[0, 0, 0]));
    add("twice", ([big, big].concat(), [clamped, big].concat()));
    add("low enough", same(&[2, 4, 2, 0]));
    add("exactly", same(&clamped));
    add("behind the end of the list", same(&[0, 0, 0, 0, 2, 4, 0xff, 0xff]));
    add("behind an option of no length", same(&[253, 0, 0, 0, 2, 4, 0xff, 0xff]));
    add("behind an option of length 1", same(&[253, 1, 0, 0, 2, 4, 0xff, 0xff]));
    add("of length 3", same(&[2, 3, 0xff, 1]));
    add("of length 6", same(&[2, 6, 0xff, 0xff, 0xff, 0xff, 0, 0]));
    add("cut off by the end of the header: what follows is data", same(&[1, 1, 2, 4]));
    add("only its kind left", same(&[1, 1, 1, 2]));
    add("behind an option that ends in the data", same(&[253, 9, 0, 0, 2, 4, 0xff, 0xff]));
    add("no options", same(&[]));
    cases
}

#[test]
fn segment_sizes_are_clamped_wherever_the_option_stands() -> Result<()> {
    world(|world| {
        for mtu in [1500u16, 1400, 9000] {
            world.state.config.underlay_mtu = mtu;
            world.harness.apply(&world.state)?;
            for (number, (what, before, after)) in cases(mtu - 90).into_iter().enumerate() {
                let port = 10_000 + u16::try_from(number)?;
                let there = |dst, dport, options: &[u8]| syn(CLIENT, dst, (port, dport), false, options);
                let client = |dst| Ip { ttl: 57, ..ip(CLIENT, dst) };
                let packet = arriving(PEER, &LOCAL1, &client(PEER), &there(PEER, PUBLISHED, &before));
                let out = frame(VIRTUAL_MAC, mac(GW1), &client(GW1), &there(GW1, TARGET_PORT, &after));
                underlay(world, what, packet, Peer(world.dev.gw1))
                    .counts(Counter::Delivered, out.len())
                    .becomes(out)
                    .check(&mut world.harness)?;
                let back = |src, sport, options: &[u8]| syn(src, CLIENT, (sport, port), true, options);
                let sent = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &back(GW1, TARGET_PORT, &before));
                let len = sent.len();
                let out = mesh_frame(
                    ([0; 6], [0; 6]),
                    VTEP,
                    PEER,
                    mac(LOCAL1.ingress),
                    node_mac(PEER),
                    &routed(PEER, CLIENT),
                    &back(PEER, PUBLISHED, &after),
                );
                gateway(world, what, sent, Neigh(world.dev.underlay))
                    .counts(Counter::MeshReturn, len)
                    .counts(Counter::Encapsulated, len + 50)
                    .becomes(out)
                    .check_tunnelled(&mut world.harness)?;
            }
            world.harness.forget_connections()?;
        }
        Ok(())
    })
}

#[test]
fn a_local_tasks_segments_are_clamped_to_the_underlay() -> Result<()> {
    world(|world| {
        for (mtu, limit) in [(1400u16, 1360u16), (1500, 1460), (9000, 8960)] {
            world.state.config.underlay_mtu = mtu;
            world.harness.apply(&world.state)?;
            for (port, offered) in [(2000, limit + 1), (2001, limit), (2002, 536)] {
                let [high, low] = offered.to_be_bytes();
                let [clamped_high, clamped_low] = offered.min(limit).to_be_bytes();
                let (before, after) = ([2, 4, high, low], [2, 4, clamped_high, clamped_low]);
                world.harness.forget_connections()?;
                world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
                let packet = from_client(&syn(CLIENT, VTEP, (port, PUBLISHED), false, &before));
                let there = syn(CLIENT, GW1, (port, TARGET_PORT), false, &after);
                let out = frame(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..hop(&client_ip()) }, &there);
                underlay(world, "SYN", packet, Peer(world.dev.gw1))
                    .counts(Counter::MeshFlow, out.len())
                    .counts(Counter::MeshForward, out.len())
                    .counts(Counter::Delivered, out.len())
                    .becomes(out)
                    .check(&mut world.harness)?;
                let back = |src, sport, options: &[u8]| syn(src, CLIENT, (sport, port), true, options);
                let sent = frame(mac(GW1), [8; 6], &ip(GW1, CLIENT), &back(GW1, TARGET_PORT, &before));
                let out = frame(mac(GW1), [8; 6], &routed(VTEP, CLIENT), &back(VTEP, PUBLISHED, &after));
                gateway(world, "SYN ACK", sent, Neigh(world.dev.underlay))
                    .counts(Counter::MeshReturn, out.len())
                    .counts(Counter::MeshReply, out.len())
                    .becomes(out)
                    .check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}
