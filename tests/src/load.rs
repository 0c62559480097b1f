//! What the load generators of `hw-lab-peer` report, as one line of JSON on stdout.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A load in a loop says how far it has come once in so many answers: what it last said may be that far behind.
pub const ANSWERS_PER_REPORT: u64 = 20;

/// The tally of a load run. One request is one flow, unless the connection is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests that were answered correctly.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Why they failed: text → how often.
    pub errors: BTreeMap<String, u64>,
    /// Which server answered (`name=`): name → how often.
    pub names: BTreeMap<String, u64>,
    /// Which client address the servers saw (`peer=`, without the port): address → how often.
    pub peers: BTreeMap<String, u64>,
    /// The slowest request that succeeded, ms.
    pub slowest_ms: u64,
    /// From the first request to the last answer, ms.
    pub elapsed_ms: u64,
}

impl Tally {
    /// Adds an answer such as `name=web.1 peer=192.168.77.100:4242`.
    pub fn answer(&mut self, answer: &str, took_ms: u64) {
        let field = |key: &str| answer.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap_or("?");
        self.ok += 1;
        *self.names.entry(field("name=").to_owned()).or_default() += 1;
        let peer = field("peer=");
        let ip = peer.rsplit_once(':').map_or(peer, |(ip, _)| ip);
        *self.peers.entry(ip.to_owned()).or_default() += 1;
        self.slowest_ms = self.slowest_ms.max(took_ms);
    }

    /// Adds a failure.
    pub fn failure(&mut self, why: impl Into<String>) {
        self.failed += 1;
        *self.errors.entry(why.into()).or_default() += 1;
    }

    /// Adds another thread's tally.
    pub fn merge(&mut self, other: Tally) {
        self.ok += other.ok;
        self.failed += other.failed;
        for (mine, theirs) in
            [(&mut self.errors, other.errors), (&mut self.names, other.names), (&mut self.peers, other.peers)]
        {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
        self.elapsed_ms = self.elapsed_ms.max(other.elapsed_ms);
    }

    /// Names and counts in one line, for people.
    pub fn spread(&self) -> String {
        self.names.iter().map(|(name, count)| format!("{name}×{count}")).collect::<Vec<_>>().join(" ")
    }
}

/// Bytes that depend on their position, so that a piece that is lost, doubled or moved changes the checksum.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_name_and_peer() {
        let mut tally = Tally::default();
        tally.answer("name=web.1 peer=10.0.1.3:4242", 3);
        tally.answer("name=web.1 peer=10.0.1.3:4243", 1);
        tally.failure("refused");
        assert_eq!((tally.ok, tally.failed, tally.slowest_ms), (2, 1, 3));
        assert_eq!(tally.names["web.1"], 2);
        assert_eq!(tally.peers["10.0.1.3"], 2);
    }

    #[test]
    fn the_pattern_does_not_repeat_within_a_packet() {
        let bytes = pattern(100_000);
        assert_eq!(bytes.len(), 100_000);
        assert_ne!(bytes[..1448], bytes[1448..2896]);
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
