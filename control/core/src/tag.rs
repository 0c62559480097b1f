//! The tag: 64 bits that stand for a task in BPF maps.

use dataplane_common::addr::Tag;

/// The tag of a task: [`hash64`] of its id, big endian, never all zero (zero means "no task" in the maps).
///
/// The same on every node and after every restart: nodes name each other's tasks by it, and flows outlive the agent.
pub fn tag(task_id: &str) -> Tag {
    hash64(&[task_id]).max(1).to_be_bytes()
}

/// FNV-1a 64 over the parts, a zero byte after each but the first, then murmur3's finaliser so that every input bit
/// reaches every output bit. Not for hostile input: ids come from the swarm's manager.
pub(crate) fn hash64(parts: &[&str]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET;
    for (i, part) in parts.iter().enumerate() {
        let separator: &[u8] = if i == 0 { &[] } else { &[0] };
        for byte in separator.iter().chain(part.as_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed independently (a few lines of Python); a change here breaks flows across an upgrade.
    #[test]
    fn is_stable() {
        assert_eq!(tag("web.1"), TAG_WEB_1.to_be_bytes());
        assert_eq!(tag("5kjv4jsfuqb08390uuegqss8z"), TAG_CAPTURE.to_be_bytes());
    }
    const TAG_WEB_1: u64 = 0x2136_d1bb_211b_4885;
    const TAG_CAPTURE: u64 = 0x1f79_8d4e_3b28_a77d;

    #[test]
    fn parts_are_separated() {
        assert_ne!(hash64(&["a", "bc"]), hash64(&["ab", "c"]));
        assert_ne!(tag(""), [0; 8]);
    }
}
