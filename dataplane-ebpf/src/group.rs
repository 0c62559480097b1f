//! Broadcast and multicast of a container, which the slow path copies to every node of the network: bounded per
//! interface by a token bucket.
//!
//! Concurrency: two CPUs that send for one container at the same moment may take one token for two frames.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use dataplane_common::{
    drop_reason::DropReason,
    group::{BURST_NS, INTERVAL_NS},
};

use crate::{
    flow,
    maps::GROUP_RATE,
    verdict::{self, Action, Verdict},
};

/// A group frame that bridge and vxlan device are to copy.
// Not inlined: rare, and callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn admit(ctx: &TcContext) -> bool {
    let interface = verdict::ifindex(ctx);
    let now = flow::now();
    // When the bucket will be full again; before `now`: it is. Each frame moves that moment away.
    match GROUP_RATE.get_ptr_mut(&interface) {
        // SAFETY: an aligned 8-byte value; see the module's note on concurrency.
        Some(full_at) => unsafe {
            let at = (*full_at).max(now);
            if at - now > BURST_NS - INTERVAL_NS {
                return false;
            }
            *full_at = at + INTERVAL_NS;
            true
        },
        None => GROUP_RATE.insert(&interface, &(now + INTERVAL_NS), BPF_ANY as u64).is_ok(),
    }
}

/// To the slow path; a `group` frame only at the rate that its container is allowed.
#[inline(always)]
pub(crate) fn slow_path(ctx: &TcContext, group: bool) -> Verdict {
    if group && !admit(ctx) { Err(DropReason::GroupRate) } else { Ok(Action::SlowPath) }
}
