//! Damaged packets through `xdp_mesh`: what it carries is what TC makes of the same packet, and everything else passes
//! untouched, uncounted and unnoted.

mod support;

use std::cell::RefCell;

use anyhow::Result;
use dataplane::{
    Program,
    testing::{Decision, Input},
};
use dataplane_common::flow::Affinity;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use support::{
    mangle::{damage, wrong_checksum},
    mesh::*,
    packets::{Ip, ip, tcp, udp},
    world::*,
    xdp::*,
};

/// Runs.
const CASES: u32 = 1500;

#[test]
fn what_xdp_carries_is_what_tc_makes_of_it() -> Result<()> {
    established(|world| {
        let mut seeds = Vec::new();
        for from in [client_ip(), ip(NEAR, NODE2), Ip { dont_fragment: false, tos: 2, ..client_ip() }] {
            for l4 in
                [tcp(CLIENT_PORT, PUBLISHED, "PA"), tcp(CLIENT_PORT, PUBLISHED, "FA"), udp(CLIENT_PORT, PUBLISHED)]
            {
                seeds.push(client(&from, &l4));
            }
            seeds.push(client(&from, &long(CLIENT_PORT, PUBLISHED, 100)));
            for l4 in [tcp(PUBLISHED, CLIENT_PORT, "PA"), tcp(PUBLISHED, CLIENT_PORT, "R"), udp(PUBLISHED, CLIENT_PORT)]
            {
                seeds.push(answer(&from, &l4));
            }
        }
        let ifindex = world.dev.underlay;
        let before = world.harness.established_affinity()?;
        let carried = RefCell::new(0u32);
        let world = RefCell::new(world);
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&damage(), |damage| {
            let packet = damage.of(&seeds);
            let mut world = world.borrow_mut();
            let failed = |error: anyhow::Error| TestCaseError::fail(format!("{error:#} {packet:02x?}"));
            // Nothing has ended, or been seen too long ago.
            world.harness.forget_connections().map_err(|error| failed(error.into()))?;
            for (key, entry) in &before {
                let entry = Affinity { last_seen: dataplane::monotonic_now(), ..*entry };
                world.harness.put_affinity(*key, entry).map_err(|error| failed(error.into()))?;
            }
            let known = flags(&world).map_err(failed)?;
            let Ok(xdp) = through_xdp(&mut world, &packet, ifindex) else {
                prop_assume!(packet.len() < 14 + 40);
                return Ok(());
            };
            prop_assert!(xdp.drops.is_empty(), "{:02x?}: XDP drops {:?}", packet, xdp.drops);
            if xdp.verdict == XDP_PASS {
                prop_assert_eq!(&xdp.packet, &packet, "passed, but changed");
                prop_assert!(xdp.counters.is_empty(), "{:02x?}: passed, but counted {:?}", packet, xdp.counters);
                return Ok(());
            }
            *carried.borrow_mut() += 1;
            let noted = flags(&world).map_err(failed)?;
            for (key, entry) in &before {
                let entry = Affinity { last_seen: dataplane::monotonic_now(), ..*entry };
                world.harness.put_affinity(*key, entry).map_err(|error| failed(error.into()))?;
            }
            prop_assert_eq!(&flags(&world).map_err(failed)?, &known, "the test's own state");
            let input = Input { packet: packet.clone(), ifindex, ..Input::default() };
            let tc = world.harness.run(Program::FromUnderlay, &input).map_err(|error| failed(error.into()))?;
            prop_assert!(matches!(tc.decision, Some(Decision::Neigh(_))), "{:02x?}: TC {:?}", packet, tc.decision);
            prop_assert_eq!(&xdp.packet[12..], &tc.packet[12..], "of {:02x?}", packet);
            prop_assert_eq!(&noted, &flags(&world).map_err(failed)?, "noted of {:02x?}", packet);
            if wrong_checksum(&packet).is_none() {
                prop_assert_eq!(wrong_checksum(&xdp.packet), None, "of {:02x?}", packet);
            }
            Ok(())
        });
        result.map_err(|error| anyhow::anyhow!("{error}"))?;
        anyhow::ensure!(*carried.borrow() > CASES / 8, "only {} packets were carried", carried.borrow());
        Ok(())
    })
}
