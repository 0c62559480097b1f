//! The headers of a tunnelled client's packet: what `encap::encapsulate` writes.

use dataplane_common::{
    addr::{NODE_MAC_PREFIX, TASK_MAC_PREFIX},
    config::Config,
    flow::Affinity,
    hash,
    headers::{INNER_NET, IPV4_LEN},
};

use super::{
    access::{Part, word},
    head::Head,
    hop::Hop,
};
use crate::{
    checksum, encap,
    headers::{ATOMIC, Headers},
};

/// Who serves a connection.
#[derive(Clone, Copy)]
pub(super) struct Backend {
    /// Its node.
    pub vtep: u32,
    /// Its ingress address.
    pub task: u32,
}

impl Backend {
    /// Who serves the connection `known`.
    #[inline(always)]
    pub(super) fn of(known: &Affinity) -> Self {
        Self { vtep: word(&known.vtep), task: word(&known.ip) }
    }
}

/// What differs between packets of one node.
pub(super) struct Tunnel {
    pub backend: Backend,
    /// Length of the outer IP packet.
    pub ip_len: u16,
}

impl Part<{ INNER_NET + IPV4_LEN }> {
    /// Writes all headers in front of the inner IP header.
    #[inline(always)]
    pub(super) fn put_headers(self, config: &Config, hop: &Hop, tunnel: &Tunnel, inner: &Head) {
        const TASK: u64 = u16::from_le_bytes(TASK_MAC_PREFIX) as u64;
        const NODE: u64 = u16::from_le_bytes(NODE_MAC_PREFIX) as u64;
        let headers = Headers {
            eth: (hop.first, hop.second),
            vtep: tunnel.backend.vtep,
            tos: inner.tos,
            ip_len: tunnel.ip_len,
            // Connections to backends on nodes without Hiveway are opened, and carried, by TC.
            second: ATOMIC,
            sport: encap::source_port(hash::flow_of_words(inner.src, inner.dst, inner.ports, inner.proto)),
            vni: word(&config.mesh_vni),
            inner_dst: TASK | u64::from(tunnel.backend.task) << 16,
            inner_src: NODE | u64::from(word(&config.vtep)) << 16,
        };
        let words = headers.words(config, word(&config.underlay_ip));
        self.put_eight::<0>(words[0]);
        self.put_eight::<8>(words[1]);
        self.put_eight::<16>(words[2]);
        self.put_eight::<24>(words[3]);
        self.put_eight::<32>(words[4]);
        self.put_eight::<40>(words[5]);
        self.put_eight::<48>(words[6]);
        self.put_eight::<56>(words[7]);
    }

    /// Lowers the inner packet's TTL by one, which is more than one.
    #[inline(always)]
    pub(super) fn lower_ttl(self) {
        const TTL: usize = INNER_NET + 8;
        self.put_four::<TTL>(checksum::lowered(self.four::<TTL>()));
    }
}
