//! What the host's own packet filters may close is left to the host: its packets go on to the stack, where the rules
//! decide, whether they open a connection or belong to an open one.

use aya_ebpf::btf_maps::lpm_trie::Key;
use dataplane_common::service::{LeftPrefix, PortKey, PublishedPort, port_flag};

use crate::maps::LEFT;

/// Whether a client's packet to this published port, which arrived at that interface, is left to the host. `port` and
/// `ip` (the client's) are words as they lie in the packet.
#[inline(always)]
pub(crate) fn is_left(published: &PublishedPort, ifindex: u32, port: PortKey, ip: u32) -> bool {
    let flags = published.flags & port_flag::LEFT;
    flags != 0 && asked(flags.into(), ifindex, word(port), ip)
}

/// The most specific question last: most hosts' rules name neither ports nor interfaces.
// Not inlined, and with one key that changes: the caller has little stack left.
#[inline(never)]
fn asked(flags: u32, ifindex: u32, port: u32, ip: u32) -> bool {
    const { assert!(size_of::<LeftPrefix>() == 12 && size_of::<Key<LeftPrefix>>() == 16) };
    let mut key = [8 * size_of::<LeftPrefix>() as u32, 0, 0, ip];
    // SAFETY: as many plain bytes, in the order of the fields.
    let found = |key: &[u32; 4]| LEFT.get(unsafe { &*key.as_ptr().cast::<Key<LeftPrefix>>() }).is_some();
    if flags & u32::from(port_flag::LEFT_EVERYWHERE) != 0 && found(&key) {
        return true;
    }
    key[1] = ifindex;
    if flags & u32::from(port_flag::LEFT_AT_INTERFACE) != 0 && found(&key) {
        return true;
    }
    key[2] = port;
    if flags & u32::from(port_flag::LEFT_AT_BOTH) != 0 && found(&key) {
        return true;
    }
    key[1] = 0;
    flags & u32::from(port_flag::LEFT_AT_PORT) != 0 && found(&key)
}

#[inline(always)]
fn word(port: PortKey) -> u32 {
    u32::from_ne_bytes([port.proto, port._pad, port.port[0], port.port[1]])
}
