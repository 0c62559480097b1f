//! The harness itself: programs that one test has left are as good as new to the next. Needs root.

mod support;

use anyhow::Result;
use dataplane::testing::Harness;
use dataplane_common::{flow::DirectGate, state::MapState};
use support::{packets::tcp, sandbox::sandbox, vip::says, world::*};

#[test]
fn a_harness_begins_empty_whatever_the_one_before_has_left() -> Result<()> {
    world(|world| {
        assert!(!world.harness.is_used_again());
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        world.harness.open_direct_gate();
        says(world, &tcp(1000, 80, "S"))?;
        assert_eq!(world.harness.rows()?.len(), 1);
        assert_eq!(world.harness.cursor(&vip_set(VIP))?, 1);
        Ok(())
    })?;
    world(|world| {
        let harness = &mut world.harness;
        assert!(harness.is_used_again());
        assert_eq!(harness.rows()?, []);
        assert_eq!(harness.count_rows()?, 0);
        assert_eq!(harness.counted_flows(), [0, 0]);
        assert_eq!(harness.cursor(&vip_set(VIP))?, 0);
        assert!(harness.drops()?.values().all(|stat| stat.packets == 0));
        assert_eq!(harness.all_probed()?.len(), 0);
        assert_eq!(harness.direct_gate(), DirectGate::default());
        Ok(())
    })?;
    // One whose maps nobody has filled yet: what the agent would write first is all that is missing.
    sandbox(|_| {
        let mut harness = Harness::new()?;
        assert!(harness.is_used_again());
        let changes = harness.apply(&MapState::default())?;
        assert!(changes.maps.values().all(|delta| delta.removed == 0), "{changes:?}");
        assert_eq!(changes.failures, []);
        Ok(())
    })
}
