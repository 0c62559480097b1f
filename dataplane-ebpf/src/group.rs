//! Broadcast and multicast of a container, and what is for nobody that is known, which the slow path copies to every
//! node of the network: bounded per interface by a token bucket. Where there are none of those, "time exceeded" is
//! bounded by it (RFC 1812 section 4.3.2.8).
//!
//! Concurrency: two CPUs that send for one container at the same moment may take one token for two frames.

use aya_ebpf::bindings::BPF_ANY;
use dataplane_common::{
    addr::Mac,
    drop_reason::DropReason,
    endpoint::{EndpointKey, Local, kind},
    group::{BURST_NS, INTERVAL_NS},
};

use crate::{
    clock,
    maps::{self, GROUP_RATE},
    skb::Skb,
    verdict::{self, Action, Verdict},
};

/// Takes a token out of the interface's bucket; without one the packet is dropped for `reason`.
// Not inlined: rare, and callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn admit(ctx: &Skb, reason: DropReason) -> Result<(), DropReason> {
    let interface = verdict::ifindex(ctx);
    let now = clock::now();
    // When the bucket will be full again; before `now`: it is. Each frame moves that moment away.
    match GROUP_RATE.get_ptr_mut(&interface) {
        // SAFETY: an aligned 8-byte value; see the module's note on concurrency.
        Some(full_at) => unsafe {
            let at = (*full_at).max(now);
            if at - now > BURST_NS - INTERVAL_NS {
                return Err(reason);
            }
            *full_at = at + INTERVAL_NS;
            Ok(())
        },
        None => GROUP_RATE.insert(&interface, &(now + INTERVAL_NS), BPF_ANY as u64).map_err(|_| reason),
    }
}

/// To the slow path; what is copied there to every node only at the rate that its container is allowed: group frames,
/// and those to a MAC that the bridge does not know.
#[inline(always)]
pub(crate) fn slow_path(ctx: &Skb, local: &Local, dst: &Mac) -> Verdict {
    if !is_known(local, dst) {
        admit(ctx, DropReason::GroupRate)?;
    }
    Ok(Action::SlowPath)
}

/// Whether somebody in the container's network, on another node, has the MAC: one that is made of an address, as the
/// engine and the agent make them. Of those here the bridge does not learn: their packets pass it by.
// Not inlined, as `admit`.
#[inline(never)]
fn is_known(local: &Local, dst: &Mac) -> bool {
    let [_, _, a, b, c, d] = *dst;
    maps::endpoint(&EndpointKey { net: local.net, ip: [a, b, c, d] })
        .is_some_and(|endpoint| endpoint.mac == *dst && endpoint.kind != kind::LOCAL)
}
