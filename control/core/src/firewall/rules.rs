//! Rule sets in the one form that they are judged in, whatever tool shows them.

use std::{collections::BTreeMap, sync::Arc};

use super::ranges::Ranges;

/// Everything that a node's packet filters hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// All tables for IPv4 but ours and those that an engine alone uses.
    pub tables: Vec<Table>,
    /// Where an engine's routing mesh sends a published port's packets to (its `ingress_sbox`), as its own rules say.
    pub sandbox: Ranges,
    /// Sets that could not be read whole: their rules count for every source.
    pub unread: Vec<String>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// As in [`Table::chain`]: `ip`, `inet` or `netdev`.
    pub family: String,
    /// Name.
    pub name: String,
    /// By name.
    pub chains: BTreeMap<String, Chain>,
}

impl Table {
    /// What a chain is called everywhere, `--ignore-firewall` included: `ip:filter:DOCKER-USER`.
    pub fn chain(&self, name: &str) -> String {
        format!("{}:{}:{name}", self.family, self.name)
    }
}

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// If the kernel asks it directly.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Where a base chain is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// At which hook.
    pub hook: Hook,
    /// When, among the others there.
    pub priority: i32,
    /// It sees only the first packet of a connection.
    pub nat: bool,
    /// What no rule decides is dropped.
    pub drops: bool,
    /// Interfaces of a chain at [`Hook::Ingress`]; `None`: not known.
    pub devices: Option<Vec<String>>,
}

/// The hooks that a packet to a published port passes on an engine's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Of an interface.
    Ingress,
    /// Before routing; destination NAT is at priority -100.
    Prerouting,
    /// Between two interfaces.
    Forward,
    /// After routing.
    Postrouting,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// As its tool prints it.
    pub text: String,
    /// All of them must hold.
    pub conditions: Vec<Condition>,
    /// What then.
    pub verdict: Verdict,
}

/// What becomes of a packet that a rule matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The base chain lets it pass; sending it elsewhere counts as that.
    Accept,
    /// Dropped, rejected, or given to a program that may do so.
    Drop,
    /// Back to the chain that has asked.
    Return,
    /// Asks another chain, and goes on after it.
    Jump(String),
    /// Asks another chain instead.
    Goto(String),
    /// Nothing.
    #[default]
    Continue,
}

/// Addresses that a condition names: at most and at least these. The two differ where something cannot be read exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// No other address matches.
    pub most: Arc<Ranges>,
    /// Each of these matches.
    pub least: Arc<Ranges>,
}

impl Addresses {
    /// Just these.
    pub fn exactly(ranges: Ranges) -> Self {
        let both = Arc::new(ranges);
        Self { most: both.clone(), least: both }
    }

    /// Some of these, nobody knows which.
    pub fn some_of(ranges: Ranges) -> Self {
        Self { most: Arc::new(ranges), least: Arc::default() }
    }

    /// All others, if `negated`.
    #[must_use]
    pub fn negated(self, negated: bool) -> Self {
        if !negated {
            return self;
        }
        let exact = Arc::ptr_eq(&self.most, &self.least);
        let most = Arc::new(self.least.complement());
        Self { least: if exact { most.clone() } else { Arc::new(self.most.complement()) }, most }
    }
}

/// Which of a packet's properties a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Source, or the interface it came in by.
    Source,
    /// Destination, or the interface it leaves by.
    Destination,
    /// Source of the connection's first packet, as the client has sent it.
    OriginalSource,
    /// Destination of the connection's first packet, as the client has sent it.
    OriginalDestination,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// An address is one of these.
    Address(End, Addresses),
    /// A port lies in one of the inclusive ranges, or, if so negated, in none.
    Port {
        /// Which port.
        end: End,
        /// Inclusive ranges.
        ranges: Vec<(u16, u16)>,
        /// It lies in none.
        negated: bool,
        /// Otherwise some packets of these ports match only.
        exact: bool,
    },
    /// The IP protocol is one of these, or, if so negated, none.
    Protocol {
        /// Numbers.
        numbers: Vec<u8>,
        /// None of them.
        negated: bool,
    },
    /// An interface ([`End::Source`]: in, [`End::Destination`]: out) has one of these names; a trailing `*` stands for
    /// anything.
    Interface {
        /// Which interface.
        end: End,
        /// Names.
        names: Vec<String>,
        /// None of them.
        negated: bool,
    },
    /// Connection tracking calls the packet one of these, bits of [`state`], or, if so negated, none.
    State {
        /// Bits.
        states: u8,
        /// None of them.
        negated: bool,
    },
    /// The packet goes the way of the connection's first one, or, if so, the way back.
    Direction {
        /// Back.
        reply: bool,
    },
    /// The destination (or source) is an address of the node itself, or, if so negated, is not.
    Local {
        /// Which address.
        end: End,
        /// It is not.
        negated: bool,
    },
    /// Of the TCP flags in `mask` just those in `set` are there, or, if so negated, not just those.
    Flags {
        /// Looked at.
        mask: u8,
        /// Set among them.
        set: u8,
        /// Other ones are.
        negated: bool,
    },
    /// It may hold or not: it is about something that is not followed.
    Unknown,
    /// It never holds for a packet to a published port.
    Never,
}

/// Bits of [`Condition::State`].
pub mod state {
    /// Of no connection that is known.
    pub const NEW: u8 = 1;
    /// Of a known one that was answered.
    pub const ESTABLISHED: u8 = 2;
    /// About another connection, of none, or not tracked: never a packet to a published port.
    pub const OTHER: u8 = 4;
    /// Its destination was translated.
    pub const TRANSLATED: u8 = 8;
}
