//! How long idle connections are remembered.

use std::time::Duration;

/// Idle times after which a connection is forgotten, by protocol and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before the first reply.
    pub tcp_half_open: Duration,
    /// TCP in use: idle connections are legitimate for hours.
    pub tcp_established: Duration,
    /// TCP with a FIN in one direction: the other may go on.
    pub tcp_half_closed: Duration,
    /// TCP with an RST, or a FIN in both directions.
    pub tcp_closing: Duration,
    /// UDP, and protocols we know nothing about, before the first reply.
    pub udp_unreplied: Duration,
    /// UDP, and protocols we know nothing about, after the first reply.
    pub udp_replied: Duration,
    /// ICMP.
    pub icmp: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_half_open: Duration::from_secs(60),
            tcp_established: Duration::from_secs(4 * 3600),
            tcp_half_closed: Duration::from_secs(120),
            // As long as a backend keeps TIME-WAIT: see TIME_WAIT_NS in the programs' flow.rs.
            tcp_closing: Duration::from_secs(61),
            udp_unreplied: Duration::from_secs(30),
            udp_replied: Duration::from_secs(180),
            icmp: Duration::from_secs(30),
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// A reply was seen.
    pub(super) replied: bool,
    /// A FIN was seen in one direction at least.
    pub(super) half_closed: bool,
    /// An RST was seen, or a FIN in both directions.
    pub(super) closed: bool,
}

impl Timeouts {
    /// The idle time that such a connection is allowed.
    pub(super) fn of(&self, proto: u8, progress: Progress) -> Duration {
        use dataplane_common::headers::ipproto;
        match (proto, progress) {
            (ipproto::ICMP, _) => self.icmp,
            (ipproto::TCP, Progress { closed: true, .. }) => self.tcp_closing,
            (ipproto::TCP, Progress { half_closed: true, .. }) => self.tcp_half_closed,
            (ipproto::TCP, Progress { replied: true, .. }) => self.tcp_established,
            (ipproto::TCP, _) => self.tcp_half_open,
            (_, Progress { replied: true, .. }) => self.udp_replied,
            _ => self.udp_unreplied,
        }
    }
}
