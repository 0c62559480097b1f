//! XDP in front of a TC program: each packet that a test sends through such a program goes through `xdp_mesh` first,
//! and what that carries has to be what TC makes of the same packet in the same state. So one set of packets tests
//! both.

use std::collections::BTreeMap;

use aya::maps::MapError;
use dataplane_common::{
    addr::{Ip4, Tag},
    counter::{Counter, Stat},
    flow::{Affinity, AffinityKey},
};

use super::{
    harness::{Harness, RunError},
    outcome::{Decision, Outcome, XdpOutcome},
};
use crate::{MapFault, MapName, Program, line_table::Stage};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// Where the Ethernet addresses end: TC leaves those to the kernel, after the program.
const ADDRESSES: usize = 12;

/// What connections are remembered, but for when: task, its addresses, flags, the acknowledgement that is waited for,
/// and whether the backend has spoken.
type Remembered = BTreeMap<AffinityKey, (Tag, Ip4, Ip4, u8, [u8; 3], u8)>;

/// Everything that the mesh path writes besides counters.
struct State {
    established: BTreeMap<AffinityKey, Affinity>,
    pending: BTreeMap<AffinityKey, Affinity>,
    cursors: Vec<u64>,
    shares: Vec<u64>,
}

/// What XDP has made of a packet that it did not leave to TC.
pub(super) struct Carried {
    outcome: XdpOutcome,
    remembered: [Remembered; 2],
    cursors: Vec<u64>,
}

/// Whether packets of the program may have met `xdp_mesh` before.
pub(super) fn has_xdp(program: Program) -> bool {
    matches!(program, Program::FromUnderlay | Program::FromClient)
}

impl Carried {
    /// Runs `xdp` and then undoes what it has done. `None`: it left the packet to TC, and nothing else.
    pub(super) fn by(
        harness: &mut Harness,
        xdp: impl FnOnce(&mut Harness) -> Result<XdpOutcome, RunError>,
        packet: &[u8],
    ) -> Result<Option<Self>, RunError> {
        let before = State::of(harness)?;
        let outcome = xdp(harness)?;
        let after = State::of(harness)?;
        let untraced = (&after.established, &after.pending, &after.cursors)
            == (&before.established, &before.pending, &before.cursors);
        let carried = Self { outcome, remembered: after.remembered(), cursors: after.cursors };
        if carried.outcome.verdict != XDP_PASS {
            before.restore(harness)?;
            return Ok(Some(carried));
        }
        let XdpOutcome { packet: passed, drops, counters, .. } = &carried.outcome;
        let untouched = passed == packet && drops.is_empty() && counters.is_empty();
        if !untouched || !untraced {
            return Err(RunError::Xdp(format!(
                "it passed a packet on, but not without a trace: {:?}",
                carried.outcome
            )));
        }
        Ok(None)
    }

    /// An error if TC did otherwise.
    pub(super) fn compare(self, harness: &Harness, tc: &Outcome) -> Result<(), RunError> {
        let Self { outcome: xdp, remembered, cursors } = self;
        let differs = |what: &str, one: &dyn std::fmt::Debug, other: &dyn std::fmt::Debug| {
            Err(RunError::Xdp(format!("{what}: XDP {one:?}, TC {other:?}")))
        };
        let sent = matches!(tc.decision, Some(Decision::Neigh(_) | Decision::Reply(_) | Decision::Device(_)));
        if !sent || !matches!(xdp.verdict, XDP_TX | XDP_REDIRECT) {
            return differs("verdict", &xdp.verdict, &tc.decision);
        }
        if xdp.packet.get(ADDRESSES..) != tc.packet.get(ADDRESSES..) {
            return differs("packet", &xdp.packet, &tc.packet);
        }
        let own = |counter: &Counter| matches!(counter, Counter::XdpForward | Counter::XdpReply);
        let counters: BTreeMap<Counter, Stat> = xdp.counters.into_iter().filter(|(counter, _)| !own(counter)).collect();
        if counters != tc.counters {
            return differs("COUNTERS", &counters, &tc.counters);
        }
        if xdp.drops != tc.drops {
            return differs("DROPS", &xdp.drops, &tc.drops);
        }
        let after = State::of(harness)?;
        if remembered != after.remembered() {
            return differs("connections", &remembered, &after.remembered());
        }
        if cursors != after.cursors { differs("round robin", &cursors, &after.cursors) } else { Ok(()) }
    }
}

impl State {
    fn of(harness: &Harness) -> Result<Self, RunError> {
        let cursors = (0..harness.cursors.len()).map(|at| harness.cursors.get(&at, 0)).collect::<Result<_, _>>();
        Ok(Self {
            established: harness.tables.connections.clients.established()?,
            pending: harness.tables.connections.clients.lines.read(Stage::Pending)?,
            cursors: cursors.map_err(of_cursors)?,
            shares: harness.tables.connections.shares.save(),
        })
    }

    fn remembered(&self) -> [Remembered; 2] {
        [&self.established, &self.pending].map(|map| {
            map.iter().map(|(key, a)| (*key, (a.tag, a.ip, a.vtep, a.flags, a.tcp_number, a.unspoken))).collect()
        })
    }

    fn restore(self, harness: &mut Harness) -> Result<(), RunError> {
        let tables = &mut harness.tables.connections;
        tables.clients.clear()?;
        for (key, entry) in self.pending {
            tables.clients.lines.put(&key, entry);
        }
        self.established.into_iter().try_for_each(|(key, entry)| tables.clients.put_established(key, entry))?;
        tables.shares.restore(&self.shares);
        for (at, cursor) in (0..).zip(self.cursors) {
            harness.cursors.set(at, cursor, 0).map_err(of_cursors)?;
        }
        Ok(())
    }
}

fn of_cursors(source: MapError) -> MapFault {
    MapFault { map: MapName::Cursors, source }
}
