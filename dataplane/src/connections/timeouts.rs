//! How long idle connections are remembered.

use std::time::Duration;

use dataplane_common::{flow::TIME_WAIT_SECONDS, headers::ipproto};

use super::state::State;

/// Idle times after which a connection is forgotten, by protocol and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP before the handshake is complete.
    pub tcp_half_open: Duration,
    /// TCP in use: idle connections are legitimate for hours.
    pub tcp_established: Duration,
    /// TCP with a FIN of the backend's: the client may go on.
    pub tcp_half_closed: Duration,
    /// TCP that has ended: by the backend's RST, or a FIN in both directions, the client's acknowledged.
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
            tcp_closing: Duration::from_secs(TIME_WAIT_SECONDS),
            udp_unreplied: Duration::from_secs(30),
            udp_replied: Duration::from_secs(180),
            icmp: Duration::from_secs(30),
        }
    }
}

impl Timeouts {
    /// All of them with their names, as in `--timeout` and `status`.
    pub fn named(&self) -> [(&'static str, Duration); 7] {
        [
            ("tcp-half-open", self.tcp_half_open),
            ("tcp-established", self.tcp_established),
            ("tcp-half-closed", self.tcp_half_closed),
            ("tcp-closing", self.tcp_closing),
            ("udp-unreplied", self.udp_unreplied),
            ("udp-replied", self.udp_replied),
            ("icmp", self.icmp),
        ]
    }

    /// The one with that name.
    pub fn by_name(&mut self, name: &str) -> Option<&mut Duration> {
        Some(match name {
            "tcp-half-open" => &mut self.tcp_half_open,
            "tcp-established" => &mut self.tcp_established,
            "tcp-half-closed" => &mut self.tcp_half_closed,
            "tcp-closing" => &mut self.tcp_closing,
            "udp-unreplied" => &mut self.udp_unreplied,
            "udp-replied" => &mut self.udp_replied,
            "icmp" => &mut self.icmp,
            _ => return None,
        })
    }

    /// The idle time that a connection in that state is allowed.
    pub(super) fn of(&self, proto: u8, state: State) -> Duration {
        match (proto, state) {
            (ipproto::ICMP, _) => self.icmp,
            (ipproto::TCP, State::Closing) => self.tcp_closing,
            (ipproto::TCP, State::HalfClosed) => self.tcp_half_closed,
            (ipproto::TCP, State::Established) => self.tcp_established,
            (ipproto::TCP, State::Opening) => self.tcp_half_open,
            (_, State::Opening) => self.udp_unreplied,
            (_, _) => self.udp_replied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_own() {
        for (index, (name, _)) in Timeouts::default().named().into_iter().enumerate() {
            let mut timeouts = Timeouts::default();
            *timeouts.by_name(name).unwrap() = Duration::from_secs(77);
            let changed: Vec<_> = (timeouts.named().iter().zip(Timeouts::default().named()))
                .enumerate()
                .filter(|(_, (new, old))| **new != *old)
                .map(|(place, _)| place)
                .collect();
            assert_eq!(changed, [index], "{name}");
        }
        assert_eq!(Timeouts::default().by_name("tcp"), None);
    }
}
