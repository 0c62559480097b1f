//! Firewall rules, as far as they matter here.

use std::collections::{BTreeMap, BTreeSet};

/// One table's chains.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    /// How the table is called in messages, like `iptables` or `nftables table inet filter`.
    pub(super) table: String,
    /// By name.
    pub(super) chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// It is asked about packets to published ports directly.
    pub(super) asked: bool,
    /// What no rule decides is dropped.
    pub(super) drops: bool,
    pub(super) rules: Vec<Rule>,
}

/// A rule that can match IPv4 packets.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    /// IP protocols; `None`: all.
    pub(super) protocols: Option<BTreeSet<u8>>,
    /// Destination ports as inclusive ranges; `None`: all, and protocols without ports.
    pub(super) ports: Option<Vec<(u16, u16)>>,
    /// Interfaces that the packet came in by; `None`: all.
    pub(super) from: Option<BTreeSet<String>>,
    /// There is more that it asks for: it may not match, as far as we know.
    pub(super) more: bool,
    /// It asks for what connection tracking finds invalid, which is nobody's connection.
    pub(super) invalid: bool,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    /// Or rejects.
    Drop,
    Return,
    /// Asks another chain, and goes on after it.
    Jump(String),
    /// Asks another chain instead.
    Goto(String),
    /// Decides nothing.
    #[default]
    Continue,
}

impl Rule {
    /// Whether it may match a packet of a client to that port.
    pub(super) fn may_match(&self, (protocol, port): (u8, u16), clients: &BTreeSet<String>) -> bool {
        let by_protocol = self.protocols.as_ref().is_none_or(|all| all.contains(&protocol));
        let by_port =
            self.ports.as_ref().is_none_or(|all| all.iter().any(|(first, last)| (*first..=*last).contains(&port)));
        let from = self.from.as_ref().is_none_or(|all| {
            all.iter().any(|name| match name.strip_suffix(['+', '*']) {
                Some(prefix) => clients.iter().any(|client| client.starts_with(prefix)),
                None => clients.contains(name),
            })
        });
        by_protocol && by_port && from && !self.invalid
    }

    /// Whether it matches all such packets, wherever they come in.
    pub(super) fn always(&self, clients: &BTreeSet<String>) -> bool {
        !self.more && self.from.as_ref().is_none_or(|from| clients.is_subset(from))
    }
}
